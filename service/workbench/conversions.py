"""An ONNX file to a smaller one: int8 (QDQ) for CPUs, float16 for GPUs. Knows graphs and arrays, no folder and no gate.

With `stem` the only importer of `onnx` and of ONNX Runtime's quantization tools, which are an extra of their own.

int8 here is what ONNX Runtime's CPU kernels run fastest: activations uint8 a tensor, weights int8 a channel. What comes
after the last layer with weights, a softmax mostly, stays float. A convolution of a picture's few channels, for which
the int8 kernel gathers more than it computes, is brought into a better shape by `stem`, and stays float where that
cannot be. Weights are rounded by `rounding` before the tools see them: networks of many thin layers would lose too many
of their answers.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from service.errors import ConfigurationError
from service.workbench import stem
from service.workbench.rounding import Seen, rounded, windows_of

_LAYERS = ("Conv", "Gemm", "MatMul")
_PICTURE_CHANNELS = 4
_BATCH = 8
_POSITIONS = 64  # of each image, at which is looked: a hundred images then say more than the widest layer asks


class Conversion(Protocol):
    """Writes `target` from `source`; `images` are rows of the input tensor, for calibration.

    Returns whether it takes `pixels` (n, h, w, channels) of uint8 now, where it may.
    """

    def __call__(
        self, source: Path, target: Path, images: npt.NDArray[Any], pixels: stem.Pixels | None = None
    ) -> bool: ...


def require_tools() -> None:
    """Raises ConfigurationError with what to install."""
    if find_spec("onnx") is None:
        raise ConfigurationError(
            "quantizing needs the package onnx, which serving does not: run it as `make quantize ARGS=...`, "
            "or pip install 'fovea[quantize]'"
        )


def int8(source: Path, target: Path, images: npt.NDArray[Any], pixels: stem.Pixels | None = None) -> bool:
    """Static quantization with the ranges that `images` give. Raises ConfigurationError where no layer can be."""
    import onnx
    from onnxruntime import quantization as tools
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="fovea-quantize-") as scratch, _quiet():
        prepared, corrected = Path(scratch) / "prepared.onnx", Path(scratch) / "corrected.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared)
        is_widened = stem.widen(graph)
        for place, node in enumerate(graph.graph.node):  # some exporters name none
            node.name = f"{node.op_type}_{place}"
        kept_float = _kept_float(graph)
        if not any(node.op_type in _LAYERS and node.name not in kept_float for node in graph.graph.node):
            raise ConfigurationError(
                "the graph has no dense layer and no convolution of more than a picture's channels: there is nothing "
                "to quantize"
            )
        _round_weights(graph, images, kept_float)
        onnx.save(graph, corrected)
        tools.quantize_static(
            corrected,
            target,
            _Reader(graph, images),
            quant_format=tools.QuantFormat.QDQ,
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            nodes_to_exclude=kept_float,
        )
        if takes_pixels := is_widened and pixels is not None:
            assert pixels is not None
            copy = onnx.load(target)
            stem.take_pixels(copy, pixels)
            onnx.save(copy, target)
    _seal(target)
    return takes_pixels


def fp16(source: Path, target: Path, images: npt.NDArray[Any], pixels: stem.Pixels | None = None) -> bool:
    """Weights and arithmetic in float16; inputs and outputs stay what they are, and so does the manifest."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    with _quiet():
        graph = convert_float_to_float16(onnx.load(source), keep_io_types=True)
        OnnxModel.graph_topological_sort(graph.graph)  # the casts stand at its end
        onnx.save(graph, target)
    _seal(target)
    return False


CONVERSIONS: dict[str, Conversion] = {"int8": int8, "fp16": fp16}


class _Reader:
    """Batches of images as the calibration of ONNX Runtime wants them."""

    def __init__(self, graph: Any, images: npt.NDArray[Any]) -> None:
        self._name = graph.graph.input[0].name
        self._batches = _batches(graph, images)

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def _batches(graph: Any, images: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    size = graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value or _BATCH  # where it is fixed it is 1
    for start in range(0, len(images), size):
        yield images[start : start + size]


def _kept_float(graph: Any) -> list[str]:
    """What comes after the last layer with weights, and convolutions of a picture's channels."""
    nodes = list(graph.graph.node)
    channels = {tensor.name: tensor.dims[1] for tensor in graph.graph.initializer if len(tensor.dims) == 4}
    last = max((at for at, node in enumerate(nodes) if node.op_type in _LAYERS), default=len(nodes))
    return [
        node.name
        for at, node in enumerate(nodes)
        if at > last or (node.op_type == "Conv" and _is_of_a_picture(node, channels))
    ]


def _is_of_a_picture(node: Any, channels: Mapping[str, int]) -> bool:
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    return groups == 1 and channels.get(node.input[1], _PICTURE_CHANNELS + 1) <= _PICTURE_CHANNELS


@dataclass(frozen=True, slots=True)
class _Convolution:
    """A convolution whose weights are constants, and what its attributes say."""

    node: Any
    weight: npt.NDArray[np.float32]
    groups: int
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]

    @property
    def kernel(self) -> tuple[int, int]:
        height, width = self.weight.shape[2:]
        return height, width


def _round_weights(graph: Any, images: npt.NDArray[Any], kept_float: Sequence[str]) -> None:
    """Put the weights of convolutions onto the grid of int8, where the quantizer finds them, and mend the biases."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    convolutions = [found for node in graph.graph.node if node.name not in kept_float
                    if (found := _convolution(node, tensors)) is not None]  # fmt: skip
    for convolution, seen in zip(convolutions, _seen(graph, convolutions, images), strict=True):
        names = convolution.node.input
        weight, shift = rounded(convolution.weight, seen)
        tensors[names[1]].CopyFrom(numpy_helper.from_array(weight, names[1]))
        if len(names) == 3:
            bias = numpy_helper.to_array(tensors[names[2]])
            tensors[names[2]].CopyFrom(numpy_helper.from_array((bias - shift).astype(bias.dtype), names[2]))


def _convolution(node: Any, tensors: Mapping[str, Any]) -> _Convolution | None:
    """None for what is none, or of a kind that is left to the quantizer: dilated, padded by rule, not over images."""
    from onnx import helper, numpy_helper

    if node.op_type != "Conv" or any(name not in tensors for name in node.input[1:]):
        return None
    weight = numpy_helper.to_array(tensors[node.input[1]])
    said = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if weight.ndim != 4 or set(said.get("dilations", [1])) != {1} or said.get("auto_pad", b"NOTSET") != b"NOTSET":
        return None
    top, left, bottom, right = said.get("pads", (0, 0, 0, 0))
    down, across = said.get("strides", (1, 1))
    return _Convolution(node, weight, said.get("group", 1), (down, across), (top, left, bottom, right))


def _seen(graph: Any, convolutions: Sequence[_Convolution], images: npt.NDArray[Any]) -> list[Seen]:
    """What the weights of each convolution see of the images, run once through the float graph."""
    import onnx
    import onnxruntime

    feed = graph.graph.input[0].name
    inside = sorted({convolution.node.input[0] for convolution in convolutions} - {feed})
    shown = onnx.ModelProto()
    shown.CopyFrom(graph)
    known = {value.name for value in shown.graph.output}
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inside if name not in known)
    session = onnxruntime.InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])
    seen = [
        Seen.nothing(convolution.groups, int(np.prod(convolution.weight.shape[1:]))) for convolution in convolutions
    ]
    for batch in _batches(graph, images):
        values = dict(zip(inside, session.run(inside, {feed: batch}) if inside else (), strict=True)) | {feed: batch}
        for convolution, into in zip(convolutions, seen, strict=True):
            into.add(
                windows_of(
                    values[convolution.node.input[0]],
                    convolution.kernel,
                    convolution.strides,
                    convolution.pads,
                    convolution.groups,
                    _POSITIONS,
                )
            )
    return seen


def _seal(path: Path) -> None:
    """Drop what tools note beside the graph, so that the same conversion gives the same bytes."""
    import onnx

    model = onnx.load(path)
    for described in (model, model.graph, *model.graph.node):
        described.ClearField("metadata_props")
        described.ClearField("doc_string")
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


class _quiet:  # noqa: N801  # reads as a phrase
    """The tools warn through the root logger about what is done here on purpose."""

    def __enter__(self) -> None:
        self._level = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._level)
