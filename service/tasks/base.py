"""What every task shares: labels, activation, and choosing the best predictions of a row of scores."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from service.errors import EngineFailed
from service.messages import Prediction

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """`activation` is what the server applies to the graph's output; `thresholds` one for all labels or one each."""

    labels: tuple[str, ...]
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    temperature: float = 1.0
    thresholds: tuple[float, ...] = (0.5,)


class Task(ABC):
    """Turns a batch of raw outputs into predictions."""

    default_activation: ClassVar[str] = "softmax"

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec

    @abstractmethod
    def width(self) -> int:
        """How many numbers an output row has."""

    def scores(self, raw: npt.NDArray[Any]) -> Scores:
        """Raw outputs (n, ...) of any float type to scores (n, width) in float32, activation applied.

        Raises EngineFailed where the output has another width or is not finite.
        """
        rows = raw.reshape(len(raw), -1).astype(np.float32, copy=False)
        if rows.shape[1] != self.width():
            raise EngineFailed(f"The model gave {rows.shape[1]} numbers an image; {self.width()} were expected.")
        if not np.logical_and.reduce(np.isfinite(rows), axis=None):
            raise EngineFailed("The model gave an output that is not a finite number.")
        if self.spec.activation == "none":
            return rows
        if self.spec.temperature != 1.0:
            rows = rows / np.float32(self.spec.temperature)
        return softmax(rows) if self.spec.activation == "softmax" else sigmoid(rows)

    @abstractmethod
    def predictions(self, scores: Scores, top_k: int, threshold: float | None) -> tuple[Prediction, ...]:
        """The best of one row of scores, best first; ties go to the lower index. `threshold` is the caller's."""

    def _ranked(self, scores: Scores, top_k: int, threshold: float | None) -> tuple[Prediction, ...]:
        labels = self.spec.labels
        ranked = [Prediction(labels[index], index, score) for index, score in best(scores, top_k)]
        if threshold is not None:
            ranked = [prediction for prediction in ranked if prediction.score >= threshold]
        return tuple(ranked)


def best(scores: Scores, top_k: int) -> list[tuple[int, float]]:
    """Indices and scores of the `top_k` largest, in descending order, ties by lower index."""
    size = len(scores)
    if size <= 32:  # so few are sorted before numpy has begun
        values: list[float] = scores.tolist()
        order = sorted(range(size), key=values.__getitem__, reverse=True)[:top_k]
        return [(index, values[index]) for index in order]
    order = _best_of_many(scores, top_k)
    return list(zip(order, scores[order].tolist(), strict=True))


def _best_of_many(scores: Scores, top_k: int) -> list[int]:
    size = len(scores)
    if top_k < size and size > 64:  # below that a full sort is cheaper than a partition
        cut = np.partition(scores, size - top_k)[size - top_k]
        above = np.flatnonzero(scores > cut)
        ties = np.flatnonzero(scores == cut)[: top_k - len(above)]
        candidates = np.concatenate((above, ties))
        candidates.sort()
        indices: list[int] = candidates[np.argsort(-scores[candidates], kind="stable")].tolist()
        return indices
    order: list[int] = np.argsort(-scores, kind="stable")[:top_k].tolist()
    return order


def softmax(rows: Scores) -> Scores:
    """Along the last axis, shifted by the maximum so that no exponent overflows."""
    result: Scores = np.exp(rows - rows.max(axis=-1, keepdims=True))
    result /= result.sum(axis=-1, keepdims=True)
    return result


def sigmoid(rows: Scores) -> Scores:
    """Element by element, by tanh, which does not overflow."""
    result: Scores = np.tanh(0.5 * rows)
    result += 1.0
    result *= 0.5
    return result
