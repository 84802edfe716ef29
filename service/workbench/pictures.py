"""Pictures to measure with where nobody gave any: they cost about what a photograph of their size costs to decode."""

import io

import numpy as np
from PIL import Image

_COUNT = 8
_PHOTOGRAPH = (640, 480)
_SMALL = 64  # a model of so few pixels is fed drawings and scans of its own size, not photographs
_GRAIN = 12.0  # of 255: with the soft ground, a JPEG of 640 x 480 then has 60 to 90 kB, as photographs have


def pictures_for(size: tuple[int, int]) -> list[bytes]:
    """Encoded pictures for a model with an input of (height, width)."""
    random = np.random.default_rng(0)
    if max(size) <= _SMALL:
        return [_encoded(_drawn(random, size[1], size[0]).convert("L"), "PNG") for _ in range(_COUNT)]
    return [_encoded(_drawn(random, *_PHOTOGRAPH), "JPEG", quality=85) for _ in range(_COUNT)]


def _drawn(random: np.random.Generator, width: int, height: int) -> Image.Image:
    """Soft areas of colour under grain."""
    ground = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8))
    soft = np.asarray(ground.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    grain = random.normal(0.0, _GRAIN, (height, width, 1))
    return Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8))


def _encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
