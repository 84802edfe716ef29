"""LoadedModel: one version of one model, ready to answer.

Composes preprocessing, batching, an engine and a task; owns them and closes them. Loading is blocking and runs on a
thread; everything else belongs to the event loop, but `_work`, which is what a lane runs for a batch.
Knows no HTTP and not which versions there are.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from service import manifest as manifests
from service.batching.batcher import Batcher
from service.batching.paying import paying_batch_size
from service.batching.policy import FairShare
from service.batching.request_queue import Entry
from service.engine.base import Engine
from service.engine.ort import OrtEngine
from service.errors import EngineFailed, FoveaError, InternalError, ModelLoadError, NoImageSignature, OutOfMemory
from service.imaging.decode import DecodeBudget
from service.imaging.preprocess import InspectedImage, Preprocessor
from service.imaging.spec import ImageLimits, InputSpec
from service.lane import ExecutionThreads, FusedLane, InlineLane, Lane
from service.manifest import ModelSpec
from service.messages import Classification, ImagePayload, Prediction, Stage, Timings
from service.metrics import Metrics, ModelMetrics
from service.tasks import TASKS, Task
from service.tasks.base import Scores

logger = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
_MOST_TIMING_SECONDS = 0.4  # of a load, spent on finding the batch size that pays
_TIMED_RUNS = 3
_INLINE_SECONDS = 0.001  # an execution that takes no longer may run on the event loop ...
_INLINE_BYTES = 128 * 1024  # ... with images that have no more bytes in all, encoded and decoded


class ImageItem(NamedTuple):
    """One image in the queue, with what its caller wants of the answer."""

    image: InspectedImage
    top_k: int
    threshold: float | None


class Answer(NamedTuple):
    """What an execution thread hands back for one entry."""

    predictions: tuple[Prediction, ...]
    decode_at: float
    decode_seconds: float
    infer_at: float
    infer_seconds: float
    batch_size: int


ImageEntry = Entry[ImageItem, Answer]


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What every model of a process shares."""

    threads: ExecutionThreads
    limits: ImageLimits
    budget: DecodeBudget
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What is shown of a loaded version."""

    task: str
    labels: tuple[str, ...]
    spec: ModelSpec
    engine: Engine
    sha256: str
    instances: int


@dataclass(frozen=True, slots=True)
class LoadedParts:
    """What loading made, before it is bound to the event loop."""

    spec: ModelSpec
    engine: Engine
    task: Task
    preprocessor: Preprocessor | None
    sha256: str
    instances: int
    batch_seconds: float


def stages_of(entry: ImageEntry, ended_at: float) -> tuple[Stage, ...]:
    """What an image went through, as far as it came before `ended_at`."""
    if entry.dispatched_at is None:
        return (Stage("queue", entry.queued_at, ended_at),)
    queue = Stage("queue", entry.queued_at, entry.dispatched_at)
    answer = entry.answer
    if answer is None:
        return queue, Stage("batch", entry.dispatched_at, ended_at)
    decode = Stage("decode", answer.decode_at, answer.decode_at + answer.decode_seconds)
    infer = Stage("infer", answer.infer_at, answer.infer_at + answer.infer_seconds)
    size = {"fovea.batch_size": answer.batch_size}
    return queue, Stage("batch", entry.dispatched_at, infer.ended_at, size, (decode, infer))


def load(folder: Path, version: int, context: LoadContext) -> LoadedParts:
    """Read, resolve, open and warm one version. Blocking. Raises ModelLoadError with the reason."""
    file = folder / str(version) / MODEL_FILE
    if not file.is_file():
        raise ModelLoadError(f"{version}/{MODEL_FILE} is missing")
    manifest = manifests.read(folder, version)
    labels = manifests.read_labels(folder, version, manifest)
    engine = OrtEngine(file, manifest.execution_spec, intra_op_threads=1)
    spec = manifests.resolve(manifest, labels, engine.inputs, engine.outputs, engine.provider.name)
    task = TASKS[spec.task_name](spec.task)
    preprocessor = Preprocessor(spec.input, context.limits, context.budget) if spec.input else None
    instances = manifest.execution.instances
    parts = LoadedParts(spec, engine, task, preprocessor, manifests.checksum(file), instances, math.inf)
    _warm_up(parts)
    largest = spec.batching.max_batch_size
    seconds_of = _time_batches(parts, [largest] if manifest.batching.max_batch_size else _batch_sizes(largest))
    if not seconds_of:
        return parts
    size = paying_batch_size(seconds_of, _INLINE_SECONDS)
    batching = replace(spec.batching, max_batch_size=size)
    return replace(parts, spec=replace(spec, batching=batching), batch_seconds=seconds_of[size])


def _warm_up(parts: LoadedParts) -> None:
    """Run batches of 1, 2 and the largest size, and look whether the answer can be what the manifest says."""
    if parts.spec.input is None:
        return
    largest = parts.spec.batching.max_batch_size
    for size in sorted({1, min(2, largest), largest}):
        try:
            raw = _run(parts, _noise(parts.spec.input, size))
            parts.task.scores(raw)
        except EngineFailed as error:
            because = f": {' '.join(str(error.__cause__).split())[:300]}" if error.__cause__ else ""
            raise ModelLoadError(f"warm-up with {size} images of random pixels: {error}{because}") from None
        _refuse_activation_twice(parts.spec, raw)


def _batch_sizes(largest: int) -> list[int]:
    return [size for size in (2, 4, 8, 16, 32) if size <= largest] or [largest]


def _time_batches(
    parts: LoadedParts, sizes: Sequence[int], clock: Callable[[], float] = time.perf_counter
) -> dict[int, float]:
    """Seconds of an execution by batch size, as far as there is time for; nothing for a model that takes no images."""
    seconds_of: dict[int, float] = {}
    if parts.spec.input is None:
        return seconds_of
    started_at = clock()
    for size in sizes:
        noise = _noise(parts.spec.input, size)
        for _ in range(_TIMED_RUNS):
            run_at = clock()
            if run_at - started_at > _MOST_TIMING_SECONDS:
                return seconds_of
            _run(parts, noise)
            seconds_of[size] = min(seconds_of.get(size, math.inf), clock() - run_at)
    return seconds_of


def _lane(parts: LoadedParts, threads: ExecutionThreads) -> Lane:
    """Where the version runs: what the manifest says, else by provider and by what warm-up measured."""
    if parts.instances:
        return FusedLane(threads, parts.instances)
    if parts.engine.provider.name != "cpu":
        return FusedLane(threads, 1)
    if parts.batch_seconds <= _INLINE_SECONDS:
        return InlineLane(threads)
    return FusedLane(threads, threads.count)


def _noise(spec: InputSpec, size: int) -> npt.NDArray[Any]:
    noise = np.random.default_rng(0).integers(0, 256, (size, *spec.shape)).astype(spec.dtype)
    return noise if spec.dtype == "uint8" else noise / np.asarray(255, noise.dtype)


def _refuse_activation_twice(spec: ModelSpec, raw: npt.NDArray[Any]) -> None:
    rows = raw.reshape(len(raw), -1).astype(np.float64)
    if rows.min() < 0 or rows.max() > 1:
        return
    if spec.task.activation == "softmax" and rows.shape[1] > 1 and np.allclose(rows.sum(axis=1), 1, atol=1e-3):
        raise ModelLoadError(
            'output.activation = "softmax", and the graph\'s output already adds up to 1: set activation = "none"'
        )


def _run(parts: LoadedParts, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
    assert parts.spec.input is not None
    outputs = parts.engine.run({parts.spec.input.tensor: batch})
    place = [output.name for output in parts.engine.outputs].index(parts.spec.output_tensor)
    return _checked_rows(outputs[place], len(batch))


def _checked_rows(raw: npt.NDArray[Any], images: int) -> npt.NDArray[Any]:
    if raw.ndim == 0 or len(raw) != images:
        rows = len(raw) if raw.ndim else 0
        raise EngineFailed(
            f"The model gave {rows} rows for a batch of {images}; its first dimension must be the batch."
        )
    return raw


def _scores_or_fault(task: Task, row: npt.NDArray[Any]) -> Scores | EngineFailed:
    try:
        scores: Scores = task.scores(row)[0]
        return scores
    except EngineFailed as error:
        return error


class LoadedModel:
    """One version in service. Made on the event loop from what `load` returned."""

    def __init__(self, name: str, version: int, parts: LoadedParts, context: LoadContext) -> None:
        self.name = name
        self.version = version
        self._parts = parts
        self._output_index = [output.name for output in parts.engine.outputs].index(parts.spec.output_tensor)
        self._metrics: ModelMetrics = context.metrics.model_loaded(
            name, version, parts.spec.task.labels, parts.engine.provider.name
        )
        self._all_metrics = context.metrics
        self._lane = _lane(parts, context.threads)
        batching = parts.spec.batching
        self._batcher: Batcher[ImageItem, Answer] = Batcher(
            batching, FairShare(batching), self._execute, self._metrics, instances=self._lane.width
        )

    @property
    def description(self) -> ModelDescription:
        parts = self._parts
        return ModelDescription(
            parts.spec.task_name, parts.spec.task.labels, parts.spec, parts.engine, parts.sha256, self._lane.width
        )

    def inspect(self, payload: ImagePayload) -> InspectedImage:
        """Check an image's header against the limits. Raises NoImageSignature or what is wrong with the image."""
        if self._parts.preprocessor is None:
            raise NoImageSignature(f"Model {self.name!r} takes tensors: its manifest has no image preprocessing.")
        return self._parts.preprocessor.inspect(payload)

    def submit(self, image: InspectedImage, top_k: int, threshold: float | None, deadline_at: float) -> ImageEntry:
        """Queue one inspected image. Raises Overloaded. The caller awaits `answer(entry)` or calls `forget`."""
        return self._batcher.submit(ImageItem(image, top_k, threshold), deadline_at)

    async def answer(self, entry: ImageEntry) -> Classification:
        """Wait for an entry. Raises InvalidImage, Overloaded, DeadlineExceeded, EngineFailed."""
        answer = await entry.future
        assert entry.dispatched_at is not None
        timings = Timings(answer.decode_seconds, entry.dispatched_at - entry.queued_at, answer.infer_seconds)
        self._metrics.image_answered(answer.predictions, timings)
        return Classification(answer.predictions, entry.item.image.info, timings)

    def forget(self, entry: ImageEntry) -> None:
        """The caller stops waiting for this entry."""
        self._batcher.forget(entry)

    async def drain(self) -> None:
        """Return when nothing of this version is queued or running."""
        await self._batcher.drain()

    def close(self) -> None:
        """Free the engine. Only after `drain`."""
        self._all_metrics.model_unloaded(self.name, self.version)
        self._parts.engine.close()

    async def _execute(self, batch: Sequence[ImageEntry]) -> list[tuple[ImageEntry, Answer]]:
        light = sum(entry.item.image.nbytes for entry in batch) <= _INLINE_BYTES
        postprocess_seconds, answered = await self._lane.run(partial(self._work, batch), light=light)
        self._metrics.postprocessed(postprocess_seconds)
        return answered

    def _work(self, batch: Sequence[ImageEntry]) -> tuple[float, list[tuple[ImageEntry, Answer]]]:
        """Decode, run, finish. Where the lane runs it: usually on an execution thread.

        A damaged image is rejected on its own, before the others run: it takes no neighbour with it.
        """
        preprocessor, spec = self._parts.preprocessor, self._parts.spec.input
        assert preprocessor is not None and spec is not None
        rows = np.empty((len(batch), *spec.shape), spec.dtype)
        good: list[tuple[ImageEntry, float, float]] = []
        for entry in batch:
            decode_at = time.monotonic()
            try:
                preprocessor.prepare(entry.item.image, rows[len(good)])
            except FoveaError as error:
                entry.reject(error)
                continue
            except MemoryError:
                entry.reject(OutOfMemory())
                continue
            except Exception:
                logger.exception("preprocessing_failed")
                entry.reject(InternalError("Preprocessing failed: this is a bug"))
                continue
            good.append((entry, decode_at, time.monotonic() - decode_at))
        if not good:
            return 0.0, []
        infer_at = time.monotonic()
        outputs = self._parts.engine.run({spec.tensor: rows[: len(good)]})
        raw = _checked_rows(outputs[self._output_index], len(good))
        finish_at = time.monotonic()
        answers = []
        for (entry, decode_at, decode_seconds), scores in zip(good, self._scores_of_each(raw), strict=True):
            if isinstance(scores, EngineFailed):
                entry.reject(scores)
                continue
            predictions = self._parts.task.predictions(scores, entry.item.top_k, entry.item.threshold)
            seconds = finish_at - infer_at
            answers.append((entry, Answer(predictions, decode_at, decode_seconds, infer_at, seconds, len(good))))
        return time.monotonic() - finish_at, answers

    def _scores_of_each(self, raw: npt.NDArray[Any]) -> Sequence[Scores | EngineFailed]:
        """A row of scores for each image; an image whose output is no answer has its own fault, its mates none."""
        task = self._parts.task
        try:
            return list(task.scores(raw))
        except EngineFailed:
            return [_scores_or_fault(task, raw[place : place + 1]) for place in range(len(raw))]
