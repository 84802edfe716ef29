"""The plain values that travel between the stages of a request.

Nobody changes them; they know no protocol, and hold no behaviour beyond small conversions. Named tuples rather than
frozen data classes: a request makes a dozen of them, at half the cost.
Moments are `time.monotonic()` seconds and end in `_at`; durations are `_seconds`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from service.errors import FoveaError


class ModelRef(NamedTuple):
    """A model by name and, where the caller cares, by version. Requests of one `key` stay with one version."""

    name: str
    version: int | None = None
    key: str | None = None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}/{self.version}"


class ImagePayload(NamedTuple):
    """One encoded image as it came in: nothing about it has been checked yet."""

    data: bytes
    name: str | None = None
    media_type: str | None = None


class ClipPayload(NamedTuple):
    """The images of one request to a model that takes clips: frames in order, or one animation."""

    frames: tuple[ImagePayload, ...]


class InferenceRequest(NamedTuple):
    """Images for one model. `deadline_at` is absolute; `threshold` drops predictions that score below it."""

    ref: ModelRef
    images: tuple[ImagePayload, ...]
    deadline_at: float
    top_k: int = 5
    threshold: float | None = None


def milliseconds(seconds: float) -> float:
    """Of a duration, to the microsecond: what `round` makes of it, at a fifth of the cost."""
    return int(seconds * 1e6 + 0.5) / 1000.0


@dataclass  # a tuple has an `index` of its own, frozen would triple the cost of making one, slots that of writing it
class Prediction:
    """One label of one image; `index` is its place in the model's output, `score` what the task makes of it."""

    label: str
    index: int
    score: float


class ImageInfo(NamedTuple):
    """What the header said: `format` in lower case, sides in pixels as displayed (after EXIF orientation)."""

    format: str
    width: int
    height: int


class Stage(NamedTuple):
    """One stage of a request, for its trace: from `started_at` to `ended_at`, with the stages inside it."""

    name: str
    started_at: float
    ended_at: float
    attributes: Mapping[str, str | int | float] | None = None
    inner: "tuple[Stage, ...]" = ()


class Timings(NamedTuple):
    """Where the time of a request went, in seconds. With several images, of the one answered last."""

    decode_seconds: float = 0.0
    queue_seconds: float = 0.0
    infer_seconds: float = 0.0

    @property
    def milliseconds(self) -> tuple[float, float, float]:
        """The same, each as it is shown."""
        decode_seconds, queue_seconds, infer_seconds = self
        return milliseconds(decode_seconds), milliseconds(queue_seconds), milliseconds(infer_seconds)


class Classification(NamedTuple):
    """The answer to one image, best prediction first."""

    predictions: tuple[Prediction, ...]
    image: ImageInfo
    timings: Timings


class InferenceResult(NamedTuple):
    """The answer to a request: one item per image, in order; an image that was refused has its error there."""

    model: str
    version: int
    items: tuple[Classification | FoveaError, ...]
    timings: Timings
