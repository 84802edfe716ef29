"""Multilabel: any number of the labels may be right; each has a threshold of its own."""

from typing import ClassVar

import numpy as np

from service.messages import Prediction
from service.tasks.base import Scores, Task


class Multilabel(Task):
    """Without a threshold from the caller only labels at or above the manifest's are predicted."""

    default_activation: ClassVar[str] = "sigmoid"

    def width(self) -> int:
        return len(self.spec.labels)

    def predictions(self, scores: Scores, top_k: int, threshold: float | None) -> tuple[Prediction, ...]:
        if threshold is not None:
            return self._ranked(scores, top_k, threshold)
        thresholds = np.broadcast_to(np.asarray(self.spec.thresholds, np.float32), scores.shape)
        ranked = self._ranked(scores, len(scores), None)
        return tuple(prediction for prediction in ranked if prediction.score >= thresholds[prediction.index])[:top_k]
