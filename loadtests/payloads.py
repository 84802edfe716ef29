"""Request bodies made from real photographs (scikit-image's): thumbnails to 12 megapixels, and tensors."""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

_PHOTOGRAPHS = ("motorcycle_left.png", "coffee.png", "rocket.jpg", "chelsea.png")


@dataclass(frozen=True, slots=True)
class Payload:
    """Bodies of one kind, sent in rotation, the model they are for, and how it is asked."""

    name: str
    model: str
    content_type: str
    bodies: tuple[bytes, ...]
    headers: Mapping[str, str] = field(default_factory=dict)
    route: str = "/api/v1/models/{model}/classify"

    @property
    def path(self) -> str:
        return self.route.format(model=self.model)


def photographs() -> list[Image.Image]:
    """Four real photographs in RGB."""
    folder = Path(str(files("skimage"))) / "data"
    return [Image.open(folder / name).convert("RGB") for name in _PHOTOGRAPHS]


def photo_640() -> Payload:
    """640x480 JPEGs, quality 85, 4:2:0: four photographs and their mirror images."""
    return Payload("photo 640x480", "imagenet", "image/jpeg", tuple(_jpegs(640, 480)))


def photo_256() -> Payload:
    """256x256 JPEGs: what a client sends that shrinks and crops before it sends."""
    return Payload("photo 256x256", "imagenet", "image/jpeg", tuple(_jpegs(256, 256)))


def photo_12mp() -> Payload:
    """4000x3000 JPEGs with the noise of a small sensor, 3 to 4 MB, as phones make them."""
    random = np.random.default_rng(0)
    bodies = []
    for picture in photographs()[:2]:
        pixels = np.asarray(_fitted(picture, 4000, 3000), np.float32)
        noisy = pixels + random.normal(0, 5, (*pixels.shape[:2], 1)).astype(np.float32)
        bodies.append(_encoded(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), "JPEG", quality=87))
    return Payload("phone 12 MP", "imagenet", "image/jpeg", tuple(bodies))


def digit() -> Payload:
    """28x28 gray PNGs. What is on them does not matter for time: they are cut from the photographs."""
    pictures = photographs()
    bodies = [
        _encoded(pictures[place % 4].convert("L").crop((60 * place, 40, 60 * place + 112, 152)).resize((28, 28)), "PNG")
        for place in range(4)
    ]
    return Payload("digit 28x28", "digits", "image/png", tuple(bodies))


def fashion() -> Payload:
    """The same pictures for the larger small network."""
    return Payload("fashion 28x28", "fashion", "image/png", digit().bodies)


def tensors() -> Payload:
    """Four float32 photographs in one binary request of the Open Inference Protocol, scaled roughly: 2.4 MB."""
    pixels = np.stack([np.asarray(_fitted(picture, 224, 224), np.float32) for picture in photographs()])
    rows = np.ascontiguousarray((pixels.transpose(0, 3, 1, 2) - 127) / 128)
    sized = {"name": "input", "shape": rows.shape, "datatype": "FP32", "parameters": {"binary_data_size": rows.nbytes}}
    head = json.dumps({"inputs": [sized], "parameters": {"binary_data_output": True}}).encode()
    header = {"Inference-Header-Content-Length": str(len(head))}
    body = head + rows.tobytes()
    return Payload(
        "4 float32 tensors", "imagenet", "application/octet-stream", (body,), header, "/v2/models/{model}/infer"
    )


SHRUNK_PAYLOADS: dict[str, Callable[[], Payload]] = {"photo256": photo_256}
TENSOR_PAYLOADS: dict[str, Callable[[], Payload]] = {"tensor": tensors}
PAYLOADS: dict[str, Callable[[], Payload]] = {
    "photo": photo_640,
    "phone": photo_12mp,
    "digit": digit,
    "fashion": fashion,
}


def _jpegs(width: int, height: int) -> list[bytes]:
    upright = [_fitted(picture, width, height) for picture in photographs()]
    mirrored = [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in upright]
    return [_encoded(picture, "JPEG", quality=85, subsampling="4:2:0") for picture in upright + mirrored]


def _fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Scaled to cover, then cropped at the centre."""
    scale = max(width / picture.width, height / picture.height)
    large = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (large.width - width) // 2, (large.height - height) // 2
    return large.crop((left, top, left + width, top + height))


def _encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
