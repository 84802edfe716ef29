"""Rows 7, 8, 10 to 12, 14 to 21, 23 and 24: images that are odd, damaged inside, too large, or two things at once.

What is odd and legal must get the answer of its plain twin.
"""

import io
import json
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.abuse.cases import COLORS, IMAGENET, INVALID_IMAGE, TOO_LARGE_AN_IMAGE, UNSUPPORTED, Case, each_form, raw
from tests.support import bodies, images
from tests.support.bodies import JPEG, PNG, WEBP
from tests.support.images import encoded

PATTERN = images.pattern(96, 64)
CUP = Image.open(bodies.PHOTOGRAPHS / "coffee.png").convert("RGB").resize((300, 200))
PATTERN_PNG = encoded(PATTERN, "PNG")
PATTERN_JPEG = encoded(PATTERN, "JPEG", quality=95, subsampling=0)


def as_tensor(row: int, name: str, data: bytes, expect: str) -> Case:
    """The image through /v2, where everything wrong with it is a 400."""
    one = {"name": "pixels", "shape": [1], "datatype": "BYTES", "data": [bodies.base64_text(data)]}
    return Case(row, f"{name}-v2", json.dumps({"inputs": [one]}).encode(), expect, None, "/v2/models/colors/infer")


def damaged() -> Iterator[Case]:
    long, short = (images.segment(0xFE, b"x" * 20)[:2] + struct.pack(">H", length) for length in (0xFFFF, 1))
    start = PATTERN_JPEG.index(b"\xff\xda")
    for name, data in {
        "marker-too-long": PATTERN_JPEG[:2] + long + PATTERN_JPEG[2:],
        "marker-too-short": PATTERN_JPEG[:2] + short + PATTERN_JPEG[2:],
        "no-huffman-tables": images.without_segments(PATTERN_JPEG, 0xC4),
        "no-quantization-tables": images.without_segments(PATTERN_JPEG, 0xDB),
        "no-frame": images.without_segments(PATTERN_JPEG, 0xC0),
        "no-scan": PATTERN_JPEG[:start] + b"\xff\xd9",
        "scan-of-a-missing-component": PATTERN_JPEG.replace(b"\xff\xda\x00\x0c\x03\x01", b"\xff\xda\x00\x0c\x03\x09"),
    }.items():
        # libjpeg takes some of these with its standard tables or a warning, which the judge lets pass or not.
        yield raw(7, name, data, "200 422" if "tables" in name else INVALID_IMAGE, JPEG, path=COLORS)
    arithmetic = PATTERN_JPEG.replace(b"\xff\xc0", b"\xff\xc9", 1)
    yield raw(7, "said-to-be-arithmetic-coded", arithmetic, "200 422", JPEG, path=COLORS)
    yield raw(7, "lossless-frame", PATTERN_JPEG.replace(b"\xff\xc0", b"\xff\xc3", 1), INVALID_IMAGE, JPEG, path=COLORS)
    for progressive in (True, False):
        scans = images.jpeg_of_many_scans(1024, 1024, 3000, progressive=progressive)
        name = "progressive" if progressive else "sequential"
        yield raw(8, f"3000-{name}-scans", scans, "200 422", JPEG, path=COLORS, cpu_seconds=2.5)


def too_large() -> Iterator[Case]:
    yield raw(10, "webp-of-16383", images.webp_claiming(16_383, 16_383), "422", WEBP, cpu_seconds=0.25)
    yield raw(10, "bmp-of-2-31", images.bmp_claiming(2**31 - 1, 2**31 - 1), UNSUPPORTED, "image/bmp")
    yield raw(10, "tiff-of-2-31", images.tiff_claiming(2**31, 2**31), UNSUPPORTED, "image/tiff")
    yield raw(10, "bmp-as-png", images.bmp_claiming(2**31 - 1, 2**31 - 1), UNSUPPORTED)
    heights = {"one-less": (4999, "200"), "just": (5000, "200"), "one-more": (5001, TOO_LARGE_AN_IMAGE)}
    for name, (height, expect) in heights.items():
        picture = bodies.png_of_zeros(5000, height)
        yield raw(11, f"{name}-than-25-mp", picture, expect, path=COLORS, cpu_seconds=2.0, thorough=expect == "200")
    huge = images.with_frame_size(PATTERN_JPEG, 10_001, 10_000)
    yield raw(11, "jpeg-over-100-mp", huge, TOO_LARGE_AN_IMAGE, JPEG, cpu_seconds=0.25)
    for name, (width, height) in {
        "one-pixel": (1, 1),
        "a-row": (500, 1),
        "a-column": (1, 500),
        "longest-row": (16_384, 1),
        "three-high": (200, 3),
        "three-wide": (3, 200),
    }.items():
        picture = encoded(Image.new("RGB", (width, height), "blue"), "PNG")
        yield from each_form(12, name, picture, "200", path=COLORS)
        yield as_tensor(12, name, picture, "200")
    for width, height in ((65_500, 1), (1, 65_500)):
        picture = encoded(Image.new("RGB", (width, height)), "PNG")
        yield from each_form(12, f"{width}-by-{height}", picture, TOO_LARGE_AN_IMAGE, path=COLORS)
        yield as_tensor(12, f"{width}-by-{height}", picture, "400")


def metadata() -> Iterator[Case]:
    """Row 14: what is told beside the pixels is not unpacked."""
    loop = b"Exif\0\0" + images.exif_loop()
    for name, data, media_type in (
        ("text-bomb", images.png_with_text_bomb(PATTERN), PNG),
        ("profile-bomb", images.png_with_profile_bomb(PATTERN), PNG),
        ("100000-chunks", images.png_with_many_chunks(PATTERN, 100_000), PNG),
        ("exif-of-64-kib", images.with_segment(PATTERN_JPEG, 0xE1, b"Exif\0\0" + bytes(65_000)), JPEG),
        ("exif-loop", images.with_segment(PATTERN_JPEG, 0xE1, loop), JPEG),
    ):
        yield raw(14, name, data, "200 422", media_type, path=COLORS, cpu_seconds=0.25)


def animated() -> Iterator[Case]:
    """Rows 15 and 16: the first frame is the picture."""
    yield raw(15, "gif-beyond-its-screen", images.gif_beyond_its_screen(60_000, 60_000), UNSUPPORTED, "image/gif")
    still = (PATTERN_PNG, PNG)
    for name, data, media_type in (
        ("1000-frames-webp", images.animated("WEBP", 96, 64, 1000), WEBP),
        ("1000-frames-apng", images.animated("PNG", 96, 64, 1000), PNG),
        ("apng-claiming-2-31-frames", images.apng_claiming(PATTERN, 2**31), PNG),
    ):
        yield raw(16, name, data, "200", media_type, path=COLORS, twin=still, tolerance=0.02, cpu_seconds=0.25)


def colors() -> Iterator[Case]:
    """Rows 17 to 19: every way to write down a colour."""
    rgb = (encoded(CUP, "JPEG", quality=95, subsampling=0), JPEG)
    for name, data in {
        "cmyk": images.cmyk_jpeg(CUP, quality=95),
        "ycck": images.ycck_jpeg(CUP, quality=95),
    }.items():
        yield raw(17, name, data, "200", JPEG, path=IMAGENET, twin=rgb, tolerance=0.15)

    gray = np.linspace(0, 65_535, 64 * 48).reshape(48, 64).astype(np.uint16)
    rows16 = [images.wide(*row.tolist()) for row in gray]
    plain = Image.fromarray((gray >> 8).astype(np.uint8))
    twin = (encoded(plain, "PNG"), PNG)
    deep = images.png(64, 48, 16, images.GRAY, rows16)
    yield raw(18, "16-bit-gray", deep, "200", path=COLORS, twin=twin, tolerance=0.02)
    rows48 = [images.wide(*(value for one in row.tolist() for value in (one, one // 2, 0))) for row in gray]
    half = Image.merge("RGB", (plain, plain.point(lambda value: value // 2), Image.new("L", plain.size)))
    yield raw(
        18,
        "16-bit-rgb",
        images.png(64, 48, 16, images.RGB, rows48),
        "200",
        path=COLORS,
        twin=(encoded(half, "PNG"), PNG),
        tolerance=0.02,
    )
    floating = encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")
    yield raw(18, "float-tiff", floating, UNSUPPORTED, "image/tiff")
    yield raw(18, "float-tiff-as-png", floating, UNSUPPORTED)

    for name, image in modes().items():
        shown = Image.new("RGBA", image.size, "white")
        shown.alpha_composite(image.convert("RGBA"))
        twin = (encoded(shown.convert("RGB"), "PNG"), PNG)
        yield raw(19, name, _png(image), "200", path=COLORS, twin=twin, tolerance=0.02)


def modes() -> dict[str, Image.Image]:
    """Each mode that a PNG can have; transparent ones stand before white."""
    red_half = Image.new("RGBA", (16, 16), (255, 0, 0, 128))
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 0, 0, 0, 255, 255, 0, 0])
    see_through = palette.copy()
    see_through.info["transparency"] = bytes([255, 60, 255])
    return {
        "one-bit": PATTERN.convert("1"),
        "gray": PATTERN.convert("L"),
        "gray-with-alpha": Image.merge("LA", (PATTERN.convert("L"), Image.new("L", PATTERN.size, 77))),
        "palette": PATTERN.quantize(64),
        "palette-see-through": see_through,
        "rgba-half": red_half,
        "rgba-nothing-to-see": Image.new("RGBA", (16, 16), (255, 0, 0, 0)),
    }


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **({"transparency": image.info["transparency"]} if "transparency" in image.info else {}))
    return buffer.getvalue()


def turned() -> Iterator[Case]:
    """Row 20: a picture is the same however the camera was held, and upright where that is not said properly."""
    upright = (PATTERN_PNG, PNG)
    for orientation in range(1, 9):
        data = images.displaying(PATTERN, orientation, "PNG")
        yield raw(20, f"held-{orientation}", data, "200", path=COLORS, twin=upright)
    flat = (PATTERN_JPEG, JPEG)
    for name, block in {
        "0": images.exif(0),
        "9": images.exif(9),
        "65535": images.exif(65_535),
        "a-text": images.exif(6, kind=2),
        "a-double": images.exif(6, kind=12),
        "twice": images.exif(6, count=2),
        "cut-short": images.exif(6)[:-6],
    }.items():
        data = images.with_segment(PATTERN_JPEG, 0xE1, b"Exif\0\0" + block)
        yield raw(20, f"orientation-{name}", data, "200", JPEG, path=COLORS, twin=flat)


def two_things() -> Iterator[Case]:
    """Rows 21, 23 and 24: polyglots, and pictures of formats that nobody asked for."""
    types = {"JPEG": JPEG, "PNG": PNG, "GIF": "image/gif"}
    for name, (alone, double) in images.polyglots(PATTERN).items():
        media_type = types[name.split()[0]]
        expect = UNSUPPORTED if media_type == "image/gif" else "200"
        twin = None if media_type == "image/gif" else (alone, media_type)
        yield raw(21, name.lower().replace(" ", "-"), double, expect, media_type, path=COLORS, twin=twin)
    foreign = {
        **{name: make() for name, make in images.FOREIGN.items()},
        "TIFF": encoded(PATTERN, "TIFF"),
        "BMP": encoded(PATTERN, "BMP"),
        "AVIF": encoded(PATTERN, "AVIF", speed=10),
    }
    for name, data in foreign.items():
        row = 24 if name.startswith("ICO") else 23
        yield from each_form(row, name.lower().replace(" ", "-"), data, UNSUPPORTED)
    # A JPEG that goes on with a second one is a JPEG: many cameras write them.
    double = encoded(PATTERN, "MPO", save_all=True, append_images=[PATTERN])
    yield raw(23, "mpo", double, "200 415", JPEG, path=COLORS)
    bad = double.replace(b"MPF\0", b"MPF\0\xff\xff\xff", 1)
    yield raw(24, "mpo-with-a-bad-header", bad, "200 415 422", JPEG, path=COLORS)


CASES = [*damaged(), *too_large(), *metadata(), *animated(), *colors(), *turned(), *two_things()]
