"""What to load and what to unload. Pure: what is wanted and what is, in; actions, out. Availability first."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from service.repository.states import ModelState


@dataclass(frozen=True, slots=True)
class Latest:
    """The `count` highest versions that pass their gates."""

    count: int = 1


VersionPolicy = Latest | Literal["all"] | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Load:
    version: int


@dataclass(frozen=True, slots=True)
class Unload:
    version: int


Action = Load | Unload


def wanted(policy: VersionPolicy, available: Iterable[int], failed: Collection[int]) -> list[int]:
    """Versions that should be in service, highest first. A failed one makes room for the next lower."""
    candidates = sorted((version for version in available if version not in failed), reverse=True)
    if policy == "all":
        return candidates
    if isinstance(policy, Latest):
        return candidates[: policy.count]
    return [version for version in candidates if version in policy]


def actions(
    policy: VersionPolicy, available: Collection[int], failed: Collection[int], states: Mapping[int, ModelState]
) -> list[Action]:
    """The next steps for one model: loads first; unloads only once everything wanted is ready.

    A version that is in service is unloaded only when another one is wanted and ready: an emptied or vanished folder
    takes nothing away.
    """
    target = wanted(policy, available, failed)
    ready = {version for version, state in states.items() if state is ModelState.READY}
    busy = {version for version, state in states.items() if state in (ModelState.LOADING, ModelState.UNLOADING)}
    loads: list[Action] = [Load(version) for version in target if version not in ready | busy]
    if loads or not target or not set(target) <= ready:
        return loads
    return [Unload(version) for version in sorted(ready - set(target))]
