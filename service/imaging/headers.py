"""Reads what an encoded image says of itself, before any pixel is allocated.

Owns the container formats of JPEG, PNG and WebP as far as size and orientation go. Every reader takes any
bytes, looks at a bounded number of segments, and either returns a header or raises InvalidImage.
Sources: ITU T.81 (JPEG), W3C PNG third edition, RFC 9649 (WebP), CIPA DC-008 (Exif).
"""

import struct
import zlib
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image

from service.errors import InvalidImage

_MAX_SEGMENTS = 4096  # a 20 MiB file of 8 KiB chunks has 2,560; more is an attack on the parser
_MAX_SCANS = 500  # a progressive JPEG has about 10; each more costs a pass over all coefficients
_MAX_IFD_ENTRIES = 512
_ORIENTATION_TAG = 0x0112
_PNG_CHUNK = struct.Struct(">I4s").unpack_from  # its length and its name
_PNG_CHECKSUM = struct.Struct(">I").unpack_from
_WEBP_ANIMATION = 0x02  # a flag of the extended header


class ImageHeader(NamedTuple):
    """`width` and `height` in pixels as stored; `orientation` is Exif's, 1 to 8, 1 where absent or nonsense.

    `is_plain` says that nothing about it needs interpreting: a JPEG of 8 bits and one or three components, a PNG of 8
    bits, gray or RGB, not interlaced, transparent or animated, and in one run of chunks.
    """

    format: str
    width: int
    height: int
    orientation: int = 1
    is_plain: bool = False

    @property
    def displayed_size(self) -> tuple[int, int]:
        """(width, height) as a viewer shows it, after orientation."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_jpeg(data: bytes) -> ImageHeader:
    """Walk the marker segments up to the first scan."""
    size: tuple[int, int, int, int] | None = None
    orientation = 1
    is_sequential = is_one_scan = False  # all components in one scan: a decoder stops after it, whatever follows
    position = 2
    for _ in range(_MAX_SEGMENTS):
        position = data.find(b"\xff", position)
        if position < 0 or position + 4 > len(data):
            break
        marker = data[position + 1]
        if marker in (0xFF, 0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # fill, stuffing, or no length
            position += 1 if marker == 0xFF else 2
            continue
        if marker == 0xDA and size is not None:
            is_one_scan = is_sequential and data[position + 4 : position + 5] == bytes([size[2]])
        if marker in (0xDA, 0xD9):
            break
        length = int.from_bytes(data[position + 2 : position + 4])
        body = position + 4
        if length < 2:
            raise InvalidImage("The JPEG has a segment of an impossible length.")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if size is not None or body + 6 > len(data):
                break
            precision, height, width, components = struct.unpack_from(">BHHB", data, body)
            size = (width, height, components, precision)
            is_sequential = marker in (0xC0, 0xC1)
        elif marker == 0xE1 and data[body : body + 6] == b"Exif\0\0":
            orientation = exif_orientation(data[body + 6 : position + 2 + length])
        position += 2 + length
    if size is None:
        raise InvalidImage("The JPEG has no frame header: it is truncated or damaged.")
    if not is_one_scan and _has_too_many_scans(data):
        raise InvalidImage(f"The JPEG has more than {_MAX_SCANS} scans.")
    width, height, components, precision = size
    is_plain = precision == 8 and components in (1, 3)
    return _checked(ImageHeader("jpeg", width, height, orientation, is_plain))


def _has_too_many_scans(data: bytes) -> bool:
    """Whether the scans of a JPEG are beyond reason. What looks like one inside a segment or after the end is none."""
    if data.count(b"\xff\xda") <= _MAX_SCANS:
        return False
    values = np.frombuffer(data, np.uint8)
    markers = np.flatnonzero(values[:-1] == 0xFF)
    kinds = values[markers + 1]
    markers = markers[(kinds >= 0xC0) & ((kinds < 0xD0) | (kinds > 0xD7)) & (kinds != 0xFF)]
    scans, position = 0, 2
    for _ in range(_MAX_SCANS + _MAX_SEGMENTS):
        place = int(np.searchsorted(markers, position))
        if place == len(markers) or data[int(markers[place]) + 1] == 0xD9:
            return False
        position = int(markers[place])
        scans += data[position + 1] == 0xDA
        if scans > _MAX_SCANS:
            return True
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return True


def read_png(data: bytes) -> ImageHeader:
    """IHDR, then the list of chunks for Exif and a proper end."""
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise InvalidImage("The PNG has no header chunk: it is truncated or damaged.")
    width, height, bits, kind, _, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    is_plain = bits == 8 and kind in (0, 2) and interlace == 0
    orientation = 1
    runs, before = 0, b""
    position, last = 33, len(data) - 12
    for _ in range(_MAX_SEGMENTS):
        if position > last:
            raise InvalidImage("The PNG ends before its last chunk: it is truncated.")
        length, name = _PNG_CHUNK(data, position)
        if name == b"IEND":
            break
        if name == b"IDAT":
            runs += before != b"IDAT"
        elif name == b"eXIf":
            orientation = exif_orientation(data[position + 8 : position + 8 + length])
        elif name in (b"tRNS", b"acTL", b"IHDR"):
            is_plain = False
        before = name
        position += 12 + length
    else:
        raise InvalidImage("The PNG has too many chunks.")
    return _checked(ImageHeader("png", width, height, orientation, is_plain and runs == 1))


def png_pixel_data(data: bytes) -> bytes | None:
    """What a PNG's IDAT chunks hold together; None where a chunk before the end has not the CRC-32 that it carries.

    Pillow does not look at checksums at all.
    """
    view = memoryview(data)
    parts: list[memoryview] = []
    position, last = 8, len(data) - 4
    while position + 8 <= last:
        length, name = _PNG_CHUNK(data, position)
        end = position + 8 + length
        if end > last or zlib.crc32(view[position + 4 : end]) != _PNG_CHECKSUM(data, end)[0]:
            return None
        if name == b"IDAT":
            parts.append(view[position + 8 : end])
        elif name == b"IEND":
            return b"".join(parts)
        position = end + 4
    return None


def read_webp(data: bytes) -> ImageHeader:
    """The first chunk gives the size; an extended file may carry Exif further on."""
    if len(data) < 30:
        raise InvalidImage("The WebP is truncated.")
    chunk = data[12:16]
    orientation = 1
    if chunk == b"VP8 ":
        if data[23:26] != b"\x9d\x01\x2a":
            raise InvalidImage("The WebP has no key frame.")
        width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", data, 26))
    elif chunk == b"VP8L":
        if data[20] != 0x2F:
            raise InvalidImage("The WebP's lossless header is damaged.")
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    elif chunk == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        orientation = _webp_orientation(data)
    else:
        raise InvalidImage("The WebP has no image chunk.")
    return _checked(ImageHeader("webp", width, height, orientation))


def webp_frames(data: bytes) -> int:
    """How many frames an animated WebP has; 1 for a still one. Raises InvalidImage where there are too many."""
    if data[12:16] != b"VP8X" or not data[20] & _WEBP_ANIMATION:
        return 1
    frames, position = 0, 12
    for _ in range(_MAX_SEGMENTS):
        if position + 8 > len(data):
            return max(frames, 1)
        frames += data[position : position + 4] == b"ANMF"
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        position += 8 + length + (length & 1)
    raise InvalidImage("The WebP has too many chunks.")


def read_with_pillow(data: bytes, name: str, pillow_format: str) -> ImageHeader:
    """Header of one of the formats that are off by default, by Pillow's own (lazy) parser.

    A TIFF is upright as far as we can see: Pillow turns it, and swaps the sides that it names, on its own.
    """
    try:
        with Image.open(BytesIO(data), formats=[pillow_format]) as image:
            width, height = image.size
            orientation = 1 if pillow_format == "TIFF" else image.getexif().get(_ORIENTATION_TAG, 1)
    except MemoryError:
        raise
    except Exception:
        raise InvalidImage(f"The {name.upper()} header cannot be read.") from None
    orientation = orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
    return _checked(ImageHeader(name, width, height, orientation))


def exif_orientation(tiff: bytes) -> int:
    """Orientation from a TIFF-structured Exif block; 1 wherever it is absent or makes no sense."""
    if tiff[:6] == b"Exif\0\0":
        tiff = tiff[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return 1
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for entry in range(start + 2, min(start + 2 + 12 * min(count, _MAX_IFD_ENTRIES), len(tiff) - 11), 12):
        tag, kind, values = struct.unpack_from(order + "HHI", tiff, entry)
        if tag == _ORIENTATION_TAG:
            code = {1: "B", 3: "H", 4: "I"}.get(kind)
            value = struct.unpack_from(order + code, tiff, entry + 8)[0] if code and values == 1 else 1
            return value if 1 <= value <= 8 else 1
    return 1


def _webp_orientation(data: bytes) -> int:
    position = 12
    for _ in range(_MAX_SEGMENTS):
        if position + 8 > len(data):
            return 1
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        if data[position : position + 4] == b"EXIF":
            return exif_orientation(data[position + 8 : position + 8 + length])
        position += 8 + length + (length & 1)
    raise InvalidImage("The WebP has too many chunks.")


def _checked(header: ImageHeader) -> ImageHeader:
    if header.width < 1 or header.height < 1:
        raise InvalidImage(f"The {header.format.upper()} header says {header.width}x{header.height} pixels.")
    return header
