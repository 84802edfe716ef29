"""The table of versions: what is known of each, which of them has which role, and how that is told.

Changes nothing by itself: `manager.ModelRepository` moves versions through their states, in this table.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from service.errors import ModelNotFound, ModelNotReady
from service.messages import ModelRef
from service.repository.policy import Latest, VersionPolicy
from service.repository.rollout import Rollout, Share, goes_to_canary, stable_of
from service.repository.source import Fingerprint, FoundModel
from service.repository.states import ModelState

NO_ROLLOUT = Rollout()


class Servable(Protocol):
    """What the repository must be able to do with a loaded version. `fault` is why it cannot serve now, or empty."""

    @property
    def fault(self) -> str: ...

    async def drain(self) -> None: ...

    def close(self) -> None: ...


ModelT = TypeVar("ModelT", bound=Servable)


@dataclass(frozen=True, slots=True)
class VersionStatus(Generic[ModelT]):
    version: int
    state: ModelState
    reason: str
    loaded: ModelT | None


@dataclass(frozen=True, slots=True)
class ModelStatus(Generic[ModelT]):
    """One line of the index. `default` is the version that answers requests without one, `fault` why it cannot now.

    `card` is a file to read; `is_new` says that the folder was seen for the first time at the last look.
    """

    name: str
    problem: str | None
    default: int | None
    versions: tuple[VersionStatus[ModelT], ...]
    card: Path | None = None
    fault: str = ""
    is_new: bool = False

    @property
    def is_ready(self) -> bool:
        return self.default is not None and not self.fault

    @property
    def reason(self) -> str:
        """Why the model is not ready; empty where it is."""
        if self.is_ready:
            return ""
        if self.fault:
            return f"version {self.default}: {self.fault}"
        if self.problem:
            return self.problem
        newest_first = sorted(self.versions, key=lambda status: -status.version)
        reasons = (f"version {status.version}: {status.reason}" for status in newest_first if status.reason)
        if any(status.state is ModelState.LOADING for status in self.versions):
            otherwise = "it is loading"
        elif self.is_new:
            otherwise = "it has just appeared, and is loaded once two looks at its folder agree"
        else:
            otherwise = "version_policy names no version that is there"
        return next(reasons, otherwise)


@dataclass(frozen=True, slots=True)
class RolloutStatus:
    """What was asked for, and who has which role now. A version that is not ready has none."""

    asked: Rollout
    stable: int | None
    canary: Share | None
    shadow: Share | None


@dataclass(slots=True)
class VersionRecord(Generic[ModelT]):
    """One version. `loaded` is set in READY and UNLOADING only."""

    fingerprint: Fingerprint
    state: ModelState = ModelState.UNKNOWN
    reason: str = ""
    loaded: ModelT | None = None
    leases: int = 0
    attempts: int = 0
    retry_at: float = 0.0
    unused: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def fault(self) -> str:
        return "" if self.loaded is None else self.loaded.fault


class Lease(Generic[ModelT]):
    """One version, pinned for the length of a `with` block. A class, as a generator would cost a request more."""

    __slots__ = ("_record", "_version")

    def __init__(self, version: int, record: VersionRecord[ModelT]) -> None:
        self._version = version
        self._record = record

    def __enter__(self) -> tuple[int, ModelT]:
        loaded = self._record.loaded
        assert loaded is not None
        self._record.leases += 1
        return self._version, loaded

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._record.leases -= 1
        if self._record.leases == 0:
            self._record.unused.set()


@dataclass(slots=True)
class ModelRecord(Generic[ModelT]):
    """One model: its versions, and what they are for."""

    found: FoundModel
    problem: str | None = None
    policy: VersionPolicy = field(default_factory=Latest)
    records: dict[int, VersionRecord[ModelT]] = field(default_factory=dict)
    rollout: Rollout = NO_ROLLOUT
    configured: Rollout = NO_ROLLOUT  # what model.toml said last
    coming: frozenset[int] = frozenset()  # asked for by a call that waits for them
    is_new: bool = False  # its folder was seen for the first time at the last look
    previous: int | None = None  # was stable before the last call
    default: int | None = None
    canary: Share | None = None

    @property
    def name(self) -> str:
        return self.found.name

    @property
    def ready(self) -> set[int]:
        """Versions in service."""
        return {version for version, record in self.records.items() if record.state is ModelState.READY}

    @property
    def available(self) -> dict[int, Fingerprint]:
        """Versions in service whose files are there."""
        return {version: self.records[version].fingerprint for version in self.ready if version in self.found.versions}

    def failed(self, available: dict[int, Fingerprint], now: float) -> set[int]:
        """Versions that did not load from the files that are there, and are not to be tried again yet."""
        return {
            version
            for version, record in self.records.items()
            if record.state is ModelState.UNAVAILABLE
            and record.fingerprint == available.get(version)
            and not 0 < record.retry_at <= now
        }

    def assign_roles(self) -> None:
        """Give every role to whom it belongs now."""
        ready = self.ready
        self.default = stable_of(self.rollout, ready)
        canary = self.rollout.canary
        self.canary = canary if canary and canary.version in ready and canary.version != self.default else None

    def choose(self, ref: ModelRef) -> tuple[int, VersionRecord[ModelT]]:
        """The version that answers `ref`, which can. Raises ModelNotFound or ModelNotReady."""
        version = ref.version
        if version is None:
            version = self.default
            if self.canary is not None:
                version = self._canary_or(version, self.canary, ref)
        if version is None:
            raise ModelNotReady(f"Model {ref.name!r} is not ready: {self.status.reason}.")
        record = self.records.get(version)
        if record is None:
            raise ModelNotFound(f"Request for unknown model: {ref.name!r} version {version} is not found.")
        if record.state is not ModelState.READY:
            because = f": {record.reason}" if record.reason else ""
            raise ModelNotReady(f"Version {version} of model {ref.name!r} is {record.state.lower()}{because}.")
        assert record.loaded is not None
        if record.loaded.fault:
            raise ModelNotReady(f"Version {version} of model {ref.name!r} is not ready: {record.loaded.fault}.")
        return version, record

    def _canary_or(self, stable: int | None, canary: Share, ref: ModelRef) -> int | None:
        is_its = goes_to_canary(ref.name, ref.key, canary.percent)
        return canary.version if is_its and not self.records[canary.version].fault else stable

    # How it is told

    @property
    def is_ready(self) -> bool:
        """Whether requests without a version are answered."""
        return self.default is not None and not self.records[self.default].fault

    @property
    def is_coming_up(self) -> bool:
        """Whether it never served and may still do so by itself."""
        return self.default is None and any(record.state is ModelState.LOADING for record in self.records.values())

    @property
    def status(self) -> ModelStatus[ModelT]:
        versions = tuple(
            VersionStatus(version, record.state, record.reason or record.fault, record.loaded)
            for version, record in sorted(self.records.items())
        )
        fault = "" if self.default is None else self.records[self.default].fault
        return ModelStatus(self.name, self.problem, self.default, versions, self.found.card, fault, self.is_new)

    @property
    def rollout_status(self) -> RolloutStatus:
        shadow = self.rollout.shadow
        in_service = shadow is not None and shadow.version in self.ready
        return RolloutStatus(self.rollout, self.default, self.canary, shadow if in_service else None)

    def roles(self) -> Iterator[tuple[int, str, float]]:
        """(version, role, share of what it gets)."""
        status = self.rollout_status
        canary = status.canary.percent / 100.0 if status.canary else 0.0
        if status.stable is not None:
            yield status.stable, "stable", 1.0 - canary
        if status.canary is not None:
            yield status.canary.version, "canary", canary
        if status.shadow is not None:
            yield status.shadow.version, "shadow", status.shadow.percent / 100.0
