"""InferenceServer: builds the parts, starts them, drains them, stops them. Knows no HTTP.

Lifecycle, in order:

    start   load what the repository holds, then watch it                          STARTING -> SERVING
    drain   readiness falls; requests are still answered                           -> DRAINING
    close   refuse new requests; wait for those accepted; stop watching; unload;
            close the execution threads                                            -> STOPPED
"""

import asyncio
import logging
from functools import partial

from service import manifest as manifests
from service.admission import Admission
from service.config import Settings
from service.errors import ConfigurationError
from service.health import Readiness, ServerState, readiness
from service.imaging.decode import DecodeBudget
from service.imaging.formats import FORMATS
from service.imaging.spec import ImageLimits
from service.lane import ExecutionThreads
from service.machine import affinity, usable_cpus
from service.metrics import Metrics
from service.model import LoadContext, LoadedModel, load
from service.pipeline import Pipeline
from service.repository.manager import ModelRepository, Source, watch
from service.repository.policy import Latest, VersionPolicy
from service.repository.source import FolderSource, FoundModel

logger = logging.getLogger(__name__)


class ModelLoader:
    """Brings versions to life for the repository: reads manifests, loads on a thread, binds on the event loop."""

    def __init__(self, context: LoadContext) -> None:
        self._context = context

    def version_policy(self, model: FoundModel) -> VersionPolicy:
        policy = manifests.read(model.folder).version_policy
        if policy == "latest":
            return Latest()
        return Latest(policy.latest) if isinstance(policy, manifests.VersionsTable) else policy

    async def load(self, model: FoundModel, version: int) -> LoadedModel:
        parts = await asyncio.to_thread(partial(load, model.folder, version, self._context))
        return LoadedModel(model.name, version, parts, self._context)


class InferenceServer:
    """Everything behind the front-ends. Create it inside a running event loop; `source` replaces the folder scan."""

    def __init__(self, settings: Settings, version: str, source: Source | None = None) -> None:
        self.settings = settings
        self.version = version
        self.state = ServerState.STARTING
        self.metrics = Metrics(version)
        self.threads = ExecutionThreads(settings.execution.threads or usable_cpus(), affinity())
        limits = image_limits(settings)
        context = LoadContext(
            self.threads, limits, DecodeBudget(limits.decode_bytes), self.metrics, max_rows=settings.limits.max_rows
        )
        self.repository: ModelRepository[LoadedModel] = ModelRepository(
            source or FolderSource(settings.repository.path), ModelLoader(context), self.metrics
        )
        self.metrics.watch(self.repository)
        self.admission = Admission(
            max_requests=settings.limits.inflight_requests, max_bytes=settings.limits.inflight_bytes
        )
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
        if interval := self.settings.repository.poll_interval_s:
            await watch(self.repository.reconcile, interval, self._look_failed)
        await asyncio.Event().wait()

    def drain(self) -> None:
        """Readiness falls at once; everything else goes on."""
        self.state = ServerState.DRAINING
        logger.info("drain_started", extra={"inflight": self.admission.requests})

    async def close(self) -> None:
        """Refuse what is new, answer what was accepted, free everything."""
        self.admission.close()
        self.state = ServerState.STOPPED
        await self.repository.close()
        self.threads.close()
        logger.info("stopped")

    def _look_failed(self, reason: str) -> None:
        self.metrics.repository_errors.inc()
        logger.error("repository_unreadable", extra={"reason": reason})


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
