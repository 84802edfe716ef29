"""A network's first convolution, over several pixels at once: the same numbers, in a shape that int8 likes.

ONNX Runtime's quick int8 convolutions want input channels by fours. A picture has three, and is gathered three bytes at
a time, which takes longer than a convolution in floating point. So neighbouring pixels of a line become the channels of
one, and the convolution gives what stands side by side in its output as channels too:

    (n, 3, h, w)  ->  pixels last  ->  (n, h, w / 4, 12)  ->  a convolution of 2 x 32 outputs  ->  (n, h / 2, w / 2, 32)

for a stride of 2. Where layouts are pixels last, as they are between int8 convolutions, the changes of shape cost
nothing; what costs are the zeros in the wider kernel, less than what they save. Knows graphs, not how to quantize.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_MULTIPLE = 4  # of input channels
_MOST_CHANNELS = 3
_MOVED = ("Clip", "Relu")  # what acts on each number alone may do so before the change of shape
_PIXELS_LAST, _PIXELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


class Pixels(NamedTuple):
    """How a float input comes from pixels of 8 bits: `step * (pixel - zero)`, the same for every channel."""

    step: float
    zero: int

    def of(self, rows: npt.NDArray[Any], layout: str) -> npt.NDArray[np.uint8]:
        """The pixels (n, h, w, channels) that rows of a float input came from."""
        pixels = np.rint(rows / self.step + self.zero).astype(np.uint8)
        return np.ascontiguousarray(pixels.transpose(_PIXELS_LAST)) if layout == "nchw" else pixels


class _Geometry(NamedTuple):
    """Of the convolution along a line: how many pixels stand together, and its kernel, in such groups."""

    together: int
    outputs: int  # of the old convolution that stand together
    left: int  # groups of padding
    right: int


class Stem(NamedTuple):
    """The first convolution: a picture's, whose weights are constants and whose sizes are known."""

    node: Any
    weight: npt.NDArray[np.float32]  # (out, in, height, width)
    bias: npt.NDArray[np.float32]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]  # top, left, bottom, right
    size: tuple[int, int]  # of the picture: height, width

    @property
    def geometry(self) -> _Geometry | None:
        """None where the pixels of a line do not come out even."""
        kernel, stride, (_, left, _, right) = self.weight.shape[3], self.strides[1], self.pads
        together = next(n for n in range(stride, 5 * stride, stride) if n * self.weight.shape[1] % _MULTIPLE == 0)
        width = self.size[1]
        if width % together or (width + left + right - kernel) // stride + 1 != width // stride:
            return None
        outputs = together // stride
        beyond = (outputs - 1) * stride - left + kernel - together
        return _Geometry(together, outputs, -(-left // together), max(0, -(-beyond // together)))

    def widened(self, geometry: _Geometry) -> npt.NDArray[np.float32]:
        """The weights, each at its place in the wider kernel, zeros elsewhere."""
        out, channels, height, width = self.weight.shape
        together, outputs, left, right = geometry
        wide = np.zeros((outputs * out, together * channels, height, left + 1 + right), np.float32)
        for output in range(outputs):
            for column in range(width):
                group, place = divmod(self.strides[1] * output - self.pads[1] + column, together)
                rows = slice(output * out, (output + 1) * out)
                wide[rows, place * channels : (place + 1) * channels, :, group + left] = self.weight[:, :, :, column]
        return wide


def widen(graph: Any) -> bool:
    """Rewrite the first convolution of an ONNX model, in place; False where it is not of the kind described above."""
    from onnx import helper, numpy_helper

    stem = _stem(graph)
    if stem is None or (geometry := stem.geometry) is None:
        return False
    (height, width), out = stem.size, len(stem.weight)
    acts = _acts_alone(graph, stem.node)
    result = (acts or stem.node).output[0]
    nodes: list[Any] = []

    def added(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=f"{kind}_of_{output}", **attributes))
        return output

    def constant(name: str, values: npt.NDArray[Any]) -> str:
        graph.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def reshaped(taken: str, output: str, *sides: int) -> str:
        return added("Reshape", [taken, constant(f"{output}_shape", np.array([0, *sides], np.int64))], output)

    together, outputs, left, right = geometry
    channels = stem.weight.shape[1]
    last = added("Transpose", [stem.node.input[0]], "stem_pixels", perm=_PIXELS_LAST)
    grouped = reshaped(last, "stem_groups", height, width // together, together * channels)
    taken = added("Transpose", [grouped], "stem_input", perm=_PIXELS_FIRST)
    weights = [constant("stem_weight", stem.widened(geometry)), constant("stem_bias", np.tile(stem.bias, outputs))]
    pads = [stem.pads[0], left, stem.pads[2], right]
    given = added("Conv", [taken, *weights], "stem_output", pads=pads, strides=[stem.strides[0], 1])
    if acts is not None:
        given = added(acts.op_type, [given, *acts.input[1:]], "stem_activated")
    last = added("Transpose", [given], "stem_groups_out", perm=_PIXELS_LAST)
    down = (height + stem.pads[0] + stem.pads[2] - stem.weight.shape[2]) // stem.strides[0] + 1
    apart = reshaped(last, "stem_pixels_out", down, width // stem.strides[1], out)
    added("Transpose", [apart], result, perm=_PIXELS_FIRST)
    old = list(graph.graph.node)
    place = old.index(acts or stem.node)
    del graph.graph.node[:]
    graph.graph.node.extend([*old[:place], *nodes, *old[place + 1 :]])
    if acts is not None:
        graph.graph.node.remove(stem.node)
    _forget_unused(graph)
    return True


def take_pixels(graph: Any, pixels: Pixels) -> None:
    """Have a widened graph, quantized since, take a picture's pixels (n, h, w, channels) as they are: uint8.

    The float input was quantized to just those numbers anyway.
    """
    from onnx import TensorProto, numpy_helper

    (picture,) = graph.graph.input
    turned, grouped = (next(node for node in graph.graph.node if node.output[0] == name)
                       for name in ("stem_pixels", "stem_groups"))  # fmt: skip
    quantizer = next(node for node in graph.graph.node if node.input and node.input[0] == "stem_input")
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    for name, value in zip(quantizer.input[1:], (np.float32(pixels.step), np.uint8(pixels.zero)), strict=True):
        constants[name].CopyFrom(numpy_helper.from_array(np.array(value), name))
    for node in graph.graph.node:
        if node.input and node.input[0] == quantizer.output[0]:
            node.input[0] = "stem_input"
    grouped.input[0] = picture.name
    graph.graph.node.remove(turned)
    graph.graph.node.remove(quantizer)
    kind = picture.type.tensor_type
    kind.elem_type = TensorProto.UINT8
    channels, height, width = (side.dim_value for side in kind.shape.dim[1:])
    for side, size in zip(kind.shape.dim[1:], (height, width, channels), strict=True):
        side.dim_value = size


def _stem(graph: Any) -> Stem | None:
    """The convolution that takes the picture, if it is the only one to, and it alone."""
    from onnx import helper, numpy_helper

    (picture, *others) = graph.graph.input
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    takers = [node for node in graph.graph.node if picture.name in node.input]
    if others or len(takers) != 1 or takers[0].op_type != "Conv":
        return None
    (node,) = takers
    sides = [side.dim_value for side in picture.type.tensor_type.shape.dim]
    if len(sides) != 4 or 0 in sides[1:] or any(name not in tensors for name in node.input[1:]):
        return None
    weight = numpy_helper.to_array(tensors[node.input[1]])
    said = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    strides, pads = said.get("strides", [1, 1]), said.get("pads", [0, 0, 0, 0])
    is_plain = set(said.get("dilations", [1])) == {1} and said.get("auto_pad", b"NOTSET") == b"NOTSET"
    if not is_plain or said.get("group", 1) != 1 or weight.shape[1] > _MOST_CHANNELS or strides[1] == 1:
        return None  # without a stride the wider kernel would be mostly zeros
    bias = numpy_helper.to_array(tensors[node.input[2]]) if len(node.input) == 3 else np.zeros(len(weight), np.float32)
    down, across = strides
    top, left, bottom, right = pads
    return Stem(node, weight, bias, (down, across), (top, left, bottom, right), (sides[2], sides[3]))


def _acts_alone(graph: Any, convolution: Any) -> Any:
    """The one taker of a convolution, where it works on each number alone; else None."""
    output = convolution.output[0]
    takers = [node for node in graph.graph.node if output in node.input]
    shown = any(value.name == output for value in graph.graph.output)
    return takers[0] if len(takers) == 1 and not shown and takers[0].op_type in _MOVED else None


def _forget_unused(graph: Any) -> None:
    used = {name for node in graph.graph.node for name in node.input}
    kept = [tensor for tensor in graph.graph.initializer if tensor.name in used]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(kept)
