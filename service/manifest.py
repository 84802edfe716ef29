"""model.toml: how to feed a model and how to read its answer.

Owns the file's schema, what its defaults are, and how it is completed from the graph's own signature. The four specs
that it is made of belong to imaging, tasks, batching and engine. Errors name file, field, value, reason and remedy.
"""

import math
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from service.batching.spec import BatchingSpec
from service.engine.base import TensorSpec
from service.engine.providers import PROVIDERS
from service.engine.spec import ExecutionSpec
from service.errors import ModelLoadError
from service.imaging.spec import Color, Decode, InputSpec, Interpolation, Layout, Resampler, Resize
from service.model_files import ModelFiles
from service.tasks import TASKS, TaskSpec

MANIFEST_NAME = "model.toml"

# preset -> (scale, mean, std, channel order that comes with it)
PRESETS: dict[str, tuple[float, tuple[float, ...], tuple[float, ...], Color]] = {
    "imagenet": (1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "rgb"),
    "torchvision": (1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "rgb"),
    "keras_tf": (1 / 127.5, (1.0,), (1.0,), "rgb"),
    "unit": (1 / 255, (0.0,), (1.0,), "rgb"),
    "caffe": (1.0, (103.939, 116.779, 123.68), (1.0,), "bgr"),
    "raw": (1.0, (0.0,), (1.0,), "rgb"),
}
_IMAGE_DTYPES = ("float32", "float16", "float64", "uint8")
_CROP_FRACTION = 0.875  # of the short side, as ImageNet models have been evaluated since AlexNet


def _as_numbers(value: object) -> object:
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value


Numbers = Annotated[tuple[float, ...], BeforeValidator(_as_numbers)]
Positive = Annotated[int, Field(ge=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class InputTable(_Table):
    """[input]. None means: from the preset, or from the graph."""

    preset: Literal["imagenet", "torchvision", "keras_tf", "unit", "caffe", "raw"] | None = None
    scale: Numbers | None = None
    mean: Numbers | None = None
    std: Numbers | None = None
    tensor: str | None = None
    size: tuple[Positive, Positive] | None = None
    color: Color | None = None
    layout: Layout | None = None
    frames: int = Field(1, ge=1)
    resize: Resize = "shortest_side"
    resize_to: int | None = Field(None, ge=1)
    antialias: bool | None = None
    interpolation: Interpolation = "bilinear"
    resampler: Resampler = "pil"
    decode: Decode = "fast"
    exif: Literal["apply", "ignore"] = "apply"
    background: tuple[
        Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)]
    ] = (255, 255, 255)

    @property
    def has_scaling(self) -> bool:
        return self.preset is not None or self.scale is not None or self.mean is not None or self.std is not None

    @model_validator(mode="after")
    def _scaling_is_said_once_and_whole(self) -> "InputTable":
        numbers = (self.scale, self.mean, self.std)
        if self.preset is not None and any(value is not None for value in numbers):
            raise ValueError("give either preset or scale, mean and std, not both")
        if any(value is not None for value in numbers) and any(value is None for value in numbers):
            raise ValueError("scale, mean and std go together: give all three, or a preset")
        if self.std is not None and 0 in self.std:
            raise ValueError("std must not be 0")
        if self.antialias and self.resampler == "opencv" and self.interpolation != "area":
            raise ValueError('OpenCV does not antialias: set antialias = false, or interpolation = "area"')
        return self


class OutputTable(_Table):
    """[output]."""

    task: Literal["multiclass", "multilabel", "binary"] = "multiclass"
    activation: Literal["softmax", "sigmoid", "none"] | None = None
    labels: str = "labels.txt"
    tensor: str | None = None
    temperature: float = Field(1.0, gt=0)
    thresholds: Numbers = (0.5,)


class BatchingTable(_Table):
    """[batching]. None means: chosen from the provider and the graph."""

    max_batch_size: int | None = Field(None, ge=1, le=1024)
    max_queue_delay_ms: float = Field(0.0, ge=0, le=10_000)
    preferred_batch_sizes: tuple[Positive, ...] = ()
    max_queue_size: int = Field(256, ge=1)
    max_queue_wait_ms: float = Field(1000.0, gt=0)

    @model_validator(mode="after")
    def _the_delay_is_shorter_than_the_longest_wait(self) -> "BatchingTable":
        if self.max_queue_delay_ms >= self.max_queue_wait_ms:
            raise ValueError(
                f"max_queue_delay_ms = {self.max_queue_delay_ms:g} must be less than "
                f"max_queue_wait_ms = {self.max_queue_wait_ms:g}: every request would be dropped"
            )
        return self


class ExecutionTable(_Table):
    """[execution]."""

    providers: tuple[str, ...] = Field(("cuda", "cpu"), min_length=1)
    device_ids: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    instances: int = Field(0, ge=0, le=256)
    intra_op_threads: int = Field(0, ge=0, le=256)

    @model_validator(mode="after")
    def _providers_are_known(self) -> "ExecutionTable":
        unknown = [name for name in self.providers if name not in PROVIDERS]
        if unknown:
            raise ValueError(f"unknown provider {unknown[0]!r}; known are {', '.join(PROVIDERS)}")
        return self


class VersionsTable(_Table):
    """{ latest = n } as a version policy."""

    latest: int = Field(ge=1)


class ShareTable(_Table):
    """A version and the percentage of requests, or of batches, that it gets."""

    version: Positive
    percent: float = Field(ge=0, le=100)


class RolloutTable(_Table):
    """[rollout]. None means: as version_policy says, and nobody."""

    stable: Positive | None = None
    canary: ShareTable | None = None
    shadow: ShareTable | None = None


class Manifest(_Table):
    """The whole file."""

    schema_version: Literal[1] = Field(1, alias="schema")
    version_policy: Literal["latest", "all"] | VersionsTable | tuple[Positive, ...] = "latest"
    input: InputTable | None = None
    output: OutputTable = OutputTable()
    batching: BatchingTable = BatchingTable()
    execution: ExecutionTable = ExecutionTable()
    rollout: RolloutTable = RolloutTable()
    metadata: dict[str, Any] = {}

    @property
    def execution_spec(self) -> ExecutionSpec:
        table = self.execution
        return ExecutionSpec(table.providers, table.device_ids, table.instances, table.intra_op_threads)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A manifest completed from the graph. `input` is None for a model that takes tensors only.

    Without `has_labels` the task's labels are only the numbers of its places. `batching_is_given` says that the largest
    batch is the manifest's own.
    """

    task_name: str
    task: TaskSpec
    input: InputSpec | None
    output_tensor: str
    batching: BatchingSpec
    has_labels: bool = True
    batching_is_given: bool = False


def read(folder: Path, version: int | None = None, files: ModelFiles | None = None) -> Manifest:
    """The manifest of a model folder, with the keys that `version` has of its own laid over it.

    A folder without one gets the defaults: it is served to the tensor protocols. Raises ModelLoadError.
    """
    files = files or ModelFiles(folder, version)
    path = folder / MANIFEST_NAME
    tree = _parse(path, files.of_model(MANIFEST_NAME))
    own = files.of_version(MANIFEST_NAME)
    if own is not None:
        path = folder / str(version) / MANIFEST_NAME
        tree = _merged(tree, _parse(path, own))
    try:
        return Manifest.model_validate(tree)
    except ValidationError as error:
        raise ModelLoadError(_explain(path, error)) from None


def read_labels(
    folder: Path, version: int, manifest: Manifest, files: ModelFiles | None = None
) -> tuple[str, ...] | None:
    """The labels of a version, its own file before the model's; None where there is no file.

    Duplicate labels are told apart by their index. Raises ModelLoadError.
    """
    name = manifest.output.labels
    if Path(name).name != name:
        raise ModelLoadError(f"output.labels = {name!r} is not a plain file name: put the file beside {MANIFEST_NAME}")
    files = files or ModelFiles(folder, version)
    path, content = folder / str(version) / name, files.of_version(name)
    if content is None:
        path, content = folder / name, files.of_model(name)
    if content is None:
        return None
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"{_short(path)}: cannot be read as UTF-8 text ({error})", gate="labels") from None
    while lines and not lines[-1].strip():
        lines.pop()
    labels = [line.strip() for line in lines]
    if "" in labels:
        raise ModelLoadError(f"{_short(path)}: line {labels.index('') + 1} is empty; one label a line", gate="labels")
    return tuple(_told_apart(labels))


def _told_apart(labels: Sequence[str]) -> list[str]:
    """Labels that stand there more than once get their index, until all are different."""
    times = Counter(labels)
    taken = {label for label, count in times.items() if count == 1}
    result = []
    for index, label in enumerate(labels):
        if times[label] > 1:
            label = f"{label} ({index})"
            while label in taken:
                label += f" ({index})"
            taken.add(label)
        result.append(label)
    return result


def resolve(
    manifest: Manifest,
    labels: Sequence[str] | None,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    provider: str,
) -> ModelSpec:
    """Complete a manifest from the graph, and refuse what does not fit it. Raises ModelLoadError."""
    output = _pick(outputs, manifest.output.tensor, f"{MANIFEST_NAME}: output.tensor")
    spec = _input_spec(manifest.input, inputs) if manifest.input is not None and manifest.input.has_scaling else None
    if manifest.input is not None and spec is None and manifest.input.model_fields_set - {"tensor"}:
        raise ModelLoadError(
            f"{MANIFEST_NAME}: [input] does not say how pixels are scaled; give preset = ..., or scale, mean and std"
        )
    has_labels = labels is not None
    labels = _labels_for(manifest, labels, output, needed=spec is not None)
    task = _task_spec(manifest, tuple(labels))
    batch = inputs[0].shape[0] if inputs and inputs[0].shape else 1
    if spec is not None:
        _refuse_fixed_batch(batch)
    batching = _batching_spec(manifest.batching, batch, provider)
    is_given = manifest.batching.max_batch_size is not None
    return ModelSpec(manifest.output.task, task, spec, output.name, batching, has_labels, is_given)


def _task_spec(manifest: Manifest, labels: tuple[str, ...]) -> TaskSpec:
    output = manifest.output
    activation = output.activation or TASKS[output.task].default_activation
    if activation == "none" and output.temperature != 1.0:
        raise ModelLoadError('output.temperature needs logits, and activation = "none" says that there are none')
    if len(output.thresholds) not in (1, len(labels)):
        raise ModelLoadError(
            f"output.thresholds has {len(output.thresholds)} numbers for {len(labels)} labels; give one, or one each"
        )
    return TaskSpec(labels, activation, output.temperature, output.thresholds)  # type: ignore[arg-type]  # a Literal


def _labels_for(manifest: Manifest, labels: Sequence[str] | None, output: TensorSpec, *, needed: bool) -> Sequence[str]:
    classes = -1 if -1 in output.shape[1:] else math.prod(output.shape[1:])
    if labels is None:
        if needed:
            raise ModelLoadError(
                f"{manifest.output.labels} is missing: one label a line, in output order", gate="labels"
            )
        return [str(index) for index in range(max(classes, 1))]
    expected = 2 if manifest.output.task == "binary" else len(labels)
    if manifest.output.task == "binary" and (classes not in (1, -1) or len(labels) != expected):
        raise ModelLoadError(
            f'task = "binary" is one output and two labels; the graph has {classes} and {manifest.output.labels} '
            f'{len(labels)}; use task = "multiclass" or "multilabel"',
            gate="labels",
        )
    if manifest.output.task != "binary" and classes > 0 and classes != len(labels):
        raise ModelLoadError(
            f"{manifest.output.labels} has {len(labels)} labels and output {output.name!r} {classes} classes",
            gate="labels",
        )
    return labels


def customary_resize_to(size: tuple[int, int]) -> int:
    """The short side before the crop of `size`, where nothing says it."""
    return round(max(size) / _CROP_FRACTION)


def _input_spec(table: InputTable, inputs: Sequence[TensorSpec]) -> InputSpec:
    if len(inputs) > 1:
        raise ModelLoadError(f"the graph has {len(inputs)} inputs; images can feed a graph with one", gate="signature")
    tensor = _pick(inputs, table.tensor, f"{MANIFEST_NAME}: input.tensor")
    if tensor.dtype not in _IMAGE_DTYPES:
        raise ModelLoadError(
            f"input {tensor.name!r} is {tensor.dtype}; images can feed {', '.join(_IMAGE_DTYPES)}", gate="signature"
        )
    layout, channels, graph_size = _layout(table, tensor)
    size = table.size or graph_size
    if -1 in size:
        raise ModelLoadError("input.size = [height, width] is needed: the graph leaves it open", gate="signature")
    if any(mine != fixed for mine, fixed in zip(size, graph_size, strict=True) if fixed > 0):
        raise ModelLoadError(f"input.size = {list(size)} and the graph wants {list(graph_size)}", gate="signature")
    scale, mean, std, color = _scaling(table, tensor, channels)
    resize_to = table.resize_to or customary_resize_to(size)
    if table.resize == "shortest_side" and resize_to < max(size):
        raise ModelLoadError(f"input.resize_to = {resize_to} is less than the crop of {max(size)} pixels")
    antialias = table.resampler == "pil" if table.antialias is None else table.antialias
    frames = _frames(table, tensor) if layout == "nthwc" else 1
    if layout != "nthwc" and table.frames > 1:
        raise ModelLoadError(f"input.frames = {table.frames} is for clips; input {tensor.name!r} has no time axis")
    return InputSpec(
        tensor=tensor.name,
        size=size,
        color=color,
        layout=layout,
        dtype=tensor.dtype,
        scale=scale,
        mean=mean,
        std=std,
        resize=table.resize,
        resize_to=resize_to,
        antialias=antialias,
        interpolation=table.interpolation,
        resampler=table.resampler,
        decode=table.decode,
        exif=table.exif,
        background=table.background,
        frames=frames,
    )


def _frames(table: InputTable, tensor: TensorSpec) -> int:
    """How many frames a clip has."""
    in_graph = tensor.shape[1]
    if "frames" not in table.model_fields_set:
        if in_graph == -1:
            raise ModelLoadError("input.frames is needed: the graph leaves the length of a clip open")
        return in_graph
    if in_graph not in (-1, table.frames):
        raise ModelLoadError(f"input.frames = {table.frames} and the graph wants {in_graph}")
    return table.frames


def _layout(table: InputTable, tensor: TensorSpec) -> tuple[Layout, int, tuple[int, int]]:
    """Layout, channels and (height, width) that the graph says, -1 where it leaves them open."""
    wanted = table.layout
    ranks = {None: (4, 5), "nthwc": (5,)}.get(wanted, (4,))
    if len(tensor.shape) not in ranks:
        raise ModelLoadError(
            f"input {tensor.name!r} has shape {list(tensor.shape)}; images feed one of 4 dimensions, clips one of 5",
            gate="signature",
        )
    *_, first, middle, last = tensor.shape
    if len(tensor.shape) == 5:
        wanted = "nthwc"
    elif wanted is None:
        if first in (1, 3) and last not in (1, 3):
            wanted = "nchw"
        elif last in (1, 3) and first not in (1, 3):
            wanted = "nhwc"
        else:
            raise ModelLoadError(
                'input.layout = "nchw" or "nhwc" is needed: the graph\'s shape does not tell', gate="signature"
            )
    channels, size = (first, (middle, last)) if wanted == "nchw" else (last, (first, middle))
    asked = None if table.color is None else 1 if table.color == "gray" else 3
    if channels == -1:
        channels = asked or 3
    if channels not in (1, 3):
        raise ModelLoadError(f"input {tensor.name!r} has {channels} channels; images have 1 or 3", gate="signature")
    if asked is not None and asked != channels:
        raise ModelLoadError(
            f"input {tensor.name!r} has {channels} channels; color = {table.color!r} does not fit", gate="signature"
        )
    return wanted, channels, size


def _scaling(
    table: InputTable, tensor: TensorSpec, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], Color]:
    preset_color: Color = "rgb"
    if table.preset is not None:
        factor, mean, std, preset_color = PRESETS[table.preset]
        scale: tuple[float, ...] = (factor,)
    else:
        assert table.scale is not None and table.mean is not None and table.std is not None
        scale, mean, std = table.scale, table.mean, table.std
    color: Color = table.color or ("gray" if channels == 1 else preset_color)
    for name, values in (("scale", scale), ("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ModelLoadError(
                f"input.{name} has {len(values)} numbers for {channels} channels; give one, or one each"
            )
    if tensor.dtype == "uint8" and (set(scale), set(mean), set(std)) != ({1.0}, {0.0}, {1.0}):
        raise ModelLoadError(
            f'input {tensor.name!r} is uint8: the graph scales the pixels itself, set preset = "raw"', gate="signature"
        )
    return scale, mean, std, color


def _refuse_fixed_batch(batch: int) -> None:
    if batch > 1:
        raise ModelLoadError(
            f"the graph's batch dimension is fixed at {batch}; export it with a dynamic one, or 1", gate="signature"
        )


def _batching_spec(table: BatchingTable, batch: int, provider: str) -> BatchingSpec:
    largest = table.max_batch_size or (8 if provider == "cpu" else 32)
    if batch > 0:
        if table.max_batch_size not in (None, 1):
            raise ModelLoadError(
                f"batching.max_batch_size = {table.max_batch_size} and the graph's batch dimension is fixed at {batch}",
                gate="signature",
            )
        largest = 1
    return BatchingSpec(
        largest, table.max_queue_delay_ms, table.preferred_batch_sizes, table.max_queue_size, table.max_queue_wait_ms
    )


def _pick(tensors: Sequence[TensorSpec], name: str | None, field: str) -> TensorSpec:
    if name is None:
        if not tensors:
            raise ModelLoadError(f"{field}: the graph has none", gate="signature")
        return tensors[0]
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    raise ModelLoadError(
        f"{field} = {name!r} is not in the graph; it has {', '.join(t.name for t in tensors)}", gate="signature"
    )


def _parse(path: Path, content: bytes | None) -> dict[str, Any]:
    try:
        return tomllib.loads((content or b"").decode("utf-8"))
    except RecursionError:
        raise ModelLoadError(f"{_short(path)}: nested too deeply") from None
    except ValueError as error:  # TOML's own, text that is not UTF-8, numbers without end
        raise ModelLoadError(f"{_short(path)}: {error}") from None


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _explain(path: Path, error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        field = ".".join(str(part) for part in problem["loc"]) or "the file"
        if problem["type"] == "extra_forbidden":
            lines.append(f"{field} = {problem['input']!r} is not a known key; remove it, or move it under [metadata]")
        else:
            lines.append(f"{field}: {problem['msg']}" + (f" (got {problem['input']!r})" if problem["loc"] else ""))
    return f"{_short(path)}: " + "; ".join(lines)


def _short(path: Path) -> str:
    """Enough of a path to find the file, without where the repository lies on this machine."""
    parts = path.parts[-3:] if path.parent.name.isdigit() else path.parts[-2:]
    return "/".join(parts)
