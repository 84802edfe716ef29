"""What a slow, careful decoder makes of a file: Pillow, one whole image at a time, and our rules by their text.

It shares no code with the service. The service has two ways through an image (fast and exact), reads headers by hand
and trusts libjpeg-turbo where it can; all of that has to come to the same verdict as this.
"""

import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

ImageFile.LOAD_TRUNCATED_IMAGES = False
Image.MAX_IMAGE_PIXELS = None
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**30  # text is no part of a picture, however large

SIGNATURES = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "WEBP": b"RIFF"}
MOST_BYTES = 20 * 2**20
MOST_SIDE = 16_384
MOST_PIXELS = 25_000_000


@dataclass(frozen=True)
class Verdict:
    """The status that a file deserves and why; of a good one the mean colour, three figures in 0..1."""

    status: int
    why: str
    mean_color: npt.NDArray[np.float64] | None = None


def judge(data: bytes) -> Verdict:
    """The verdict on one file under the default limits and formats."""
    if len(data) > MOST_BYTES:
        return Verdict(413, f"{len(data)} bytes")
    kind = next((name for name, signature in SIGNATURES.items() if data.startswith(signature)), None)
    if kind is None or (kind == "WEBP" and data[8:12] != b"WEBP"):
        return Verdict(415, "no signature of a format that is enabled")
    if kind == "PNG" and not _checksums_hold(data):
        return Verdict(422, "a wrong checksum, or no end")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow thinks of odd metadata
        return _judge_pixels(data, kind)


def _judge_pixels(data: bytes, kind: str) -> Verdict:
    try:
        with Image.open(BytesIO(data), formats=[kind]) as image:
            if max(image.size) > MOST_SIDE or image.width * image.height > MOST_PIXELS:
                return Verdict(422, f"{image.width} x {image.height} pixels")
            image.load()
            return Verdict(200, f"{kind} {image.mode} {image.size}", _mean_color(_upright(image)))
    except Exception as error:  # Pillow has no one class for what is wrong with a file
        return Verdict(422, f"{type(error).__name__}: {error}"[:200])


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged Exif: the picture is none the worse
        return image


def _checksums_hold(data: bytes) -> bool:
    position = 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4])
        end = position + 8 + length
        if data[end : end + 4] != zlib.crc32(data[position + 4 : end]).to_bytes(4):
            return False
        if data[position + 4 : position + 8] == b"IEND":
            return True
        position = end + 4
    return False


def _mean_color(image: Image.Image) -> npt.NDArray[np.float64]:
    """Of the picture as a viewer shows it on white, averaged down to 8 x 8 first, as the tests' model takes it."""
    if image.mode.startswith("I"):
        levels = np.asarray(image, np.float64)
        clear = image.info.get("transparency")
        gray = np.where(levels == clear, 255.0, levels / 257) if clear is not None else levels / 257
        shown = Image.fromarray(np.rint(gray).astype(np.uint8)).convert("RGB")
    else:
        pixels = np.asarray(image.convert("RGBA"), np.float64)
        alpha = pixels[:, :, 3:] / 255
        shown = Image.fromarray(np.rint(pixels[:, :, :3] * alpha + 255 * (1 - alpha)).astype(np.uint8))
    small = np.asarray(shown.resize((8, 8), Image.Resampling.BILINEAR), np.float64)
    return np.asarray(small.mean(axis=(0, 1)) / 255)
