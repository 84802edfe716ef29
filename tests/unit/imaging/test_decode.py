"""Every way to store pixels becomes gray or RGB of 8 bits; what is damaged is refused as Pillow would refuse it."""

import io
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin, WebPImagePlugin

from service.errors import FoveaError, ImageTooLarge, InvalidImage
from service.imaging.decode import DecodeBudget
from service.imaging.formats import FORMATS
from service.imaging.spec import ImageLimits, InputSpec
from tests.support import images, photos, reference
from tests.unit.imaging.conftest import Classify

WAYS = ("fast", "exact")
ALL = ImageLimits(formats=tuple(FORMATS))
BACKGROUND = (10, 20, 30)


def prepared_in(way: str, data: bytes, width: int, height: int, color: str = "rgb") -> np.ndarray:
    """The picture itself, (height, width, channels), over the background."""
    return images.prepared(data, images.spec(height, width, decode=way, color=color, background=BACKGROUND), ALL)


# Every way to store pixels

_GRAY_TRANSPARENT = images.chunk(b"tRNS", images.wide(9))
_RGB_TRANSPARENT = images.chunk(b"tRNS", images.wide(4, 5, 6))
_TWO_COLORS = images.chunk(b"PLTE", bytes([1, 2, 3, 4, 5, 6]))

# By name: the PNG, and its pixels worked out by hand. Two by two, or one column of two.
STORED: dict[str, tuple[bytes, list[list[list[int]]]]] = {
    "1 bit": (
        images.png(2, 2, 1, images.GRAY, [b"\x40", b"\x80"]),
        [[[0] * 3, [255] * 3], [[255] * 3, [0] * 3]],
    ),
    "2 bits gray": (
        images.png(2, 2, 2, images.GRAY, [b"\x10", b"\xe0"]),
        [[[0] * 3, [85] * 3], [[255] * 3, [170] * 3]],
    ),
    "4 bits gray": (images.png(2, 1, 4, images.GRAY, [b"\x3f"]), [[[51] * 3, [255] * 3]]),
    "8 bits gray": (images.png(2, 1, 8, images.GRAY, [b"\x05\xff"]), [[[5] * 3, [255] * 3]]),
    "16 bits gray": (
        images.png(2, 2, 16, images.GRAY, [images.wide(0, 257), images.wide(65_535, 32_768)]),
        [[[0] * 3, [1] * 3], [[255] * 3, [128] * 3]],
    ),
    "8 bits RGB": (images.png(2, 1, 8, images.RGB, [bytes(range(6))]), [[[0, 1, 2], [3, 4, 5]]]),
    "16 bits RGB": (
        images.png(2, 1, 16, images.RGB, [images.wide(0, 257, 514, 65_535, 32_768, 1028)]),
        [[[0, 1, 2], [255, 128, 4]]],
    ),
    "palette": (images.png(2, 1, 8, images.PALETTE, [b"\1\0"], [_TWO_COLORS]), [[[4, 5, 6], [1, 2, 3]]]),
    "palette of 1 bit": (images.png(2, 1, 1, images.PALETTE, [b"\x40"], [_TWO_COLORS]), [[[1, 2, 3], [4, 5, 6]]]),
    "gray with alpha": (
        images.png(1, 2, 8, images.GRAY_ALPHA, [bytes([50, 255]), bytes([50, 0])]),
        [[[50, 50, 50]], [[10, 20, 30]]],
    ),
    "16 bits gray with alpha": (
        images.png(1, 2, 16, images.GRAY_ALPHA, [images.wide(257 * 50, 65_535), images.wide(257 * 50, 0)]),
        [[[50, 50, 50]], [[10, 20, 30]]],
    ),
    "RGB with alpha": (
        images.png(1, 2, 8, images.RGB_ALPHA, [bytes([4, 5, 6, 128]), bytes([4, 5, 6, 0])]),
        [[[7, 12, 18]], [[10, 20, 30]]],
    ),
    "16 bits RGB with alpha": (
        images.png(1, 1, 16, images.RGB_ALPHA, [images.wide(257, 514, 771, 65_535)]),
        [[[1, 2, 3]]],
    ),
    "gray with a transparent value": (
        images.png(2, 1, 8, images.GRAY, [bytes([9, 8])], [_GRAY_TRANSPARENT]),
        [[[10, 20, 30], [8, 8, 8]]],
    ),
    "16 bits gray with a transparent value": (
        images.png(2, 1, 16, images.GRAY, [images.wide(9, 257 * 9)], [_GRAY_TRANSPARENT]),
        [[[10, 20, 30], [9, 9, 9]]],
    ),
    "1 bit with a transparent value": (
        images.png(2, 1, 1, images.GRAY, [b"\x40"], [images.chunk(b"tRNS", images.wide(1))]),
        [[[0, 0, 0], [10, 20, 30]]],
    ),
    "RGB with a transparent value": (
        images.png(2, 1, 8, images.RGB, [bytes([4, 5, 6, 4, 5, 7])], [_RGB_TRANSPARENT]),
        [[[10, 20, 30], [4, 5, 7]]],
    ),
    "palette with transparency": (
        images.png(3, 1, 8, images.PALETTE, [b"\0\1\0"], [_TWO_COLORS, images.chunk(b"tRNS", b"\0\x80")]),
        [[[10, 20, 30], [7, 12, 18], [10, 20, 30]]],
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STORED)
def test_pixels_are_8_bits_of_rgb_however_they_are_stored(name: str, way: str) -> None:
    data, expected = STORED[name]
    pixels = prepared_in(way, data, len(expected[0]), len(expected))
    assert pixels.tolist() == expected


@pytest.mark.parametrize("way", WAYS)
def test_16_bits_are_scaled_and_not_clipped(way: str) -> None:
    ramp = np.linspace(0, 65_535, 64).round().astype(np.uint16)
    data = images.encoded(Image.fromarray(ramp[None, :]), "PNG")
    assert np.array_equal(prepared_in(way, data, 64, 1)[0, :, 0], np.round(ramp / 257))
    assert np.array_equal(prepared_in(way, data, 64, 1, "gray")[0, :, 0], np.round(ramp / 257))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_fully_transparent_is_background(mode: str, way: str) -> None:
    image = Image.new("RGBA", (5, 4), (200, 100, 50, 0)).convert(mode)
    assert (prepared_in(way, images.encoded(image, "PNG"), 5, 4) == BACKGROUND).all()


@pytest.mark.parametrize("way", WAYS)
def test_a_transparent_webp_is_laid_over_the_background(way: str) -> None:
    data = images.encoded(Image.new("RGBA", (5, 4), (200, 100, 50, 0)), "WEBP", lossless=True)
    assert (prepared_in(way, data, 5, 4) == BACKGROUND).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pillow_format", ["JPEG", "PNG", "WEBP"])
def test_gray_is_the_luma_of_color_and_color_of_gray_is_gray(pillow_format: str, way: str) -> None:
    color, lossless = images.pattern(24, 16), {"JPEG": {"quality": 98}, "WEBP": {"lossless": True}}
    data = images.encoded(color, pillow_format, **lossless.get(pillow_format, {}))
    gray = prepared_in(way, data, 24, 16, "gray")
    assert np.abs(gray[:, :, 0] - np.asarray(color.convert("L"), int)).max() <= (4 if pillow_format == "JPEG" else 0)
    data = images.encoded(color.convert("L"), pillow_format, **lossless.get(pillow_format, {}))
    pixels = prepared_in(way, data, 24, 16).astype(int)
    assert np.abs(np.diff(pixels, axis=2)).max() <= (0 if pillow_format != "WEBP" else 1)
    assert np.abs(pixels[:, :, 0] - np.asarray(color.convert("L"), int)).max() <= 4


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("four_inks", [images.cmyk_jpeg, images.ycck_jpeg])
def test_four_inks_get_the_same_first_label_as_their_rgb_twin(
    four_inks, way: str, imagenet_spec: InputSpec, classify: Classify
) -> None:
    twin, inks = (make(photos.photo("coffee"), quality=92) for make in (_jpeg, four_inks))
    spec = InputSpec("input", **{**_fields(imagenet_spec), "decode": way})
    tensors = np.stack([images.prepared(inks, spec), reference.tensor(twin, imagenet_spec)])
    scores = classify(tensors)
    assert scores[0].argmax() == scores[1].argmax()
    assert abs(scores[0].max() - scores[1].max()) < 0.05
    assert np.abs(tensors[0] - tensors[1]).mean() * 128 < 2.5  # grey levels: inverted inks would be a hundred off


@pytest.mark.parametrize("four_inks", [images.cmyk_jpeg, images.ycck_jpeg])
def test_four_inks_that_are_halved_while_decoding_are_their_rgb_twin(four_inks) -> None:
    twin, inks = (make(photos.photo("coffee").crop((0, 0, 599, 391)), quality=92) for make in (_jpeg, four_inks))
    spec = InputSpec("input", (28, 28), resize_to=31)
    assert images.preprocessor(spec).inspect(images.ImagePayload(inks)).halvings == 1
    assert np.abs(images.prepared(inks, spec) - reference.tensor(twin, spec)).mean() < 2.5


def _jpeg(image: Image.Image, quality: int) -> bytes:
    return images.encoded(image, "JPEG", quality=quality)


def _fields(spec: InputSpec) -> dict[str, object]:
    return {name: getattr(spec, name) for name in InputSpec.__slots__ if name not in ("tensor", "decode")}


@pytest.mark.parametrize("way", WAYS)
def test_a_jpeg_that_says_its_three_components_are_rgb_is_believed(way: str) -> None:
    color = images.pattern(24, 16)
    data = images.encoded(color, "JPEG", quality=98, subsampling=0, keep_rgb=True)
    assert np.abs(prepared_in(way, data, 24, 16) - np.asarray(color, int)).max() <= 4


def test_floating_point_pixels_are_refused_in_words() -> None:
    data = images.encoded(Image.new("F", (5, 4), 0.5), "TIFF")
    with pytest.raises(InvalidImage, match="floating-point"):
        prepared_in("fast", data, 5, 4)


def test_more_than_16_bits_are_refused_in_words() -> None:
    data = images.encoded(Image.new("I", (5, 4), 70_000), "TIFF")
    with pytest.raises(InvalidImage, match="more than 16 bits"):
        prepared_in("fast", data, 5, 4)


# Several pictures in one file, and files that are something else too


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pillow_format", ["WEBP", "PNG", "GIF"])
def test_of_an_animation_the_first_frame_is_taken(pillow_format: str, way: str) -> None:
    data = images.animated(pillow_format, 24, 16, 1000)
    picture = np.asarray(images.pattern(24, 16), int)
    tolerance = 48 if pillow_format == "GIF" else 0  # a palette for all frames
    assert np.abs(prepared_in(way, data, 24, 16) - picture).max() <= tolerance


def test_of_an_animation_no_other_frame_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = []
    really_next = WebPImagePlugin.WebPImageFile._get_next
    monkeypatch.setattr(
        WebPImagePlugin.WebPImageFile, "_get_next", lambda image: (frames.append("WebP"), really_next(image))[1]
    )
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "seek", lambda *_: frames.append("a later one"))
    for pillow_format in ("WEBP", "PNG"):
        prepared_in("fast", images.animated(pillow_format, 24, 16, 5), 24, 16)
    assert frames == ["WebP"]


@pytest.mark.parametrize("frames", [2, 2**31 - 1, 2**31])
def test_frames_that_are_only_announced_do_not_matter(frames: int) -> None:
    data = images.apng_claiming(images.pattern(24, 16), frames)
    assert np.array_equal(prepared_in("fast", data, 24, 16), np.asarray(images.pattern(24, 16)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", images.polyglots(images.pattern(24, 16)))
def test_a_file_that_is_something_else_too_is_the_picture_it_begins_as(name: str, way: str) -> None:
    alone, both = images.polyglots(images.pattern(24, 16))[name]
    assert np.array_equal(prepared_in(way, both, 24, 16), prepared_in(way, alone, 24, 16))


# Damage

_PHOTO = photos.photo("chelsea", 120, 90)
WHOLE: dict[str, bytes] = {
    "JPEG": images.encoded(_PHOTO, "JPEG", quality=85),
    "progressive JPEG": images.encoded(_PHOTO, "JPEG", quality=85, progressive=True),
    "gray JPEG": images.encoded(_PHOTO.convert("L"), "JPEG"),
    "four-ink JPEG": images.cmyk_jpeg(_PHOTO),
    "PNG": images.encoded(_PHOTO, "PNG"),
    "gray PNG": images.encoded(_PHOTO.convert("L"), "PNG"),
    "palette PNG": images.encoded(_PHOTO.quantize(64), "PNG"),
    "PNG with alpha": images.encoded(_PHOTO.convert("RGBA"), "PNG"),
    "WebP": images.encoded(_PHOTO, "WEBP", quality=80),
    "lossless WebP": images.encoded(_PHOTO, "WEBP", lossless=True),
    "GIF": images.encoded(_PHOTO, "GIF"),
    "BMP": images.encoded(_PHOTO, "BMP"),
    "TIFF": images.encoded(_PHOTO, "TIFF"),
}


def pillow_takes(data: bytes) -> bool:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Exception:
        return False
    return True


def verdict(way: str, data: bytes, color: str = "rgb") -> bool:
    try:
        prepared_in(way, data, 20, 15, color)
    except InvalidImage:
        return False
    return True


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", WHOLE)
def test_a_truncated_image_is_invalid(name: str, way: str) -> None:
    assert verdict(way, WHOLE[name])
    for percent in (25, 50, 75, 90):
        assert not verdict(way, WHOLE[name][: len(WHOLE[name]) * percent // 100]), f"{percent} %"


@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize("name", WHOLE)
def test_the_verdict_on_a_truncated_image_is_pillows_in_both_ways(name: str, color: str) -> None:
    data = WHOLE[name]
    lengths = {len(data) * part // 40 for part in range(1, 40)} | {len(data) - cut for cut in range(1, 24)}
    for length in sorted(lengths):
        expected = pillow_takes(data[:length])
        if "PNG" in name:  # a missing IEND is damage to us, though Pillow has all its pixels
            expected = False
        verdicts = {way: verdict(way, data[:length], color) for way in WAYS}
        assert verdicts == dict.fromkeys(WAYS, expected), f"{length} of {len(data)} bytes"


@pytest.mark.parametrize("name", ["JPEG", "progressive JPEG", "gray JPEG", "WebP", "lossless WebP"])
def test_the_verdict_on_overwritten_bytes_is_pillows_in_both_ways(name: str) -> None:
    data = WHOLE[name]
    rng = np.random.default_rng(3)
    for place in rng.integers(200, len(data), 60):
        damaged = data[:place] + rng.bytes(4) + data[place + 4 :]
        verdicts = {way: verdict(way, damaged) for way in WAYS}
        assert verdicts == dict.fromkeys(WAYS, pillow_takes(damaged)), f"at {place}"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize("name", [b"IHDR", b"tEXt", b"IDAT"])
def test_a_png_chunk_with_a_wrong_checksum_is_invalid(name: bytes, color: str, way: str) -> None:
    header, *rest = images.png_chunks(WHOLE["PNG"])
    data = images.PNG_SIGNATURE + header + images.chunk(b"tEXt", b"Comment\0fine") + b"".join(rest)
    assert verdict(way, data, color)
    assert not verdict(way, images.with_bad_checksum(data, name), color)


@pytest.mark.parametrize("way", WAYS)
def test_a_jpeg_without_quantisation_tables_is_invalid(way: str) -> None:
    assert not verdict(way, images.without_segments(WHOLE["JPEG"], 0xDB))


@pytest.mark.parametrize("way", WAYS)
def test_a_jpeg_of_12_bits_is_invalid(way: str) -> None:
    assert not verdict(way, WHOLE["JPEG"].replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"))


def test_a_second_header_that_disagrees_about_the_size_is_invalid() -> None:
    header, *rest = images.png_chunks(WHOLE["PNG"])
    data = images.PNG_SIGNATURE + header + images.png_header(30_000, 30_000) + b"".join(rest)
    for way in WAYS:
        with pytest.raises(InvalidImage):
            prepared_in(way, data, 20, 15)


def test_a_gif_frame_beyond_its_screen_counts_at_its_full_size() -> None:
    with pytest.raises(ImageTooLarge):
        prepared_in("fast", images.gif_beyond_its_screen(30_000, 30_000), 8, 8)


@pytest.mark.parametrize("make", [images.png_with_text_bomb, images.png_with_profile_bomb])
def test_compressed_metadata_is_refused_or_left_alone_and_never_expanded(make) -> None:
    data = make(images.pattern(24, 16), 256)
    code = (
        "import resource, sys; from pathlib import Path; from tests.support import images\n"
        "from service.errors import InvalidImage\n"
        "images.prepared(images.encoded(images.pattern(24, 16), 'PNG'), images.spec())\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: images.prepared(sys.stdin.buffer.read(), images.spec())\n"
        "except InvalidImage: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    grown_kib = int(_python(code, data).stdout)
    assert grown_kib < 16 * 1024


def test_odd_files_leave_nothing_on_standard_error(tmp_path: Path) -> None:
    """What libraries have to say of a stranger's file would let him fill the log."""
    odd_exif = images.exif(6, kind=3, count=70_000, entries_before=3)
    flat = images.encoded(_PHOTO, "PNG")
    files = [
        images.with_segment(WHOLE["four-ink JPEG"], 0xE1, b"Exif\0\0" + odd_exif),
        images.with_segment(WHOLE["four-ink JPEG"], 0xE1, b"Exif\0\0" + images.exif_loop()),
        images.apng_claiming(_PHOTO, 0),
        images.with_bad_checksum(flat, b"IDAT"),
        images.with_bad_checksum(flat, b"IHDR"),
        flat[:3000] + bytes(40) + flat[3040:],
        flat[:-40],
        WHOLE["JPEG"][:3000] + b"\xff\xd0\xff\xd5" + WHOLE["JPEG"][3004:],
        WHOLE["WebP"][:900],
    ]
    for index, data in enumerate(files):
        (tmp_path / f"{index}").write_bytes(data)
    code = (
        "from pathlib import Path; from tests.support import images; from service.errors import InvalidImage\n"
        f"for file in sorted(Path({str(tmp_path)!r}).iterdir()):\n"
        "    for way in ('fast', 'exact'):\n"
        "        try: images.prepared(file.read_bytes(), images.spec(decode=way))\n"
        "        except InvalidImage: pass\n"
    )
    assert _python(code).stderr == b""


def _python(code: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """The code in a process of its own, whose warnings and peak of memory are its own too."""
    root = Path(__file__).parents[3]
    return subprocess.run([sys.executable, "-c", code], input=stdin, cwd=root, capture_output=True, check=True)


@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_jpeg_is_judged_at_the_size_it_was_admitted_at(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage sends it from libjpeg-turbo to Pillow, which must not decode more pixels than the limits were told."""
    loaded = []
    really_load = ImageFile.ImageFile.load

    def recording(image: ImageFile.ImageFile) -> object:
        loaded.append(image.size[0] * image.size[1])
        return really_load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", recording)
    data = images.encoded(images.pattern(2000, 1500), "JPEG")[:-500]
    limits = ImageLimits(decoded_pixels=1_000_000)
    with pytest.raises(FoveaError):
        images.prepared(data, images.spec(32, 32, decode=way), limits)
    assert all(pixels <= 1_000_000 for pixels in loaded)


@pytest.mark.parametrize("four_inks", [images.cmyk_jpeg, images.ycck_jpeg])
def test_a_four_ink_jpeg_is_never_decoded_beyond_the_limit(four_inks, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    really_load = ImageFile.ImageFile.load

    def recording(image: ImageFile.ImageFile) -> object:
        loaded.append(image.size[0] * image.size[1])
        return really_load(image)

    data = four_inks(images.pattern(1300, 1000))
    monkeypatch.setattr(ImageFile.ImageFile, "load", recording)
    limits = ImageLimits(decoded_pixels=1_000_000)
    with pytest.raises(ImageTooLarge):
        images.prepared(data, images.spec(32, 32, decode="exact"), limits)
    images.prepared(data, images.spec(32, 32, decode="fast"), limits)
    assert loaded
    assert max(loaded) <= 1_000_000


# The budget


def announced_budget(limit_bytes: int) -> tuple[DecodeBudget, threading.Event]:
    """A budget, and an event that is set when a thread begins to wait for room in it."""
    waiting = threading.Event()

    class Announced(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            waiting.set()
            return super().wait(timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.imaging.decode.threading.Condition", Announced)
        return DecodeBudget(limit_bytes), waiting


def holding(budget: DecodeBudget, nbytes: int, inside: threading.Event) -> threading.Thread:
    """A thread that sets `inside` once it has its room, and gives it back."""

    def work() -> None:
        with budget.hold(nbytes):
            inside.set()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_what_has_no_room_waits_until_there_is_room() -> None:
    (budget, waiting), inside = announced_budget(100), threading.Event()
    with budget.hold(60):
        with budget.hold(40):
            thread = holding(budget, 1, inside)
            assert waiting.wait(10)
            assert not inside.is_set()
        assert inside.wait(10)
        thread.join(10)


def test_what_has_room_does_not_wait() -> None:
    (budget, waiting), inside = announced_budget(100), threading.Event()
    with budget.hold(60):
        holding(budget, 40, inside).join(10)
    assert inside.is_set()
    assert not waiting.is_set()


def test_an_image_larger_than_the_budget_waits_for_all_and_goes_alone() -> None:
    (budget, waiting), inside = announced_budget(100), threading.Event()
    with budget.hold(1):
        thread = holding(budget, 1000, inside)
        assert waiting.wait(10)
        assert not inside.is_set()
    assert inside.wait(10)
    thread.join(10)


def test_nothing_joins_an_image_larger_than_the_budget() -> None:
    (budget, waiting), inside = announced_budget(100), threading.Event()
    with budget.hold(1000):
        thread = holding(budget, 1, inside)
        assert waiting.wait(10)
        assert not inside.is_set()
    assert inside.wait(10)
    thread.join(10)


def test_a_failure_inside_gives_its_room_back() -> None:
    (budget, waiting), inside = announced_budget(100), threading.Event()
    with pytest.raises(InvalidImage), budget.hold(100):
        raise InvalidImage("damaged")
    thread = holding(budget, 100, inside)
    assert inside.wait(10)
    thread.join(10)
    assert not waiting.is_set()


def test_everyone_who_waits_is_woken() -> None:
    (budget, waiting), events = announced_budget(100), [threading.Event() for _ in range(5)]
    threads = []
    with budget.hold(100):
        for event in events:
            waiting.clear()
            threads.append(holding(budget, 20, event))
            assert waiting.wait(10)
        assert not any(event.is_set() for event in events)
    assert all(event.wait(10) for event in events)
    for thread in threads:
        thread.join(10)
