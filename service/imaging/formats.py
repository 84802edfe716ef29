"""The table of image formats: how each is recognised, what it is called on the wire, who reads its header.

To add a format: one row here and one sample builder in the format suite.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from service.errors import MediaTypeMismatch, UnsupportedMediaType
from service.imaging.headers import ImageHeader, read_jpeg, read_png, read_webp, read_with_pillow


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """One row. `is_signature_of` looks at the first bytes only; `pillow_name` is the plugin that decodes it."""

    name: str
    media_types: tuple[str, ...]
    pillow_name: str
    is_signature_of: Callable[[bytes], bool]
    read_header: Callable[[bytes], ImageHeader]


def _starts(*signatures: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(signatures)


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _is_avif(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis")


def _row(name: str, media_types: tuple[str, ...], pillow: str, signature: Callable[[bytes], bool]) -> ImageFormat:
    return ImageFormat(name, media_types, pillow, signature, partial(read_with_pillow, name=name, pillow_format=pillow))


FORMATS: dict[str, ImageFormat] = {
    row.name: row
    for row in (
        ImageFormat("jpeg", ("image/jpeg", "image/jpg", "image/pjpeg"), "JPEG", _starts(b"\xff\xd8\xff"), read_jpeg),
        ImageFormat("png", ("image/png",), "PNG", _starts(b"\x89PNG\r\n\x1a\n"), read_png),
        ImageFormat("webp", ("image/webp",), "WEBP", _is_webp, read_webp),
        _row("gif", ("image/gif",), "GIF", _starts(b"GIF87a", b"GIF89a")),
        _row("bmp", ("image/bmp", "image/x-ms-bmp"), "BMP", _starts(b"BM")),
        _row("tiff", ("image/tiff",), "TIFF", _starts(b"II*\0", b"MM\0*")),
        _row("avif", ("image/avif",), "AVIF", _is_avif),
    )
}


_BY_MEDIA_TYPE = {kind: row for row in FORMATS.values() for kind in row.media_types}


def media_types(enabled: Collection[str]) -> frozenset[str]:
    """Every content type under which an enabled format may be sent."""
    return frozenset(kind for name in enabled for kind in FORMATS[name].media_types)


def sniff(data: bytes, enabled: Collection[str], declared: str | None = None) -> ImageFormat:
    """The format of `data` by its signature.

    Raises UnsupportedMediaType where it is not an enabled image format, MediaTypeMismatch where `declared` (a content
    type) is an image type of another format.
    """
    found = _BY_MEDIA_TYPE.get(declared or "")  # what it was declared as, it mostly is
    if found is None or not found.is_signature_of(data):
        found = next((row for row in FORMATS.values() if row.is_signature_of(data)), None)
    if found is None or found.name not in enabled:
        what = "not an image of a known format" if found is None else f"a {found.name.upper()}, which is not enabled"
        raise UnsupportedMediaType(f"The data is {what}; send {_list(enabled)}.")
    if declared and declared.startswith("image/") and declared not in found.media_types:
        raise MediaTypeMismatch(f"The data is a {found.name.upper()} but was declared as {declared}.")
    return found


def _list(enabled: Collection[str]) -> str:
    names = [name.upper() for name in FORMATS if name in enabled]
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
