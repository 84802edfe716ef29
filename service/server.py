"""InferenceServer: builds the parts, starts them, drains them, stops them. Knows no HTTP.

Lifecycle, in order:

    start   load what the repository holds, then watch it                          STARTING -> SERVING
    drain   readiness falls; requests are still answered                           -> DRAINING
    close   refuse new requests; wait for those accepted; stop watching; unload;
            close the execution threads                                            -> STOPPED
"""

import asyncio
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from service import manifest as manifests
from service.admission import Admission
from service.config import Settings
from service.errors import ConfigurationError, ModelLoadError
from service.health import Readiness, ServerState, readiness
from service.imaging.decode import DecodeBudget
from service.imaging.formats import FORMATS
from service.imaging.spec import ImageLimits
from service.lane import ExecutionThreads
from service.loading import LoadContext, load
from service.machine import affinity, step_back, usable_cpus
from service.metrics import Metrics
from service.model import LoadedModel
from service.pipeline import Pipeline
from service.repository.manager import ModelRepository, watch
from service.repository.policy import Latest, VersionPolicy
from service.repository.rollout import Rollout, Share
from service.repository.scanner import Source
from service.repository.source import FolderSource, FoundModel
from service.shadow import Shadows

logger = logging.getLogger(__name__)

_LOADS_AT_ONCE = 4  # of different models; each holds its files in memory
_WATCH_SECONDS = 1.0  # between two looks for executions that hang
_LOST_DEVICE_SECONDS = 20.0  # four tries: a process never gets a lost device back, a new one may
_MOST_LOST_THREADS = 3  # each keeps what it ran in memory; then a new process is better


class ModelLoader:
    """Brings versions to life for the repository: reads manifests, loads on a thread, binds on the event loop."""

    def __init__(self, context: LoadContext, timeout_seconds: float) -> None:
        self._context = context
        self._timeout_seconds = timeout_seconds
        self._threads = ThreadPoolExecutor(_LOADS_AT_ONCE, thread_name_prefix="load", initializer=step_back)

    def version_policy(self, model: FoundModel) -> VersionPolicy:
        policy = manifests.read(model.folder).version_policy
        if policy == "latest":
            return Latest()
        return Latest(policy.latest) if isinstance(policy, manifests.VersionsTable) else policy

    def rollout(self, model: FoundModel) -> Rollout:
        table = manifests.read(model.folder).rollout
        canary, shadow = (
            None if share is None else Share(share.version, share.percent) for share in (table.canary, table.shadow)
        )
        return Rollout(table.stable, canary, shadow)

    def close(self) -> None:
        """Begin no further load. One that hangs is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def load(self, model: FoundModel, version: int) -> LoadedModel:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                loading = partial(load, model.folder, version, self._context)
                parts = await asyncio.get_running_loop().run_in_executor(self._threads, loading)
        except TimeoutError:
            raise ModelLoadError(
                f"loading took longer than repository.load_timeout_s = {self._timeout_seconds:g}", gate="time_out"
            ) from None
        return LoadedModel(model.name, version, parts, self._context)


class InferenceServer:
    """Everything behind the front-ends. Create it inside a running event loop; `source` replaces the folder scan.

    `unread` names files of versions that are about to be written, so that what they say now does not count.
    """

    def __init__(
        self, settings: Settings, version: str, source: Source | None = None, unread: Iterable[str] = ()
    ) -> None:
        self.settings = settings
        self.version = version
        self.state = ServerState.STARTING
        self.metrics = Metrics(version)
        self.threads = ExecutionThreads(settings.execution.threads or usable_cpus(), affinity())
        limits = image_limits(settings)
        context = LoadContext(
            self.threads,
            limits,
            DecodeBudget(limits.decode_bytes),
            self.metrics,
            max_rows=settings.limits.max_rows,
            sums_required=settings.repository.require_checksums,
            max_version_bytes=settings.repository.max_version_bytes,
            drift_window=settings.drift.window_images,
            unread=frozenset(unread),
        )
        self.admission = Admission(
            max_requests=settings.limits.inflight_requests, max_bytes=settings.limits.inflight_bytes
        )
        self.shadows = Shadows(self.metrics, self.admission)
        self._loader = ModelLoader(context, settings.repository.load_timeout_s)
        self.repository: ModelRepository[LoadedModel] = ModelRepository(
            source or FolderSource(settings.repository.path),
            self._loader,
            self.metrics,
            roles_changed=self._roles_changed,
        )
        self.metrics.watch(self.repository)
        self.pipeline = Pipeline(self.admission, self.repository, self.metrics)
        self.started = asyncio.Event()

    @property
    def readiness(self) -> Readiness:
        return readiness(
            self.state,
            required=self.settings.repository.required,
            ready_models=self.repository.ready_models,
            first_loads_pending=self.repository.first_loads_pending,
        )

    @property
    def is_draining(self) -> bool:
        return self.state in (ServerState.DRAINING, ServerState.STOPPED)

    async def run(self) -> None:
        """Load everything, then keep watching the repository. Returns only by cancellation or failure."""
        try:
            await self.repository.reconcile()
        except ConfigurationError as error:
            self._look_failed(str(error))
        if self.state is ServerState.STARTING:
            self.state = ServerState.SERVING
        self.started.set()
        verdict = self.readiness
        logger.info("started", extra={"ready": verdict.ready, "reason": verdict.reason, "threads": self.threads.count})
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_executions(), name="executions")
            if interval := self.settings.repository.poll_interval_s:
                group.create_task(watch(self.repository.reconcile, interval, self._look_failed), name="repository")

    async def _watch_executions(self) -> None:
        """End what hangs. Raises RuntimeError, which ends the process, once a device or too many threads are lost."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            lost = sum(model.guard.look(self.settings.execution.hang_s) for model in self.repository.loaded())
            if lost:
                self.metrics.lost_threads.inc(lost)
                self.threads.replace_lost(lost)
            if self.threads.lost > _MOST_LOST_THREADS:
                raise RuntimeError(f"{self.threads.lost} execution threads hang")
            if device_is_lost(self.repository.loaded()):
                raise RuntimeError("every version on the device fails: it is lost")

    def drain(self) -> None:
        """Readiness falls at once; everything else goes on."""
        self.state = ServerState.DRAINING
        logger.info("drain_started", extra={"inflight": self.admission.requests})

    async def close(self) -> None:
        """Refuse what is new, answer what was accepted, free everything."""
        self.admission.close()
        self.state = ServerState.STOPPED
        await self.repository.close()
        self._loader.close()
        await asyncio.to_thread(self.threads.close)
        logger.info("stopped")

    def _roles_changed(self, name: str) -> None:
        self.shadows.follow(self.repository, name)

    def _look_failed(self, reason: str) -> None:
        self.metrics.repository_errors.inc()
        logger.error("repository_unreadable", extra={"reason": reason})


def device_is_lost(models: Iterable[LoadedModel]) -> bool:
    """Whether there are versions on a device, and all of them have failed on everything for long enough."""
    on_device = [model for model in models if model.description.engine.provider.name != "cpu"]
    return bool(on_device) and all(model.guard.broken_seconds > _LOST_DEVICE_SECONDS for model in on_device)


def image_limits(settings: Settings) -> ImageLimits:
    """The settings' limits as imaging takes them. Raises ConfigurationError on an unknown format."""
    limits = settings.limits
    unknown = [name for name in limits.image_formats if name not in FORMATS]
    if unknown:
        raise ConfigurationError(f"limits.image_formats: {unknown[0]!r} is unknown; known are {', '.join(FORMATS)}")
    return ImageLimits(
        image_bytes=limits.image_bytes,
        source_pixels=limits.source_pixels,
        decoded_pixels=limits.decoded_pixels,
        side=limits.image_side,
        decode_bytes=limits.decode_bytes,
        formats=limits.image_formats,
    )
