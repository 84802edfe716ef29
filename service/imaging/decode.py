"""Encoded bytes to a uint8 array, RGB (h, w, 3) or gray (h, w), as stored (orientation is applied later).

For the fast way colour has a fourth byte that means nothing, (h, w, 4): SIMD resampling takes it as it lies there.

Owns which decoder reads what: libjpeg-turbo (DCT-scaled) the usual JPEG, Pillow everything else. Pillow is also the
judge of what libjpeg-turbo refuses, so that which files are good does not depend on the way taken. OpenCV's decoders
are not used: its libpng and libjpeg write what they think of a file to stderr, for any stranger to fill.
Threading: everything here may run on any thread.
"""

import math
import threading
import warnings
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import groupby
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageFile, _imaging

from service.errors import InvalidImage
from service.imaging.formats import FORMATS
from service.imaging.headers import ImageHeader, png_pixel_data

_PNG_COLOR_TYPE = 25  # its place in the file: 0 gray, 2 RGB, the others are not plain

Pixels = npt.NDArray[np.uint8]

warnings.filterwarnings("ignore", module=r"PIL\.")  # what Pillow thinks of a stranger's file is not for our log
Image.MAX_IMAGE_PIXELS = None  # our limits are checked from the header, before Pillow is asked
ImageFile.LOAD_TRUNCATED_IMAGES = False


class _Held:
    """A class, as a generator would cost a thumbnail more than its pixels."""

    __slots__ = ("_budget", "_nbytes")

    def __init__(self, budget: "DecodeBudget", nbytes: int) -> None:
        self._budget = budget
        self._nbytes = nbytes

    def __enter__(self) -> None:
        self._budget.take(self._nbytes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._budget.give_back(self._nbytes)


class DecodeBudget:
    """Bytes of pixels in decoders at once, over all threads. A large image waits for room, alone if need be."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._used = 0
        self._waiting = 0
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)

    def hold(self, nbytes: int) -> "_Held":
        """Occupy `nbytes` for the length of a `with` block; entering blocks the thread until there is room."""
        return _Held(self, nbytes)

    def take(self, nbytes: int) -> None:
        with self._lock:
            while self._used and self._used + nbytes > self._limit:
                self._waiting += 1
                self._room.wait()
                self._waiting -= 1
            self._used += nbytes

    def give_back(self, nbytes: int) -> None:
        with self._lock:
            self._used -= nbytes
            if self._waiting:
                self._room.notify_all()


def decode(
    data: bytes, header: ImageHeader, *, gray: bool, halvings: int, fast: bool, background: tuple[int, int, int]
) -> Pixels:
    """Decode one image. Raises InvalidImage.

    `halvings` is how often a JPEG may be halved in the DCT domain (0 to 3, fast only): the result's sides are then
    ceil(side / 2**halvings). Transparent pixels are laid over `background` (RGB). `fast` has the fourth byte.
    """
    pixels = _turbo_jpeg(data, header, gray, halvings) if fast and header.is_plain else None
    return _pillow(data, header, gray, halvings, fast, background) if pixels is None else pixels


def decode_frames(
    data: bytes, header: ImageHeader, places: Sequence[int], *, gray: bool, fast: bool, background: tuple[int, int, int]
) -> Iterator[Pixels]:
    """The frames of an animation at `places` (ascending; a repeated one comes once), one at a time.

    Raises InvalidImage. `fast` has the fourth byte.
    """
    try:
        with Image.open(BytesIO(data), formats=[FORMATS[header.format].pillow_name]) as image:
            if image.size != (header.width, header.height):
                raise InvalidImage("The image's own headers disagree about its size.")
            for place, _ in groupby(places):
                image.seek(place)
                image.load()
                yield _array(_flattened(image, gray, background).im, gray, fast, image.size)
    except (InvalidImage, MemoryError):
        raise
    except Exception:
        raise InvalidImage(
            f"A frame of the {header.format.upper()} does not decode: it is truncated or damaged."
        ) from None


def _turbo_jpeg(data: bytes, header: ImageHeader, gray: bool, halvings: int) -> Pixels | None:
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            data,
            "GRAY" if gray else "RGBX",
            min_height=math.ceil(header.height / 2**halvings),
            min_width=math.ceil(header.width / 2**halvings),
            strict=True,
        )
    except ValueError:  # damaged, or only unusual: Pillow decides which
        return None
    return pixels[:, :, 0] if gray else pixels


def _pillow(
    data: bytes, header: ImageHeader, gray: bool, halvings: int, fast: bool, background: tuple[int, int, int]
) -> Pixels:
    if header.format == "png":
        compressed = png_pixel_data(data)
        if compressed is None:
            raise InvalidImage("The PNG has a wrong checksum: it is damaged.")
        plain = _plain_png(data, header, compressed, gray, fast) if header.is_plain else None
        if plain is not None:
            return plain
    try:
        with Image.open(BytesIO(data), formats=[FORMATS[header.format].pillow_name]) as image:
            if image.size != (header.width, header.height):
                raise InvalidImage("The image's own headers disagree about its size.")
            if halvings:
                image.draft(None, (header.width >> halvings, header.height >> halvings))
            image.load()
            return _array(_flattened(image, gray, background).im, gray, fast, image.size)
    except (InvalidImage, MemoryError):
        raise
    except Exception:
        raise InvalidImage(f"The {header.format.upper()} data does not decode: it is truncated or damaged.") from None


def _array(picture: Any, gray: bool, fast: bool, size: tuple[int, int]) -> Pixels:
    """Pillow's pixels, of mode "L" or "RGB", in one piece: `tobytes` would gather them from pieces of 64 KiB."""
    width, height = size
    stored, wanted = ("L", "L") if gray else ("RGB", "RGBX" if fast else "RGB")
    encoder = _imaging.raw_encoder(stored, wanted)
    encoder.setimage(picture, (0, 0, width, height))
    _, _, pixels = encoder.encode(width * height * len(wanted))
    return np.frombuffer(pixels, np.uint8).reshape((height, width) if gray else (height, width, len(wanted)))


def _plain_png(data: bytes, header: ImageHeader, compressed: bytes, gray: bool, fast: bool) -> Pixels | None:
    """By Pillow's own PNG decoder, without its file and image layers, which cost more than a thumbnail's pixels.

    None where it stops: the data are damaged, or damaged where Pillow's file layer does not mind. It decides.
    """
    stored, wanted = "RGB" if data[_PNG_COLOR_TYPE] else "L", "L" if gray else "RGB"
    size = (header.width, header.height)
    picture = _imaging.new(stored, size)
    decoder = _imaging.zip_decoder(stored, stored)
    decoder.setimage(picture, (0, 0, *size))
    missing, fault = decoder.decode(compressed)
    if missing >= 0 or fault:
        return None
    return _array(picture if stored == wanted else picture.convert(wanted, Image.Dither.NONE), gray, fast, size)


def _flattened(image: Image.Image, gray: bool, background: tuple[int, int, int]) -> Image.Image:
    """Any Pillow mode as "L" or "RGB": 16 bits scaled (not clipped), transparency laid over `background`."""
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.uint32)
        if wide.max(initial=0) > 0xFFFF:
            raise InvalidImage("The image has more than 16 bits a channel.")
        opaque = Image.fromarray((wide != image.info.get("transparency", -1)).astype(np.uint8) * 255)
        gray_image = Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
        image = Image.new("RGB", gray_image.size, background)
        image.paste(gray_image, mask=opaque)
    elif image.mode == "F":
        raise InvalidImage("The image has floating-point pixels; send 8 or 16 bits a channel.")
    elif image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, (*background, 255))
        image.alpha_composite(layer)
    if image.mode not in ("RGB", "L"):
        image = image.convert("RGB")
    wanted = "L" if gray else "RGB"
    return image if image.mode == wanted else image.convert(wanted)
