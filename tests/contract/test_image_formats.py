"""What every row of the table of formats promises. A new format is one row there and one sample here."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from service.errors import ImageTooLarge, InvalidImage, MediaTypeMismatch, UnsupportedMediaType
from service.imaging.formats import FORMATS, sniff
from service.imaging.spec import ImageLimits
from tests.support import images

PICTURE = images.pattern(48, 32)

# One file of each format, and how far its pixels may be from the picture's, in grey levels on average.
SAMPLES: dict[str, tuple[Callable[[Image.Image], bytes], float]] = {
    "jpeg": (lambda image: images.encoded(image, "JPEG", quality=95, subsampling=0), 1.5),
    "png": (lambda image: images.encoded(image, "PNG"), 0.0),
    "webp": (lambda image: images.encoded(image, "WEBP", lossless=True), 0.0),
    "gif": (lambda image: images.encoded(image.quantize(256), "GIF"), 6.0),
    "bmp": (lambda image: images.encoded(image, "BMP"), 0.0),
    "tiff": (lambda image: images.encoded(image, "TIFF"), 0.0),
    "avif": (lambda image: images.encoded(image, "AVIF", quality=95, speed=10), 3.0),
}
# How each stores an Exif orientation; GIF and BMP cannot.
TURNED: dict[str, Callable[[Image.Image, int], bytes]] = {
    "jpeg": lambda image, orientation: images.displaying(image, orientation, "JPEG"),
    "png": lambda image, orientation: images.displaying(image, orientation, "PNG"),
    "webp": lambda image, orientation: images.displaying(image, orientation, "WEBP"),
    "tiff": lambda image, orientation: images.encoded(
        images.turned(image, orientation), "TIFF", tiffinfo={0x0112: orientation}
    ),
    "avif": lambda image, orientation: images.displaying(image, orientation, "AVIF", speed=10),
}

each_format = pytest.mark.parametrize("name", FORMATS)


def sample(name: str) -> bytes:
    make, _ = SAMPLES[name]
    return make(PICTURE)


def only(name: str, **limits: int) -> ImageLimits:
    return ImageLimits(formats=(name,), **limits)


def test_every_format_has_a_sample() -> None:
    assert set(SAMPLES) == set(FORMATS)


@each_format
def test_a_row_is_kept_under_its_own_name_and_names_a_plugin_of_pillow(name: str) -> None:
    Image.init()
    assert FORMATS[name].name == name == name.lower()
    assert FORMATS[name].pillow_name in Image.OPEN
    assert all(kind.startswith("image/") and kind == kind.lower() for kind in FORMATS[name].media_types)


@each_format
def test_its_signature_is_its_own_and_no_other_formats(name: str) -> None:
    assert [row.name for row in FORMATS.values() if row.is_signature_of(sample(name))] == [name]


@each_format
def test_its_signature_is_in_the_first_bytes_and_any_bytes_may_be_asked(name: str) -> None:
    row = FORMATS[name]
    assert row.is_signature_of(sample(name)[:16])
    assert not any(row.is_signature_of(sample(name)[:length]) for length in (0, 1))
    assert not any(row.is_signature_of(make()) for make in images.FOREIGN.values())


@each_format
def test_it_is_found_under_each_of_its_media_types_and_under_none(name: str) -> None:
    for declared in (None, *FORMATS[name].media_types):
        assert sniff(sample(name), (name,), declared) is FORMATS[name]


@each_format
def test_it_is_refused_under_the_media_type_of_another(name: str) -> None:
    for other in set(FORMATS) - {name}:
        with pytest.raises(MediaTypeMismatch):
            sniff(sample(name), tuple(FORMATS), FORMATS[other].media_types[0])


@each_format
def test_it_is_refused_where_it_is_not_enabled(name: str) -> None:
    others = tuple(set(FORMATS) - {name})
    with pytest.raises(UnsupportedMediaType):
        images.prepared(sample(name), images.spec(), ImageLimits(formats=others))


@each_format
def test_its_header_gives_format_and_size(name: str) -> None:
    for size in ((48, 32), (1, 1), (3, 200)):
        make, _ = SAMPLES[name]
        header = FORMATS[name].read_header(make(images.pattern(*size)))
        assert (header.format, header.displayed_size, header.orientation) == (name, size, 1)


@pytest.mark.parametrize("name", TURNED)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_its_orientation_is_found_and_obeyed(name: str, orientation: int) -> None:
    data = TURNED[name](PICTURE, orientation)
    assert FORMATS[name].read_header(data).displayed_size == (48, 32)
    pixels = images.prepared(data, images.spec(32, 48), only(name))
    assert np.abs(pixels - np.asarray(PICTURE, int)).mean() < 4


@each_format
@pytest.mark.parametrize("way", ["fast", "exact"])
def test_its_pixels_are_those_of_the_picture(name: str, way: str) -> None:
    pixels = images.prepared(sample(name), images.spec(32, 48, decode=way), only(name))
    _, tolerance = SAMPLES[name]
    assert np.abs(pixels - np.asarray(PICTURE, int)).mean() <= tolerance


@each_format
@pytest.mark.parametrize("way", ["fast", "exact"])
def test_its_pixels_are_those_that_pillow_reads(name: str, way: str) -> None:
    with Image.open(io.BytesIO(sample(name))) as image:
        expected = np.asarray(image.convert("RGB"), int)
    assert np.array_equal(images.prepared(sample(name), images.spec(32, 48, decode=way), only(name)), expected)


@each_format
def test_what_follows_the_picture_is_ignored(name: str) -> None:
    alone = images.prepared(sample(name), images.spec(32, 48), only(name))
    followed = images.prepared(sample(name) + b"\0and then some" * 50, images.spec(32, 48), only(name))
    assert np.array_equal(alone, followed)


@each_format
@pytest.mark.parametrize("way", ["fast", "exact"])
def test_half_a_file_is_an_invalid_image(name: str, way: str) -> None:
    data = sample(name)
    with pytest.raises(InvalidImage):
        images.prepared(data[: len(data) // 2], images.spec(decode=way), only(name))


@each_format
def test_any_beginning_of_a_file_has_a_header_or_is_invalid(name: str) -> None:
    data = sample(name)
    for length in (*range(min(len(data), 200)), *range(200, len(data), 211)):
        try:
            header = FORMATS[name].read_header(data[:length])
        except InvalidImage:
            continue
        assert header.displayed_size == (48, 32), length


@each_format
def test_a_signature_with_rubbish_behind_is_an_invalid_image(name: str) -> None:
    for rubbish in (b"", bytes(300), b"\xff" * 300, np.random.default_rng(1).bytes(300)):
        with pytest.raises(InvalidImage):
            images.prepared(sample(name)[:16] + rubbish, images.spec(), only(name))


@each_format
def test_its_limits_are_those_of_the_header(name: str) -> None:
    images.prepared(sample(name), images.spec(), only(name, decoded_pixels=48 * 32, side=48))
    for limits in (only(name, decoded_pixels=48 * 32 - 1), only(name, side=47)):
        with pytest.raises(ImageTooLarge):
            images.prepared(sample(name), images.spec(decode="exact"), limits)
