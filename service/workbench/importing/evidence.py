"""What a graph says of its preprocessing and its head.

Both are read from what the graph does with numbers, not only from the names of its operators: a Rescaling layer, a
Normalize step and a first BatchNormalization all come out as "0..255 becomes -2.1 to 2.6".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from service.engine.base import TensorSpec
from service.engine.ort import OrtEngine
from service.errors import ConfigurationError, EngineFailed
from service.workbench.importing.graph import Array, Fitted, engine_of, until

# What may stand between the input and the first layer that learns shapes.
_LIGHT = frozenset(
    {"Add", "BatchNormalization", "Cast", "Clip", "Concat", "Div", "Expand", "Gather", "Identity", "Mul", "Neg"}
    | {"Reciprocal", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Upsample"}
)
_IN_PLACE = frozenset({"Add", "BatchNormalization", "Cast", "Clip", "Div", "Identity", "Mul", "Resize", "Sub"})
_PASSING = frozenset({"Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})

# A network's first layer is fed numbers that spread over about 1 (0..1) to 12 (a narrow std), rarely less or more.
_LEAST_SPREAD, _MOST_SPREAD = 0.9, 12.0
_CENTRED = (-1.0, -0.2)  # where black comes out, in spreads: a mean colour of a fifth to all of white is taken off
_PLAIN_STEPS = (255.0, 256.0, 127.5, 128.0)  # that a pixel is divided by where nothing is taken off
_NEARLY = 0.01


@dataclass(frozen=True, slots=True)
class Scaling:
    """What the graph itself does to pixels before its first real layer: x * gain + offset, on average.

    `takes` is what it must be fed for that to make sense: "raw" (0..255), "unit" (0..1), or None where no such sense
    can be made.
    """

    gain: float
    offset: float
    takes: Literal["raw", "unit"] | None

    def __str__(self) -> str:
        return f"x * {self.gain:.4g}" + (
            f" {'-' if self.offset < 0 else '+'} {abs(self.offset):.4g}" if self.offset else ""
        )


@dataclass(frozen=True, slots=True)
class Head:
    """One output and what it gives for pictures of noise. `operator` is the last that changes numbers."""

    output: TensorSpec
    operator: str
    units: int
    is_probability: bool  # everything between 0 and 1 ...
    adds_up: bool  # ... and every row's sum is 1


def scaling_in(fitted: Fitted, shape: Sequence[int], scratch: Path) -> Scaling | None:
    """The pixel scaling that the graph does itself to an image of `shape`; None where it does none."""
    if fitted.input.dtype == "uint8":
        return Scaling(1.0, 0.0, "raw")
    cut = _frontier(fitted.model.graph, fitted.input.name)
    if cut is None:
        return None
    try:
        engine = engine_of(until(fitted.model, cut), scratch)
        at_zero, at_one, at_most = (_mean_answer(engine, fitted.input, shape, to) for to in (0, 1, 255))
    except (ConfigurationError, EngineFailed):
        return None
    gain, offset = (at_most - at_zero) / 255, at_zero
    if np.allclose([gain, at_one - at_zero], 1, atol=1e-6) and abs(offset) < 1e-6:
        return None
    return Scaling(float(gain), float(offset), _fed_with(gain, offset))


def _fed_with(gain: float, offset: float) -> Literal["raw", "unit"] | None:
    """What the input must be for the result to be what networks are fed: spread around 0, or a plain 0..1.

    A BatchNormalization of inputs that were centred before it has no such offset: nothing is said of those.
    """
    is_plain = abs(offset) < 1e-6 and any(abs(gain * step - 1) < _NEARLY for step in _PLAIN_STEPS)
    is_less_a_mean_colour = abs(gain - 1) < 1e-3 and -140 <= offset <= -80  # off 0..255, as Caffe's networks
    if is_plain or is_less_a_mean_colour or _is_centred(gain * 255, offset):
        return "raw"
    return "unit" if _is_centred(gain, offset) else None


def _is_centred(spread: float, black: float) -> bool:
    return _LEAST_SPREAD <= spread <= _MOST_SPREAD and _CENTRED[0] <= black / spread <= _CENTRED[1]


def _mean_answer(engine: OrtEngine, spec: TensorSpec, shape: Sequence[int], value: float) -> float:
    rows = np.full((max(spec.shape[0], 1), *shape), value).astype(spec.dtype)
    return float(np.mean(engine.run({spec.name: rows})[0].astype(np.float64)))


def _frontier(graph: onnx.GraphProto, start: str) -> str | None:
    """The one tensor that only light operators made of the input and that goes into a heavy one."""
    constants = {initializer.name for initializer in graph.initializer} | {""}
    light = {start}
    frontier: list[str] = []
    for node in graph.node:  # in topological order, as ONNX demands
        if node.op_type in ("Constant", "Shape") or all(name in constants for name in node.input):
            constants.update(node.output)
        elif node.op_type in _LIGHT and all(name in constants or name in light for name in node.input):
            light.update(node.output)
        else:
            frontier.extend(name for name in node.input if name in light)
    found = set(frontier)
    return found.pop() if len(found) == 1 and found != {start} else None


def convolved_channels(fitted: Fitted) -> int | None:
    """The channels of the first convolution that takes the input as it lies; None where nothing does.

    ONNX convolves channels-first pictures only, so such an input is one.
    """
    graph = fitted.model.graph
    sizes = {initializer.name: initializer.dims for initializer in graph.initializer}
    as_it_lies = {fitted.input.name}
    for node in graph.node:
        if not node.input or node.input[0] not in as_it_lies:
            continue
        if node.op_type == "Conv" and len(sizes.get(node.input[1], ())) == 4:
            return int(sizes[node.input[1]][1])
        if node.op_type in _IN_PLACE:
            as_it_lies.update(node.output)
    return None


# The head


def head_of(fitted: Fitted, shape: Sequence[int], wanted: str | None) -> Head:
    """The output that classifies images of `shape`, and what its numbers look like. Raises ConfigurationError."""
    engine = fitted.engine
    output = _output(engine, wanted)
    operator = _last_operator(fitted.model.graph, output.name)
    if operator in ("ArgMax", "ArgMin", "TopK", "NonMaxSuppression"):
        raise ConfigurationError(
            f"output {output.name!r} is made by {operator}: it says which class won and not by how much; export the "
            "model without it, or name the output before it with --output"
        )
    answers = [_noise_answer(engine, fitted.input, shape, output.name, seed) for seed in range(4)]
    images = max(fitted.input.shape[0], 1)
    if any(len(answer) != images for answer in answers if answer.ndim):
        for_images = "one image" if images == 1 else f"{images} images"
        raise ConfigurationError(
            f"output {output.name!r} gives {list(answers[0].shape)} numbers for {for_images}: that is no row of scores "
            "an image (a reader of text?); name another with --output, or export a classifier"
        )
    rows = np.concatenate(answers)
    if rows.ndim < 2 or rows.dtype.kind != "f":
        raise ConfigurationError(
            f"output {output.name!r} has shape {list(output.shape)}: that is no row of scores an image"
        )
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    if max(rows.shape[1:]) != flat.shape[1]:
        raise ConfigurationError(
            f"output {output.name!r} gives {list(rows.shape[1:])} numbers an image: that is no row of scores (a "
            "detector or a segmentation?); name another with --output, or export a classifier"
        )
    if not np.isfinite(flat).all():
        raise ConfigurationError(f"output {output.name!r} is not finite for pictures of noise")
    inside = bool((flat >= 0).all() and (flat <= 1).all())
    sums = flat.shape[1] > 1 and bool(np.allclose(flat.sum(axis=1), 1, atol=1e-3))
    return Head(output, operator, flat.shape[1], inside, inside and sums)


def _output(engine: OrtEngine, wanted: str | None) -> TensorSpec:
    names = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in engine.outputs)
    if wanted is not None:
        found = next((spec for spec in engine.outputs if spec.name == wanted), None)
        if found is None:
            raise ConfigurationError(f"--output {wanted}: the model has {names}")
        return found
    if len(engine.outputs) > 1:
        raise ConfigurationError(
            f"the model has {len(engine.outputs)} outputs; say which classifies: --output NAME, of {names}"
        )
    return engine.outputs[0]


def _last_operator(graph: onnx.GraphProto, output: str) -> str:
    made_by = {name: node for node in graph.node for name in node.output}
    current = output
    while current in made_by:
        node = made_by[current]
        if node.op_type not in _PASSING:
            return str(node.op_type)
        current = node.input[0]
    return ""


def _noise_answer(engine: OrtEngine, spec: TensorSpec, shape: Sequence[int], output: str, seed: int) -> Array:
    """The output for noise, in the ranges that networks are fed: which of them is right is not known yet."""
    random = np.random.default_rng(seed)
    rows = random.random((max(spec.shape[0], 1), *shape))
    rows = rows * 255 if spec.dtype == "uint8" or seed % 2 else rows * 2 - 1
    place = [each.name for each in engine.outputs].index(output)
    try:
        return engine.run({spec.name: rows.astype(spec.dtype)})[place]
    except EngineFailed as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ConfigurationError(
            f"the model does not run on an input of {[len(rows), *shape]} (--size says another): {reason}"
        ) from None
