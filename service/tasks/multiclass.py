"""Multiclass: exactly one of the labels is right; the scores of a row add up to one."""

from service.messages import Prediction
from service.tasks.base import Scores, Task


class Multiclass(Task):
    def width(self) -> int:
        return len(self.spec.labels)

    def predictions(self, scores: Scores, top_k: int, threshold: float | None) -> tuple[Prediction, ...]:
        return self._ranked(scores, top_k, threshold)
