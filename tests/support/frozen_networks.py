"""Networks of the tutorials as small files: the ONNX graph without its weights, and where each weight comes from.

Weights are not trained but drawn: a table of normal numbers, repeated over every variable and scaled by what it feeds,
so that a network of 30 million weights is a file of a few kilobytes and its answers are still its framework's own.
`tests/importing/freeze.py` writes the files; nothing here needs a framework.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

Weights = npt.NDArray[np.float32]

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "networks"
_TABLE = np.random.RandomState(28).standard_normal(65_521).astype(np.float32)  # a prime: no layer's size divides it


def drawn(name: str, shape: Sequence[int], place: int) -> Weights:
    """The values of the `place`th variable, called `name` in Keras."""
    size = int(np.prod(shape))
    numbers = np.resize(np.roll(_TABLE, 97 * place), size).reshape(shape)
    if name in ("gamma", "moving_variance"):
        return 1.0 + 0.1 * np.abs(numbers)
    if name in ("mean", "variance", "count"):  # of a Normalization layer: as it comes
        return np.full(shape, float(name == "variance"), np.float32)
    if len(shape) > 1 and name not in ("token", "positions"):
        is_depthwise = len(shape) == 4 and shape[-1] == 1
        return numbers / np.float32(np.sqrt(np.prod(shape[:2] if is_depthwise else shape[:-1])))
    return np.float32(0.1) * numbers


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.onnx"))


def facts(name: str) -> dict[str, Any]:
    """What stands beside the graph: flags of the import, labels, and the framework's scores for each picture."""
    read: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return read


def thawed(name: str) -> onnx.ModelProto:
    """The whole model."""
    model = onnx.load(FOLDER / f"{name}.onnx")
    sources = facts(name)["weights"]
    for initializer in model.graph.initializer:
        source = sources.get(initializer.name)
        if source is not None:
            values = drawn(source["name"], source["shape"], source["place"]) * np.float32(source["times"])
            values = values.transpose(source["axes"]).reshape(list(initializer.dims))
            initializer.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), initializer.name))
    return model
