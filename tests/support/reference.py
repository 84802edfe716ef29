"""The plain way from an encoded image to a tensor: slow, obvious, and sharing no code with `service.imaging`.

Pillow opens, the whole image is turned, flattened and resized as the InputSpec says, then cropped; numpy normalises in
float64. Every deviation of the service from this page is a deviation from what the models were trained with.
"""

import math
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from service.imaging.spec import InputSpec

Floats = npt.NDArray[np.float64]

PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}
OPENCV = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}


def tensor(data: bytes, spec: InputSpec) -> npt.NDArray[Any]:
    """One encoded image as the spec's tensor, without batch dimension: float64, or uint8 where the spec says so."""
    return arranged(picture(data, spec), spec)


def picture(data: bytes, spec: InputSpec) -> Floats:
    """(height, width) or (height, width, 3) in RGB, 0..255: what the network sees, before colour order and scaling."""
    with Image.open(BytesIO(data)) as image:
        image.load()
        upright = ImageOps.exif_transpose(image) if spec.exif == "apply" else image
        return resized(np.asarray(flattened(upright, spec)), spec)


def flattened(image: Image.Image, spec: InputSpec) -> Image.Image:
    """Any mode as "RGB" or "L"; 16 bits scaled to 8, transparency laid over the background."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.round(np.asarray(image).astype(np.float64) / 257).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        behind = Image.new("RGBA", image.size, (*spec.background, 255))
        image = Image.alpha_composite(behind, image.convert("RGBA"))
    image = image.convert("RGB")
    return image.convert("L") if spec.color == "gray" else image


def resized(pixels: npt.NDArray[np.uint8], spec: InputSpec) -> Floats:
    """The whole image through the spec's resampler, then cropped or padded to the spec's size."""
    source_height, source_width = pixels.shape[:2]
    height, width = spec.size
    if spec.resize == "stretch":
        return whole(pixels, width, height, spec)
    if spec.resize == "letterbox":
        ratio = min(width / source_width, height / source_height)
        inner_width, inner_height = max(1, round(source_width * ratio)), max(1, round(source_height * ratio))
        return _framed(whole(pixels, inner_width, inner_height, spec), spec)
    # torchvision.transforms: Resize(resize_to), CenterCrop(size)
    if source_width < source_height:
        whole_width, whole_height = spec.resize_to, int(spec.resize_to * source_height / source_width)
    else:
        whole_width, whole_height = int(spec.resize_to * source_width / source_height), spec.resize_to
    large = whole(pixels, whole_width, whole_height, spec)
    top, left = round((whole_height - height) / 2.0), round((whole_width - width) / 2.0)
    return large[top : top + height, left : left + width]


def _framed(inner: Floats, spec: InputSpec) -> Floats:
    height, width = spec.size
    behind = Image.new("RGB", (width, height), spec.background)
    canvas = np.array(behind.convert("L") if spec.color == "gray" else behind, np.float64)
    top, left = (height - inner.shape[0]) // 2, (width - inner.shape[1]) // 2
    canvas[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return canvas


def whole(pixels: npt.NDArray[np.uint8], width: int, height: int, spec: InputSpec) -> Floats:
    """Resize all of `pixels` to `width` x `height` by the spec's resampler. An image of that size already is left."""
    if (pixels.shape[1], pixels.shape[0]) == (width, height):
        return pixels.astype(np.float64)
    if spec.resampler == "opencv":
        return cv2.resize(pixels, (width, height), interpolation=OPENCV[spec.interpolation]).astype(np.float64)
    if spec.resampler == "pil" and spec.antialias:
        return np.asarray(Image.fromarray(pixels).resize((width, height), PILLOW[spec.interpolation]), np.float64)
    if spec.resampler == "tf":
        return by_matrices(pixels, width, height, spec.interpolation, spec.antialias)
    # Pillow always antialiases: without, it is its kernels at their own width, in whole grey levels.
    plain = by_matrices(pixels, width, height, spec.interpolation, spec.antialias, np.float64)
    return np.clip(np.round(plain), 0, 255)


def by_matrices(
    pixels: npt.NDArray[np.uint8], width: int, height: int, interpolation: str, antialias: bool, real: type = np.float32
) -> Floats:
    """`tf.image.resize`: half-pixel centres, the kernel widened by the reduction with `antialias`, floats out.

    `real` is what places in the source are computed in: TensorFlow's kernels take single precision, which moves a
    pixel's place by up to a ten-thousandth. All the rest is float64. Within 0.01 grey levels of TensorFlow 2.21.
    """
    down = weights(pixels.shape[0], height, interpolation, antialias, real)
    across = weights(pixels.shape[1], width, interpolation, antialias, real)
    lines = np.tensordot(down, pixels.astype(np.float64), axes=(1, 0))
    return np.moveaxis(np.tensordot(across, lines, axes=(1, 1)), 0, 1)


def weights(source: int, out: int, interpolation: str, antialias: bool, real: type = np.float32) -> Floats:
    """(out, source): how much of each source line every output line takes. Pixel j covers [j, j + 1)."""
    table = np.zeros((out, source))
    step = real(source) / real(out)
    for i in range(out):
        centre = float(real(i + 0.5) * step)
        if interpolation == "nearest":
            table[i, min(source - 1, math.floor(centre))] = 1.0
        elif interpolation == "area":
            start, stop = float(real(i) * step), float(real(i + 1) * step)
            for j in range(math.floor(start), min(source, math.ceil(stop))):
                table[i, j] = min(j + 1, stop) - max(j, start)
        else:
            kernel, support = KERNELS[interpolation]
            stretch = max(float(step), 1.0) if antialias else 1.0
            if interpolation == "bicubic" and not antialias and real is np.float32:
                centre = _by_table(centre)
            first = max(0, math.floor(centre - support * stretch))
            last = min(source, math.ceil(centre + support * stretch) + 1)
            for j in range(first, last):
                table[i, j] = kernel((j + 0.5 - centre) / stretch)
        table[i] /= table[i].sum()
    return table


def _by_table(centre: float) -> float:
    """TensorFlow's ResizeBicubic looks its weights up for 1,024 places within a pixel."""
    pixel = math.floor(centre - 0.5)
    return pixel + round((centre - 0.5 - pixel) * 1024) / 1024 + 0.5


def _triangle(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _keys_cubic(x: float) -> float:
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def _lanczos3(x: float) -> float:
    if x == 0:
        return 1.0
    return 3 * math.sin(math.pi * x) * math.sin(math.pi * x / 3) / (math.pi * x) ** 2 if abs(x) < 3 else 0.0


KERNELS = {"bilinear": (_triangle, 1.0), "bicubic": (_keys_cubic, 2.0), "lanczos": (_lanczos3, 3.0)}


def arranged(content: Floats, spec: InputSpec) -> npt.NDArray[Any]:
    """Colour order, scaling and layout of a finished picture."""
    planes = content[:, :, None] if content.ndim == 2 else content
    if spec.color == "bgr":
        planes = planes[:, :, [2, 1, 0]]
    if spec.dtype == "uint8":
        planes = np.clip(np.round(planes), 0, 255).astype(np.uint8)
    else:
        planes = (planes * np.array(spec.scale) - np.array(spec.mean)) / np.array(spec.std)
    return np.moveaxis(planes, 2, 0) if spec.layout == "nchw" else planes
