"""Clips: frames in order to one row of an input tensor with a time axis, (frames, height, width, channels).

A clip is one animated WebP, or the pictures of a request as its frames. A longer one is sampled evenly, its first and
last frame included; a shorter one ends in copies of its last frame. Each frame is prepared as an image is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Protocol

import numpy.typing as npt

from service.errors import ImageTooLarge, InvalidImage
from service.imaging.decode import DecodeBudget, decode_frames
from service.imaging.headers import webp_frames
from service.imaging.preprocess import InspectedImage, Preprocessor
from service.imaging.spec import ImageLimits, InputSpec
from service.messages import ClipPayload, ImageInfo, ImagePayload

_OTHER_ANIMATIONS = ("gif", "avif")


@dataclass(frozen=True, slots=True)
class InspectedClip:
    """A clip whose headers passed all limits: its pictures, or one animation of `count` frames."""

    pictures: tuple[InspectedImage, ...]
    count: int

    @property
    def nbytes(self) -> int:
        """Bytes that preparing it touches: encoded, and decoded frame by frame."""
        repeated = self.count if len(self.pictures) == 1 else 1
        return sum(len(picture.data) + picture.decoded_bytes * repeated for picture in self.pictures)

    @property
    def payload(self) -> ClipPayload:
        """As it came, for another preprocessing."""
        return ClipPayload(tuple(picture.payload for picture in self.pictures))

    @property
    def info(self) -> ImageInfo:
        """Of its first frame."""
        return self.pictures[0].info


Payload = ImagePayload | ClipPayload
Inspected = InspectedImage | InspectedClip


class RowMaker(Protocol):
    """What a model's images go through: those of a request to entries, each checked, each then a row."""

    def grouped(self, images: Sequence[ImagePayload]) -> Sequence[Payload]: ...

    def inspect(self, payload: Any) -> Inspected: ...

    def prepare(self, image: Any, out: npt.NDArray[Any]) -> None: ...


def row_maker(spec: InputSpec, limits: ImageLimits, budget: DecodeBudget) -> RowMaker:
    """For images or for clips, as the spec says. Raises ModelLoadError."""
    return (ClipPreprocessor if spec.layout == "nthwc" else Preprocessor)(spec, limits, budget)


class ClipPreprocessor:
    """Follows one InputSpec with a time axis. Immutable; shared by all execution threads."""

    def __init__(self, spec: InputSpec, limits: ImageLimits, budget: DecodeBudget) -> None:
        self.spec = spec
        self._limits = limits
        self._budget = budget
        self._frame = Preprocessor(replace(spec, layout="nhwc", frames=1), limits, budget)

    def grouped(self, images: Sequence[ImagePayload]) -> Sequence[Payload]:
        """All of a request's images are one clip."""
        return (ClipPayload(tuple(images)),)

    def inspect(self, payload: Payload) -> InspectedClip:
        """Check every header against the limits. Raises UnsupportedMediaType, InvalidImage or ImageTooLarge."""
        parts = payload.frames if isinstance(payload, ClipPayload) else (payload,)
        pictures = tuple(self._frame.inspect(part) for part in parts)
        counts = [webp_frames(picture.data) if picture.header.format == "webp" else 1 for picture in pictures]
        if len(pictures) > 1:
            if max(counts) > 1:
                raise InvalidImage("One of the frames is an animation; send one animation, or still pictures.")
            return InspectedClip(pictures, len(pictures))
        (picture,), (count,) = pictures, counts
        if picture.header.format in _OTHER_ANIMATIONS:
            name = picture.header.format.upper()
            raise InvalidImage(f"A clip is an animated WebP or several pictures; a {name} is not read as one.")
        pixels = picture.header.width * picture.header.height * count
        if pixels > self._limits.source_pixels:
            raise ImageTooLarge(
                f"The animation has {count:,} frames, {pixels:,} pixels in all; the limit is "
                f"{self._limits.source_pixels:,}."
            )
        return InspectedClip(pictures, count)

    def prepare(self, clip: InspectedClip, out: npt.NDArray[Any]) -> None:
        """Fill `out`, of `spec.shape` and `spec.dtype`, frame by frame. Raises InvalidImage."""
        places = sampled(clip.count, self.spec.frames)
        if len(clip.pictures) > 1 or clip.count == 1:
            for row, frame in zip(out, places, strict=True):
                self._frame.prepare(clip.pictures[frame], row)
            return
        (picture,) = clip.pictures
        with self._budget.hold(picture.decoded_bytes):
            frames = decode_frames(
                picture.data,
                picture.header,
                places,
                gray=self.spec.channels == 1,
                fast=self._frame.is_fast,
                background=self.spec.background,
            )
            for (_, rows), pixels in zip(groupby(range(len(places)), key=places.__getitem__), frames, strict=True):
                first, *copies = rows
                self._frame.render(pixels, picture, out[first])
                out[copies] = out[first]


def sampled(count: int, wanted: int) -> list[int]:
    """Which of `count` frames are shown in `wanted` places, in order.

    Evenly from the first to the last; all of them, and then the last again, where there are too few.
    """
    if count <= wanted:
        return [min(place, count - 1) for place in range(wanted)]
    if wanted == 1:
        return [(count - 1) // 2]
    return [(2 * place * (count - 1) + wanted - 1) // (2 * (wanted - 1)) for place in range(wanted)]
