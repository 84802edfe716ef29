"""Any bytes give a tensor row or a typed error, within limits; and what an image becomes does not depend on luck."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import InvalidImage, UnsupportedMediaType
from service.imaging.decode import decode
from service.imaging.formats import FORMATS
from service.imaging.geometry import box_before_orientation, place
from service.imaging.headers import exif_orientation, read_png
from service.imaging.spec import ImageLimits, InputSpec
from tests.support import images, photos, reference

# Pillow warns of odd metadata; to the service that is no reason to refuse a picture.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

LIMITS = ImageLimits(formats=tuple(FORMATS), decoded_pixels=2**20, source_pixels=2**22, side=4096)
quick = settings(deadline=None, max_examples=150)

_PHOTO = photos.photo("chelsea", 60, 44)
SEEDS: dict[str, bytes] = {
    "jpeg": images.encoded(_PHOTO, "JPEG"),
    "progressive": images.encoded(_PHOTO, "JPEG", progressive=True),
    "four inks": images.cmyk_jpeg(_PHOTO),
    "turned": images.displaying(_PHOTO, 6, "JPEG"),
    "png": images.encoded(_PHOTO, "PNG"),
    "palette": images.encoded(_PHOTO.quantize(16), "PNG", transparency=3),
    "16 bits": images.encoded(Image.new("I;16", (60, 44), 40_000), "PNG"),
    "apng": images.animated("PNG", 30, 20, 3),
    "webp": images.encoded(_PHOTO, "WEBP"),
    "lossless webp": images.encoded(_PHOTO, "WEBP", lossless=True),
    "animated webp": images.animated("WEBP", 30, 20, 3),
    "gif": images.encoded(_PHOTO, "GIF"),
    "bmp": images.encoded(_PHOTO, "BMP"),
    "tiff": images.encoded(_PHOTO, "TIFF"),
    "avif": images.encoded(_PHOTO, "AVIF", speed=10),
}
SIGNATURES = [data[:16] for data in SEEDS.values()] + [b"II*\0", b"MM\0*", b"BM", b"GIF87a", b"\xff\xd8\xff"]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A real file with a few bytes changed, cut out, doubled or inserted; the head is hit as often as the rest."""
    data = bytearray(draw(st.sampled_from(sorted(SEEDS.values()))))
    for _ in range(draw(st.integers(1, 4))):
        place_ = draw(st.integers(0, min(80, len(data)) if draw(st.booleans()) else len(data)))
        length = draw(st.integers(0, 12))
        how = draw(st.sampled_from(["overwrite", "insert", "delete", "repeat", "cut"]))
        if how == "overwrite":
            fresh = draw(st.binary(min_size=length, max_size=length))
            data[place_ : place_ + length] = fresh
        elif how == "insert":
            data[place_:place_] = draw(st.binary(max_size=12))
        elif how == "delete":
            del data[place_ : place_ + length]
        elif how == "repeat":
            data[place_:place_] = data[place_ : place_ + length] * 3
        else:
            del data[place_:]
    return bytes(data)


any_bytes = st.one_of(
    st.binary(max_size=300),
    st.builds(bytes.__add__, st.sampled_from(SIGNATURES), st.binary(max_size=300)),
    damaged(),
)


def specs(smallest: int) -> st.SearchStrategy[InputSpec]:
    """Every combination of choices, for tensors of `smallest` to 24 pixels a side."""
    sides_ = st.integers(smallest, 24)
    return st.builds(
        lambda size, margin, **rest: images.spec(*size, resize_to=max(size) + margin, **rest),
        size=st.tuples(sides_, sides_),
        margin=st.integers(0, 12),
        color=st.sampled_from(["rgb", "bgr", "gray"]),
        layout=st.sampled_from(["nchw", "nhwc"]),
        dtype=st.sampled_from(["uint8", "float16", "float32"]),
        resize=st.sampled_from(["stretch", "shortest_side", "letterbox"]),
        interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "area", "lanczos"]),
        resampler=st.sampled_from(["pil", "opencv", "tf"]),
        antialias=st.booleans(),
        decode=st.sampled_from(["fast", "exact"]),
        exif=st.sampled_from(["apply", "ignore"]),
    )


@given(data=any_bytes, spec=specs(1))
@settings(quick, max_examples=800)
@example(data=b"", spec=images.spec())
def test_any_bytes_give_a_tensor_or_a_typed_error(data: bytes, spec: InputSpec) -> None:
    try:
        tensor = images.prepared(data, spec, LIMITS)
    except (InvalidImage, UnsupportedMediaType) as error:
        assert str(error).isascii()
        assert 10 < len(str(error)) < 200
    else:
        assert np.isfinite(tensor).all()
        # Cubic and Lanczos kernels overshoot in floating point, nothing else leaves the range of a pixel.
        if spec.resampler != "tf":
            assert tensor.min() >= 0
            assert tensor.max() <= 255


@given(data=any_bytes)
@settings(quick, max_examples=300)
def test_header_readers_give_a_header_or_invalid_image_and_nothing_else(data: bytes) -> None:
    for row in FORMATS.values():
        try:
            header = row.read_header(data)
        except InvalidImage:
            continue
        assert header.format == row.name
        assert header.width >= 1
        assert header.height >= 1
        assert 1 <= header.orientation <= 8


@given(data=any_bytes)
@settings(quick, max_examples=300)
def test_what_is_decoded_stays_within_the_limits_of_the_header(data: bytes) -> None:
    try:
        image = images.preprocessor(images.spec(decode="exact"), LIMITS).inspect(images.ImagePayload(data))
    except (InvalidImage, UnsupportedMediaType):
        return
    width, height = image.displayed
    assert max(width, height) <= LIMITS.side
    assert width * height <= LIMITS.decoded_pixels
    try:
        images.prepared(data, images.spec(decode="exact"), LIMITS)
    except InvalidImage:
        return
    with Image.open(io.BytesIO(data)) as opened:
        assert {opened.size, opened.size[::-1]} >= {(width, height)}


@given(data=damaged())
@settings(quick, max_examples=600)
def test_which_images_are_good_does_not_depend_on_the_way(data: bytes) -> None:
    verdicts = set()
    for spec in (images.spec(), images.spec(decode="exact"), images.spec(color="gray"), images.spec(resampler="tf")):
        try:
            images.prepared(data, spec, LIMITS)
            verdicts.add("good")
        except (InvalidImage, UnsupportedMediaType) as error:
            verdicts.add(error.code)
    assert len(verdicts) == 1


@given(block=st.one_of(st.binary(max_size=120), st.builds(bytes.__add__, st.just(b"II*\0"), st.binary(max_size=120))))
@settings(quick)
def test_any_exif_block_has_an_orientation(block: bytes) -> None:
    assert 1 <= exif_orientation(block) <= 8


sides = st.one_of(st.integers(1, 64), st.integers(1, 16_384))


@given(width=sides, height=sides, size=st.tuples(st.integers(1, 320), st.integers(1, 320)), extra=st.integers(0, 64))
@settings(quick, max_examples=300)
def test_every_image_size_has_a_placement_inside_the_image(
    width: int, height: int, size: tuple[int, int], extra: int
) -> None:
    for resize in ("stretch", "shortest_side", "letterbox"):
        placement = place(width, height, InputSpec("input", size, resize=resize, resize_to=max(size) + extra))
        left, top, right, bottom = placement.box
        assert -1e-6 <= left < right <= width * (1 + 1e-9)
        assert -1e-6 <= top < bottom <= height * (1 + 1e-9)
        for axis in (0, 1):
            output = (size[1], size[0])[axis]
            assert placement.content[axis] >= 1
            assert 0 <= placement.crop[axis] <= placement.whole[axis] - placement.content[axis]
            assert 0 <= placement.paste[axis] <= output - placement.content[axis]
        assert placement.scale > 0


@given(
    box=st.tuples(*[st.integers(0, 50)] * 4),
    orientation=st.integers(1, 8),
    stored=st.tuples(st.integers(51, 90), st.integers(51, 90)),
)
@settings(quick)
def test_a_box_keeps_its_area_and_stays_inside_whatever_the_orientation(
    box: tuple[int, int, int, int], orientation: int, stored: tuple[int, int]
) -> None:
    left, right, top, bottom = (*sorted(box[:2]), *sorted(box[2:]))
    x0, y0, x1, y1 = box_before_orientation((left, top, right, bottom), orientation, *stored)
    assert (x1 - x0) * (y1 - y0) == (right - left) * (bottom - top)
    assert 0 <= x0 <= x1 <= stored[0]
    assert 0 <= y0 <= y1 <= stored[1]


@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    spec=specs(8),
    pillow_format=st.sampled_from(["JPEG", "PNG", "WEBP"]),
    orientation=st.integers(1, 8),
)
@settings(quick, max_examples=600)
def test_good_images_of_any_size_are_near_the_reference(
    size: tuple[int, int], spec: InputSpec, pillow_format: str, orientation: int
) -> None:
    """Few pixels are left of a halved JPEG: the average counts.

    Of a small picture that a box kernel enlarges every pixel is one of its own. At a tie that may be the neighbour, for
    a whole row and a whole column: what most pixels are counts.
    """
    data = images.displaying(images.pattern(*size), orientation, pillow_format)
    difference = np.abs(images.prepared(data, spec).astype(float) - reference.tensor(data, spec))
    may_tie = spec.interpolation == "area" and min(size) < max(*spec.size, spec.resize_to)
    middle = np.median(difference) if may_tie else difference.mean()
    assert middle < 6.0, (middle, size)


def _png_of(compressed: list[bytes], width: int, height: int, kind: int) -> bytes:
    """A PNG with these IDAT chunks and right checksums, whatever is in them."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(b"IDAT", part) for part in compressed), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@given(
    pixels=st.binary(min_size=1, max_size=300),
    width=st.integers(1, 9),
    is_color=st.booleans(),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 7)), max_size=2),
    cut=st.none() | st.integers(0, 400),
    split=st.integers(0, 400),
    tail=st.binary(max_size=8),
)
@settings(deadline=None, max_examples=400)
def test_a_plain_png_gets_the_verdict_and_the_pixels_of_pillows_file_layer(
    pixels: bytes,
    width: int,
    is_color: bool,
    flips: list[tuple[int, int]],
    cut: int | None,
    split: int,
    tail: bytes,
) -> None:
    height = 1 + len(pixels) % 9
    row = width * (3 if is_color else 1)
    rows = (pixels * (1 + height * (row + 1) // len(pixels)))[: height * (row + 1)]
    filtered = b"".join(bytes([rows[at] % 5]) + rows[at + 1 : at + row + 1] for at in range(0, len(rows), row + 1))
    compressed = bytearray(zlib.compress(filtered))
    for place_of_flip, bit in flips:
        compressed[place_of_flip % len(compressed)] ^= 1 << bit
    compressed = compressed[:cut] + tail
    data = _png_of([bytes(compressed[:split]), bytes(compressed[split:])], width, height, 2 if is_color else 0)
    header = read_png(data)
    assert header.is_plain
    try:
        with Image.open(io.BytesIO(data)) as image:
            expected = np.asarray(image)
    except Exception:
        with pytest.raises(InvalidImage):
            decode(data, header, gray=not is_color, halvings=0, fast=False, background=(0, 0, 0))
    else:
        decoded = decode(data, header, gray=not is_color, halvings=0, fast=False, background=(0, 0, 0))
        np.testing.assert_array_equal(decoded, expected)
