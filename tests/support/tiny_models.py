"""Tiny ONNX graphs built in code, the folders they are served from, and pictures of one colour to send to them.

All graphs but the odd ones at the end average each channel over the picture and take that through one small matrix, so
that what they answer can be said by hand.
"""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.config import Settings
from service.messages import Classification, ImagePayload, InferenceRequest, InferenceResult, ModelRef
from service.pipeline import Pipeline
from service.server import InferenceServer

IR_VERSION = 10
OPSET = 18
COLORS = ("red", "green", "blue")
RGB: Mapping[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "yellow": (255, 255, 0),
}
UNIT = '[input]\npreset = "unit"\nresize = "stretch"\n'
GAIN = 4.0  # a full channel gives this logit

_ONNX_OF = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "float64": TensorProto.DOUBLE,
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
}
Dimension = int | str | None


def classifier(
    *,
    classes: int = 3,
    layout: Literal["nchw", "nhwc"] = "nchw",
    size: tuple[Dimension, Dimension] = (8, 8),
    channels: int = 3,
    dtype: str = "float32",
    batch: Dimension = "N",
    ending: Literal["Softmax", "Sigmoid"] | None = None,
    matrix: npt.ArrayLike | None = None,
    bias: npt.ArrayLike = 0.0,
) -> onnx.ModelProto:
    """Mean of each channel, times `matrix` (channels, classes), plus `bias`; the identity times GAIN by default.

    A uint8 graph scales its pixels to 0..1 itself. The input is "image", the output "scores".
    """
    weights = np.eye(channels, classes) * GAIN if matrix is None else np.asarray(matrix)
    shape = (batch, channels, *size) if layout == "nchw" else (batch, *size, channels)
    scale = 1 / 255 if dtype == "uint8" else 1.0
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 1, 2, 3] if layout == "nchw" else [0, 3, 1, 2]),
        helper.make_node("GlobalAveragePool", ["planes"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["means"]),
        helper.make_node("MatMul", ["means", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node(ending or "Identity", ["logits"], ["scores"]),
    ]
    constants = {
        "scale": np.float32(scale),
        "weights": weights.astype(np.float32),
        "bias": np.broadcast_to(np.asarray(bias, np.float32), (classes,)),
    }
    return graph(nodes, {"image": (dtype, shape)}, {"scores": ("float32", (batch, classes))}, constants)


def one_unit(*, ending: Literal["Sigmoid"] | None = "Sigmoid") -> onnx.ModelProto:
    """One number an image: how bright it is, far above zero for white and as far below for black."""
    return classifier(classes=1, ending=ending, matrix=np.full((3, 1), 2 * GAIN / 3), bias=-GAIN)


def inverse(*, batch: Dimension = "N") -> onnx.ModelProto:
    """One over the mean of each channel: infinite for a channel that is black."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["means"]),
        helper.make_node("Reciprocal", ["means"], ["scores"]),
    ]
    return graph(nodes, {"image": ("float32", (batch, 3, 8, 8))}, {"scores": ("float32", (batch, 3))})


def afraid_of_white() -> onnx.ModelProto:
    """The colour classifier; a batch with a picture that is all white fails when it runs, by an index out of range."""
    model = classifier()
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.float32(0.999), "nearly_one"),
            numpy_helper.from_array(np.zeros(1, np.float32), "table"),
            numpy_helper.from_array(np.array([1], np.int64), "rows_axis"),
        ]
    )
    logits = model.graph.node.pop()
    model.graph.node.extend(
        [
            helper.make_node("ReduceMin", ["means", "rows_axis"], ["darkest"], keepdims=1),
            helper.make_node("Greater", ["darkest", "nearly_one"], ["is_white"]),
            helper.make_node("Cast", ["is_white"], ["place"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "place"], ["nought"]),
            helper.make_node("Add", [*logits.input, "nought"], list(logits.output)),
        ]
    )
    onnx.checker.check_model(model)
    return model


def lost_in_white() -> onnx.ModelProto:
    """The colour classifier; a batch with a picture that is all white goes round in a loop for hours."""
    model = classifier()
    constants = {
        "nearly_one": np.float32(0.999),
        "hours": np.array(10**12, np.int64),
        "yes": np.array(True),
        "one": np.float32(1),
        "start": np.float32(0),
    }
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    scalar = [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in ("before", "after")]
    turn = [helper.make_tensor_value_info("turn", TensorProto.INT64, [])]
    go_on = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("goes", "goes_on")]
    inner = [
        helper.make_node("Add", ["before", "one"], ["after"]),
        helper.make_node("Identity", ["goes"], ["goes_on"]),
    ]
    body = helper.make_graph(inner, "round", [*turn, go_on[0], scalar[0]], [go_on[1], scalar[1]])
    logits = model.graph.node.pop()
    model.graph.node.extend(
        [
            helper.make_node("ReduceMin", ["means"], ["darkest"], keepdims=0),
            helper.make_node("Greater", ["darkest", "nearly_one"], ["is_white"]),
            helper.make_node("Cast", ["is_white"], ["as_number"], to=TensorProto.INT64),
            helper.make_node("Mul", ["as_number", "hours"], ["turns"]),
            helper.make_node("Loop", ["turns", "yes", "start"], ["rounds"], body=body),
            helper.make_node("Mul", ["rounds", "start"], ["nought"]),
            helper.make_node("Add", [*logits.input[:1], "nought"], ["held"]),
            helper.make_node(logits.op_type, ["held"], list(logits.output)),
        ]
    )
    onnx.checker.check_model(model)
    return model


def batch_mixer() -> onnx.ModelProto:
    """Answers one row however many images come in: the mean over the batch."""
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["scores"], keepdims=0),
        helper.make_node("Unsqueeze", ["scores", "first"], ["row"]),
    ]
    constants = {"axes": np.array([0, 2, 3], np.int64), "first": np.array([0], np.int64)}
    return graph(nodes, {"image": ("float32", ("N", 3, 8, 8))}, {"row": ("float32", ("M", 3))}, constants)


def two_outputs() -> onnx.ModelProto:
    """Doubles and halves of a (N, 4) tensor."""
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["double"]),
        helper.make_node("Div", ["x", "two"], ["half"]),
    ]
    rows = ("float32", ("N", 4))
    return graph(nodes, {"x": rows}, {"double": rows, "half": rows}, {"two": np.float32(2.0)})


def adder(*, dtype: str = "float32", shape: tuple[Dimension, ...] = ("N", 2)) -> onnx.ModelProto:
    """Two inputs `a` and `b`, one output `sum`."""
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"])]
    return graph(nodes, {"a": (dtype, shape), "b": (dtype, shape)}, {"sum": (dtype, shape)})


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[str, Sequence[Dimension]]],
    outputs: Mapping[str, tuple[str, Sequence[Dimension]]],
    constants: Mapping[str, npt.NDArray[np.generic] | np.generic] | None = None,
) -> onnx.ModelProto:
    """A checked model of these nodes; inputs and outputs by name as (dtype, shape)."""
    values = [
        [helper.make_tensor_value_info(name, _ONNX_OF[dtype], shape) for name, (dtype, shape) in side.items()]
        for side in (inputs, outputs)
    ]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    body = helper.make_graph(list(nodes), "tiny", *values, initializers)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write the graph to `path`, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def write_model(
    repository: Path,
    name: str,
    model: onnx.ModelProto | bytes | None = None,
    *,
    version: int = 1,
    manifest: str | None = UNIT,
    labels: Sequence[str] | None = COLORS,
) -> Path:
    """A model folder: the graph (a colour classifier by default), its manifest and its labels; returns the folder.

    None for manifest or labels writes no such file.
    """
    folder = repository / name
    file = folder / str(version) / "model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(model, bytes):
        file.write_bytes(model)
    else:
        save(model or classifier(), file)
    if manifest is not None:
        (folder / "model.toml").write_text(manifest, encoding="utf-8")
    if labels is not None:
        (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    return folder


def picture(color: str, width: int = 8, height: int = 8) -> bytes:
    """A PNG of one colour of RGB."""
    red, green, blue = RGB[color]
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = (blue, green, red)
    return cv2.imencode(".png", pixels)[1].tobytes()


def damaged_picture(color: str = "red") -> bytes:
    """A PNG whose header is good and whose pixels are not."""
    whole = bytearray(picture(color, 64, 64))
    start = whole.index(b"IDAT") + 4
    whole[start : start + 12] = bytes(12)
    return bytes(whole)


@asynccontextmanager
async def serving(folder: Path, /, **sections: dict[str, Any]) -> AsyncIterator[InferenceServer]:
    """An InferenceServer that has looked at `folder` once; closed at the end."""
    sections.setdefault("execution", {"threads": 2})
    sections["repository"] = {"path": folder} | sections.get("repository", {})
    server = InferenceServer(Settings.model_validate(sections), "test")
    try:
        await server.repository.reconcile()
        yield server
    finally:
        await server.close()


async def classify(
    pipeline: Pipeline,
    model: str,
    *images: bytes,
    version: int | None = None,
    timeout_seconds: float = 60.0,
    top_k: int = 5,
    threshold: float | None = None,
) -> InferenceResult:
    """One request as a front-end makes it."""
    ref = ModelRef(model, version)
    payloads = tuple(ImagePayload(data) for data in images)
    with pipeline.admit("native", ref) as ticket:
        ticket.grow(sum(map(len, images)))
        ticket.body_received()
        request = InferenceRequest(ref, payloads, time.monotonic() + timeout_seconds, top_k, threshold)
        return await pipeline.classify(request, ticket)


def best_labels(result: InferenceResult) -> list[str]:
    """The first label of each image, or the code of its error."""
    return [item.predictions[0].label if isinstance(item, Classification) else item.code for item in result.items]
