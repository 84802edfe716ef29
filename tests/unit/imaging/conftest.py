"""The committed ImageNet model, as fidelity is measured with it: its InputSpec and its scores."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from service.imaging.spec import InputSpec

_MODEL = Path(__file__).parents[3] / "model_repo" / "imagenet"

Classify = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float64]]


@pytest.fixture(scope="session")
def imagenet_spec() -> InputSpec:
    """[input] of the committed manifest."""
    table = tomllib.loads((_MODEL / "model.toml").read_text(encoding="utf-8"))["input"]
    numbers = {name: tuple(np.atleast_1d(table.pop(name)).tolist()) for name in ("scale", "mean", "std")}
    return InputSpec(size=tuple(table.pop("size")), **numbers, **table)


@pytest.fixture(scope="session")
def classify(imagenet_spec: InputSpec) -> Classify:
    """(n, 3, 224, 224) to probabilities (n, 1000)."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(_MODEL / "1" / "model.onnx", options, providers=["CPUExecutionProvider"])

    def probabilities(tensors: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        (logits,) = session.run(None, {imagenet_spec.tensor: np.asarray(tensors, np.float32)})
        odds = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    return probabilities
