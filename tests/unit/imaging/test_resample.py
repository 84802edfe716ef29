"""Whose arithmetic it is: against TensorFlow's own numbers, and at the odd ends of size and shape.

How each resampler compares with its library over whole photographs is in `test_fidelity.py`.
"""

import random
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from service.imaging import resample
from service.imaging.geometry import Placement, box_before_orientation, place
from service.imaging.spec import InputSpec
from tests.support import images, reference

_SOURCE = (np.arange(35).reshape(5, 7) ** 2 * 37 % 251).astype(np.uint8)
# tf.image.resize(source, (3, 4), method, antialias) of TensorFlow 2.21.0, rounded to hundredths.
_TENSORFLOW: dict[tuple[str, bool], list[list[float]]] = {
    ("nearest", False): [[0.0, 148.0, 90.0, 77.0], [224.0, 185.0, 191.0, 242.0], [143.0, 168.0, 238.0, 102.0]],
    ("area", False): [
        [41.0, 149.4, 132.17, 132.74],
        [111.03, 177.26, 153.71, 155.14],
        [127.14, 194.23, 164.37, 123.63],
    ],
    ("bilinear", False): [
        [34.54, 169.75, 128.33, 129.92],
        [155.75, 180.75, 186.0, 171.5],
        [131.87, 193.08, 171.79, 120.29],
    ],
    ("bilinear", True): [
        [50.5, 145.58, 133.53, 133.78],
        [110.6, 171.77, 148.28, 152.02],
        [128.58, 194.01, 161.17, 126.23],
    ],
    ("bicubic", False): [
        [20.89, 174.2, 121.5, 126.2],
        [159.52, 188.71, 193.96, 175.83],
        [131.02, 190.65, 178.34, 114.26],
    ],
    ("bicubic", True): [
        [45.15, 149.24, 134.71, 134.02],
        [104.4, 179.56, 147.32, 152.39],
        [125.6, 200.15, 162.09, 122.52],
    ],
    ("lanczos", False): [
        [9.5, 176.34, 117.35, 125.57],
        [155.05, 193.43, 198.77, 171.57],
        [124.85, 190.89, 173.17, 111.37],
    ],
    ("lanczos", True): [
        [48.51, 149.84, 136.09, 134.53],
        [99.32, 186.57, 145.08, 151.24],
        [123.05, 202.41, 160.11, 120.14],
    ],
}
_STRETCHED = place(7, 5, InputSpec("input", (3, 4), resize="stretch"))


@pytest.mark.parametrize(("interpolation", "antialias"), _TENSORFLOW)
def test_tf_gives_the_numbers_of_tensorflow(interpolation: str, antialias: bool) -> None:
    expected = np.array(_TENSORFLOW[interpolation, antialias])
    resized = resample.tf(_SOURCE, _STRETCHED, interpolation, antialias)
    assert resized.dtype == np.float32
    assert np.abs(resized - expected).max() < 0.006
    assert np.abs(reference.by_matrices(_SOURCE, 4, 3, interpolation, antialias) - expected).max() < 0.006


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "area", "lanczos"])
@pytest.mark.parametrize("name", resample.EXACT)
def test_an_image_of_the_right_size_already_is_cropped_and_nothing_else(name: str, interpolation: str) -> None:
    pixels = np.asarray(images.pattern(40, 30))
    placement = place(40, 30, InputSpec("input", (16, 20), resize_to=30))
    content = resample.EXACT[name](pixels, placement, interpolation, name != "opencv")
    assert np.array_equal(content, pixels[7:23, 10:30])


@pytest.mark.parametrize("sideways", [False, True])
def test_the_fast_way_crops_an_image_of_the_right_size_too(sideways: bool) -> None:
    pixels = np.asarray(images.pattern(40, 30))
    placement = place(40, 30, InputSpec("input", (16, 20), resize_to=30))
    content = resample.pil_fast(pixels, placement, "bilinear", sideways=sideways)
    assert np.array_equal(content, pixels[7:23, 10:30])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "area", "lanczos"])
def test_a_window_of_the_fast_way_is_the_same_window_of_the_whole(interpolation: str) -> None:
    pixels = np.asarray(images.pattern(333, 257))
    spec = InputSpec("input", (63, 63), resize_to=101)
    whole = Image.fromarray(pixels).resize(place(333, 257, spec).whole, reference.PILLOW[interpolation])
    left, top = place(333, 257, spec).crop
    window = resample.pil_fast(_with_fourth_byte(pixels), place(333, 257, spec), interpolation, sideways=False)
    difference = np.abs(window[:, :, :3].astype(int) - np.asarray(whole, int)[top : top + 63, left : left + 63])
    assert difference.max() <= 1


def _with_fourth_byte(pixels: resample.Pixels) -> resample.Pixels:
    """Noise: it has no say in the colours."""
    return np.dstack((pixels, np.random.default_rng(3).integers(0, 256, pixels.shape[:2], np.uint8)))


@pytest.mark.parametrize("resize", ["stretch", "shortest_side", "letterbox"])
def test_the_fast_way_takes_every_size(resize: str) -> None:
    """The resizer refuses a box that sticks out of the image by the last bit of a float."""
    rng = random.Random(7)
    pixels = np.zeros((600, 600), np.uint8)
    sizes = [(29, 403, 1, 1.0), (193, 29, 3, 1.0), (29, 162, 6, 1.0), (503, 492, 3, 0.25)]
    sizes += [
        (rng.randint(1, 600), rng.randint(1, 600), rng.choice([1, 3, 6, 8]), rng.choice([1.0, 0.5, 0.25, 0.125]))
        for _ in range(1500)
    ]
    spec = InputSpec("input", (28, 28), resize=resize, resize_to=28)
    for width, height, orientation, factor in sizes:
        shown = (height, width) if orientation >= 5 else (width, height)
        placement = place(*shown, spec)
        content = placement.content[::-1] if orientation >= 5 else placement.content
        box = box_before_orientation(placement.box, orientation, width, height)
        stored = Placement(placement.whole, placement.crop, content, placement.paste, box).shrunk(factor)
        small = pixels[: -(-height // round(1 / factor)), : -(-width // round(1 / factor))]
        turned = resample.pil_fast(small, stored, "bilinear", sideways=orientation >= 5)
        assert turned.shape == content[::-1]


def test_weights_without_antialiasing_keep_the_kernels_own_width() -> None:
    stripes = np.zeros((1, 64), np.uint8)
    stripes[:, ::4] = 255
    placement = place(64, 1, InputSpec("input", (1, 16), resize="stretch"))
    assert np.ptp(resample.separable(stripes, placement, "bilinear", True)) < 30  # all gray
    narrow = resample.separable(stripes, placement, "bilinear", False)
    assert narrow.max() == 0  # it falls between the stripes: aliasing, as asked for


def test_remembered_weights_stay_small_whatever_sizes_are_sent() -> None:
    """Images of ever new sizes must not fill the memory with tables of which each is used once."""
    spec = InputSpec("input", (224, 224), resize="stretch", resampler="tf")
    tracemalloc.start()
    try:
        for height in range(16_384, 16_376, -1):
            resample.tf(np.zeros((height, 1), np.uint8), place(1, height, spec), "bilinear", True)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 32 * 2**20, f"{held / 2**20:.0f} MiB after 8 images"
