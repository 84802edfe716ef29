"""Loading one version: from its files to a warm session, through every gate that stands before service.

    files        read once, plain, checked against SHA256SUMS, within their caps
    graph        operators and external data, before ONNX Runtime sees it
    signature    graph, manifest and labels fit each other
    warm-up      batches of 1, 2 and the largest that will be used run, and their outputs can be answers
    golden       what golden.json expects is what comes out

Blocking; runs on a thread. Whoever fails raises ModelLoadError with the gate and the reason.
"""

import logging
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from service import drift, golden
from service import manifest as manifests
from service.batching.paying import paying_batch_size, sizes_as_good_as_the_best
from service.drift import Reference
from service.engine import onnx_file
from service.engine.base import Engine
from service.engine.ort import OrtEngine
from service.engine.padded import PaddedEngine, bucket_sizes
from service.engine.spec import ExecutionSpec
from service.engine.wide import WideEngine
from service.errors import EngineFailed, FoveaError, ModelLoadError
from service.imaging.clips import RowMaker, row_maker
from service.imaging.decode import DecodeBudget
from service.imaging.spec import ImageLimits, InputSpec
from service.inference_statistics import Statistics
from service.lane import ExecutionThreads
from service.machine import give_back_memory, large_blocks_apart
from service.manifest import ModelSpec
from service.messages import ImagePayload
from service.metrics import Metrics
from service.model_files import MAX_VERSION_BYTES, ModelFiles
from service.tasks import TASKS, Task
from service.tasks.base import Scores
from service.tensors import signature_of

logger = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
_MOST_TIMING_SECONDS = 0.4  # of a load, spent on finding the batch size that pays
_TIMED_RUNS = 3
INLINE_SECONDS = 0.002  # an execution that takes no longer may run on the event loop
_MOST_WIDE_BYTES = 64 * 2**20  # of weights that are held twice
_MOST_WIDE_THREADS = 8  # more of them answer one image hardly sooner


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What every model of a process shares."""

    threads: ExecutionThreads
    limits: ImageLimits
    budget: DecodeBudget
    metrics: Metrics
    statistics: Statistics = field(default_factory=Statistics)
    max_rows: int = 64  # of a request, as in the settings
    sums_required: bool = False
    max_version_bytes: int = MAX_VERSION_BYTES
    drift_window: int = 2000
    unread: frozenset[str] = frozenset()  # files that are about to be written: what they say now does not count
    seconds_of: dict[Hashable, Mapping[int, float]] = field(default_factory=dict)  # what networks took, once timed


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
    reference: Reference | None = None
    execution: ExecutionSpec = field(default_factory=ExecutionSpec)


def load(folder: Path, version: int, context: LoadContext) -> LoadedParts:
    """Read, verify, open and warm one version. Blocking. Raises ModelLoadError with the reason."""
    files = ModelFiles(folder, version, sums_required=context.sums_required, max_bytes=context.max_version_bytes)
    try:
        with large_blocks_apart():
            graph = _read(version, files)
            parts = _sized(_opened(folder, version, graph, files, context), files, context)
            parts = _for_its_device(parts, graph, context)
            _warm_up(parts)
            _check_golden(parts, files, context)
            return replace(parts, reference=_reference(parts, files, context))
    finally:
        files.release()
        give_back_memory()


class _Graph(NamedTuple):
    """A graph as it lies in its files, checked."""

    model: bytes
    external: dict[str, bytes]

    def open(self, spec: ExecutionSpec, threads: int) -> OrtEngine:
        return OrtEngine(self.model, spec, external=self.external, intra_op_threads=threads)

    @property
    def nbytes(self) -> int:
        return len(self.model) + sum(len(content) for content in self.external.values())


def _read(version: int, files: ModelFiles) -> _Graph:
    model = files.of_version(MODEL_FILE)
    if model is None:
        raise ModelLoadError(f"{version}/{MODEL_FILE} is missing", gate="files")
    return _Graph(model, _external_data(model, f"{version}/{MODEL_FILE}", files))


def _opened(folder: Path, version: int, graph: _Graph, files: ModelFiles, context: LoadContext) -> LoadedParts:
    """Every check that needs no execution, then the session."""
    manifest = manifests.read(folder, version, files)
    labels = manifests.read_labels(folder, version, manifest, files)
    engine = graph.open(manifest.execution_spec, 1)
    spec = manifests.resolve(manifest, labels, engine.inputs, engine.outputs, engine.provider.name)
    task = TASKS[spec.task_name](spec.task)
    preprocessor = row_maker(spec.input, context.limits, context.budget) if spec.input else None
    instances = manifest.execution.instances
    sha256, execution = files.sha256(MODEL_FILE), manifest.execution_spec
    return LoadedParts(spec, engine, task, preprocessor, sha256, instances, math.inf, execution=execution)


def _external_data(model: bytes, name: str, files: ModelFiles) -> dict[str, bytes]:
    """What the graph keeps in other files. Raises ModelLoadError on a graph that must not be loaded."""
    found = onnx_file.inspect(model, name)
    found.check()
    external = {}
    for beside in sorted(found.external_files()):
        content = files.of_version(beside)
        if content is None:
            raise ModelLoadError(f"external data {beside!r} is missing beside {MODEL_FILE}", gate="external_data")
        found.check_external(beside, len(content))
        external[beside] = content
    return external


def _sized(parts: LoadedParts, files: ModelFiles, context: LoadContext) -> LoadedParts:
    """With the batch size that pays, where the manifest names none.

    No network is timed twice: that would be most of a load, and taken from the traffic.
    """
    largest = parts.spec.batching.max_batch_size
    sizes = [largest] if parts.spec.batching_is_given else _batch_sizes(largest)
    network = _network(parts, files, sizes)
    if network not in context.seconds_of:
        context.seconds_of[network] = time_batches(parts, sizes)
    seconds_of = context.seconds_of[network]
    if not seconds_of:
        return parts
    size = paying_batch_size(seconds_of, _inline_seconds(parts))
    batching = replace(parts.spec.batching, max_batch_size=size)
    return replace(parts, spec=replace(parts.spec, batching=batching), batch_seconds=seconds_of[size])


def _inline_seconds(parts: LoadedParts) -> float:
    """Up to which time a longer batch costs nobody anything: a device's never stand in the event loop's way."""
    return INLINE_SECONDS if parts.engine.provider.name == "cpu" else math.inf


def _for_its_device(parts: LoadedParts, graph: _Graph, context: LoadContext) -> LoadedParts:
    """A device sees batches of a few sizes only; a CPU every one, and one image alone with all its cores."""
    spec, engine = parts.spec, parts.engine
    if engine.provider.name == "cpu" and _may_be_wide(parts, graph, context):
        wide = graph.open(parts.execution, min(context.threads.count, _MOST_WIDE_THREADS))
        return replace(parts, engine=WideEngine(engine, wide, context.threads.is_alone))
    signature = signature_of(engine.inputs, engine.outputs, spec.input.tensor if spec.input else None)
    is_open = signature.is_batched and all(one.shape[0] == -1 for one in engine.inputs)
    if engine.provider.name == "cpu" or not is_open:
        return parts
    with_rows = [place for place, output in enumerate(engine.outputs) if output in signature.outputs]
    return replace(parts, engine=PaddedEngine(engine, with_rows, bucket_sizes(spec.batching.max_batch_size)))


def _may_be_wide(parts: LoadedParts, graph: _Graph, context: LoadContext) -> bool:
    """Whether one image alone is worth a second session: of a network that has threads to itself, and is not large."""
    has_threads = parts.batch_seconds > INLINE_SECONDS and not parts.instances and not parts.execution.intra_op_threads
    is_of_images = parts.spec.input is not None
    return is_of_images and has_threads and context.threads.count > 1 and graph.nbytes <= _MOST_WIDE_BYTES


def _network(parts: LoadedParts, files: ModelFiles, sizes: Sequence[int]) -> Hashable:
    """What two versions have in common that differ in their weights alone. Enough to expect the same timings."""
    model = files.of_version(MODEL_FILE)
    assert model is not None
    return len(model), parts.engine.inputs, parts.engine.outputs, parts.engine.provider, parts.execution, tuple(sizes)


def _check_golden(parts: LoadedParts, files: ModelFiles, context: LoadContext) -> None:
    """Run golden.json, where there is one. Raises ModelLoadError on another answer than it expects."""
    content = None if golden.GOLDEN_NAME in context.unread else files.of_version(golden.GOLDEN_NAME)
    if content is None:
        return
    if parts.spec.input is None:
        raise ModelLoadError(f"{golden.GOLDEN_NAME} needs a model that takes images", gate="golden")
    wanted = golden.parse(content)
    for case in wanted.cases:
        image = golden.picture(case.seed, *parts.spec.input.size) if case.seed is not None else None
        if case.file is not None and (image := files.of_version(case.file)) is None:
            raise ModelLoadError(f"{golden.GOLDEN_NAME}: {case.file!r} is missing beside it", gate="golden")
        assert image is not None
        try:
            scores = scores_of(parts, image)
        except FoveaError as error:
            raise ModelLoadError(f"{golden.GOLDEN_NAME}: {case.name}: {error}", gate="golden") from None
        golden.compare(case, scores, wanted.tolerance)


def trial(parts: LoadedParts) -> None:
    """Run one picture of noise, as warming up did. Blocking. Raises EngineFailed where that no longer works."""
    assert parts.spec.input is not None
    parts.task.scores(_run(parts, noise(parts.spec.input, 1)))


def scores_of(parts: LoadedParts, image: bytes) -> Scores:
    """What one encoded image scores. Blocking. Raises what is wrong with the image, or EngineFailed."""
    spec = parts.spec.input
    assert spec is not None
    preprocessor = row_maker(spec, ImageLimits(), DecodeBudget(ImageLimits().decode_bytes))
    batch = np.empty((1, *spec.shape), spec.dtype)
    preprocessor.prepare(preprocessor.inspect(ImagePayload(image)), batch[0])
    scores: Scores = parts.task.scores(_run(parts, batch))[0]
    return scores


def _reference(parts: LoadedParts, files: ModelFiles, context: LoadContext) -> Reference | None:
    content = None if drift.REFERENCE_NAME in context.unread else files.of_version(drift.REFERENCE_NAME)
    reference = None if content is None else drift.parse(content, len(parts.spec.task.labels))
    if reference is not None and reference.images < drift.MIN_REFERENCE_IMAGES:
        logger.warning("reference_too_small", extra={"images": reference.images, "least": drift.MIN_REFERENCE_IMAGES})
        return None
    return reference


def _warm_up(parts: LoadedParts) -> None:
    """Run batches of 1, 2 and the largest size, on a device of all it will see, and look whether the answer fits."""
    if parts.spec.input is None:
        return
    largest = parts.spec.batching.max_batch_size
    few = sorted({1, min(2, largest), largest})
    for size in few if parts.engine.provider.name == "cpu" else bucket_sizes(largest):
        with _refusing_what_fails(size):
            raw = _run(parts, noise(parts.spec.input, size))
            parts.task.scores(raw)
        _refuse_activation_twice(parts.spec, raw)
    parts.engine.shrink({parts.spec.input.tensor: noise(parts.spec.input, 1)})


@contextmanager
def _refusing_what_fails(images: int) -> Iterator[None]:
    try:
        yield
    except EngineFailed as error:
        because = f": {' '.join(str(error.__cause__).split())[:300]}" if error.__cause__ else ""
        raise ModelLoadError(
            f"warm-up with {images} images of random pixels: {error}{because}", gate="warm_up"
        ) from None


def _batch_sizes(largest: int) -> list[int]:
    return [size for size in (2, 4, 8, 16, 32) if size <= largest] or [largest]


def time_batches(
    parts: LoadedParts, sizes: Sequence[int], clock: Callable[[], float] | None = None
) -> dict[int, float]:
    """Seconds of an execution by batch size; nothing for a model that takes no images.

    Ends where larger batches no longer pay, as they take memory, or when the time is up. On a CPU seconds of this
    thread, so that a version loaded under load is judged as one loaded before it. Each size is timed in turns with the
    one before it and takes its ratio from there: a machine does not keep its speed for so long.
    """
    clock = clock or (time.thread_time if parts.engine.provider.name == "cpu" else time.perf_counter)
    seconds_of: dict[int, float] = {}
    if parts.spec.input is None:
        return seconds_of
    ends_at = clock() + _MOST_TIMING_SECONDS
    for before, size in zip([None, *sizes], sizes, strict=False):
        measured = _timed_in_turns(parts, [size] if before is None else [size, before], clock, ends_at)
        if size not in measured:
            break
        same_moment = measured.get(before) if before is not None else None
        scale = seconds_of[before] / same_moment if before is not None and same_moment else 1.0
        seconds_of[size] = measured[size] * scale
        if size not in sizes_as_good_as_the_best(seconds_of, _inline_seconds(parts)) or clock() > ends_at:
            break
    return seconds_of


def _timed_in_turns(
    parts: LoadedParts, sizes: Sequence[int], clock: Callable[[], float], ends_at: float
) -> dict[int, float]:
    """The quickest of a few runs of each size; of none that would begin after `ends_at`."""
    assert parts.spec.input is not None
    batches = {size: noise(parts.spec.input, size) for size in sizes}
    quickest: dict[int, float] = {}
    for _ in range(_TIMED_RUNS):
        for size, batch in batches.items():
            run_at = clock()
            if run_at > ends_at:
                return quickest
            with _refusing_what_fails(size):
                _run(parts, batch)
            quickest[size] = min(quickest.get(size, math.inf), clock() - run_at)
    return quickest


def noise(spec: InputSpec, size: int) -> npt.NDArray[Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (size, *spec.shape)).astype(spec.dtype)
    return pixels if spec.dtype == "uint8" else pixels / np.asarray(255, pixels.dtype)


def _refuse_activation_twice(spec: ModelSpec, raw: npt.NDArray[Any]) -> None:
    rows = raw.reshape(len(raw), -1).astype(np.float64)
    if rows.min() < 0 or rows.max() > 1:
        return
    if spec.task.activation == "softmax" and rows.shape[1] > 1 and np.allclose(rows.sum(axis=1), 1, atol=1e-3):
        raise ModelLoadError(
            'output.activation = "softmax", and the graph\'s output already adds up to 1: set activation = "none"',
            gate="warm_up",
        )


def _run(parts: LoadedParts, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
    assert parts.spec.input is not None
    outputs = parts.engine.run({parts.spec.input.tensor: batch})
    place = [output.name for output in parts.engine.outputs].index(parts.spec.output_tensor)
    return checked_rows(outputs[place], len(batch))


def checked_rows(raw: npt.NDArray[Any], images: int) -> npt.NDArray[Any]:
    if raw.ndim == 0 or len(raw) != images:
        rows = len(raw) if raw.ndim else 0
        raise EngineFailed(
            f"The model gave {rows} rows for a batch of {images}; its first dimension must be the batch."
        )
    return raw
