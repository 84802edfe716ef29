"""LoadedModel: one version of one model, ready to answer.

Composes preprocessing, batching, an engine and a task; owns them and closes them. Loading is blocking and runs on a
thread; everything else belongs to the event loop, but `_work`, which is what a lane runs for a batch.
Knows no HTTP and not which versions there are.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
from service.errors import (
    EngineFailed,
    EngineRefusedInput,
    FoveaError,
    InternalError,
    InvalidTensor,
    ModelLoadError,
    NoImageSignature,
    OutOfMemory,
)
from service.imaging.clips import Inspected, Payload, RowMaker, row_maker
from service.imaging.decode import DecodeBudget
from service.imaging.spec import ImageLimits, InputSpec
from service.inference_statistics import Execution, Statistics
from service.lane import ExecutionThreads, FusedLane, InlineLane, Lane
from service.manifest import ModelSpec
from service.messages import Classification, ImagePayload, Prediction, Stage, Timings
from service.metrics import Metrics, ModelMetrics
from service.tasks import TASKS, Task
from service.tasks.base import Scores
from service.tensors import Array, Shapes, Signature, TensorItem, TensorResult, Tensors, items_of, signature_of

logger = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
_MOST_TIMING_SECONDS = 0.4  # of a load, spent on finding the batch size that pays
_TIMED_RUNS = 3
_INLINE_SECONDS = 0.001  # an execution that takes no longer may run on the event loop ...
_INLINE_BYTES = 128 * 1024  # ... with images or rows that have no more bytes in all, encoded and decoded


class ImageItem(NamedTuple):
    """One image in the queue, with what its caller wants of the answer."""

    image: Inspected
    top_k: int
    threshold: float | None


class RawImageItem(NamedTuple):
    """One image in the queue whose caller wants the graph's own outputs."""

    image: Inspected


Item = ImageItem | RawImageItem | TensorItem


class Answer(NamedTuple):
    """What an execution thread hands back for one entry: predictions, or its row of every output of the graph."""

    predictions: tuple[Prediction, ...]
    decode_at: float
    decode_seconds: float
    infer_at: float
    infer_seconds: float
    batch_size: int
    outputs: tuple[Array, ...] = ()

    @property
    def inferred_at(self) -> float:
        return self.infer_at + self.infer_seconds


class Done(NamedTuple):
    """What an execution thread hands back for a batch: an execution for each shape in it, and the answers."""

    executions: list[Execution]
    answered: list[tuple[Entry[Item, Answer], Answer]]


ModelEntry = Entry[Item, Answer]


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What every model of a process shares."""

    threads: ExecutionThreads
    limits: ImageLimits
    budget: DecodeBudget
    metrics: Metrics
    statistics: Statistics = field(default_factory=Statistics)
    max_rows: int = 64  # of a request, as in the settings


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
    preprocessor: RowMaker | None
    sha256: str
    instances: int
    batch_seconds: float


def stages_of(entry: ModelEntry, ended_at: float) -> tuple[Stage, ...]:
    """What an entry went through, as far as it came before `ended_at`."""
    if entry.dispatched_at is None:
        return (Stage("queue", entry.queued_at, ended_at),)
    queue = Stage("queue", entry.queued_at, entry.dispatched_at)
    answer = entry.answer
    if answer is None:
        return queue, Stage("batch", entry.dispatched_at, ended_at)
    decode = Stage("decode", answer.decode_at, answer.decode_at + answer.decode_seconds)
    infer = Stage("infer", answer.infer_at, answer.inferred_at)
    size = {"fovea.batch_size": answer.batch_size}
    return queue, Stage("batch", entry.dispatched_at, infer.ended_at, size, (decode, infer))


def timings_of(entry: ModelEntry, answer: Answer) -> Timings:
    """Where the time of an answered entry went."""
    assert entry.dispatched_at is not None
    return Timings(answer.decode_seconds, entry.dispatched_at - entry.queued_at, answer.infer_seconds)


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
    preprocessor = row_maker(spec.input, context.limits, context.budget) if spec.input else None
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


def _nbytes(item: Item) -> int:
    """What an item weighs, for whether its batch is light."""
    if not isinstance(item, TensorItem):
        return item.image.nbytes
    nbytes = sum(array.nbytes for array in item.tensors)
    return nbytes if item.row is None else nbytes // len(item.tensors[0])


def _consecutive_rows(items: Sequence[Item]) -> tuple[Array, ...] | None:
    """The items' tensors without a copy: all of an unbatched request, or neighbouring rows of one request.

    None where they have to be brought together. What is not aligned in memory is left to a copy.
    """
    first, last = items[0], items[-1]
    if not isinstance(first, TensorItem):
        return None
    if first.row is None:
        return tuple(np.require(array, requirements="A") for array in first.tensors)
    if not all(array.flags.aligned for array in first.tensors):
        return None
    for place, item in enumerate(items):
        if not isinstance(item, TensorItem) or item.tensors is not first.tensors or item.row != first.row + place:
            return None
    assert isinstance(last, TensorItem) and last.row is not None
    return tuple(array[first.row : last.row + 1] for array in first.tensors)


class LoadedModel:
    """One version in service. Made on the event loop from what `load` returned."""

    def __init__(self, name: str, version: int, parts: LoadedParts, context: LoadContext) -> None:
        self.name = name
        self.version = version
        self._parts = parts
        self._output_index = [output.name for output in parts.engine.outputs].index(parts.spec.output_tensor)
        self.signature: Signature = signature_of(
            parts.engine.inputs, parts.engine.outputs, parts.spec.input.tensor if parts.spec.input else None
        )
        self._stackable = self.signature.is_fixed
        self._outputs_with_rows = [
            index
            for index, spec in enumerate(parts.engine.outputs)
            if self.signature.is_batched and spec in self.signature.outputs
        ]
        self._image_shapes: Shapes = (parts.spec.input.shape,) if parts.spec.input else ()
        self.statistics = context.statistics.of(name, version)
        self._max_rows = context.max_rows
        self._metrics: ModelMetrics = context.metrics.model_loaded(
            name, version, parts.spec.task.labels, parts.engine.provider.name
        )
        self._all_metrics = context.metrics
        self._lane = _lane(parts, context.threads)
        batching = parts.spec.batching
        self._batcher: Batcher[Item, Answer] = Batcher(
            batching, FairShare(batching), self._execute, self._metrics, instances=self._lane.width
        )

    @property
    def description(self) -> ModelDescription:
        parts = self._parts
        return ModelDescription(
            parts.spec.task_name, parts.spec.task.labels, parts.spec, parts.engine, parts.sha256, self._lane.width
        )

    def grouped(self, images: Sequence[ImagePayload]) -> Sequence[Payload]:
        """What of a request's images is answered together: each image, or all of them as a clip."""
        return images if self._parts.preprocessor is None else self._parts.preprocessor.grouped(images)

    def inspect(self, payload: Payload) -> Inspected:
        """Check headers against the limits. Raises NoImageSignature or what is wrong with the image."""
        if self._parts.preprocessor is None:
            raise NoImageSignature(f"Model {self.name!r} takes tensors: its manifest has no image preprocessing.")
        return self._parts.preprocessor.inspect(payload)

    def rows_of(self, tensors: Tensors) -> list[TensorItem]:
        """A request's tensors as rows to submit. Raises InvalidTensor."""
        return items_of(self.signature, tensors, self._max_rows)

    def submit(self, item: Item, deadline_at: float, share: float = 1.0) -> ModelEntry:
        """Queue one item. Raises Overloaded. The caller awaits `answer` or `outputs`, or calls `forget`."""
        return self._batcher.submit(item, deadline_at, share)

    async def outputs(self, entry: ModelEntry) -> Answer:
        """Wait for an entry whose raw outputs are wanted. Raises as `answer`, and InvalidTensor."""
        answer = await entry.future
        self._metrics.image_answered((), timings_of(entry, answer))
        return answer

    def tensor_result(self, answers: Sequence[Answer], timings: Timings) -> TensorResult:
        """The outputs of a request's entries, in order, as one tensor each."""
        if self.signature.is_batched:
            columns = zip(*(answer.outputs for answer in answers), strict=True)
            arrays: Sequence[Array] = [np.stack(column) for column in columns]
        else:
            (answer,) = answers
            arrays = answer.outputs
        names = [spec.name for spec in self.signature.outputs]
        spec, labels = self._parts.spec, self._parts.spec.task.labels
        return TensorResult(
            self.name,
            self.version,
            self.signature,
            dict(zip(names, arrays, strict=True)),
            len(answers) if self.signature.is_batched else 0,
            timings,
            labels if spec.has_labels else (),
            spec.output_tensor,
        )

    async def answer(self, entry: ModelEntry) -> Classification:
        """Wait for an entry. Raises InvalidImage, Overloaded, DeadlineExceeded, EngineFailed."""
        answer = await entry.future
        timings = timings_of(entry, answer)
        self._metrics.image_answered(answer.predictions, timings)
        assert isinstance(entry.item, ImageItem)
        return Classification(answer.predictions, entry.item.image.info, timings)

    def forget(self, entry: ModelEntry) -> None:
        """The caller stops waiting for this entry."""
        self._batcher.forget(entry)

    async def drain(self) -> None:
        """Return when nothing of this version is queued or running."""
        await self._batcher.drain()

    def close(self) -> None:
        """Free the engine. Only after `drain`."""
        self._all_metrics.model_unloaded(self.name, self.version)
        self._parts.engine.close()

    async def _execute(self, batch: Sequence[ModelEntry]) -> list[tuple[ModelEntry, Answer]]:
        light = sum(_nbytes(entry.item) for entry in batch) <= _INLINE_BYTES
        done = await self._lane.run(partial(self._work, batch), light=light)
        for execution in done.executions:
            self.statistics.executed(execution)
        self._metrics.postprocessed(sum(execution.output_seconds for execution in done.executions))
        return done.answered

    def _work(self, batch: Sequence[ModelEntry]) -> Done:
        """Fill, run, finish. Where the lane runs it. Rows of different shapes run apart from each other."""
        done = Done([], [])
        for group in [batch] if self._stackable else self._by_shape(batch):
            self._run_group(group, done)
        return done

    def _by_shape(self, batch: Sequence[ModelEntry]) -> list[list[ModelEntry]]:
        groups: dict[object, list[ModelEntry]] = {}
        spec = self._parts.spec.input
        for entry in batch:
            item = entry.item
            if isinstance(item, TensorItem):
                key: object = entry if item.row is None else item.shapes
            else:
                assert spec is not None
                key = (spec.shape,)
            groups.setdefault(key, []).append(entry)
        return list(groups.values())

    def _run_group(self, group: Sequence[ModelEntry], done: Done) -> None:
        """One execution of entries that can be stacked.

        A damaged image is rejected on its own, before the others run: it takes no neighbour with it. Nor does a
        tensor that the graph fails on: its batch is run again, one row at a time.
        """
        feeds, good = self._filled(group)
        if not good:
            return
        infer_at = time.monotonic()
        try:
            outputs = self._parts.engine.run(feeds)
            for place in self._outputs_with_rows:
                _checked_rows(outputs[place], len(good))
        except EngineFailed as error:
            if not any(isinstance(entry.item, TensorItem) for entry, _, _ in good):
                raise
            if len(good) == 1:
                good[0][0].reject(self._fault_of_tensor(error))
                return
            for entry, _, _ in good:
                self._run_group([entry], done)
            return
        finish_at = time.monotonic()
        infer_seconds = finish_at - infer_at
        scores = self._scores_of_each(outputs[self._output_index], good)
        no_predictions: tuple[Prediction, ...] = ()
        no_rows: tuple[Array, ...] = ()
        for place, (entry, fill_at, fill_seconds) in enumerate(good):
            item, predictions, rows = entry.item, no_predictions, no_rows
            if not isinstance(item, ImageItem):
                rows = self._row_of(outputs, place)
            elif isinstance(row := scores[place], EngineFailed):
                entry.reject(row)
                continue
            else:
                predictions = self._parts.task.predictions(row, item.top_k, item.threshold)
            answer = Answer(predictions, fill_at, fill_seconds, infer_at, infer_seconds, len(good), rows)
            done.answered.append((entry, answer))
        filling = sum(seconds for _, _, seconds in good)
        done.executions.append(Execution(len(good), filling, infer_seconds, time.monotonic() - finish_at))

    def _filled(self, group: Sequence[ModelEntry]) -> tuple[Tensors, list[tuple[ModelEntry, float, float]]]:
        """The graph's inputs, and the entries whose rows they are, each with when and how long it was filled."""
        first = group[0].item
        shapes = self._image_shapes
        if isinstance(first, TensorItem):
            shapes = first.shapes
            fill_at = time.monotonic()
            whole = _consecutive_rows([entry.item for entry in group])
            if whole is not None:  # nothing to copy
                feeds = {spec.name: array for spec, array in zip(self.signature.inputs, whole, strict=True)}
                return feeds, [(entry, fill_at, 0.0) for entry in group]
        arrays = [
            np.empty((len(group), *shape), spec.dtype)
            for spec, shape in zip(self.signature.inputs, shapes, strict=True)
        ]
        good: list[tuple[ModelEntry, float, float]] = []
        for entry in group:
            fill_at = time.monotonic()
            try:
                self._fill(entry.item, arrays, len(good))
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
            good.append((entry, fill_at, time.monotonic() - fill_at))
        rows = {spec.name: array[: len(good)] for spec, array in zip(self.signature.inputs, arrays, strict=True)}
        return rows, good

    def _fill(self, item: Item, arrays: Sequence[Array], place: int) -> None:
        """The item's row of every input. Raises InvalidImage."""
        if isinstance(item, TensorItem):
            for array, tensor in zip(arrays, item.tensors, strict=True):
                array[place] = tensor[item.row]
        else:
            assert self._parts.preprocessor is not None
            self._parts.preprocessor.prepare(item.image, arrays[0][place])

    def _row_of(self, outputs: Sequence[Array], place: int) -> tuple[Array, ...]:
        """One entry's part of the outputs that the signature shows."""
        if not self.signature.is_batched:
            return tuple(outputs)
        return tuple(outputs[index][place] for index in self._outputs_with_rows)

    def _fault_of_tensor(self, error: EngineFailed) -> FoveaError:
        """What the caller of a tensor is told that the graph failed on, alone in its execution.

        Where shapes are open, or values are indices, a tensor can fit the signature and not the graph.
        """
        if isinstance(error, EngineRefusedInput) or not self.signature.is_fixed:
            return InvalidTensor("The model cannot run on this input: its shape or its values do not fit the graph.")
        return error

    def _scores_of_each(
        self, raw: npt.NDArray[Any], good: Sequence[tuple[ModelEntry, float, float]]
    ) -> Sequence[Scores | EngineFailed]:
        """A row of scores for each image; an image whose output is no answer has its own fault, its mates none."""
        if not any(isinstance(entry.item, ImageItem) for entry, _, _ in good):
            return ()
        task = self._parts.task
        try:
            return list(task.scores(raw))
        except EngineFailed:
            return [_scores_or_fault(task, raw[place : place + 1]) for place in range(len(raw))]
