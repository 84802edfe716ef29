"""ModelRepository: leases on versions, and the one step that brings their table towards what is wanted.

Theory of operation
===================

The table (`table.py`) holds a record for every version ever seen: its state, the reason for it, and, while it is in
service, the loaded model. Exactly one thing changes it: `reconcile`. It looks at the folder (in a thread), asks the
pure policy for the next actions of each model, carries them out, and asks again until there are none. The start, the
poll and an admin call are all the same step, at different times.

*Leases.* A request takes a lease on one version and holds it until its answer. The lease decides once which version
that is; a swap in between changes nothing for it. A version is freed when it is UNLOADING and its last lease has ended,
so nothing is ever closed under a request.

*Availability first.* A new version loads beside the old one and takes over in one assignment (`_serve`), when it is
READY and not before. A version that fails its gates stays out, with its reason in the table, and the old one keeps
serving; it is tried again when its files change, and a few times where the reason may pass by itself. A folder that
vanishes, empties or cannot be read unloads nothing. Nor does one that hangs (`scanner.py`).

*Roles.* Which versions are in service is the policy's and the rollout's; who answers requests without a version is the
rollout's alone, and takes effect by assigning `default` and `canary`: a rollback between versions in service is done at
once, whatever is being loaded. The version that a call replaced stays in service until the next call, so that going
back is such a case. A call names versions that are not in service: they are loaded first, and nothing changes if one
fails its gates. A [rollout] in model.toml that changes replaces what a call said.

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
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from service.errors import (
    ConfigurationError,
    LoadRefused,
    ModelLoadError,
    ModelNotFound,
    ModelNotReady,
    RolloutRefused,
)
from service.messages import ModelRef
from service.repository import policy as policies
from service.repository.policy import Load, VersionPolicy
from service.repository.rollout import Rollout
from service.repository.scanner import Scanner, Source
from service.repository.source import Fingerprint, FoundModel
from service.repository.states import ModelState, check
from service.repository.table import (
    NO_ROLLOUT,
    Lease,
    ModelRecord,
    ModelStatus,
    ModelT,
    RolloutStatus,
    Servable,
    VersionRecord,
)

logger = logging.getLogger(__name__)

RETRIES = 5
RETRY_SECONDS = 60.0
_PASSING = frozenset({"files", "engine", "time_out", "internal"})  # gates whose reason may pass: memory, a file system
_UNLOADED = "unloaded"  # Triton's word in the index


LoadedT_co = TypeVar("LoadedT_co", bound=Servable, covariant=True)


class Loader(Protocol[LoadedT_co]):
    """How versions come to life. All raise ConfigurationError with the reason for a person."""

    def version_policy(self, model: FoundModel) -> VersionPolicy: ...

    def rollout(self, model: FoundModel) -> Rollout: ...

    async def load(self, model: FoundModel, version: int) -> LoadedT_co: ...


class Observer(Protocol):
    """What the repository reports."""

    def models_found(self, names: Iterable[str]) -> None: ...

    def load_finished(self, model: str, *, ok: bool, seconds: float = 0.0, gate: str = "") -> None:
        """`gate` is which check a version failed."""
        ...


class ModelRepository(Generic[ModelT]):
    """See the theory of operation above. Event loop only.

    `roles_changed` hears of every model whose roles may have changed.
    """

    def __init__(
        self,
        source: Source,
        loader: Loader[ModelT],
        observer: Observer,
        roles_changed: Callable[[str], None] = lambda name: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scanner = Scanner(source)
        self._loader = loader
        self._observer = observer
        self._roles_changed = roles_changed
        self._clock = clock
        self._models: dict[str, ModelRecord[ModelT]] = {}
        self._seen: dict[str, FoundModel] | None = None
        self._looked_once = False
        self._held: set[str] = set()  # unloaded by name
        self._reconciling = asyncio.Lock()
        self._unloads: set[asyncio.Task[None]] = set()
        self._tidying: set[asyncio.Task[None]] = set()

    # Serving

    def lease(self, ref: ModelRef) -> Lease[ModelT]:
        """A version, to be entered at once: pinned until the block ends. Raises ModelNotFound or ModelNotReady."""
        return Lease(*self._known(ref.name).choose(ref))

    def _known(self, name: str) -> ModelRecord[ModelT]:
        """Raises ModelNotFound; ModelNotReady before the first look: a client, or a proxy, had better ask again."""
        model = self._models.get(name)
        if model is not None:
            return model
        if self._seen is None:
            raise ModelNotReady(f"Model {name!r} is not ready: the repository has not been read yet.")
        raise ModelNotFound(f"Request for unknown model: {name!r} is not found.")

    # What there is

    def index(self) -> list[ModelStatus[ModelT]]:
        """Every model and version known, by name, versions ascending."""
        return [model.status for _, model in sorted(self._models.items())]

    def status(self, name: str) -> ModelStatus[ModelT]:
        """One model. Raises ModelNotFound, or ModelNotReady before the first look."""
        return self._known(name).status

    def states(self) -> Iterator[tuple[str, str, str]]:
        """(model, version, state) for the metrics."""
        for name, model in self._models.items():
            for version, record in model.records.items():
                yield name, str(version), record.state.value

    def roles(self) -> Iterator[tuple[str, str, str, float]]:
        """(model, version, role, share of what it gets) for the metrics."""
        for name, model in self._models.items():
            for version, role, share in model.roles():
                yield name, str(version), role, share

    def loaded(self) -> Iterator[ModelT]:
        """Every version in service or leaving it."""
        for model in self._models.values():
            for record in model.records.values():
                if record.loaded is not None:
                    yield record.loaded

    def rollout(self, name: str) -> RolloutStatus:
        """Raises ModelNotFound, or ModelNotReady before the first look."""
        return self._known(name).rollout_status

    @property
    def ready_models(self) -> list[str]:
        return [name for name, model in self._models.items() if model.is_ready]

    @property
    def first_loads_pending(self) -> bool:
        """Whether a model that never served may still come up by itself."""
        return not self._looked_once or any(model.is_coming_up for model in self._models.values())

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
                raise LoadRefused(f"failed to load {name!r}: {model.status.reason}")

    async def set_rollout(self, name: str, asked: Rollout) -> None:
        """Give versions their roles, loading those that are not in service first. Raises ModelNotFound, RolloutRefused.

        Between versions in service it waits for nothing.
        """
        if not asked.versions <= self._known(name).ready:
            await self._bring_up(name, asked)
        model = self._models[name]
        replaced = model.default
        model.rollout = asked
        self._serve(name, model)
        if model.default != replaced:
            model.previous = replaced
        elif asked == NO_ROLLOUT:
            model.previous = None
        logger.info("rollout_changed", extra={"model": name, "default": model.default, "rollout": str(asked)})
        task = asyncio.get_running_loop().create_task(self._tidy())
        self._tidying.add(task)
        task.add_done_callback(self._tidying.discard)

    async def _bring_up(self, name: str, asked: Rollout) -> None:
        """Load what a rollout names. Raises ModelNotFound or RolloutRefused where that cannot be."""
        async with self._reconciling:
            self._models[name].coming = asked.versions
            try:
                await self._reconcile_all(by_name=name)
            finally:
                if name in self._models:
                    self._models[name].coming = frozenset()
            model = self._models.get(name)
            for version in sorted(asked.versions):
                record = model.records.get(version) if model is not None else None
                if model is None or record is None:
                    raise ModelNotFound(f"Model {name!r} has no version {version}.")
                if record.state is not ModelState.READY:
                    reason = model.problem or record.reason or record.state.lower()
                    raise RolloutRefused(f"Version {version} of model {name!r} is not ready: {reason}")

    async def _tidy(self) -> None:
        """Load and unload what a change of roles has left to do."""
        try:
            await self.reconcile()
        except ConfigurationError as error:
            logger.warning("repository_unreadable", extra={"reason": str(error)})

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

    async def _replace(self, name: str, model: ModelRecord[ModelT], version: int) -> None:
        """Load a version again beside itself, and swap. Raises LoadRefused; what serves then stays."""
        old = model.records[version]
        new: VersionRecord[ModelT] = VersionRecord(model.found.versions[version])
        began_at = self._clock()
        try:
            new.loaded = await self._loader.load(model.found, version)
        except ConfigurationError as error:
            self._observer.load_finished(name, ok=False, gate=_gate_of(error))
            raise LoadRefused(f"failed to load {name!r}: version {version}: {error}") from None
        for state in (ModelState.LOADING, ModelState.READY):
            self._move(name, version, new, state)
        model.records[version] = new
        self._serve(name, model)
        self._retire(name, version, old)
        self._observer.load_finished(name, ok=True, seconds=self._clock() - began_at)

    async def _reconcile_all(self, by_name: str | None = None) -> None:
        seen = await self._scanner.scan()
        settled = _settled(seen, self._seen)
        if by_name in seen:
            settled[by_name] = dict(seen[by_name].versions)
            self._forget_failures(by_name)
        for name, found in seen.items():
            self._note(found)
            self._models[name].is_new = bool(found.versions) and not settled[name]
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
        model = self._models.setdefault(found.name, ModelRecord(found))
        problem_before = model.problem
        model.found, model.problem = found, found.problem
        if found.problem is None:
            try:
                model.policy = self._loader.version_policy(found)
                configured = self._loader.rollout(found)
            except ConfigurationError as error:
                model.problem = str(error)
            else:
                if configured != model.configured:
                    model.configured = model.rollout = configured
                    self._serve(found.name, model)
        if model.problem is not None and model.problem != problem_before:
            logger.warning("model_problem", extra={"model": found.name, "reason": model.problem})
        for version, fingerprint in found.versions.items():
            record = model.records.setdefault(version, VersionRecord(fingerprint))
            if record.state is ModelState.UNKNOWN:
                record.reason = model.problem or (_UNLOADED if found.name in self._held else "")

    async def _reconcile_model(self, name: str, model: ModelRecord[ModelT], settled: dict[int, Fingerprint]) -> None:
        if model.problem is not None or name in self._held:
            return
        available = settled | model.available
        while True:
            states = {version: record.state for version, record in model.records.items()}
            kept = () if model.previous is None else (model.previous,)
            steps = policies.actions(
                model.policy,
                available,
                model.failed(available, self._clock()),
                states,
                model.rollout,
                also=model.coming,
                kept=kept,
            )
            if not steps:
                return
            for step in steps:
                if isinstance(step, Load):
                    await self._load(name, model, step.version, available[step.version])
                else:
                    self._begin_unload(name, model, step.version)

    async def _load(self, name: str, model: ModelRecord[ModelT], version: int, fingerprint: Fingerprint) -> None:
        record = model.records[version]
        if record.fingerprint != fingerprint:
            record.fingerprint, record.attempts = fingerprint, 0
        self._move(name, version, record, ModelState.LOADING, record.reason)
        began_at = self._clock()
        gate = ""
        try:
            loaded = await self._loader.load(model.found, version)
        except ConfigurationError as error:
            gate = _gate_of(error)
            self._fail(name, version, record, gate, str(error))
        except asyncio.CancelledError:
            record.fingerprint = ()  # tried again at the next look
            self._move(name, version, record, ModelState.UNAVAILABLE, "loading was interrupted")
            raise
        except Exception as error:
            logger.exception("model_load_failed", extra={"model": name, "version": version})
            gate = "internal"
            self._fail(name, version, record, gate, f"loading failed: {type(error).__name__}")
        else:
            record.loaded, record.attempts = loaded, 0
            self._move(name, version, record, ModelState.READY)
            self._serve(name, model)
        self._observer.load_finished(name, ok=not gate, seconds=self._clock() - began_at, gate=gate)

    def _fail(self, name: str, version: int, record: VersionRecord[ModelT], gate: str, reason: str) -> None:
        record.attempts += 1
        may_pass = gate in _PASSING and record.attempts <= RETRIES
        record.retry_at = self._clock() + RETRY_SECONDS if may_pass else 0.0
        self._move(name, version, record, ModelState.UNAVAILABLE, reason)

    def _serve(self, name: str, model: ModelRecord[ModelT]) -> None:
        model.assign_roles()
        self._roles_changed(name)

    def _begin_unload(self, name: str, model: ModelRecord[ModelT], version: int, reason: str = "") -> None:
        record = model.records[version]
        self._move(name, version, record, ModelState.UNLOADING, reason)
        self._serve(name, model)
        self._free(name, version, record)

    def _retire(self, name: str, version: int, record: VersionRecord[ModelT]) -> None:
        """Take a version that another one has replaced out of service."""
        self._move(name, version, record, ModelState.UNLOADING)
        self._free(name, version, record)

    def _free(self, name: str, version: int, record: VersionRecord[ModelT]) -> None:
        """Free a version once its last lease has ended."""
        task = asyncio.get_running_loop().create_task(self._unload(name, version, record), name=_task_name(name))
        self._unloads.add(task)
        task.add_done_callback(self._unloads.discard)

    async def _unload(self, name: str, version: int, record: VersionRecord[ModelT]) -> None:
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
        for task in self._tidying:
            task.cancel()
        if self._unloads:
            await asyncio.wait(self._unloads)

    def _move(
        self, name: str, version: int, record: VersionRecord[ModelT], state: ModelState, reason: str = ""
    ) -> None:
        check(record.state, state)
        level = logging.WARNING if state is ModelState.UNAVAILABLE else logging.INFO
        change = {"model": name, "version": version, "old": record.state.value, "new": state.value}
        logger.log(level, "model_state_change", extra=change | ({"reason": reason} if reason else {}))
        record.state, record.reason = state, reason


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


def _gate_of(error: ConfigurationError) -> str:
    return error.gate if isinstance(error, ModelLoadError) else "internal"


def _task_name(model: str) -> str:
    return f"unload {model}"
