"""How good predictions are: counts that grow image by image, and what follows from them. numpy only.

Precision, recall, F1 and their averages are defined as in scikit-learn's `classification_report`, and computed in the
same order, so that they agree to the last digit: a class counts that occurs in the truth or in the predictions, and
a quotient without a denominator is 0.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from service import drift
from service.messages import Prediction

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

CALIBRATION_BINS = 15  # as in the paper that made the expected calibration error common (Guo et al., 2017)
CONFIDENCE_BINS = 20
TOP_K = 5
_WORST = 24  # mistakes kept to be looked at


class ClassScore(NamedTuple):
    """One class, or an average over classes."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


class Bin(NamedTuple):
    """Images whose best score lies in one interval: how sure the model was, and how often right."""

    begin: float
    end: float
    images: int
    confidence: float
    accuracy: float


@dataclass(order=True)
class Mistake:
    """A wrong prediction; the surest are the worst."""

    score: float
    file: str
    truth: tuple[int, ...] = field(compare=False)
    predicted: int = field(compare=False)


class Tally:
    """Counts of a model that was asked about labelled images. Its size depends on the classes, not on the images."""

    def __init__(self, labels: Sequence[str], *, several: bool) -> None:
        self.labels = tuple(labels)
        self.several = several  # labels an image may have
        self.images = 0
        self.errors = 0
        self.right = 0
        self.in_top_k = 0
        classes = len(labels)
        self.true_positives: Counts = np.zeros(classes, np.int64)
        self.predicted: Counts = np.zeros(classes, np.int64)
        self.support: Counts = np.zeros(classes, np.int64)
        self.confusion: dict[tuple[int, int], int] = {}
        self.best: Counts = np.zeros(classes, np.int64)
        self.confidences: Counts = np.zeros(CONFIDENCE_BINS, np.int64)
        self.reference = drift.Tally(classes)
        self._bins: Floats = np.zeros((CALIBRATION_BINS, 3))
        self._worst: list[Mistake] = []

    def add(self, file: str, truth: tuple[int, ...], predictions: Sequence[Prediction]) -> None:
        """Count one image; `predictions` best first.

        Where an image has one label and several are right for it, the one predicted counts as its truth.
        """
        any_of = truth
        if not self.several and len(truth) > 1:
            truth = (predictions[0].index,) if predictions[0].index in truth else truth[:1]
        self.images += 1
        answered = [best.index for best in predictions] if self.several else [predictions[0].index]
        is_right = set(answered) == set(truth)
        self.right += is_right
        self.in_top_k += any(best.index in any_of for best in predictions[:TOP_K])
        np.add.at(self.support, list(truth), 1)
        np.add.at(self.predicted, answered, 1)
        np.add.at(self.true_positives, [index for index in answered if index in truth], 1)
        if not predictions:
            return
        best = predictions[0]
        self.best[best.index] += 1
        self.confidences[_bin(best.score, CONFIDENCE_BINS)] += 1
        self.reference.add(best.index, best.score)
        self._bins[_bin(best.score, CALIBRATION_BINS)] += (1, best.score, best.index in truth)
        if not self.several:
            pair = (truth[0], best.index)
            self.confusion[pair] = self.confusion.get(pair, 0) + 1
        if best.index not in truth:
            self._remember(Mistake(best.score, file, truth, best.index))

    def _remember(self, mistake: Mistake) -> None:
        if len(self._worst) < _WORST:
            heapq.heappush(self._worst, mistake)
        else:
            heapq.heappushpop(self._worst, mistake)

    @property
    def accuracy(self) -> float:
        """Share of images answered with just the right labels."""
        return self.right / self.images if self.images else 0.0

    @property
    def top_k_accuracy(self) -> float:
        return self.in_top_k / self.images if self.images else 0.0

    @property
    def mistakes(self) -> list[Mistake]:
        """The worst first."""
        return sorted(self._worst, key=lambda mistake: (-mistake.score, mistake.file))

    @property
    def bins(self) -> list[Bin]:
        """Reliability: where confidence and accuracy part, the scores are no probabilities."""
        edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
        return [
            Bin(float(edges[place]), float(edges[place + 1]), int(images), sure / images, right / images)
            for place, (images, sure, right) in enumerate(self._bins.tolist())
            if images
        ]

    @property
    def expected_calibration_error(self) -> float:
        answered = sum(each.images for each in self.bins)
        return sum(each.images / answered * abs(each.accuracy - each.confidence) for each in self.bins)

    @property
    def classes(self) -> list[ClassScore]:
        """Every class that occurs."""
        return [
            ClassScore(self.labels[index], float(precision), float(recall), float(f1), int(support))
            for index, precision, recall, f1, support in zip(*self._columns(), strict=True)
        ]

    @property
    def averages(self) -> list[ClassScore]:
        """Each class alike, and each by its images."""
        _, *columns, support = self._columns()
        if not support.size:
            return []
        total = int(support.sum())
        precision, recall, f1 = (float(np.average(column)) for column in columns)
        macro = ClassScore("macro avg", precision, recall, f1, total)
        precision, recall, f1 = (_average(column, support) for column in columns)
        return [macro, ClassScore("weighted avg", precision, recall, f1, total)]

    def _columns(self) -> tuple[Counts, Floats, Floats, Floats, Counts]:
        occurs = np.flatnonzero(self.support + self.predicted)
        hits, predicted, support = self.true_positives[occurs], self.predicted[occurs], self.support[occurs]
        return (
            occurs,
            _quotient(hits, predicted),
            _quotient(hits, support),
            _quotient(2.0 * hits, 1.0 * support + predicted),
            support,
        )


def _average(column: Floats, weights: Counts) -> float:
    return float(np.average(column, weights=weights)) if weights.sum() else 0.0


def _quotient(above: npt.NDArray[Any], below: npt.NDArray[Any]) -> Floats:
    result: Floats = np.divide(above, below, out=np.zeros(len(below)), where=below != 0)
    return result


def _bin(score: float, bins: int) -> int:
    return min(bins - 1, max(0, int(score * bins)))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value that two models, right alone this often each, are equally good (McNemar, 1947)."""
    trials = only_first + only_second
    if trials == 0:
        return 1.0
    fewer = min(only_first, only_second)
    log_half = trials * math.log(2.0)
    tail = sum(math.exp(_log_choose(trials, hits) - log_half) for hits in range(fewer + 1))
    return min(1.0, 2.0 * tail)


def _log_choose(total: int, chosen: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)


# Fitting


def fit_temperature(logits: Floats, truth: Counts) -> float:
    """What logits (n, classes) are divided by for the least negative log-likelihood. Raises ValueError on no images."""
    if not len(truth):
        raise ValueError("no images to fit a temperature on")
    low, high = math.log(0.05), math.log(20.0)  # beyond, a network is broken rather than unsure of itself
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    for _ in range(40):  # golden section: the interval shrinks to 1e-8
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if negative_log_likelihood(logits, truth, math.exp(left)) < negative_log_likelihood(
            logits, truth, math.exp(right)
        ):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2.0)


def negative_log_likelihood(logits: Floats, truth: Counts, temperature: float) -> float:
    """Mean over the images, in nats."""
    scaled = logits / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    logs = scaled[np.arange(len(truth)), truth] - np.log(np.exp(scaled).sum(axis=1))
    return float(-logs.mean())


def fit_threshold(scores: Floats, is_positive: npt.NDArray[np.bool_]) -> float:
    """The score from which on calling an image positive gives the best F1; 0.5 where no image is."""
    if not is_positive.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(is_positive[order])
    f1 = 2.0 * hits / (np.arange(1, len(scores) + 1) + is_positive.sum())
    last_of_its_score = np.append(ranked[1:] != ranked[:-1], True)  # a threshold cannot part equal scores
    cut = int(np.argmax(np.where(last_of_its_score, f1, -1.0)))
    below = ranked[cut + 1] if cut + 1 < len(ranked) else 0.0
    return float((ranked[cut] + below) / 2.0)
