"""Images made by code: every colour mode, every orientation, and the damage and malice that section 1.1 of the abuse
matrix names. Bytes in memory only; `prepared` at the end sends them through the service's imaging.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.imaging.decode import DecodeBudget
from service.imaging.preprocess import Preprocessor
from service.imaging.spec import ImageLimits, InputSpec
from service.messages import ImagePayload

# Pictures


def pattern(width: int, height: int) -> Image.Image:
    """A smooth picture in RGB of which no turned or mirrored version equals another."""
    x = np.linspace(0.0, 1.0, width)[None, :]
    y = np.linspace(0.0, 1.0, height)[:, None]
    planes = (230 * x * (1 - 0.6 * y), 200 * y + 20 * x, 120 + 100 * np.sin(5 * x + 3 * y * y))
    return Image.fromarray(np.stack([np.broadcast_to(plane, (height, width)) for plane in planes], 2).astype(np.uint8))


def encoded(image: Image.Image, pillow_format: str, **options: Any) -> bytes:
    """The image as Pillow writes it."""
    buffer = io.BytesIO()
    image.save(buffer, pillow_format, **options)
    return buffer.getvalue()


# Exif orientation

_UNTURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The image as a camera held that way stores it: with this orientation a viewer shows `image`."""
    return image.transpose(_UNTURN[orientation]) if orientation in _UNTURN else image


def exif(orientation: int, *, order: str = "<", kind: int = 3, count: int = 1, entries_before: int = 0) -> bytes:
    """A TIFF-structured Exif block. `kind` is the TIFF type of the tag's value: 1 byte, 3 short, 4 long, others odd."""
    value = struct.pack(order + {1: "Bxxx", 3: "Hxx"}.get(kind, "I"), orientation)  # left-justified, whatever the order
    others = b"".join(struct.pack(order + "HHII", 0x9000 + index, 4, 1, index) for index in range(entries_before))
    tag = struct.pack(order + "HHI", 0x0112, kind, count) + value
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, entries_before + 1)
    return head + others + tag + struct.pack(order + "I", 0)


def exif_loop() -> bytes:
    """An Exif block whose first directory says that itself is the next one."""
    return b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 0x0100, 4, 1, 1) + struct.pack("<I", 8)


def displaying(image: Image.Image, orientation: int, pillow_format: str, **options: Any) -> bytes:
    """`image` stored turned, with the Exif orientation that makes viewers show it upright."""
    return encoded(turned(image, orientation), pillow_format, exif=b"Exif\0\0" + exif(orientation), **options)


# PNG, chunk by chunk

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, RGB, PALETTE, GRAY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    width: int, height: int, depth: int, color_type: int, rows: Iterable[bytes], before_pixels: Iterable[bytes] = ()
) -> bytes:
    """A PNG of any depth and colour type from its packed `rows`; `before_pixels` are chunks ahead of IDAT."""
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return png_of(png_header(width, height, depth, color_type), *before_pixels, chunk(b"IDAT", pixels))


def png_header(width: int, height: int, depth: int = 8, color_type: int = RGB) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0))


def png_of(*chunks: bytes) -> bytes:
    return PNG_SIGNATURE + b"".join(chunks) + chunk(b"IEND", b"")


def png_chunks(data: bytes) -> list[bytes]:
    """The chunks of a PNG, each with its length and checksum."""
    found, position = [], len(PNG_SIGNATURE)
    while position < len(data):
        length = int.from_bytes(data[position : position + 4]) + 12
        found.append(data[position : position + length])
        position += length
    return found


def with_bad_checksum(data: bytes, name: bytes) -> bytes:
    """The PNG with the checksum of its first chunk of that name wrong."""
    place = data.index(name) - 4
    end = place + 12 + int.from_bytes(data[place : place + 4])
    return data[: end - 1] + bytes([data[end - 1] ^ 0xFF]) + data[end:]


def wide(*values: int) -> bytes:
    """16-bit samples of a PNG row."""
    return struct.pack(f">{len(values)}H", *values)


def png_with_text_bomb(image: Image.Image, megabytes: int = 64) -> bytes:
    """A compressed comment that grows a thousandfold when read."""
    header, *rest = png_chunks(encoded(image, "PNG"))
    return PNG_SIGNATURE + header + chunk(b"zTXt", b"Comment\0\0" + _zeros(megabytes * 2**20)) + b"".join(rest)


def png_with_profile_bomb(image: Image.Image, megabytes: int = 64) -> bytes:
    header, *rest = png_chunks(encoded(image, "PNG"))
    return PNG_SIGNATURE + header + chunk(b"iCCP", b"profile\0\0" + _zeros(megabytes * 2**20)) + b"".join(rest)


def png_with_many_chunks(image: Image.Image, count: int) -> bytes:
    header, *rest = png_chunks(encoded(image, "PNG"))
    return PNG_SIGNATURE + header + chunk(b"tEXt", b"a\0b") * count + b"".join(rest)


def apng_claiming(image: Image.Image, frames: int) -> bytes:
    """A still PNG with an animation header that announces `frames` frames."""
    header, *rest = png_chunks(encoded(image, "PNG"))
    return PNG_SIGNATURE + header + chunk(b"acTL", struct.pack(">II", frames, 0)) + b"".join(rest)


def png_bomb(width: int, height: int) -> bytes:
    """A complete and valid black 1-bit PNG: 60,000 x 60,000 pixels are 450 MB of rows in under half a megabyte."""
    row_bytes = 1 + (width + 7) // 8
    return png_of(png_header(width, height, 1, GRAY), chunk(b"IDAT", _zeros(row_bytes * height)))


def _zeros(count: int) -> bytes:
    """`count` zero bytes as a zlib stream, without ever making them: one block of a megabyte, again and again."""
    blocks, rest = divmod(count, 2**20)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(bytes(2**20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    last = deflate.compress(bytes(rest)) + deflate.flush()
    return b"\x78\x9c" + block * blocks + last + struct.pack(">HH", count % 65521, 1)


# JPEG, segment by segment


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def with_segment(jpeg: bytes, marker: int, body: bytes) -> bytes:
    """The JPEG with one more segment right after its first marker."""
    return jpeg[:2] + segment(marker, body) + jpeg[2:]


def without_segments(jpeg: bytes, marker: int) -> bytes:
    """The JPEG without its segments of that marker, up to the first scan."""
    kept, position = [jpeg[:2]], 2
    while jpeg[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(jpeg[position + 2 : position + 4])
        kept += [] if jpeg[position + 1] == marker else [jpeg[position:end]]
        position = end
    return b"".join(kept) + jpeg[position:]


def with_frame_size(jpeg: bytes, width: int, height: int) -> bytes:
    """The JPEG with other sides in its frame header."""
    place = next(jpeg.index(bytes([0xFF, marker, 0])) for marker in (0xC0, 0xC2) if bytes([0xFF, marker, 0]) in jpeg)
    return jpeg[: place + 5] + struct.pack(">HH", height, width) + jpeg[place + 9 :]


def cmyk_jpeg(image: Image.Image, **options: Any) -> bytes:
    """Four inks as Photoshop writes them: inverted, with an Adobe marker, no colour transform."""
    return encoded(_inks(image), "JPEG", **options)


def ycck_jpeg(image: Image.Image, **options: Any) -> bytes:
    """Four inks of which three are stored as luma and chroma (Adobe transform 2)."""
    cyan, magenta, yellow, black = _inks(image).split()
    # Pillow writes 255 - ink; a YCCK decoder reads luma and chroma of 255 - what it then gives back as ink's inverse.
    stored = Image.merge("RGB", (cyan, magenta, yellow)).convert("YCbCr")
    luma, blueness, redness = (plane.point(lambda value: 255 - value) for plane in stored.split())
    flat = encoded(Image.merge("CMYK", (luma, blueness, redness, black)), "JPEG", **options)
    place = flat.index(b"Adobe") + 11
    return flat[:place] + b"\x02" + flat[place + 1 :]


def _inks(image: Image.Image) -> Image.Image:
    """RGB as CMYK with a black plate of its own: half of the gray part is printed black."""
    light = np.asarray(image, np.float64)
    black = np.floor((255 - light.max(axis=2)) / 2)
    rest = np.maximum(255 - black, 1)[:, :, None]
    color = 255 - 255 * light / rest
    return Image.fromarray(np.dstack([np.clip(np.round(color), 0, 255), black]).astype(np.uint8), mode="CMYK")


def jpeg_of_many_scans(width: int, height: int, scans: int, *, progressive: bool) -> bytes:
    """A valid gray-looking JPEG whose picture is coded again and again: each scan costs a pass over all blocks."""
    tables = encoded(Image.new("RGB", (8, 8)), "JPEG")
    tables = tables[2 : tables.index(b"\xff\xc0")] + tables[tables.index(b"\xff\xc4") : tables.index(b"\xff\xda")]
    components = bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
    frame = segment(0xC2 if progressive else 0xC0, struct.pack(">BHHB", 8, height, width, 3) + components)
    if not progressive:
        return b"\xff\xd8" + tables + frame + (segment(0xDA, bytes([1, 1, 0, 0, 63, 0])) + b"\0") * scans + b"\xff\xd9"
    blocks = -(-width // 8) * -(-height // 8)
    one_symbol = bytes([1] + [0] * 15)  # a code of one bit for the only symbol
    codes = segment(0xC4, b"\x00" + one_symbol + b"\x00") + segment(0xC4, b"\x10" + one_symbol + b"\xe0")
    base = segment(0xDA, bytes([3, 1, 0, 2, 0, 3, 0, 0, 0, 0])) + bytes(blocks * 3 // 8 + 1)
    empty_runs = bytes(-(-15 * -(-blocks // 2**14) // 8))  # each: that code, and 14 bits of run length
    passes = (segment(0xDA, bytes([1, 1, 0, 1 + k % 63, 1 + k % 63, 0])) + empty_runs for k in range(scans - 1))
    return b"\xff\xd8" + tables + codes + frame + base + b"".join(passes) + b"\xff\xd9"


# Other containers


def webp_claiming(width: int, height: int) -> bytes:
    """An extended WebP header for a canvas of that size, with next to nothing behind it."""
    body = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = b"VP8X" + struct.pack("<I", 10) + body + b"VP8 " + struct.pack("<I", 0)
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def bmp_claiming(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def tiff_claiming(width: int, height: int) -> bytes:
    """A TIFF header for 8-bit gray pixels in one strip that is not there."""
    entries = ((256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 1))
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + tags + struct.pack("<I", 0)


def gif_beyond_its_screen(width: int, height: int) -> bytes:
    """A GIF whose screen is 1 x 1 and whose first frame is much larger (Pillow's decompression_bomb_extents)."""
    data = encoded(Image.new("P", (1, 1)), "GIF")
    place = data.index(b"\x2c", 13)
    return data[: place + 5] + struct.pack("<HH", width, height) + data[place + 9 :]


def animated(pillow_format: str, width: int, height: int, frames: int) -> bytes:
    """`frames` pictures of which the first is `pattern` and the others are single colours."""
    others = [Image.new("RGB", (width, height), (index % 256, 40, 255 - index % 256)) for index in range(1, frames)]
    lossless = {"lossless": True} if pillow_format == "WEBP" else {}
    return encoded(pattern(width, height), pillow_format, save_all=True, append_images=others, duration=40, **lossless)


# Two things at once, and things that are no picture


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as folder:
        folder.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\n")
    return buffer.getvalue()


def polyglots(image: Image.Image) -> dict[str, tuple[bytes, bytes]]:
    """By name: (the picture alone, the same file that is something else too)."""
    jpeg, still, gif = (encoded(image, name) for name in ("JPEG", "PNG", "GIF"))
    pdf = encoded(image, "PDF")
    return {
        "JPEG and PDF": (jpeg, with_segment(jpeg, 0xFE, b"%PDF-1.4\n") + pdf),
        "JPEG and JAR": (jpeg, jpeg + archive()),
        "JPEG and five megabytes": (jpeg, jpeg + b"\xff\xda\xff\xc0\0" * (2**20)),
        "PNG and ZIP": (still, still + archive()),
        "GIF and JavaScript": (gif, gif + b"/*" + b"*/=1;alert(1)//"),
    }


FOREIGN: dict[str, Callable[[], bytes]] = {
    "plain text": lambda: b"just some words, no picture at all, sent by mistake",
    "HTML": lambda: b"<!doctype html><html><body><img src=x></body></html>",
    "SVG": lambda: b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "PDF": lambda: encoded(pattern(9, 9), "PDF"),
    "EPS": lambda: encoded(pattern(9, 9), "EPS"),
    "PSD": lambda: b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(400),
    "FITS": lambda: (b"SIMPLE  =                    T".ljust(80) + b"END".ljust(80)).ljust(2880),
    "ICNS": lambda: encoded(pattern(16, 16), "ICNS"),
    "ICO": lambda: encoded(pattern(16, 16), "ICO"),
    "ICO of a BMP": lambda: encoded(pattern(16, 16), "ICO", bitmap_format="bmp"),
    "DDS": lambda: encoded(pattern(9, 9), "DDS"),
    "JPEG 2000": lambda: encoded(pattern(9, 9), "JPEG2000"),
    "PPM": lambda: encoded(pattern(9, 9), "PPM"),
    "TGA": lambda: encoded(pattern(9, 9), "TGA"),
    "HEIC": lambda: struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(60),
    "ZIP": archive,
    "zeros": lambda: bytes(1000),
    "WAVE in RIFF": lambda: b"RIFF" + struct.pack("<I", 100) + b"WAVEfmt " + bytes(100),
}


# Through the service


def spec(height: int = 8, width: int = 8, **changes: Any) -> InputSpec:
    """Raw pixels of a stretched picture, unless said otherwise: the tensor is then the picture itself."""
    return InputSpec("input", (height, width), **{"resize": "stretch", "layout": "nhwc", "dtype": "uint8", **changes})


def preprocessor(spec: InputSpec, limits: ImageLimits | None = None) -> Preprocessor:
    limits = limits or ImageLimits()
    return Preprocessor(spec, limits, DecodeBudget(limits.decode_bytes))


def prepared(
    data: bytes, spec: InputSpec, limits: ImageLimits | None = None, media_type: str | None = None
) -> npt.NDArray[Any]:
    """What the service makes of one image: both steps, into a buffer full of rubbish."""
    service = preprocessor(spec, limits)
    row = np.full(spec.shape, 77, spec.dtype)
    service.prepare(service.inspect(ImagePayload(data, media_type=media_type)), row)
    return row
