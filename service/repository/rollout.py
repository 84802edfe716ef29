"""Who answers requests that name no version. Pure: what was asked for and what is ready, in; versions, out.

stable   answers them; without one named, the highest that is ready and has no other role
canary   answers a percentage of them instead: always the same keys, or random requests that have none
shadow   answers nobody: it is shown a percentage of the stable version's batches
"""

import hashlib
import random
from collections.abc import Collection
from dataclasses import dataclass

_STEPS = 1 << 32


@dataclass(frozen=True, slots=True)
class Share:
    """A version and its percentage."""

    version: int
    percent: float


@dataclass(frozen=True, slots=True)
class Rollout:
    """What was asked for. None: as the version policy says, and nobody."""

    stable: int | None = None
    canary: Share | None = None
    shadow: Share | None = None

    @property
    def versions(self) -> frozenset[int]:
        """Every version that it names."""
        shares = {share.version for share in (self.canary, self.shadow) if share is not None}
        return frozenset(shares if self.stable is None else shares | {self.stable})

    @property
    def aside(self) -> frozenset[int]:
        """Versions that are not to become the stable one by being the highest."""
        return self.versions - {self.stable}


def stable_of(rollout: Rollout, ready: Collection[int]) -> int | None:
    """The version that answers. Where the one named is not ready, the one below it that is; any before none."""
    if rollout.stable in ready:
        return rollout.stable
    candidates = [version for version in ready if version not in rollout.aside] or list(ready)
    if rollout.stable is not None:
        candidates = [version for version in candidates if version < rollout.stable] or candidates
    return max(candidates, default=None)


def goes_to_canary(model: str, key: str | None, percent: float) -> bool:
    """Whether a request is the canary's. A key stays there while the percentage does not fall, on every replica."""
    if key is None:
        return random.random() * 100.0 < percent  # noqa: S311  # who is asked is no secret
    digest = hashlib.blake2b(f"{model}\0{key}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / _STEPS * 100.0 < percent
