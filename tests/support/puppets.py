"""Parts in the test's hand: executions, engines and loads that end when the test says so, a folder that holds what it
says, and observers that remember what they were told."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from service.admission import Admission
from service.batching.batch import Batch
from service.batching.request_queue import Entry
from service.batching.spec import BatchingSpec
from service.engine.base import ProviderInfo, Tensor, TensorSpec
from service.errors import ConfigurationError, EngineFailed
from service.guard import Guard
from service.imaging.decode import DecodeBudget
from service.imaging.preprocess import Preprocessor
from service.imaging.spec import ImageLimits, InputSpec
from service.lane import ExecutionThreads, Lane
from service.loading import LoadContext, LoadedParts
from service.manifest import ModelSpec
from service.metrics import Metrics
from service.model import LoadedModel
from service.pipeline import Pipeline
from service.repository.manager import ModelRepository
from service.repository.policy import Latest, VersionPolicy
from service.repository.rollout import Rollout
from service.repository.source import Fingerprint, FoundModel
from service.tasks import TASKS, TaskSpec

ResultT = TypeVar("ResultT")

PATIENCE_SECONDS = 20.0  # how long a test waits for another thread before it fails


async def turns(count: int = 6) -> None:
    """Let everything that is ready run: a few turns of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Return at the first turn of the event loop at which `condition` holds: what another thread has to do first."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # what is waited for is a thread's work and tells no event
            await asyncio.sleep(0)


End = Callable[[Any, BaseException | None], None]


class Execution:
    """One batch that a PuppetExecute began and has not ended."""

    def __init__(self, entries: Sequence[Entry[Any, Any]], end: End) -> None:
        self.entries = list(entries)
        self.is_ended = False
        self._end = end

    @property
    def items(self) -> list[Any]:
        return [entry.item for entry in self.entries]

    def finish(self) -> None:
        """Answer every entry with `answer(item)`, and end."""
        self._tell([(entry, answer(entry.item)) for entry in self.entries], None)

    def end(self) -> None:
        """End without answering anyone who has no answer yet."""
        self._tell([], None)

    def fail(self, error: BaseException) -> None:
        """End with `error`."""
        self._tell(None, error)

    def _tell(self, replies: Any, error: BaseException | None) -> None:
        self.is_ended = True
        asyncio.get_running_loop().call_soon(self._end, replies, error)


class PuppetExecute:
    """An `execute` for a Batcher. `batches` are all that it began, oldest first; `running` those not yet ended.

    It begins as many at once as it has `threads`; what comes beyond stands ready.
    """

    def __init__(self, threads: int) -> None:
        self.batches: list[Execution] = []
        self._free = threads
        self._ready: deque[tuple[Batch[Any, Any], End]] = deque()

    def __call__(self, batch: Batch[Any, Any], end: End) -> None:
        self._ready.append((batch, end))
        self._begin()

    def _begin(self) -> None:
        while self._free and self._ready:
            batch, end = self._ready.popleft()
            entries = batch.begin()
            if entries:
                self._free -= 1
                self.batches.append(Execution(entries, partial(self._ended, end)))
            else:
                end([], None)

    def _ended(self, end: End, replies: Any, error: BaseException | None) -> None:
        self._free += 1
        self._begin()
        end(replies, error)

    @property
    def running(self) -> list[Execution]:
        return [execution for execution in self.batches if not execution.is_ended]


def answer(item: Any) -> str:
    """What `Execution.finish` answers to an item."""
    return f"answer to {item}"


class BatchLog:
    """A BatchObserver that remembers."""

    def __init__(self) -> None:
        self.executions: list[tuple[int, float]] = []

    def batch_executed(self, size: int, seconds: float) -> None:
        self.executions.append((size, seconds))


class PuppetEngine:
    """An Engine that computes `function` over its one input. Held, each `run` waits for a `step`, or for `release`."""

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        function: Callable[[Tensor], Tensor] = lambda rows: rows.reshape(len(rows), -1).astype(np.float32),
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.provider = ProviderInfo("cpu")
        self.sizes: list[int] = []
        self.is_closed = False
        self.is_terminated = False
        self.heeds_termination = True
        self.function = function
        self._gate = threading.Condition()
        self._is_held = False
        self._steps = 0
        self._entered = threading.Semaphore(0)

    def hold(self) -> None:
        self._is_held = True

    def step(self) -> None:
        """Let one `run` through."""
        with self._gate:
            self._steps += 1
            self._gate.notify_all()

    def release(self) -> None:
        """Let every `run` through."""
        with self._gate:
            self._is_held = False
            self._gate.notify_all()

    async def entered(self) -> None:
        """Return once `run` was entered one more time."""
        assert await asyncio.to_thread(self._entered.acquire, timeout=PATIENCE_SECONDS), "nobody ran the engine"

    def run(self, feeds: Mapping[str, Tensor]) -> list[Tensor]:
        assert not self.is_closed, "an execution on a closed engine"
        (rows,) = feeds.values()
        self.sizes.append(len(rows))
        self._entered.release()
        with self._gate:
            may_go = self._gate.wait_for(
                lambda: not self._is_held or self._steps > 0 or (self.is_terminated and self.heeds_termination),
                PATIENCE_SECONDS,
            )
            assert may_go, "the test forgot to release the engine"
            if self.is_terminated and self.heeds_termination:
                self.is_terminated = False
                raise EngineFailed("The model failed on this input.")
            if self._is_held:
                self._steps -= 1
        return [self.function(rows)]

    def shrink(self, feeds: Mapping[str, Tensor]) -> None:
        self.run(feeds)

    def terminate(self) -> None:
        """Held runs fail, as a graph does at the end of its node."""
        self.is_terminated = True
        with self._gate:
            self._gate.notify_all()

    def close(self) -> None:
        assert not self.is_closed, "closed twice"
        self.is_closed = True


class PuppetSource:
    """A repository folder that holds what the test put there. Every `put` makes new files."""

    def __init__(self) -> None:
        self.models: dict[str, dict[int, Fingerprint]] = {}
        self.problems: dict[str, str] = {}
        self.is_readable = True
        self._writes = count(1)

    def put(self, name: str, *versions: int) -> None:
        """Add versions, or change the files of those that are there."""
        for version in versions:
            self.models.setdefault(name, {})[version] = ((f"{version}/model.onnx", 100, next(self._writes)),)

    def remove(self, name: str, *versions: int) -> None:
        """Take versions away, or the whole model where none are named."""
        if not versions:
            del self.models[name]
        for version in versions:
            del self.models[name][version]

    def scan(self) -> dict[str, FoundModel]:
        if not self.is_readable:
            raise ConfigurationError("the folder cannot be read")
        return {
            name: FoundModel(name, Path(name), dict(versions), self.problems.get(name))
            for name, versions in self.models.items()
        }


class PuppetModel:
    """A loaded version that knows whether it was drained and closed, in that order and once."""

    def __init__(self, name: str, version: int) -> None:
        self.name = name
        self.version = version
        self.fault = ""
        self.is_drained = False
        self.is_closed = False
        self.idle = asyncio.Event()
        self.idle.set()

    async def drain(self) -> None:
        assert not self.is_closed, "drained after it was closed"
        await self.idle.wait()
        self.is_drained = True

    def close(self) -> None:
        assert self.is_drained, "closed before it was drained"
        assert not self.is_closed, "closed twice"
        self.is_closed = True


class PuppetLoader:
    """Loads what the test does not forbid. `faults` are raised by name, or by (name, version)."""

    def __init__(self) -> None:
        self.policies: dict[str, VersionPolicy] = {}
        self.rollouts: dict[str, Rollout] = {}
        self.faults: dict[str | tuple[str, int], Exception] = {}
        self.attempts: list[tuple[str, int]] = []
        self.loaded: list[PuppetModel] = []
        self.held: dict[tuple[str, int], asyncio.Event] = {}

    def hold(self, name: str, version: int) -> asyncio.Event:
        """Loads of this version wait until the event is set."""
        return self.held.setdefault((name, version), asyncio.Event())

    def version_policy(self, model: FoundModel) -> VersionPolicy:
        if fault := self.faults.get(model.name):
            raise fault
        return self.policies.get(model.name, Latest())

    def rollout(self, model: FoundModel) -> Rollout:
        return self.rollouts.get(model.name, Rollout())

    async def load(self, model: FoundModel, version: int) -> PuppetModel:
        self.attempts.append((model.name, version))
        await asyncio.sleep(0)
        if gate := self.held.get((model.name, version)):
            await gate.wait()
        if fault := self.faults.get((model.name, version)):
            raise fault
        self.loaded.append(PuppetModel(model.name, version))
        return self.loaded[-1]


class RepositoryLog:
    """A repository's Observer that remembers."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.loads: list[tuple[str, bool]] = []
        self.gates: list[str] = []

    def models_found(self, names: Iterable[str]) -> None:
        self.names = list(names)

    def load_finished(self, model: str, *, ok: bool, seconds: float = 0.0, gate: str = "") -> None:
        self.loads.append((model, ok))
        self.gates.append(gate)


class PuppetService:
    """Everything behind a front-end around one model, "puppet", with a PuppetEngine and one execution thread.

    It takes images of 8 x 8 and answers how much red, green and blue there is. Use it as `async with`.
    """

    def __init__(self, *, max_requests: int = 64, max_bytes: int = 1 << 20, **batching: Any) -> None:
        self.engine = PuppetEngine(
            [TensorSpec("image", "float32", (-1, 3, 8, 8))],
            [TensorSpec("scores", "float32", (-1, 3))],
            lambda rows: rows.mean((2, 3)),
        )
        self.metrics = Metrics("test")
        self.admission = Admission(max_requests=max_requests, max_bytes=max_bytes)
        self.source = PuppetSource()
        self.repository: ModelRepository[LoadedModel] = ModelRepository(self.source, self, self.metrics)
        self.pipeline = Pipeline(self.admission, self.repository, self.metrics)
        self._batching = BatchingSpec(**batching)
        self._threads = ExecutionThreads(1)

    async def __aenter__(self) -> "PuppetService":
        self.metrics.watch(self.repository)
        self.source.put("puppet", 1)
        await self.repository.reconcile()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.engine.release()
        await self.repository.close()
        self._threads.close()

    def version_policy(self, model: FoundModel) -> VersionPolicy:
        return Latest()

    def rollout(self, model: FoundModel) -> Rollout:
        return Rollout()

    async def load(self, model: FoundModel, version: int) -> LoadedModel:
        limits = ImageLimits()
        budget = DecodeBudget(limits.decode_bytes)
        image = InputSpec("image", (8, 8), scale=(1 / 255,), resize="stretch")
        task = TaskSpec(("red", "green", "blue"), "none")
        spec = ModelSpec("multiclass", task, image, "scores", self._batching)
        preprocessor = Preprocessor(image, limits, budget)
        parts = LoadedParts(spec, self.engine, TASKS["multiclass"](task), preprocessor, "0" * 64, 1, 0.0)
        return LoadedModel(model.name, version, parts, LoadContext(self._threads, limits, budget, self.metrics))


async def ran(lane: Lane | Guard, job: Callable[[], ResultT], *, light: bool = False) -> ResultT:
    """What `job` gave in `lane`. Raises what it raised."""
    ended: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()

    def end(result: Any, error: BaseException | None) -> None:
        if error is not None:
            ended.set_exception(error)
        else:
            ended.set_result(result)

    lane.start(job, end, light=light)
    return await ended
