"""An ONNX graph, made fit to serve: one image input, a batch dimension that is open, nothing about who exported it.

Owns what is changed in a graph. Every change is checked by running the graph before and after it, never assumed.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from service.engine.base import TensorSpec
from service.engine.ort import OrtEngine
from service.engine.spec import ExecutionSpec
from service.errors import ConfigurationError, EngineFailed

Array = npt.NDArray[Any]
Step = tuple[str, list[Array], dict[str, Any]]  # an operator, its constant inputs, its attributes

ROWS = "N"  # the name of the open batch dimension
_MOST_BYTES = 2_000_000_000  # protobuf's own limit is 2 GiB
_KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc")
_NEWEST_IR, _NEWEST_OPSET = 13, 26  # what ONNX Runtime 1.31 loads
_GRAY_OR_COLOR = (1, 3)
WRITTEN = "model.onnx"
_SAME = 1e-4  # relative; sums in another order differ by about 1e-6


@dataclass(frozen=True, slots=True)
class Fitted:
    """A graph that takes images as (n, h, w, c), (n, c, h, w) or (n, t, h, w, c).

    `to_source` turns its input into what the source took; `notes` say what was changed.
    """

    model: onnx.ModelProto
    engine: OrtEngine
    file: Path
    to_source: Callable[[Array], Array]
    notes: tuple[str, ...] = ()

    @property
    def input(self) -> TensorSpec:
        return self.engine.inputs[0]


def load(path: Path) -> onnx.ModelProto:
    """Read an ONNX file, with the weights that it keeps beside it. Raises ConfigurationError."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise ConfigurationError(f"{path.name} is not an ONNX file: {type(error).__name__}") from None
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:
        reason = " ".join(str(error).split())[:300].replace(str(path.parent), ".")
        raise ConfigurationError(
            f"{path.name} keeps its weights in a file of their own, which must lie beside it: {reason}"
        ) from None
    if not model.graph.node:
        raise ConfigurationError(f"{path.name} is not an ONNX file, or its graph is empty")
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size > _MOST_BYTES:
        raise ConfigurationError(f"{path.name} has {size:,} bytes of weights; a model of one file has less than 2 GB")
    _require_loadable(model, path.name)
    return model


def _require_loadable(model: onnx.ModelProto, name: str) -> None:
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset > _NEWEST_OPSET:
        raise ConfigurationError(
            f"{name} uses ONNX opset {opset}; ONNX Runtime loads up to {_NEWEST_OPSET}: export it with opset 20"
        )
    if model.ir_version > _NEWEST_IR:
        model.ir_version = 10  # the container's version: what opset 26 and less need fits the older one
    own = {(function.domain, function.name) for function in model.functions}
    foreign = sorted(
        {
            f"{node.domain}::{node.op_type}"
            for node in _all_nodes(model.graph)
            if node.domain not in _KNOWN_DOMAINS and (node.domain, node.op_type) not in own
        }
    )
    if foreign:
        raise ConfigurationError(
            f"{name} uses operators that ONNX Runtime does not have: {', '.join(foreign[:8])}; export the model with "
            "these layers written in standard operations"
        )


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _all_nodes(attribute.g)


def engine_of(model: onnx.ModelProto, scratch: Path) -> OrtEngine:
    """A session of the model, which leaves its file in `scratch`. Raises ConfigurationError with what is wrong."""
    path = scratch / WRITTEN
    path.write_bytes(model.SerializeToString(deterministic=True))
    return open_engine(path)


def open_engine(path: Path) -> OrtEngine:
    """A session of a file. Raises ConfigurationError with what ONNX Runtime says against it."""
    return OrtEngine(path, ExecutionSpec(("cpu",)), intra_op_threads=0)


def until(model: onnx.ModelProto, tensor: str) -> onnx.ModelProto:
    """The part of the model that makes `tensor`, with that as its only output."""
    needed, nodes = {tensor}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    part.graph.name = "part"
    part.graph.node.extend(reversed(nodes))
    part.graph.input.extend(model.graph.input)
    part.graph.initializer.extend(each for each in model.graph.initializer if each.name in needed)
    part.graph.output.append(onnx.ValueInfoProto(name=tensor))
    return part


def image_input(engine: OrtEngine) -> TensorSpec:
    """The one input. Raises ConfigurationError where there are several."""
    inputs = engine.inputs
    if len(inputs) == 1:
        return inputs[0]
    listed = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in inputs) or "none"
    raise ConfigurationError(
        f"the model has {len(inputs)} inputs ({listed}); an image can feed one: export it so that the others are fixed "
        "values inside the model"
    )


def fit(model: onnx.ModelProto, scratch: Path, size: Sequence[int] | None) -> Fitted:
    """Make the graph take images, with an open batch dimension where that holds. Raises ConfigurationError.

    The model is changed in place. `scratch` is a folder of its own, in which its file is left. `size` is (height,
    width), needed only where the input is a flat row of pixels.
    """
    _forget_exporter(model)
    engine = engine_of(model, scratch)
    source = image_input(engine)
    notes: list[str] = []
    opened = _with_open_batch(model, engine, source, scratch, notes)
    fitted, to_source = _as_images(opened, source, size, notes)
    final = engine_of(fitted, scratch) if notes else engine
    return Fitted(fitted, final, scratch / WRITTEN, to_source, tuple(notes))


def _forget_exporter(model: onnx.ModelProto) -> None:
    """Exporters note stack traces with local paths at every node; inference needs none of it."""
    del model.graph.value_info[:]
    for described in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        described.ClearField("doc_string")
        described.ClearField("metadata_props")
    model.ClearField("doc_string")


# The batch dimension


def _with_open_batch(
    model: onnx.ModelProto, engine: OrtEngine, source: TensorSpec, scratch: Path, notes: list[str]
) -> onnx.ModelProto:
    """The model with its fixed batch dimension opened; as it is where it is open, or where opening changes answers."""
    fixed = source.shape[0] if source.shape else -1
    if fixed == -1:
        return model
    opened = copy.deepcopy(model)  # as it may not hold
    own = [value for value in opened.graph.input if value.name == source.name]  # older files list weights there too
    for value in (*own, *opened.graph.output):
        shape = value.type.tensor_type.shape
        if shape.dim and shape.dim[0].dim_value == fixed:
            shape.dim[0].dim_param = ROWS
    _open_reshapes(opened.graph, fixed)
    if _answers_alike(engine, opened, source, scratch):
        notes.append(f"the batch dimension was fixed at {fixed}; it is open now, with the same answers")
        return opened
    if fixed != 1:
        raise ConfigurationError(
            f"the model's batch dimension is fixed at {fixed} and cannot be opened here: export it with a dynamic one "
            "(torch.export: dynamic_shapes; torch.onnx.export: dynamic_axes; Keras: no batch_size), or with 1"
        )
    notes.append("the batch dimension is fixed at 1 inside the network: images run one at a time")
    return model


def _open_reshapes(graph: onnx.GraphProto, fixed: int) -> None:
    """Constant shapes that begin with the batch size begin with -1, or with 0 ("as in the input") instead."""
    shapes = {node.input[1] for node in graph.node if node.op_type == "Reshape" and len(node.input) > 1}
    for initializer in graph.initializer:
        if initializer.name in shapes:
            initializer.CopyFrom(
                numpy_helper.from_array(_opened_shape(numpy_helper.to_array(initializer), fixed), initializer.name)
            )
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] in shapes and node.attribute[0].name == "value":
            value = node.attribute[0].t
            value.CopyFrom(numpy_helper.from_array(_opened_shape(numpy_helper.to_array(value), fixed), value.name))


def _opened_shape(shape: Array, fixed: int) -> Array:
    shape = shape.copy()
    if len(shape) and shape[0] == fixed:
        shape[0] = 0 if -1 in shape[1:] else -1
    return shape


def _answers_alike(engine: OrtEngine, opened: onnx.ModelProto, source: TensorSpec, scratch: Path) -> bool:
    """Whether the opened graph gives other numbers of rows the answers that the fixed one gave."""
    fixed = source.shape[0]
    (scratch / "opened").mkdir()
    shape = [16 if side == -1 else side for side in source.shape[1:]]
    rows = np.random.default_rng(0).random((3 * fixed, *shape)).astype(source.dtype)
    try:
        wanted = [engine.run({source.name: rows[place : place + fixed]}) for place in range(0, len(rows), fixed)]
        got = engine_of(opened, scratch / "opened").run({source.name: rows})
    except (EngineFailed, ConfigurationError):
        return False
    pairs = [(np.concatenate(each), mine) for *each, mine in zip(*wanted, got, strict=True) if each[0].ndim]
    return bool(pairs) and all(a.shape == b.shape and np.allclose(a, b, rtol=_SAME, atol=_SAME) for a, b in pairs)


# The input as an image


def _as_images(
    model: onnx.ModelProto, source: TensorSpec, size: Sequence[int] | None, notes: list[str]
) -> tuple[onnx.ModelProto, Callable[[Array], Array]]:
    """Put what turns an image into the source's own input in front of it."""
    shape = source.shape[1:]
    if len(shape) == 3 or (len(shape) == 4 and shape[3] in _GRAY_OR_COLOR):
        return model, lambda rows: rows
    if len(shape) == 4 and (shape[0] in _GRAY_OR_COLOR or shape[1] in _GRAY_OR_COLOR):
        time_first = shape[1] in _GRAY_OR_COLOR
        order = (0, 1, 4, 2, 3) if time_first else (0, 4, 1, 2, 3)
        frames, sides, channels = (shape[0], shape[2:], shape[1]) if time_first else (shape[1], shape[2:], shape[0])
        notes.append("clips came channels first: a transposition stands before the network")
        step: list[Step] = [("Transpose", [], {"perm": order})]
        return _prepend(model, source, (frames, *sides, channels), step), lambda rows: rows.transpose(order)
    if len(shape) == 2:
        notes.append("the network takes gray pictures without a channel dimension: one is taken away before it")
        step = [("Reshape", [np.array([0, 0, 0], np.int64)], {})]  # 0 keeps a side as it is
        return _prepend(model, source, (*shape, 1), step), lambda rows: rows[..., 0]
    if len(shape) == 1:
        picture = _flat_picture(shape[0], size)
        notes.append(f"the network takes a row of {shape[0]} pixels: {list(picture)} is flattened before it")
        step = [("Reshape", [np.array([-1, shape[0]], np.int64)], {})]
        return _prepend(model, source, picture, step), lambda rows: rows.reshape(len(rows), -1)
    raise ConfigurationError(
        f"input {source.name!r} has shape {list(source.shape)}: that is no image (batch, height, width and channels in "
        "some order), nor a clip (with a dimension of frames)"
    )


def _flat_picture(pixels: int, size: Sequence[int] | None) -> tuple[int, int, int]:
    if size is None:
        raise ConfigurationError(
            f"the model takes a flat row of {pixels} numbers; if that is a picture, say which: --size HEIGHT WIDTH"
        )
    height, width = size
    for channels in _GRAY_OR_COLOR:
        if height * width * channels == pixels:
            return height, width, channels
    raise ConfigurationError(
        f"--size {height} {width}: a picture of that size has {height * width} or {3 * height * width} numbers, and "
        f"the model takes {pixels}"
    )


def _prepend(
    model: onnx.ModelProto,
    source: TensorSpec,
    shape: Sequence[int],
    steps: Sequence[Step],
) -> onnx.ModelProto:
    """The model with `steps` before its input, and an input of `shape` (without the batch) before them."""
    graph = model.graph
    name = f"{source.name}_image"
    old = next(value for value in graph.input if value.name == source.name)
    rows = old.type.tensor_type.shape.dim[0].dim_value or ROWS
    sides = [None if side == -1 else side for side in shape]
    new = helper.make_tensor_value_info(name, old.type.tensor_type.elem_type, [rows, *sides])
    graph.input.remove(old)
    graph.input.insert(0, new)
    current = name
    for place, (operator, constants, attributes) in enumerate(steps):
        target = source.name if place == len(steps) - 1 else f"{name}_{place}"
        inputs = [current]
        for number, constant in enumerate(constants):
            graph.initializer.append(numpy_helper.from_array(constant, f"{name}_{operator}_{place}_{number}"))
            inputs.append(graph.initializer[-1].name)
        graph.node.insert(place, helper.make_node(operator, inputs, [target], **attributes))
        current = target
    return model
