"""Which source pixels become the tensor: numbers worked out by hand, and boxes that turn with the picture."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from service.imaging.geometry import Placement, box_before_orientation, place
from service.imaging.preprocess import oriented
from service.imaging.spec import InputSpec
from tests.support import images

CROP = InputSpec("input", (224, 224), resize="shortest_side", resize_to=256)


@pytest.mark.parametrize(
    ("size", "whole", "crop"),
    [
        ((640, 480), (341, 256), (58, 16)),  # 341.33 is truncated; (341 - 224) / 2 = 58.5 goes to the even number
        ((480, 640), (256, 341), (16, 58)),
        ((343, 256), (343, 256), (60, 16)),  # 59.5 goes to the even number too
        ((4000, 3000), (341, 256), (58, 16)),
        ((256, 256), (256, 256), (16, 16)),
        ((1, 1), (256, 256), (16, 16)),
        ((1, 16_384), (256, 4_194_304), (16, 2_097_040)),
        ((3, 2), (384, 256), (80, 16)),
    ],
)
def test_shortest_side_truncates_the_long_side_and_crops_the_centre_as_torchvision_does(
    size: tuple[int, int], whole: tuple[int, int], crop: tuple[int, int]
) -> None:
    placement = place(*size, CROP)
    assert (placement.whole, placement.crop) == (whole, crop)
    assert (placement.content, placement.paste) == ((224, 224), (0, 0))


def test_the_box_of_a_centre_crop_is_its_place_in_the_source() -> None:
    left, top, right, bottom = place(512, 1024, CROP).box  # whole 256 x 512, two source pixels to one
    assert (left, top, right, bottom) == (32.0, 288.0, 480.0, 736.0)


def test_a_crop_of_other_proportions_takes_height_before_width() -> None:
    placement = place(300, 300, InputSpec("input", (100, 200), resize_to=300))
    assert placement.content == (200, 100)
    assert placement.crop == (50, 100)
    assert placement.box == (50.0, 100.0, 250.0, 200.0)


def test_stretch_takes_the_whole_image_whatever_its_proportions() -> None:
    spec = InputSpec("input", (90, 160), resize="stretch")
    assert place(1000, 10, spec) == Placement((160, 90), (0, 0), (160, 90), (0, 0), (0.0, 0.0, 1000.0, 10.0))


@pytest.mark.parametrize(
    ("size", "content", "paste"),
    [
        ((640, 480), (224, 168), (0, 28)),
        ((480, 640), (168, 224), (28, 0)),
        ((100, 100), (224, 224), (0, 0)),
        ((3000, 1999), (224, 149), (0, 37)),  # the odd line is below
        ((1, 16_384), (1, 224), (111, 0)),  # never thinner than a pixel
        ((16_384, 1), (224, 1), (0, 111)),
    ],
)
def test_letterbox_keeps_proportions_and_centres(
    size: tuple[int, int], content: tuple[int, int], paste: tuple[int, int]
) -> None:
    placement = place(*size, InputSpec("input", (224, 224), resize="letterbox"))
    assert (placement.content, placement.whole, placement.paste) == (content, content, paste)
    assert placement.box == (0.0, 0.0, *map(float, size))


def test_scale_is_that_of_the_direction_that_shrinks_least() -> None:
    assert place(1000, 600, InputSpec("input", (100, 100), resize="stretch")).scale == 6.0
    assert place(600, 1000, InputSpec("input", (100, 100), resize="stretch")).scale == 6.0
    assert place(512, 1024, CROP).scale == 2.0


def test_a_placement_on_a_smaller_source_differs_in_its_box_only() -> None:
    placement = place(512, 1024, CROP)
    smaller = placement.shrunk(0.5)
    assert smaller.box == (16.0, 144.0, 240.0, 368.0)
    assert (smaller.whole, smaller.crop, smaller.content) == ((256, 512), (16, 144), (224, 224))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_turns_the_picture_as_pillow_does(orientation: int) -> None:
    picture = images.pattern(13, 7)
    stored = images.turned(picture, orientation)
    stored.getexif()[0x0112] = orientation
    assert np.array_equal(np.asarray(ImageOps.exif_transpose(stored)), np.asarray(picture))  # the builder is right
    assert np.array_equal(oriented(np.asarray(stored), orientation), np.asarray(picture))
    gray = np.asarray(picture.convert("L"))
    assert np.array_equal(oriented(np.asarray(images.turned(Image.fromarray(gray), orientation)), orientation), gray)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_before_orientation_holds_the_pixels_of_the_box_after_it(orientation: int) -> None:
    shown = np.asarray(images.pattern(13, 7))
    stored = np.asarray(images.turned(Image.fromarray(shown), orientation))
    left, top, right, bottom = (2.0, 1.0, 12.0, 4.0)
    box = box_before_orientation((left, top, right, bottom), orientation, stored.shape[1], stored.shape[0])
    x0, y0, x1, y1 = (int(edge) for edge in box)
    assert np.array_equal(oriented(stored[y0:y1, x0:x1], orientation), shown[1:4, 2:12])
