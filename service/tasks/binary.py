"""Binary: one sigmoid unit, two labels. Index 0 is the label below the threshold, index 1 the one at or above it."""

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from service.messages import Prediction
from service.tasks.base import Scores, Task


class Binary(Task):
    """Scores are (1 - p, p); the label that the manifest's threshold decides for comes first."""

    default_activation: ClassVar[str] = "sigmoid"

    def width(self) -> int:
        return 1

    def scores(self, raw: npt.NDArray[Any]) -> Scores:
        probability = super().scores(raw)
        return np.concatenate((1.0 - probability, probability), axis=1)

    def predictions(self, scores: Scores, top_k: int, threshold: float | None) -> tuple[Prediction, ...]:
        decided = int(scores[1] >= np.float32(self.spec.thresholds[-1]))
        ranked = sorted(self._ranked(scores, 2, threshold), key=lambda prediction: prediction.index != decided)
        return tuple(ranked[:top_k])
