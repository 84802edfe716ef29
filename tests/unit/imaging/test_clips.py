"""Clips: which frames are shown, how they are prepared, and what is no clip."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.errors import ImageTooLarge, InvalidImage
from service.imaging.clips import ClipPreprocessor, row_maker, sampled
from service.imaging.decode import DecodeBudget
from service.imaging.preprocess import Preprocessor
from service.imaging.spec import ImageLimits, InputSpec
from service.messages import ClipPayload, ImagePayload
from tests.support import images, reference

SHADES = tuple(range(20, 240, 20))
LIMITS = ImageLimits()


def shade(level: int, width: int = 12, height: int = 10) -> Image.Image:
    """A picture of one gray with a brighter stripe, so that turning or squeezing it shows."""
    pixels = np.full((height, width, 3), level, np.uint8)
    pixels[: height // 2] += 10
    return Image.fromarray(pixels)


def animation(levels: tuple[int, ...] = SHADES, **options: object) -> bytes:
    first, *rest = (shade(level) for level in levels)
    return images.encoded(first, "WEBP", save_all=True, append_images=rest, duration=40, lossless=True, **options)


def clip_spec(frames: int, color: str = "rgb") -> InputSpec:
    return InputSpec("clip", (10, 12), color=color, layout="nthwc", frames=frames, resize="stretch", decode="exact")  # type: ignore[arg-type]


def prepared(payload: ClipPayload | ImagePayload, spec: InputSpec, limits: ImageLimits = LIMITS) -> np.ndarray:
    maker = ClipPreprocessor(spec, limits, DecodeBudget(limits.decode_bytes))
    out = np.full(spec.shape, -1, spec.dtype)
    maker.prepare(maker.inspect(payload), out)
    return out


def levels_of(clip: np.ndarray) -> list[int]:
    return [round(float(frame[-1].mean())) for frame in clip]


@pytest.mark.parametrize(
    ("count", "wanted", "places"),
    [
        (11, 3, [0, 5, 10]),
        (11, 11, list(range(11))),
        (3, 5, [0, 1, 2, 2, 2]),
        (1, 4, [0, 0, 0, 0]),
        (9, 1, [4]),
        (16, 4, [0, 5, 10, 15]),
    ],
)
def test_frames_are_sampled_evenly_or_padded_with_the_last(count: int, wanted: int, places: list[int]) -> None:
    assert sampled(count, wanted) == places


@given(count=st.integers(1, 500), wanted=st.integers(1, 64))
def test_sampling_is_in_order_within_the_clip_and_shows_both_ends(count: int, wanted: int) -> None:
    places = sampled(count, wanted)
    assert len(places) == wanted
    assert places == sorted(places)
    assert 0 <= places[0] <= places[-1] <= count - 1
    if wanted > 1:
        assert (places[0], places[-1]) == (0, count - 1)
    if count >= wanted > 1:
        steps = np.diff(places)
        assert steps.max() - steps.min() <= 1


@pytest.mark.parametrize("frames", [1, 4, 11, 15])
def test_an_animation_gives_its_frames(frames: int) -> None:
    wanted = [SHADES[place] for place in sampled(len(SHADES), frames)]
    assert levels_of(prepared(ImagePayload(animation()), clip_spec(frames))) == wanted


@pytest.mark.parametrize("frames", [2, 3, 6])
def test_pictures_of_a_request_are_frames(frames: int) -> None:
    parts = tuple(ImagePayload(images.encoded(shade(level), "PNG")) for level in (50, 100, 150))
    wanted = [(50, 100, 150)[place] for place in sampled(3, frames)]
    assert levels_of(prepared(ClipPayload(parts), clip_spec(frames))) == wanted


def test_each_frame_is_prepared_as_a_picture_of_its_own_would_be() -> None:
    spec = InputSpec(
        "clip", (8, 8), layout="nthwc", frames=3, color="bgr", scale=(1 / 255,), mean=(0.4,), std=(0.2,), resize_to=9,
        decode="exact", resampler="tf", antialias=False,
    )  # fmt: skip
    rows = prepared(ImagePayload(animation()), spec)
    alone = InputSpec(
        "image", (8, 8), layout="nhwc", color="bgr", scale=(1 / 255,), mean=(0.4,), std=(0.2,), resize_to=9,
        decode="exact", resampler="tf", antialias=False,
    )  # fmt: skip
    for row, place in zip(rows, sampled(len(SHADES), 3), strict=True):
        wanted = reference.tensor(images.encoded(shade(SHADES[place]), "PNG"), alone)
        np.testing.assert_allclose(row, wanted, atol=1e-4)


def test_a_gray_clip_has_one_channel() -> None:
    assert prepared(ImagePayload(animation()), clip_spec(2, "gray")).shape == (2, 10, 12, 1)


def test_transparent_frames_lie_on_the_background() -> None:
    clear = [Image.new("RGBA", (12, 10), (level, 0, 0, 0)) for level in (10, 200)]
    data = images.encoded(clear[0], "WEBP", save_all=True, append_images=clear[1:], duration=40, lossless=True)
    assert prepared(ImagePayload(data), clip_spec(2)).min() == 255


def test_one_still_picture_is_a_clip_that_stands_still() -> None:
    assert levels_of(prepared(ImagePayload(images.encoded(shade(70), "WEBP", lossless=True)), clip_spec(3))) == [70] * 3


def test_an_animation_among_frames_is_refused() -> None:
    parts = (ImagePayload(animation()), ImagePayload(images.encoded(shade(9), "PNG")))
    with pytest.raises(InvalidImage, match="One of the frames is an animation"):
        prepared(ClipPayload(parts), clip_spec(2))


def test_a_gif_is_not_taken_for_its_first_frame() -> None:
    data = images.encoded(shade(9), "GIF", save_all=True, append_images=[shade(90)])
    with pytest.raises(InvalidImage, match="a GIF is not read as one"):
        prepared(ImagePayload(data), clip_spec(2), ImageLimits(formats=("gif",)))


def test_the_pixels_of_all_frames_are_limited_before_one_is_decoded() -> None:
    limits = ImageLimits(source_pixels=12 * 10 * len(SHADES) - 1)
    with pytest.raises(ImageTooLarge, match="11 frames, 1,320 pixels in all; the limit is 1,319"):
        prepared(ImagePayload(animation()), clip_spec(2), limits)


def test_a_damaged_frame_is_refused() -> None:
    data = bytearray(animation())
    start = data.rindex(b"ANMF") + 40
    data[start:] = bytes(len(data) - start)
    with pytest.raises(InvalidImage):
        prepared(ImagePayload(bytes(data)), clip_spec(len(SHADES)))


@given(data=st.binary(max_size=64), place=st.integers(0, 400))
def test_any_damage_gives_a_clip_or_a_clear_refusal(data: bytes, place: int) -> None:
    whole = bytearray(animation(SHADES[:3]))
    place = 12 + place % (len(whole) - 12)
    whole[place : place + len(data)] = data
    try:
        assert np.isfinite(prepared(ImagePayload(bytes(whole)), clip_spec(2))).all()
    except InvalidImage:
        pass


def test_what_an_animation_weighs_counts_every_frame() -> None:
    maker = row_maker(clip_spec(4), LIMITS, DecodeBudget(LIMITS.decode_bytes))
    data = animation()
    assert maker.inspect(ImagePayload(data)).nbytes == len(SHADES) * (12 * 10 * 3) + len(data)


def test_images_and_clips_have_their_own_makers() -> None:
    budget = DecodeBudget(LIMITS.decode_bytes)
    assert isinstance(row_maker(clip_spec(2), LIMITS, budget), ClipPreprocessor)
    assert isinstance(row_maker(InputSpec("image", (8, 8)), LIMITS, budget), Preprocessor)
    buffer = io.BytesIO()
    shade(3).save(buffer, "PNG")
    parts = [ImagePayload(buffer.getvalue())] * 2
    assert len(row_maker(clip_spec(2), LIMITS, budget).grouped(parts)) == 1
    assert len(row_maker(InputSpec("image", (8, 8)), LIMITS, budget).grouped(parts)) == 2
