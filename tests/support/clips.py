"""Clips to send: a window that moves over a photograph, as separate pictures or as one animated WebP."""

import io

from PIL import Image

COUNT, SIDE = 11, 96


def pictures(photograph: bytes) -> list[Image.Image]:
    """The frames: `COUNT` windows of `SIDE` pixels, from the top left to the bottom right."""
    image = Image.open(io.BytesIO(photograph)).convert("RGB")
    steps = [
        (place * (image.width - SIDE) // (COUNT - 1), place * (image.height - SIDE) // (COUNT - 1))
        for place in range(COUNT)
    ]
    return [image.crop((left, top, left + SIDE, top + SIDE)) for left, top in steps]


def frames(photograph: bytes) -> list[bytes]:
    """Each frame as a PNG."""
    return [_encoded(picture, "PNG") for picture in pictures(photograph)]


def animation(photograph: bytes) -> bytes:
    """All frames as one animated WebP, without loss."""
    first, *rest = pictures(photograph)
    return _encoded(first, "WEBP", save_all=True, append_images=rest, duration=40, lossless=True, exact=True)


def shown(count: int, wanted: int) -> list[int]:
    """Which frames a clip of `wanted` shows of `count`: evenly, both ends, halves up."""
    return [int(place * (count - 1) / (wanted - 1) + 0.5) for place in range(wanted)]


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
