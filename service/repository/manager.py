"""ModelRepository: the table of versions, and the one step that brings it towards what is wanted.

Theory of operation
===================

The table holds a record for every version ever seen: its state, the reason for it, and, while it is in service, the
loaded model. Exactly one thing changes it: `reconcile`. It looks at the folder (in a thread), asks the pure policy for
the next actions of each model, carries them out, and asks again until there are none. The start, the poll and an admin
call are all the same step, at different times.

*Leases.* A request takes a lease on one version and holds it until its answer. The lease decides once which version
that is; a swap in between changes nothing for it. A version is freed when it is UNLOADING and its last lease has ended,
so nothing is ever closed under a request.

*Availability first.* A new version loads beside the old one and takes over in one assignment (`_serve`), when it is
READY and not before. A version that fails its gates stays out, with its reason in the table, and the old one keeps
serving; it is tried again when its files change. A folder that vanishes, empties or cannot be read unloads nothing.

*By name.* An unload is held: nothing of the model comes back until it is loaded by name, or the process starts again.
A load by name looks at the folder at once, takes what is there as complete, tries again what failed, and loads a
version in service whose files have changed beside itself: the old one serves until the new one is ready, and on if
that fails.

*Complete versions.* At the start everything in the folder counts. Later, a version counts once two looks in a row saw
the same files: a copy in progress is left alone, a rename into place is seen at the second look.

All state belongs to the event loop. Loading is blocking and runs where the loader puts it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from service.errors import ConfigurationError, LoadRefused, ModelNotFound, ModelNotReady
from service.messages import ModelRef
from service.repository import policy as policies
from service.repository.policy import Latest, Load, VersionPolicy
from service.repository.source import Fingerprint, FoundModel
from service.repository.states import ModelState, check

logger = logging.getLogger(__name__)

_UNLOADED = "unloaded"  # Triton's word in the index


class Servable(Protocol):
    """What the repository must be able to do with a loaded version."""

    async def drain(self) -> None: ...

    def close(self) -> None: ...


ModelT = TypeVar("ModelT", bound=Servable)
LoadedT_co = TypeVar("LoadedT_co", bound=Servable, covariant=True)


class Source(Protocol):
    def scan(self) -> dict[str, FoundModel]: ...


class Loader(Protocol[LoadedT_co]):
    """How versions come to life. Both raise ConfigurationError with the reason for a person."""

    def version_policy(self, model: FoundModel) -> VersionPolicy: ...

    async def load(self, model: FoundModel, version: int) -> LoadedT_co: ...


class Observer(Protocol):
    """What the repository reports."""

    def models_found(self, names: Iterable[str]) -> None: ...

    def load_finished(self, model: str, *, ok: bool) -> None: ...


@dataclass(slots=True)
class _Record(Generic[ModelT]):
    """One version. `loaded` is set in READY and UNLOADING only."""

    fingerprint: Fingerprint
    state: ModelState = ModelState.UNKNOWN
    reason: str = ""
    loaded: ModelT | None = None
    leases: int = 0
    unused: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Model(Generic[ModelT]):
    found: FoundModel
    problem: str | None = None
    policy: VersionPolicy = field(default_factory=Latest)
    records: dict[int, _Record[ModelT]] = field(default_factory=dict)
    default: int | None = None


@dataclass(frozen=True, slots=True)
class VersionStatus(Generic[ModelT]):
    version: int
    state: ModelState
    reason: str
    loaded: ModelT | None


@dataclass(frozen=True, slots=True)
class ModelStatus(Generic[ModelT]):
    """One line of the index. `default` is the version that answers requests without one; `card` a file to read."""

    name: str
    problem: str | None
    default: int | None
    versions: tuple[VersionStatus[ModelT], ...]
    card: Path | None = None

    @property
    def is_ready(self) -> bool:
        return self.default is not None

    @property
    def reason(self) -> str:
        """Why the model is not ready; empty where it is."""
        if self.is_ready:
            return ""
        if self.problem:
            return self.problem
        newest_first = sorted(self.versions, key=lambda status: -status.version)
        reasons = (f"version {status.version}: {status.reason}" for status in newest_first if status.reason)
        loading = any(status.state is ModelState.LOADING for status in self.versions)
        return next(reasons, "it is loading" if loading else "version_policy names no version that is there")


class ModelRepository(Generic[ModelT]):
    """See the theory of operation above. Event loop only."""

    def __init__(self, source: Source, loader: Loader[ModelT], observer: Observer) -> None:
        self._source = source
        self._loader = loader
        self._observer = observer
        self._models: dict[str, _Model[ModelT]] = {}
        self._seen: dict[str, FoundModel] | None = None
        self._looked_once = False
        self._held: set[str] = set()  # unloaded by name
        self._reconciling = asyncio.Lock()
        self._unloads: set[asyncio.Task[None]] = set()

    # Serving

    @contextmanager
    def lease(self, ref: ModelRef) -> Iterator[tuple[int, ModelT]]:
        """One version, pinned until the block ends. Raises ModelNotFound or ModelNotReady."""
        version, record = self._find(ref)
        assert record.loaded is not None
        record.leases += 1
        try:
            yield version, record.loaded
        finally:
            record.leases -= 1
            if record.leases == 0:
                record.unused.set()

    def _unknown(self, name: str) -> ModelNotFound | ModelNotReady:
        """Before the folder was read nobody knows what it holds: a client, or a proxy, had better ask again."""
        if self._seen is None:
            return ModelNotReady(f"Model {name!r} is not ready: the repository has not been read yet.")
        return ModelNotFound(f"Request for unknown model: {name!r} is not found.")

    def _find(self, ref: ModelRef) -> tuple[int, _Record[ModelT]]:
        model = self._models.get(ref.name)
        if model is None:
            raise self._unknown(ref.name)
        version = model.default if ref.version is None else ref.version
        if version is None:
            raise ModelNotReady(f"Model {ref.name!r} is not ready: {self._status(ref.name, model).reason}.")
        record = model.records.get(version)
        if record is None:
            raise ModelNotFound(f"Request for unknown model: {ref.name!r} version {version} is not found.")
        if record.state is not ModelState.READY:
            state = record.state.lower()
            raise ModelNotReady(f"Version {version} of model {ref.name!r} is {state}{_because(record.reason)}.")
        return version, record

    # What there is

    def index(self) -> list[ModelStatus[ModelT]]:
        """Every model and version known, by name, versions ascending."""
        return [self._status(name, model) for name, model in sorted(self._models.items())]

    def status(self, name: str) -> ModelStatus[ModelT]:
        """One model. Raises ModelNotFound, or ModelNotReady before the first look."""
        if name not in self._models:
            raise self._unknown(name)
        return self._status(name, self._models[name])

    def states(self) -> Iterator[tuple[str, str, str]]:
        """(model, version, state) for the metrics."""
        for name, model in self._models.items():
            for version, record in model.records.items():
                yield name, str(version), record.state.value

    @property
    def ready_models(self) -> list[str]:
        return [name for name, model in self._models.items() if model.default is not None]

    @property
    def first_loads_pending(self) -> bool:
        """Whether a model that never served may still come up by itself."""
        return not self._looked_once or any(
            model.default is None and record.state is ModelState.LOADING
            for model in self._models.values()
            for record in model.records.values()
        )

    # Changing it

    async def reconcile(self) -> None:
        """Bring the table towards what the folder and the policies want. Concurrent calls wait for each other.

        Raises ConfigurationError where the folder cannot be read; what is loaded stays.
        """
        async with self._reconciling:
            try:
                await self._reconcile_all()
            finally:
                self._looked_once = True

    async def load(self, name: str) -> None:
        """Bring a model into service, or up to date, by name. Raises ModelNotFound, LoadRefused, ConfigurationError."""
        async with self._reconciling:
            if leaving := {task for task in self._unloads if task.get_name() == _task_name(name)}:
                await asyncio.wait(leaving)
            self._held.discard(name)
            await self._reconcile_all(by_name=name)
            model = self._models.get(name)
            if model is None:
                raise ModelNotFound(f"failed to load {name!r}: there is no such model.")
            for version, record in sorted(model.records.items()):
                fingerprint = model.found.versions.get(version)
                if record.state is ModelState.READY and fingerprint not in (None, record.fingerprint):
                    await self._replace(name, model, version)
            if model.default is None:
                raise LoadRefused(f"failed to load {name!r}: {self._status(name, model).reason}")

    async def unload(self, name: str) -> None:
        """Take a model out of service until `load`. Its requests are still answered. Raises ModelNotFound."""
        async with self._reconciling:
            model = self._models.get(name)
            if model is None:
                raise ModelNotFound(f"Request for unknown model: {name!r} is not found.")
            self._held.add(name)
            for version, record in model.records.items():
                if record.state is ModelState.READY:
                    self._begin_unload(name, model, version, _UNLOADED)
                else:
                    record.reason = record.reason or _UNLOADED

    async def _replace(self, name: str, model: _Model[ModelT], version: int) -> None:
        """Load a version again beside itself, and swap. Raises LoadRefused; what serves then stays."""
        old = model.records[version]
        new: _Record[ModelT] = _Record(model.found.versions[version])
        try:
            new.loaded = await self._loader.load(model.found, version)
        except ConfigurationError as error:
            self._observer.load_finished(name, ok=False)
            raise LoadRefused(f"failed to load {name!r}: version {version}: {error}") from None
        for state in (ModelState.LOADING, ModelState.READY):
            self._move(name, version, new, state)
        model.records[version] = new
        self._retire(name, version, old)
        self._observer.load_finished(name, ok=True)

    async def _reconcile_all(self, by_name: str | None = None) -> None:
        seen = await asyncio.to_thread(self._source.scan)
        settled = _settled(seen, self._seen)
        if by_name in seen:
            settled[by_name] = dict(seen[by_name].versions)
            self._forget_failures(by_name)
        for found in seen.values():
            self._note(found)
        self._forget_what_is_gone(seen)
        self._seen = seen
        self._observer.models_found(self._models)
        async with asyncio.TaskGroup() as group:
            for name, model in self._models.items():
                group.create_task(self._reconcile_model(name, model, settled.get(name, {})))

    def _forget_failures(self, name: str) -> None:
        records = self._models[name].records.values() if name in self._models else ()
        for record in records:
            if record.state is ModelState.UNAVAILABLE:
                record.fingerprint = ()

    def _forget_what_is_gone(self, seen: dict[str, FoundModel]) -> None:
        """Drop records of versions that are neither in the folder nor in service."""
        for name, model in list(self._models.items()):
            present = seen[name].versions if name in seen else {}
            for version, record in list(model.records.items()):
                if version not in present and record.state in (ModelState.UNKNOWN, ModelState.UNAVAILABLE):
                    del model.records[version]
            if name not in seen and not model.records:
                del self._models[name]

    def _note(self, found: FoundModel) -> None:
        model = self._models.setdefault(found.name, _Model(found))
        problem_before = model.problem
        model.found, model.problem = found, found.problem
        if found.problem is None:
            try:
                model.policy = self._loader.version_policy(found)
            except ConfigurationError as error:
                model.problem = str(error)
        if model.problem is not None and model.problem != problem_before:
            logger.warning("model_problem", extra={"model": found.name, "reason": model.problem})
        for version, fingerprint in found.versions.items():
            record = model.records.setdefault(version, _Record(fingerprint))
            if record.state is ModelState.UNKNOWN:
                record.reason = model.problem or (_UNLOADED if found.name in self._held else "")

    async def _reconcile_model(self, name: str, model: _Model[ModelT], settled: dict[int, Fingerprint]) -> None:
        if model.problem is not None or name in self._held:
            return
        available = settled | {
            version: record.fingerprint
            for version, record in model.records.items()
            if record.state is ModelState.READY and version in model.found.versions
        }
        while True:
            failed = {
                version
                for version, record in model.records.items()
                if record.state is ModelState.UNAVAILABLE and record.fingerprint == available.get(version)
            }
            states = {version: record.state for version, record in model.records.items()}
            steps = policies.actions(model.policy, available, failed, states)
            if not steps:
                return
            for step in steps:
                if isinstance(step, Load):
                    await self._load(name, model, step.version, available[step.version])
                else:
                    self._begin_unload(name, model, step.version)

    async def _load(self, name: str, model: _Model[ModelT], version: int, fingerprint: Fingerprint) -> None:
        record = model.records[version]
        record.fingerprint = fingerprint
        self._move(name, version, record, ModelState.LOADING)
        try:
            loaded = await self._loader.load(model.found, version)
        except ConfigurationError as error:
            self._move(name, version, record, ModelState.UNAVAILABLE, str(error))
        except asyncio.CancelledError:
            record.fingerprint = ()  # tried again at the next look
            self._move(name, version, record, ModelState.UNAVAILABLE, "loading was interrupted")
            raise
        except Exception as error:
            logger.exception("model_load_failed", extra={"model": name, "version": version})
            self._move(name, version, record, ModelState.UNAVAILABLE, f"loading failed: {type(error).__name__}")
        else:
            record.loaded = loaded
            self._move(name, version, record, ModelState.READY)
            self._serve(model)
        self._observer.load_finished(name, ok=record.state is ModelState.READY)

    def _serve(self, model: _Model[ModelT]) -> None:
        ready = [version for version, record in model.records.items() if record.state is ModelState.READY]
        model.default = max(ready, default=None)

    def _begin_unload(self, name: str, model: _Model[ModelT], version: int, reason: str = "") -> None:
        self._retire(name, version, model.records[version], reason)
        self._serve(model)

    def _retire(self, name: str, version: int, record: _Record[ModelT], reason: str = "") -> None:
        """Free a version once its last lease has ended."""
        self._move(name, version, record, ModelState.UNLOADING, reason)
        task = asyncio.get_running_loop().create_task(self._unload(name, version, record), name=_task_name(name))
        self._unloads.add(task)
        task.add_done_callback(self._unloads.discard)

    async def _unload(self, name: str, version: int, record: _Record[ModelT]) -> None:
        assert record.loaded is not None
        while record.leases:
            record.unused.clear()
            await record.unused.wait()
        await record.loaded.drain()
        record.loaded.close()
        record.loaded = None
        self._move(name, version, record, ModelState.UNKNOWN, record.reason)

    async def close(self) -> None:
        """Unload everything, the last good versions too. Only when no request can come any more."""
        for name, model in self._models.items():
            for version, record in model.records.items():
                if record.state is ModelState.READY:
                    self._begin_unload(name, model, version)
        if self._unloads:
            await asyncio.wait(self._unloads)

    def _move(self, name: str, version: int, record: _Record[ModelT], state: ModelState, reason: str = "") -> None:
        check(record.state, state)
        level = logging.WARNING if state is ModelState.UNAVAILABLE else logging.INFO
        change = {"model": name, "version": version, "old": record.state.value, "new": state.value}
        logger.log(level, "model_state_change", extra=change | ({"reason": reason} if reason else {}))
        record.state, record.reason = state, reason

    @staticmethod
    def _status(name: str, model: _Model[ModelT]) -> ModelStatus[ModelT]:
        versions = tuple(
            VersionStatus(version, record.state, record.reason, record.loaded)
            for version, record in sorted(model.records.items())
        )
        return ModelStatus(name, model.problem, model.default, versions, model.found.card)


async def watch(
    reconcile: Callable[[], Awaitable[None]], interval_seconds: float, failed: Callable[[str], None]
) -> None:
    """Reconcile for ever, every `interval_seconds`; `failed` hears why a look at the folder did not work."""
    while True:
        await asyncio.sleep(interval_seconds)
        try:
            await reconcile()
        except ConfigurationError as error:
            failed(str(error))


def _settled(seen: dict[str, FoundModel], before: dict[str, FoundModel] | None) -> dict[str, dict[int, Fingerprint]]:
    """Versions that were the same at the look before; at the first look, all of them."""
    return {
        name: {
            version: fingerprint
            for version, fingerprint in found.versions.items()
            if before is None or (name in before and before[name].versions.get(version) == fingerprint)
        }
        for name, found in seen.items()
    }


def _task_name(model: str) -> str:
    return f"unload {model}"


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""
