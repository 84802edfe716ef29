"""Whose arithmetic: the resampling of Pillow, OpenCV and TensorFlow, each as its users trained with it.

Every resampler takes (pixels, placement, interpolation, antialias), with `pixels` uint8 of shape (h, w) or (h, w, 3),
and returns the placement's content: uint8 like Pillow and OpenCV, float32 in 0..255 like TensorFlow. All are exact
about which source pixel counts how much; only `pil_fast` differs from its library, by at most one grey level on about
1 % of the pixels, and wants a fourth byte in each pixel of colour.
Sources: Pillow's Resample.c; OpenCV's imgproc/resize; TensorFlow's scale_and_translate and resize_* kernels.
"""

import importlib
import math
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image

from service.errors import ModelLoadError
from service.imaging.geometry import Box, Placement
from service.imaging.spec import Interpolation

Pixels = npt.NDArray[np.uint8]
Content = npt.NDArray[np.uint8] | npt.NDArray[np.float32]

# A ribbon (1 x 16,384) would be resized to a thousand million pixels of which a few are kept: where the whole would be
# larger than this, only the window is computed, by the same kernel in floating point.
_MOST_WHOLE_PIXELS = 16_000_000


class ResampleFunction(Protocol):
    def __call__(
        self, pixels: Pixels, placement: Placement, interpolation: Interpolation, antialias: bool
    ) -> Content: ...


def pil(pixels: Pixels, placement: Placement, interpolation: Interpolation, antialias: bool) -> Pixels:
    """Pillow: the whole image through `Image.resize`, then the crop, as torchvision and Keras' loaders do it."""
    if placement.whole == (pixels.shape[1], pixels.shape[0]):
        return _cropped(pixels, placement)
    if _is_ribbon(placement) or not antialias:
        return _rounded(separable(pixels, placement, interpolation, antialias))
    resized = Image.fromarray(pixels).resize(placement.whole, _PIL[interpolation])
    return _cropped(np.asarray(resized), placement)


def pil_fast(pixels: Pixels, placement: Placement, interpolation: Interpolation, *, sideways: bool) -> Pixels:
    """Pillow's arithmetic in SIMD, of the window only: two passes with 8 bits between them, as Resample.c has it.

    `pixels` (h, w) or (h, w, 4), whatever the fourth channel is; the content has the same channels. `sideways` pixels
    will be turned by 90 degrees afterwards: their columns are resampled first, so that the turned result is what Pillow
    makes of the turned image. Not for "nearest".
    """
    left, top, right, bottom = placement.box
    width, height = placement.content
    if (right - left, bottom - top) == (width, height):
        return pixels[round(top) : round(bottom), round(left) : round(right)]
    box: Box
    rest: Box
    if sideways:
        first, last = _lines(left, right, width, pixels.shape[1], interpolation)
        lines, box = (height, last - first), (first, top, last, bottom)
        rest = (left - first, 0.0, right - first, height)
    else:
        first, last = _lines(top, bottom, height, pixels.shape[0], interpolation)
        lines, box = (last - first, width), (left, first, right, last)
        rest = (0.0, top - first, width, bottom - first)
    between = np.empty((*lines, *pixels.shape[2:]), np.uint8)
    content = np.empty((height, width, *pixels.shape[2:]), np.uint8)
    _simd(np.ascontiguousarray(pixels), between, interpolation, box)
    _simd(between, content, interpolation, rest)
    return content


def _lines(start: float, stop: float, out: int, source: int, interpolation: Interpolation) -> tuple[int, int]:
    """The source lines that [start, stop) resampled to `out` lines can touch."""
    margin = _KERNELS[interpolation][1] * max(1.0, (stop - start) / out) + 1
    return max(0, math.floor(start - margin)), min(source, math.ceil(stop + margin))


def _simd(source: Pixels, result: Pixels, interpolation: Interpolation, box: Box) -> None:
    """The `box` of `source` into `result`, both in one piece."""
    left, top = max(0.0, box[0]), max(0.0, box[1])  # a float's last bit outside of the image is refused
    right, bottom = min(float(source.shape[1]), box[2]), min(float(source.shape[0]), box[3])
    window = CropBox(left, top, right - left, bottom - top)
    algorithm = ResizeAlg.convolution(_SIMD[interpolation])
    Resizer().resize_pil(_shared(source), _shared(result), ResizeOptions(resize_alg=algorithm, crop_box=window))


def _shared(pixels: Pixels) -> Image.Image:
    """A Pillow image of the same memory. CMYK, as its four channels are equal: a fourth of RGBA would be a weight."""
    mode = "L" if pixels.ndim == 2 else "CMYK"
    return Image.frombuffer(mode, (pixels.shape[1], pixels.shape[0]), pixels, "raw", mode, 0, 1)


def opencv(pixels: Pixels, placement: Placement, interpolation: Interpolation, antialias: bool) -> Pixels:
    """`cv2.resize` of the whole image, then the crop. OpenCV has no antialiasing but `area`."""
    if placement.whole == (pixels.shape[1], pixels.shape[0]):
        return _cropped(pixels, placement)
    if _is_ribbon(placement):
        return _rounded(separable(pixels, placement, interpolation, False))
    cv2 = _opencv()
    flag = getattr(cv2, f"INTER_{_OPENCV[interpolation]}")
    return _cropped(np.asarray(cv2.resize(pixels, placement.whole, interpolation=flag), np.uint8), placement)


@cache
def _opencv() -> Any:
    """OpenCV, which is half as large as all other dependencies together, and so an extra."""
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        raise ModelLoadError(
            "input.resampler = \"opencv\" needs OpenCV, which is not installed: pip install 'fovea[opencv]'"
        ) from None
    cv2.setNumThreads(1)  # the execution threads are the parallelism; a pool inside each would only fight over cores
    return cv2


def ready(resampler: str) -> None:
    """Make sure that `resampler` can run. Raises ModelLoadError where its library is not installed."""
    if resampler == "opencv":
        _opencv()


def tf(pixels: Pixels, placement: Placement, interpolation: Interpolation, antialias: bool) -> npt.NDArray[np.float32]:
    """`tf.image.resize`: half-pixel centres, and float results that are not rounded back to integers.

    Places are computed in single precision, as TensorFlow does it. Held against TensorFlow 2.21: bilinear, bicubic and
    nearest within 0.0003 of a grey level, area and lanczos within 0.03.
    """
    return separable(pixels, placement, interpolation, antialias, single=True)


def separable(
    pixels: Pixels,
    placement: Placement,
    interpolation: Interpolation,
    antialias: bool,
    *,
    single: bool = False,
) -> npt.NDArray[np.float32]:
    """Resample the placement's content by two small matrices, in float32.

    With `antialias` the kernel widens with the reduction, without it keeps its own width. With `single` places
    in the source are computed in single precision.
    """
    (whole_width, whole_height), (left, top), (width, height) = placement.whole, placement.crop, placement.content
    down, rows = _weights(pixels.shape[0], whole_height, top, height, interpolation, antialias, single)
    across, columns = _weights(pixels.shape[1], whole_width, left, width, interpolation, antialias, single)
    window = pixels[rows][:, columns].astype(np.float32)
    tall = np.tensordot(down, window, axes=(1, 0))
    return np.ascontiguousarray(np.moveaxis(np.tensordot(across, tall, axes=(1, 1)), 0, 1))


def _weights(
    source: int,
    whole: int,
    first: int,
    count: int,
    interpolation: Interpolation,
    antialias: bool,
    single: bool,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]:
    """Of `source` lines resampled to `whole`, the lines `first` to `first + count`.

    Returns weights (count, used) and the source lines `used` that they apply to.
    """
    kind = np.dtype(np.float32 if single else np.float64)
    step = np.asarray(source, kind) / np.asarray(whole, kind)
    places = (np.arange(first, first + count) + 0.5).astype(kind) * step  # centres, in source pixels
    if interpolation == "nearest":
        lines = np.clip(places.astype(np.intp), 0, source - 1)[:, None]
        weights = np.ones(lines.shape)
    elif interpolation == "area":
        edges = np.arange(first, first + count + 1).astype(kind) * step
        low, high = edges[:-1, None], edges[1:, None]
        lines = _runs(low, math.ceil(step) + 1)
        weights = np.clip(np.minimum(lines + 1, high) - np.maximum(lines, low), 0, None).astype(np.float64)
    else:
        kernel, support = _KERNELS[interpolation]
        centres = (places - np.asarray(0.5, kind)).astype(np.float64)[:, None]
        if interpolation == "bicubic" and single and not antialias:
            centres = np.floor(centres) + np.rint((centres - np.floor(centres)) * 1024) / 1024  # its table of weights
        width = max(float(step), 1.0) if antialias else 1.0
        lines = _runs(centres - support * width, math.ceil(2 * support * width) + 1)
        weights = kernel((lines - centres) / width)
    weights[(lines < 0) | (lines >= source)] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    touched = np.nonzero(weights)
    used, columns = np.unique(lines[touched], return_inverse=True)
    matrix = np.zeros((count, len(used)), np.float32)
    matrix[touched[0], columns] = weights[touched]
    return matrix, used


def _runs(starts: npt.NDArray[np.floating[Any]], length: int) -> npt.NDArray[np.intp]:
    """For each of `starts` (n, 1) the `length` lines from there on: (n, length)."""
    lines: npt.NDArray[np.intp] = np.floor(starts).astype(np.intp) + np.arange(length)
    return lines


def _triangle(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.clip(1.0 - np.abs(x), 0.0, None)


def _cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' cubic with a = -0.5, as Pillow and TensorFlow have it."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos3(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(np.abs(x) < 3.0, np.sinc(x) * np.sinc(x / 3.0), 0.0)


def _is_ribbon(placement: Placement) -> bool:
    return placement.whole[0] * placement.whole[1] > _MOST_WHOLE_PIXELS


def _cropped(whole: Pixels, placement: Placement) -> Pixels:
    (left, top), (width, height) = placement.crop, placement.content
    return whole[top : top + height, left : left + width]


def _rounded(content: npt.NDArray[np.float32]) -> Pixels:
    return np.clip(np.rint(content), 0, 255).astype(np.uint8)


_KERNELS: dict[Interpolation, tuple[Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]], float]] = {
    "nearest": (_triangle, 0.5),
    "area": (_triangle, 0.5),
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
    "lanczos": (_lanczos3, 3.0),
}
_PIL: dict[Interpolation, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}
_SIMD: dict[Interpolation, Any] = {
    "bilinear": FilterType.bilinear,
    "bicubic": FilterType.catmull_rom,
    "area": FilterType.box,
    "lanczos": FilterType.lanczos3,
}
_OPENCV: dict[Interpolation, str] = {
    "nearest": "NEAREST",
    "bilinear": "LINEAR",
    "bicubic": "CUBIC",
    "area": "AREA",
    "lanczos": "LANCZOS4",
}
EXACT: dict[str, ResampleFunction] = {"pil": pil, "opencv": opencv, "tf": tf}
