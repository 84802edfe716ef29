"""What to load and what to unload. Pure: what is wanted and what is, in; actions, out. Availability first."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from service.repository.rollout import Rollout
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


_NO_ROLLOUT = Rollout()


def wanted(
    policy: VersionPolicy,
    available: Iterable[int],
    failed: Collection[int],
    rollout: Rollout = _NO_ROLLOUT,
    also: Collection[int] = (),
) -> list[int]:
    """Versions that should be in service, in the order to load them. A failed one makes room for the next lower.

    Those of the rollout, and those in `also`, come besides those of the policy; canary and shadow are no `latest`.
    """
    candidates = sorted((version for version in available if version not in failed), reverse=True)
    if policy == "all":
        chosen = candidates
    elif isinstance(policy, Latest):
        chosen = [version for version in candidates if version not in rollout.aside][: policy.count]
    else:
        chosen = [version for version in candidates if version in policy]
    besides = rollout.versions.union(also).difference(chosen)
    named = [version for version in candidates if version in besides]
    return sorted(chosen + named, key=lambda version: (version != rollout.stable, version in rollout.aside, -version))


def actions(
    policy: VersionPolicy,
    available: Collection[int],
    failed: Collection[int],
    states: Mapping[int, ModelState],
    rollout: Rollout = _NO_ROLLOUT,
    *,
    also: Collection[int] = (),
    kept: Collection[int] = (),
) -> list[Action]:
    """The next steps for one model: loads first; unloads only once everything wanted is ready.

    A version that is in service is unloaded only when another one is wanted and ready: an emptied or vanished folder
    takes nothing away. Those in `kept` are neither loaded nor unloaded.
    """
    target = wanted(policy, available, failed, rollout, also)
    ready = {version for version, state in states.items() if state is ModelState.READY}
    busy = {version for version, state in states.items() if state in (ModelState.LOADING, ModelState.UNLOADING)}
    loads: list[Action] = [Load(version) for version in target if version not in ready | busy]
    if loads or not target or not set(target) <= ready:
        return loads
    return [Unload(version) for version in sorted(ready - set(target) - set(kept))]
