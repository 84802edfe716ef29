"""Whether a version still sees what it was measured on: its predictions against a reference, as one number each.

Owns the format of `reference.json` and the arithmetic of the population stability index. Keeps the last predictions of
a version, never an image. Event loop only, but for the pure parts.

    {"schema": 1, "images": 5000, "predictions": [480, 512, ...], "confidence": [0, 3, ...]}

`predictions` has how often each place of the output was the best one; `confidence` how often the best score fell into
each of `CONFIDENCE_BUCKETS` (up to and including its value). Both add up to `images`.
"""

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import orjson

from service.errors import ModelLoadError

REFERENCE_NAME = "reference.json"
CONFIDENCE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
MIN_REFERENCE_IMAGES = 200  # fewer say nothing about shares
_MIN_IN_BIN = 10  # images of the reference: twice the rule of thumb for chi-square, as both sides are samples
_DRAWS = 64  # of the noise: their mean is then known to an eighth of its spread

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Reference:
    """How often each place of the output was best, and each bucket of confidence, over some images."""

    predictions: tuple[int, ...]
    confidence: tuple[int, ...]

    @property
    def images(self) -> int:
        return sum(self.predictions)

    @cached_property
    def classes(self) -> "Bins":
        return Bins(np.asarray(self.predictions, np.int64))

    @cached_property
    def certainty(self) -> "Bins":
        return Bins(np.asarray(self.confidence, np.int64))

    def to_json(self) -> bytes:
        """The file."""
        return orjson.dumps(
            {
                "schema": 1,
                "images": self.images,
                "predictions": list(self.predictions),
                "confidence": list(self.confidence),
            }
        )


class Tally:
    """Counts predictions into a Reference."""

    def __init__(self, labels: int) -> None:
        self._predictions = [0] * labels
        self._confidence = [0] * len(CONFIDENCE_BUCKETS)

    def add(self, index: int, score: float) -> None:
        """The best prediction of one image."""
        self._predictions[index] += 1
        self._confidence[bucket_of(score)] += 1

    def reference(self) -> Reference:
        return Reference(tuple(self._predictions), tuple(self._confidence))


def bucket_of(score: float) -> int:
    """The place of a score among CONFIDENCE_BUCKETS; one above the last counts there."""
    return min(bisect_left(CONFIDENCE_BUCKETS, score), len(CONFIDENCE_BUCKETS) - 1)


def parse(content: bytes, labels: int) -> Reference:
    """A reference for a model of so many labels. Raises ModelLoadError."""
    try:
        tree = orjson.loads(content)
    except orjson.JSONDecodeError:
        raise _refused("is no JSON") from None
    if not isinstance(tree, dict) or tree.get("schema") != 1:
        raise _refused('must be an object with "schema": 1')
    columns = []
    for name, length in (("predictions", labels), ("confidence", len(CONFIDENCE_BUCKETS))):
        column = tree.get(name)
        if not isinstance(column, list) or not all(type(count) is int and 0 <= count < 1 << 53 for count in column):
            raise _refused(f"{name} must be a list of counts")
        if len(column) != length:
            raise _refused(f"{name} has {len(column)} counts; {length} were expected")
        columns.append(tuple(column))
    reference = Reference(*columns)
    if not reference.images == sum(reference.confidence) == tree.get("images"):
        raise _refused("predictions and confidence must each add up to images")
    return reference


def _refused(what: str) -> ModelLoadError:
    return ModelLoadError(f"{REFERENCE_NAME} {what}; write it again with `fovea check --write-reference`")


class Bins:
    """Neighbouring places put together until each bin has enough images of the reference to tell a share by."""

    def __init__(self, reference: Counts) -> None:
        starts = [0]
        held = 0
        for place, count in enumerate(reference.tolist()):
            if held >= _MIN_IN_BIN:
                starts.append(place)
                held = 0
            held += count
        if held < _MIN_IN_BIN and len(starts) > 1:
            starts.pop()
        self._starts = np.asarray(starts)
        self._places = len(reference)
        self._expected = np.add.reduceat(reference, self._starts)
        self._noise: dict[int, float] = {}

    def psi(self, places: npt.NDArray[np.integer]) -> float:
        """The population stability index of a sample of places against the reference, less what chance alone gives.

        Two samples of one traffic differ too, the more so the smaller they are and the more bins there are: among
        1,000 classes 2,000 images against 5,000 give 0.5. That mean is taken off; what is left is about 0 for the same
        traffic, however many classes.
        """
        seen = np.add.reduceat(np.bincount(places, minlength=self._places), self._starts)
        return max(0.0, psi(self._expected, seen) - self._chance(len(places)))

    def _chance(self, size: int) -> float:
        if size not in self._noise:
            random = np.random.default_rng(0)
            total = int(self._expected.sum())
            shares = self._expected / total
            draws = zip(
                random.multinomial(total, shares, _DRAWS), random.multinomial(size, shares, _DRAWS), strict=True
            )
            self._noise = {size: float(np.mean([psi(reference, sample) for reference, sample in draws]))}
        return self._noise[size]


def psi(expected: Counts, seen: Counts) -> float:
    """Sum of (q - p) ln(q / p) over the shares of two samples. Half an image is added to each bin: none is empty."""
    p = (expected + 0.5) / (expected.sum() + 0.5 * len(expected))
    q = (seen + 0.5) / (seen.sum() + 0.5 * len(seen))
    return float(((q - p) * np.log(q / p)).sum())


class DriftWindow:
    """The last `size` predictions of one version, against its reference."""

    def __init__(self, reference: Reference, size: int) -> None:
        self.reference = reference
        self._classes = np.zeros(size, np.uint32)
        self._buckets = np.zeros(size, np.uint8)
        self._next = 0
        self._is_full = False

    def add(self, index: int, score: float) -> None:
        """The best prediction of one image."""
        place = self._next
        self._classes[place] = index
        self._buckets[place] = bucket_of(score)
        self._next = place + 1
        if self._next == len(self._classes):
            self._next = 0
            self._is_full = True

    def indices(self) -> tuple[float, float] | None:
        """(of the classes, of the confidence); None until the window is full."""
        if not self._is_full:
            return None
        return self.reference.classes.psi(self._classes), self.reference.certainty.psi(self._buckets)
