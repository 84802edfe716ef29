"""The two steps an image goes through: what `inspect` refuses before a pixel exists, and what `prepare` writes."""

import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from service.errors import (
    ImageTooLarge,
    InvalidImage,
    MediaTypeMismatch,
    ModelLoadError,
    Outcome,
    UnsupportedMediaType,
)
from service.imaging import resample
from service.imaging.decode import DecodeBudget
from service.imaging.preprocess import Preprocessor
from service.imaging.spec import ImageLimits, InputSpec
from service.messages import ImageInfo, ImagePayload
from tests.support import images, photos, reference

MIB = 2**20
PICTURE = images.pattern(24, 16)
PNG = images.encoded(PICTURE, "PNG")


def inspected(data: bytes, spec: InputSpec | None = None, limits: ImageLimits | None = None):
    return images.preprocessor(spec or images.spec(), limits).inspect(ImagePayload(data))


@contextmanager
def at_most(nbytes: int) -> Iterator[None]:
    """What Python and numpy allocate meanwhile. OpenCV and Pillow's results come through numpy, too."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= nbytes, f"{peak / MIB:.1f} MiB at the peak"


@pytest.fixture
def no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes or loads a Pillow image fails."""
    for name in ("new", "fill"):
        monkeypatch.setattr(Image.core, name, lambda *_: pytest.fail("pixels were allocated"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("pixels were decoded"))
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *_, **__: pytest.fail("pixels were decoded"))


# Limits, from the header


def test_the_defaults_are_those_of_the_abuse_matrix() -> None:
    limits = ImageLimits()
    assert (limits.image_bytes, limits.decode_bytes) == (20 * MIB, 256 * MIB)
    assert (limits.source_pixels, limits.decoded_pixels, limits.side) == (100_000_000, 25_000_000, 16_384)


@pytest.mark.parametrize("way", ["fast", "exact"])
@pytest.mark.parametrize(
    "data",
    [
        images.png_bomb(60_000, 60_000),
        images.png_bomb(16_384, 16_384),
        images.webp_claiming(16_383, 16_383),
        images.with_frame_size(images.encoded(PICTURE, "JPEG"), 65_535, 65_535),
        images.with_frame_size(images.encoded(PICTURE, "JPEG"), 16_000, 16_000),
    ],
    ids=["PNG 60,000", "PNG 16,384", "WebP 16,383", "JPEG 65,535", "JPEG 16,000"],
)
def test_a_bomb_is_refused_before_a_pixel_is_allocated(data: bytes, way: str, no_pixels: None) -> None:
    with at_most(4 * MIB), pytest.raises(ImageTooLarge) as caught:
        inspected(data, images.spec(decode=way))
    assert (caught.value.code, caught.value.outcome) == ("image_too_large", Outcome.CLIENT_ERROR)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("bmp", images.bmp_claiming(30_000, 30_000)),
        ("tiff", images.tiff_claiming(30_000, 30_000)),
        ("gif", images.gif_beyond_its_screen(30_000, 30_000)),
    ],
    ids=["bmp", "tiff", "gif"],
)
def test_a_bomb_in_a_format_that_is_off_by_default_is_refused_from_its_header_too(
    name: str, data: bytes, no_pixels: None
) -> None:
    with at_most(4 * MIB), pytest.raises(ImageTooLarge):
        inspected(data, limits=ImageLimits(formats=(name,)))
    with pytest.raises(UnsupportedMediaType):
        inspected(data)


@pytest.mark.parametrize("size", [(2**31 - 1, 5), (5, 2**31 - 1)])
def test_sides_of_two_thousand_million_are_refused(size: tuple[int, int], no_pixels: None) -> None:
    for data in (images.tiff_claiming(*size), images.bmp_claiming(*size), images.png_of(images.png_header(*size))):
        with at_most(4 * MIB), pytest.raises(InvalidImage):
            inspected(data, limits=ImageLimits(formats=("bmp", "tiff", "png")))


@pytest.mark.parametrize("pillow_format", ["JPEG", "PNG", "WEBP"])
def test_decoded_pixels_at_the_limit_pass_and_one_row_more_does_not(pillow_format: str) -> None:
    limits = ImageLimits(decoded_pixels=100 * 80)
    exact = images.spec(decode="exact")
    at, over = (images.encoded(images.pattern(100, rows), pillow_format) for rows in (80, 81))
    images.prepared(at, exact, limits)
    with pytest.raises(ImageTooLarge, match="100 x 81 pixels; the limit is 8,000 pixels"):
        images.prepared(over, exact, limits)


@pytest.mark.parametrize("pillow_format", ["JPEG", "PNG", "WEBP"])
def test_a_side_at_the_limit_passes_and_one_pixel_more_does_not(pillow_format: str) -> None:
    limits = ImageLimits(side=64)
    for size in ((64, 3), (3, 64)):
        images.prepared(images.encoded(images.pattern(*size), pillow_format), images.spec(), limits)
    for size in ((65, 3), (3, 65)):
        with pytest.raises(ImageTooLarge, match="longest side allowed is 64"):
            images.prepared(images.encoded(images.pattern(*size), pillow_format), images.spec(), limits)


def test_a_jpeg_that_is_halved_may_have_more_source_pixels_than_are_decoded() -> None:
    data = images.encoded(images.pattern(400, 300), "JPEG")
    limits = ImageLimits(decoded_pixels=30_000, source_pixels=120_000)
    images.prepared(data, images.spec(decode="fast"), limits)  # 50 x 38 pixels are decoded
    with pytest.raises(ImageTooLarge, match="400 x 300 pixels; the limit is 30,000"):
        images.prepared(data, images.spec(decode="exact"), limits)
    with pytest.raises(ImageTooLarge, match="the limit is 119,999"):
        images.prepared(data, images.spec(decode="fast"), replace(limits, source_pixels=119_999))


def test_bytes_at_the_limit_pass_and_one_more_does_not() -> None:
    images.prepared(PNG, images.spec(), ImageLimits(image_bytes=len(PNG)))
    with pytest.raises(ImageTooLarge, match=f"limit is {len(PNG) - 1:,}"):
        images.prepared(PNG, images.spec(), ImageLimits(image_bytes=len(PNG) - 1))


def test_no_bytes_are_an_invalid_image() -> None:
    with pytest.raises(InvalidImage, match="empty"):
        inspected(b"")


@pytest.mark.parametrize("data", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"])
def test_a_signature_alone_is_an_invalid_image(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        inspected(data)


def test_refusals_say_nothing_of_the_machine() -> None:
    for data in (b"", b"\xff\xd8\xff", PNG[:60], images.png_bomb(60_000, 60_000), b"text"):
        with pytest.raises((InvalidImage, UnsupportedMediaType)) as caught:
            inspected(data)
        words = str(caught.value)
        assert words.isascii()
        assert not any(part in words for part in ("0x", "/", "PIL", "illow", "Traceback", "BytesIO"))


# What was declared


def test_another_declared_type_is_a_mismatch() -> None:
    service = images.preprocessor(images.spec())
    assert service.inspect(ImagePayload(PNG, media_type="image/png")).header.format == "png"
    with pytest.raises(MediaTypeMismatch):
        service.inspect(ImagePayload(PNG, media_type="image/jpeg"))


def test_gif_is_off_by_default_and_works_when_enabled() -> None:
    data = images.encoded(PICTURE.quantize(256), "GIF")
    with pytest.raises(UnsupportedMediaType, match="GIF, which is not enabled"):
        images.prepared(data, images.spec(16, 24))
    pixels = images.prepared(data, images.spec(16, 24), ImageLimits(formats=("jpeg", "gif")), "image/gif")
    assert np.abs(pixels - np.asarray(PICTURE, int)).mean() < 6


# What was found


def test_info_is_the_format_and_the_size_as_displayed() -> None:
    assert inspected(PNG).info == ImageInfo("png", 24, 16)
    assert inspected(images.displaying(PICTURE, 6, "JPEG")).info == ImageInfo("jpeg", 24, 16)
    ignoring = images.spec(exif="ignore")
    assert inspected(images.displaying(PICTURE, 6, "JPEG"), ignoring).info == ImageInfo("jpeg", 16, 24)


@pytest.mark.parametrize(
    ("side", "halvings"),
    [(224, 0), (1791, 0), (14_336, 3)],
)
def test_a_jpeg_is_halved_while_enough_pixels_stay(side: int, halvings: int) -> None:
    """At least four source pixels stay for one of the tensor's, whatever the exact bound."""
    data = images.with_frame_size(images.encoded(PICTURE, "JPEG"), side, side)
    spec = InputSpec("input", (224, 224), resize="stretch")
    found = inspected(data, spec, ImageLimits(source_pixels=10**9, decoded_pixels=10**9))
    assert found.halvings == halvings
    assert found.decoded_bytes == 4 * (-(-side // 2**halvings)) ** 2  # red, green, blue and a byte that means nothing


def test_only_the_fast_way_halves() -> None:
    data = images.encoded(images.pattern(800, 600), "JPEG")
    assert inspected(data, images.spec()).halvings == 3
    for exact in ({"decode": "exact"}, {"resampler": "tf"}, {"interpolation": "nearest"}, {"antialias": False}):
        assert inspected(data, images.spec(**exact)).halvings == 0
    assert inspected(images.encoded(images.pattern(800, 600), "PNG"), images.spec()).halvings == 0


# What is written


@pytest.mark.parametrize("way", ["fast", "exact"])
@pytest.mark.parametrize("pillow_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("resize", ["stretch", "shortest_side", "letterbox"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_gives_the_tensor_of_the_upright_image(
    orientation: int, resize: str, pillow_format: str, way: str
) -> None:
    """Not square and not central, so that nothing turned the wrong way looks right."""
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "PNG": {}}[pillow_format]
    photo = photos.photo("coffee", 176, 112)  # whole JPEG blocks, whichever way it is turned
    spec = InputSpec("input", (40, 60), resize=resize, resize_to=64, decode=way)
    upright = images.prepared(images.encoded(photo, pillow_format, **options), spec)
    turned = images.prepared(images.displaying(photo, orientation, pillow_format, **options), spec)
    if pillow_format != "JPEG":
        assert np.abs(turned - upright).max() <= (1.0 if way == "fast" else 1e-4)
    else:  # the blocks are coded from another corner
        assert np.abs(turned - upright).max() <= 3.0
        assert np.abs(turned - upright).mean() < 0.4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_a_jpeg_that_is_halved_gives_the_tensor_of_the_upright_image(orientation: int) -> None:
    photo = photos.photo("coffee", 704, 448)
    halved = InputSpec("input", (20, 32), resize="stretch")
    assert inspected(images.encoded(photo, "JPEG"), halved).halvings == 2
    upright = images.prepared(images.encoded(photo, "JPEG", quality=95, subsampling=0), halved)
    turned = images.prepared(images.displaying(photo, orientation, "JPEG", quality=95, subsampling=0), halved)
    assert np.abs(turned - upright).max() <= 2.0
    assert np.abs(turned - upright).mean() < 0.3


def test_orientation_is_left_alone_where_the_spec_says_so() -> None:
    data = images.displaying(PICTURE, 6, "PNG")
    stored = np.asarray(images.turned(PICTURE, 6))
    assert np.array_equal(images.prepared(data, images.spec(24, 16, exif="ignore")), stored)
    assert np.array_equal(images.prepared(data, images.spec(16, 24)), np.asarray(PICTURE))


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_a_nonsense_orientation_leaves_the_image_upright(orientation: int) -> None:
    data = images.encoded(PICTURE, "PNG", exif=b"Exif\0\0" + images.exif(orientation))
    assert np.array_equal(images.prepared(data, images.spec(16, 24)), np.asarray(PICTURE))


@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_colors_layouts_and_dtypes_are_those_of_the_spec(color: str, layout: str, dtype: str) -> None:
    spec = images.spec(16, 24, color=color, layout=layout, dtype=dtype)
    tensor = images.prepared(PNG, spec)
    planes = {"rgb": [0, 1, 2], "bgr": [2, 1, 0]}
    rgb = np.asarray(PICTURE, np.float64)
    expected = np.asarray(PICTURE.convert("L"), float)[:, :, None] if color == "gray" else rgb[:, :, planes[color]]
    assert tensor.dtype == dtype
    assert tensor.shape == {"nchw": (len(expected[0, 0]), 16, 24), "nhwc": (16, 24, len(expected[0, 0]))}[layout]
    assert np.array_equal(tensor, np.moveaxis(expected, 2, 0) if layout == "nchw" else expected)


@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 2e-3)])
def test_scale_mean_and_std_apply_per_channel_in_the_order_of_the_colors(
    color: str, layout: str, dtype: str, tolerance: float
) -> None:
    per_channel = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 0.125)} if color != "gray" else {"mean": (0.1,)}
    spec = images.spec(16, 24, color=color, layout=layout, dtype=dtype, scale=(1 / 255,), **per_channel)
    tensor = images.prepared(PNG, spec)
    assert np.abs(tensor - reference.tensor(PNG, spec)).max() <= tolerance * 8
    if color != "gray":
        first = (np.asarray(PICTURE, float)[0, 0, 0 if color == "rgb" else 2] / 255 - 0.1) / 0.5
        assert abs(tensor.flat[0] - first) <= tolerance * 8


def test_one_number_serves_all_channels() -> None:
    one = images.spec(16, 24, dtype="float32", mean=(127.0,), std=(128.0,), scale=(1.0,))
    three = images.spec(16, 24, dtype="float32", mean=(127.0,) * 3, std=(128.0,) * 3, scale=(1.0,) * 3)
    assert np.array_equal(images.prepared(PNG, one), images.prepared(PNG, three))
    assert images.prepared(PNG, one).min() >= -127 / 128


def test_raw_tf_pixels_are_rounded_and_not_cut_off() -> None:
    spec = images.spec(7, 11, resampler="tf", interpolation="lanczos", antialias=False)
    floats = images.prepared(PNG, replace(spec, dtype="float32"))
    assert floats.min() < 0 or floats.max() > 255 or (floats % 1).any()
    assert np.array_equal(images.prepared(PNG, spec), np.clip(np.round(floats), 0, 255))


@pytest.mark.parametrize("resampler", ["pil", "opencv", "tf"])
@pytest.mark.parametrize(("color", "border"), [("rgb", (10, 20, 30)), ("bgr", (30, 20, 10)), ("gray", (18,))])
def test_letterbox_is_padded_with_the_background(resampler: str, color: str, border: tuple[int, ...]) -> None:
    spec = images.spec(
        20, 24, resize="letterbox", resampler=resampler, antialias=False, color=color, background=(10, 20, 30)
    )
    tensor = images.prepared(images.encoded(Image.new("RGB", (24, 16), (200, 200, 200)), "PNG"), spec)
    assert (tensor[:2] == border).all()
    assert (tensor[18:] == border).all()
    assert (tensor[2:18] == 200).all()


def test_padding_is_normalised_like_a_pixel() -> None:
    spec = images.spec(20, 24, resize="letterbox", dtype="float32", mean=(127.0,), std=(128.0,))
    assert images.prepared(PNG, spec)[0, 0].tolist() == [1.0, 1.0, 1.0]  # white


def test_a_row_of_a_batch_is_written_and_its_neighbours_are_not() -> None:
    spec = InputSpec("input", (16, 24), resize="stretch")
    batch = np.full((3, *spec.shape), -7, np.float32)
    service = images.preprocessor(spec)
    service.prepare(service.inspect(ImagePayload(PNG)), batch[1])
    assert (batch[[0, 2]] == -7).all()
    assert np.array_equal(batch[1], np.moveaxis(np.asarray(PICTURE, np.float32), 2, 0))


# What it costs


@pytest.mark.parametrize("resampler", ["pil", "opencv", "tf"])
@pytest.mark.parametrize("resize", ["shortest_side", "letterbox", "stretch"])
@pytest.mark.parametrize("way", ["fast", "exact"])
@pytest.mark.parametrize("size", [(1, 16_384), (16_384, 1)])
def test_a_line_of_16384_pixels_costs_next_to_nothing(
    size: tuple[int, int], way: str, resize: str, resampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its short side resized to 256 would make a thousand million pixels, of which 50,176 are kept."""
    really_resize = Image.Image.resize

    def bounded(image: Image.Image, to: tuple[int, int], *args: object, **kwargs: object) -> Image.Image:
        assert to[0] * to[1] <= 4_000_000, "Pillow was asked for the whole of it"
        return really_resize(image, to, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", bounded)
    spec = InputSpec("input", (224, 224), resize=resize, resize_to=256, decode=way, resampler=resampler)
    if resampler != "pil":
        spec = replace(spec, antialias=False)
    data = images.encoded(images.pattern(*size), "PNG")
    with at_most(24 * MIB):
        tensor = images.prepared(data, spec)
    assert np.ptp(tensor) > 0


def test_a_narrow_line_is_resized_as_a_wider_one_of_the_same_colors_would_be() -> None:
    spec = InputSpec("input", (32, 32), resize_to=36, decode="exact")
    column = photos.photo("coffee", 1, 8000)
    ribbon = images.prepared(images.encoded(column, "PNG"), spec)
    middle = images.encoded(column.crop((0, 3900, 1, 4100)), "PNG")  # what surrounds the window is enough
    assert np.abs(ribbon - reference.tensor(middle, spec)).max() <= 1.0


class _Ledger(DecodeBudget):
    """Notes what is held, and what was held when."""

    def __init__(self) -> None:
        super().__init__(2**30)
        self.held: list[int] = []
        self.inside = 0

    @contextmanager
    def hold(self, nbytes: int) -> Iterator[None]:
        self.held.append(nbytes)
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


def test_what_is_being_decoded_is_counted_and_given_back() -> None:
    ledger = _Ledger()
    service = Preprocessor(images.spec(), ImageLimits(), ledger)
    image = service.inspect(ImagePayload(images.encoded(images.pattern(100, 80), "PNG")))
    assert ledger.held == []  # looking is free
    service.prepare(image, np.empty(service.spec.shape, np.uint8))
    damaged = service.inspect(ImagePayload(images.encoded(images.pattern(100, 80), "JPEG")[:-200]))
    with pytest.raises(InvalidImage):
        service.prepare(damaged, np.empty(service.spec.shape, np.uint8))
    assert ledger.held == [image.decoded_bytes, damaged.decoded_bytes]
    assert image.decoded_bytes >= 100 * 80 * 3
    assert ledger.inside == 0


def test_preparing_waits_for_room_in_the_budget() -> None:
    entered, release, done = threading.Event(), threading.Event(), threading.Event()

    class Full(DecodeBudget):
        @contextmanager
        def hold(self, nbytes: int) -> Iterator[None]:
            entered.set()
            assert release.wait(10)
            yield

    service = Preprocessor(images.spec(16, 24), ImageLimits(), Full(1))
    row = np.zeros(service.spec.shape, np.uint8)

    def work() -> None:
        service.prepare(service.inspect(ImagePayload(PNG)), row)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert entered.wait(10)
    assert not done.is_set()
    assert not row.any()
    release.set()
    assert done.wait(10)
    thread.join(10)
    assert np.array_equal(row, np.asarray(PICTURE))


def test_one_preprocessor_serves_many_threads_at_once() -> None:
    service = images.preprocessor(InputSpec("input", (32, 32), resize_to=36))
    files = [images.encoded(photos.photo(name, 300, 200), "JPEG") for name in ("coffee", "rocket", "chelsea")] * 4
    alone = [images.prepared(data, service.spec) for data in files]
    together = np.zeros((len(files), *service.spec.shape), np.float32)
    start = threading.Barrier(len(files))

    def work(index: int) -> None:
        start.wait(10)
        service.prepare(service.inspect(ImagePayload(files[index])), together[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(files))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert np.array_equal(together, np.stack(alone))


def test_a_resampler_whose_library_is_not_installed_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    resample._opencv.cache_clear()
    try:
        with pytest.raises(ModelLoadError, match=r'resampler = "opencv".*pip install'):
            images.preprocessor(images.spec(resampler="opencv", antialias=False))
        images.preprocessor(images.spec())
    finally:
        resample._opencv.cache_clear()
