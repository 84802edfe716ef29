"""LoadedModel: one version of one model, ready to answer.

Composes preprocessing, batching, an engine and a task; owns them and closes them. It belongs to the event loop, but
for `_work`, which is what a lane runs for a batch, and what says that it is blocking. Knows no HTTP, not how it was
loaded and not which versions there are.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from service.batching.batch import Batch
from service.batching.batcher import Batcher
from service.batching.policy import FairShare
from service.batching.request_queue import Entry
from service.engine.base import Engine
from service.errors import (
    EngineFailed,
    EngineRefusedInput,
    FoveaError,
    InternalError,
    InvalidTensor,
    NoImageSignature,
    OutOfMemory,
)
from service.guard import Guard
from service.imaging.clips import Inspected, Payload
from service.imaging.spec import InputSpec
from service.inference_statistics import Execution
from service.isolation import isolate
from service.lane import DeviceLane, End, ExecutionThreads, FusedLane, InlineLane, Lane
from service.loading import INLINE_SECONDS, LoadContext, LoadedParts, checked_rows, scores_of, trial
from service.machine import give_back_memory
from service.manifest import ModelSpec
from service.messages import Classification, ClipPayload, ImagePayload, Prediction, Stage, Timings
from service.metrics import ModelMetrics
from service.tasks import Task
from service.tasks.base import Scores
from service.tensors import Array, Shapes, Signature, TensorItem, TensorResult, Tensors, items_of, signature_of

logger = logging.getLogger(__name__)

_INLINE_BYTES = 128 * 1024  # images and rows in all, encoded and decoded, that may be worked on on the event loop


class ImageItem(NamedTuple):
    """One image in the queue, with what its caller wants of the answer."""

    image: Inspected
    top_k: int
    threshold: float | None
    request_id: str | None = None


class RawImageItem(NamedTuple):
    """One image in the queue whose caller wants the graph's own outputs."""

    image: Inspected


Item = ImageItem | RawImageItem | TensorItem


class Answer(NamedTuple):
    """What an execution thread hands back for one entry: predictions, or its row of every output of the graph."""

    predictions: tuple[Prediction, ...]
    timings: Timings
    decode_at: float
    infer_at: float
    inferred_at: float
    batch_size: int
    outputs: tuple[Array, ...] = ()


class Done(NamedTuple):
    """What an execution thread hands back for a batch: its executions, the answers, and how executions failed."""

    executions: list[Execution]
    answered: list[tuple[Entry[Item, Answer], Answer]]
    faults: list[FoveaError]


ModelEntry = Entry[Item, Answer]


class Tap(Protocol):
    """Somebody who is shown the executions of a version, where they ran. Must return at once and never raise."""

    def offer(self, feeds: Tensors, raw: Array, items: Sequence[Item], cpu_seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What is shown of a loaded version."""

    task: str
    labels: tuple[str, ...]
    spec: ModelSpec
    engine: Engine
    sha256: str
    instances: int


def stages_of(entry: ModelEntry, ended_at: float) -> tuple[Stage, ...]:
    """What an entry went through, as far as it came before `ended_at`."""
    if entry.dispatched_at is None:
        return (Stage("queue", entry.queued_at, ended_at),)
    queue = Stage("queue", entry.queued_at, entry.dispatched_at)
    answer = entry.answer
    if answer is None:
        return queue, Stage("batch", entry.dispatched_at, ended_at)
    decode = Stage("decode", answer.decode_at, answer.decode_at + answer.timings.decode_seconds)
    infer = Stage("infer", answer.infer_at, answer.inferred_at)
    size = {"fovea.batch_size": answer.batch_size}
    return queue, Stage("batch", entry.dispatched_at, infer.ended_at, size, (decode, infer))


def _lane(parts: LoadedParts, threads: ExecutionThreads) -> Lane:
    """Where the version runs: what the manifest says, else by provider and by what warm-up measured."""
    if parts.engine.provider.name != "cpu":
        return DeviceLane(threads, parts.instances) if parts.instances else DeviceLane(threads)
    if parts.instances:
        return FusedLane(threads, parts.instances)
    if parts.batch_seconds <= INLINE_SECONDS:
        return InlineLane(threads)
    return FusedLane(threads, threads.count)


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
        self._all_statistics = context.statistics
        self._max_rows = context.max_rows
        self._metrics: ModelMetrics = context.metrics.model_loaded(
            name, version, parts.spec.task.labels, parts.engine.provider.name
        )
        self._metrics.watch_drift(parts.reference, context.drift_window)
        self._all_metrics = context.metrics
        self._lane = _lane(parts, context.threads)
        retry = partial(trial, parts) if parts.spec.input else None
        self.guard = Guard(f"{name}/{version}", self._lane, parts.engine, retry, self._metrics)
        self.tap: Tap | None = None
        batching = parts.spec.batching
        self._batcher: Batcher[Item, Answer] = Batcher(
            batching,
            FairShare(batching),
            self._execute,
            self._metrics,
            instances=self._lane.width,
            ahead=self._lane.ahead,
        )
        context.metrics.watch_queue(name, self._waiting)

    @property
    def description(self) -> ModelDescription:
        parts = self._parts
        return ModelDescription(
            parts.spec.task_name, parts.spec.task.labels, parts.spec, parts.engine, parts.sha256, self._lane.width
        )

    @property
    def fault(self) -> str:
        """Why it cannot serve now; empty where it can."""
        return self.guard.fault

    def grouped(self, images: Sequence[ImagePayload]) -> Sequence[Payload]:
        """What of a request's images is answered together: each image, or all of them as a clip."""
        return images if self._parts.preprocessor is None else self._parts.preprocessor.grouped(images)

    def inspect(self, payload: Payload) -> Inspected:
        """Check headers against the limits. Raises NoImageSignature or what is wrong with the image."""
        if self._parts.preprocessor is None:
            raise NoImageSignature(f"Model {self.name!r} takes tensors: its manifest has no image preprocessing.")
        return self._parts.preprocessor.inspect(payload)

    @property
    def labels(self) -> tuple[str, ...]:
        return self._parts.spec.task.labels

    def scores(self, raw: Array) -> Scores:
        """The task's scores of raw output rows. Blocking. Raises EngineFailed."""
        return self._parts.task.scores(raw)

    def score_image(self, image: bytes) -> Scores:
        """What one encoded image scores, past queue and limits. Blocking. Raises InvalidImage, EngineFailed."""
        return scores_of(self._parts, image)

    def best_of_image(self, image: bytes) -> Prediction | None:
        """Its best prediction; a multilabel model may have none. Blocking. Raises InvalidImage, EngineFailed."""
        return next(iter(self._parts.task.predictions(self.score_image(image), 1, None)), None)

    def run_again(self, feeds: Tensors, items: Sequence[Item], of: "LoadedModel") -> Array:
        """This version's raw output rows for an execution of another version. Blocking. Raises FoveaError.

        Its tensors are taken as they are where both versions want them the same way, else its images decoded again.
        """
        spec, theirs = self._parts.spec.input, of._parts.spec.input
        if spec is not None and (theirs is None or replace(theirs, tensor=spec.tensor) != spec):
            rows = self._decoded_again(spec, items)
        else:
            rows = {mine.name: array for mine, array in zip(self.signature.inputs, feeds.values(), strict=True)}
        return checked_rows(self._parts.engine.run(rows)[self._output_index], len(items))

    def _decoded_again(self, spec: InputSpec, items: Sequence[Item]) -> dict[str, Array]:
        preprocessor = self._parts.preprocessor
        assert preprocessor is not None
        rows = np.empty((len(items), *spec.shape), spec.dtype)
        for item, row in zip(items, rows, strict=True):
            if isinstance(item, TensorItem):
                raise InvalidTensor("A tensor made for another preprocessing.")
            payload = item.image.payload
            if isinstance(payload, ClipPayload) and spec.layout != "nthwc":
                raise InvalidTensor("A clip, where this version takes pictures.")
            preprocessor.prepare(preprocessor.inspect(payload), row)
        return {spec.tensor: rows}

    def rows_of(self, tensors: Tensors) -> list[TensorItem]:
        """A request's tensors as rows to submit. Raises InvalidTensor."""
        return items_of(self.signature, tensors, self._max_rows)

    def submit(self, item: Item, deadline_at: float, share: float = 1.0) -> ModelEntry:
        """Queue one item. Raises Overloaded. The caller awaits the entry's future, or calls `forget`."""
        return self._batcher.submit(item, deadline_at, share)

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

    def classified(self, entry: ModelEntry, answer: Answer) -> Classification:
        """What the caller of an image is told."""
        assert isinstance(entry.item, ImageItem)
        return Classification(answer.predictions, entry.item.image.info, answer.timings)

    def answered(self, places: Iterable[ModelEntry | FoveaError]) -> None:
        """Count a request's entries that have their answers."""
        for place in places:
            if isinstance(place, Entry) and place.answer is not None:
                self._metrics.image_answered(place.answer.predictions, place.answer.timings)

    def forget(self, entry: ModelEntry) -> None:
        """The caller stops waiting for this entry."""
        self._batcher.forget(entry)

    async def drain(self) -> None:
        """Return when nothing of this version is queued or running."""
        await self._batcher.drain()
        await self.guard.close()

    def close(self) -> None:
        """Free the engine. Only after `drain`."""
        self._all_metrics.unwatch_queue(self.name, self._waiting)
        self._all_metrics.model_unloaded(self.name, self.version)
        self._all_statistics.gone(self.statistics)
        self._parts.engine.close()
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.run_in_executor, None, give_back_memory)  # once the caller has let go of this

    def _waiting(self) -> int:
        return self._batcher.waiting

    def _execute(self, batch: Batch[Item, Answer], end: End[list[tuple[ModelEntry, Answer]]]) -> None:
        light = sum(_nbytes(entry.item) for entry in batch.entries) <= _INLINE_BYTES
        self.guard.start(partial(self._work, batch), partial(self._executed, end), light=light)

    def _executed(
        self, end: End[list[tuple[ModelEntry, Answer]]], done: Done | None, error: BaseException | None
    ) -> None:
        """Record an execution, and tell the batcher."""
        if done is None:
            end(None, error)
            return
        try:
            if done.faults:
                self._account(done)
            elif done.answered:
                self.guard.succeeded()
            for execution in done.executions:
                self.statistics.executed(execution)
            self._metrics.postprocessed(sum(execution.output_seconds for execution in done.executions))
        finally:
            end(done.answered, None)

    def _work(self, batch: Batch[Item, Answer]) -> Done:
        """Fill, run, finish. Where the lane runs it. Rows of different shapes run apart from each other."""
        done = Done([], [], [])
        entries = batch.begin()
        for group in [entries] if self._stackable else self._by_shape(entries):
            if group:
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

    def _account(self, done: Done) -> None:
        """Some execution failed: was it an item, or everything?"""
        self._metrics.executions_failed(len(done.faults))
        if done.answered:
            self.guard.succeeded()
        elif any(not isinstance(fault, InvalidTensor) for fault in done.faults):
            self.guard.failed()

    def _run_group(self, group: Sequence[ModelEntry], done: Done) -> None:
        """Answer entries that can be stacked. Where there is no memory for all of them, for half of them at a time."""
        try:
            self._run_whole(group, done)
        except MemoryError:
            if len(group) == 1:
                group[0].reject(OutOfMemory())
                return
            half = len(group) // 2
            self._run_group(group[:half], done)
            self._run_group(group[half:], done)

    def _run_whole(self, group: Sequence[ModelEntry], done: Done) -> None:
        """One execution, and where it fails those that find who is at fault.

        A damaged image is rejected on its own, before the others run: it takes no neighbour with it. Nor does a
        tensor, or an image, that the graph fails on.
        """
        feeds, good = self._filled(group)
        if not good:
            return
        fault = self._run_filled(feeds, good, done)
        if fault is None:
            return

        def run(places: Sequence[int]) -> bool:
            nonlocal fault
            part = {name: array[places] for name, array in feeds.items()}
            failed = self._run_filled(part, [good[place] for place in places], done)
            fault = failed or fault
            return failed is None

        for place in isolate(range(len(good)), run):
            good[place][0].reject(self._fault_of(good[place][0].item, fault))

    def _run_filled(
        self, feeds: Tensors, good: Sequence[tuple[ModelEntry, float, float]], done: Done
    ) -> FoveaError | None:
        """One execution and the answers of its entries; or why it failed. Raises MemoryError."""
        tap = self.tap
        cpu_at = time.thread_time() if tap is not None else 0.0
        infer_at = time.monotonic()
        try:
            outputs = self._parts.engine.run(feeds)
            for place in self._outputs_with_rows:
                checked_rows(outputs[place], len(good))
        except EngineFailed as error:
            done.faults.append(self._fault_of(good[0][0].item, error))
            return error
        finish_at = time.monotonic()
        if tap is not None and self.signature.is_batched:
            items = [entry.item for entry, _, _ in good]
            tap.offer(feeds, outputs[self._output_index], items, time.thread_time() - cpu_at)
        self._finish(outputs, good, infer_at, finish_at, done)
        return None

    def _finish(
        self,
        outputs: Sequence[Array],
        good: Sequence[tuple[ModelEntry, float, float]],
        infer_at: float,
        finish_at: float,
        done: Done,
    ) -> None:
        """What the callers asked for, made of the outputs."""
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
                done.faults.append(row)
                continue
            else:
                predictions = self._parts.task.predictions(row, item.top_k, item.threshold)
            assert entry.dispatched_at is not None
            timings = Timings(fill_seconds, entry.dispatched_at - entry.queued_at, infer_seconds)
            answer = Answer(predictions, timings, fill_at, infer_at, finish_at, len(good), rows)
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
        seconds: dict[int, tuple[float, float]] = {}  # of each row that was filled: when, and how long

        def fill(place: int) -> None:
            fill_at = time.monotonic()
            if self._fill_or_reject(group[place], arrays, place):
                seconds[place] = fill_at, time.monotonic() - fill_at

        self._lane.spread(fill, range(len(group)))
        good = [(entry, *seconds[place]) for place, entry in enumerate(group) if place in seconds]
        if len(good) < len(group):
            arrays = [array[sorted(seconds)] for array in arrays]
        return {spec.name: array for spec, array in zip(self.signature.inputs, arrays, strict=True)}, good

    def _fill_or_reject(self, entry: ModelEntry, arrays: Sequence[Array], place: int) -> bool:
        """The entry's row of every input; False where it has none, which its caller has been told."""
        item = entry.item
        try:
            if isinstance(item, TensorItem):
                for array, tensor in zip(arrays, item.tensors, strict=True):
                    array[place] = tensor[item.row]
            else:
                assert self._parts.preprocessor is not None
                self._parts.preprocessor.prepare(item.image, arrays[0][place])
        except FoveaError as error:
            entry.reject(error)
        except MemoryError:
            entry.reject(OutOfMemory())
        except Exception:
            logger.exception("preprocessing_failed")
            entry.reject(InternalError("Preprocessing failed: this is a bug"))
        else:
            return True
        return False

    def _row_of(self, outputs: Sequence[Array], place: int) -> tuple[Array, ...]:
        """One entry's part of the outputs that the signature shows."""
        if not self.signature.is_batched:
            return tuple(outputs)
        return tuple(outputs[index][place] for index in self._outputs_with_rows)

    def _fault_of(self, item: Item, error: FoveaError) -> FoveaError:
        """What the caller of an item is told that the graph failed on.

        Where shapes are open, or values are indices, a tensor can fit the signature and not the graph.
        """
        if isinstance(item, TensorItem) and (isinstance(error, EngineRefusedInput) or not self.signature.is_fixed):
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
