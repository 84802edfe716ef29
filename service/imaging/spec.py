"""InputSpec: how one model wants its images. A plain value; the manifest makes it, the preprocessor follows it."""

from dataclasses import dataclass
from typing import Literal

Color = Literal["rgb", "bgr", "gray"]
Layout = Literal["nchw", "nhwc", "nthwc"]
Resize = Literal["stretch", "shortest_side", "letterbox"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "area", "lanczos"]
Resampler = Literal["pil", "opencv", "tf"]
Decode = Literal["fast", "exact"]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """Pixels (0..255) become `(pixel * scale - mean) / std`, per channel in the order of `color`.

    `size` is (height, width); `resize_to` the short side in pixels before the centre crop (`shortest_side` only);
    `dtype` the numpy name of the tensor's element type. `frames` counts those of a clip (layout "nthwc").
    """

    tensor: str
    size: tuple[int, int]
    color: Color = "rgb"
    layout: Layout = "nchw"
    dtype: str = "float32"
    scale: tuple[float, ...] = (1.0,)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: Resize = "shortest_side"
    resize_to: int = 256
    antialias: bool = True
    interpolation: Interpolation = "bilinear"
    resampler: Resampler = "pil"
    decode: Decode = "fast"
    exif: Literal["apply", "ignore"] = "apply"
    background: tuple[int, int, int] = (255, 255, 255)
    frames: int = 1

    @property
    def channels(self) -> int:
        return 1 if self.color == "gray" else 3

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image's (or clip's) tensor, without the batch dimension."""
        height, width = self.size
        if self.layout == "nchw":
            return (self.channels, height, width)
        picture = (height, width, self.channels)
        return (self.frames, *picture) if self.layout == "nthwc" else picture


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may ask for, checked from its header. Pixels and sides in pixels, `decode_bytes` at once."""

    image_bytes: int = 20 * 1024 * 1024
    source_pixels: int = 100_000_000
    decoded_pixels: int = 25_000_000
    side: int = 16_384
    decode_bytes: int = 256 * 1024 * 1024
    formats: tuple[str, ...] = ("jpeg", "png", "webp")
