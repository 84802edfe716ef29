"""Request bodies and model folders for the tests that talk HTTP: pictures whose label is known, encoded images,
multipart and JSON forms, and small ONNX models built in code.
"""

import base64
import importlib.util
import io
import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw, ImageFont

_SKIMAGE = importlib.util.find_spec("skimage")
assert _SKIMAGE is not None and _SKIMAGE.origin is not None
PHOTOGRAPHS = Path(_SKIMAGE.origin).parent / "data"

JPEG, PNG, WEBP = "image/jpeg", "image/png", "image/webp"
BOUNDARY = "fovea-test-boundary"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"

Part = tuple[str, bytes]


# Images


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photograph(name: str) -> bytes:
    """A photograph of scikit-image, as the file is."""
    return (PHOTOGRAPHS / name).read_bytes()


def drawn_digit(digit: int, *, size: int = 24, shift: tuple[int, int] = (0, 0), kind: str = "PNG") -> bytes:
    """A digit in light strokes on a dark ground, 28 x 28, as the model `digits` was trained on."""
    image = Image.new("L", (28, 28))
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(str(digit))
    origin = ((28 - right - left) / 2 + shift[0], (28 - bottom - top) / 2 + shift[1])
    ImageDraw.Draw(image).text(origin, str(digit), fill=255, font=font)
    return encoded(image, kind)


def different_digits(count: int) -> list[bytes]:
    """As many different pictures for `digits` and `fashion`: drawn digits under a little noise."""
    random = np.random.default_rng(28)
    pictures = []
    for index in range(count):
        clean = np.asarray(Image.open(io.BytesIO(drawn_digit(index % 10, size=18 + index % 7))), np.int16)
        noisy = np.clip(clean + random.integers(0, 40, clean.shape), 0, 255).astype(np.uint8)
        pictures.append(encoded(Image.fromarray(noisy)))
    assert len(set(pictures)) == count
    return pictures


def different_crops(count: int, side: int = 280) -> list[bytes]:
    """As many different JPEGs, cut from the photographs of scikit-image."""
    random = np.random.default_rng(224)
    names = ("chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "astronaut.png", "hubble_deep_field.jpg")
    sources = [Image.open(PHOTOGRAPHS / name).convert("RGB") for name in names]
    crops = []
    for index in range(count):
        source = sources[index % len(sources)]
        left = int(random.integers(0, source.width - side))
        top = int(random.integers(0, source.height - side))
        crops.append(encoded(source.crop((left, top, left + side, top + side)), "JPEG", quality=90))
    assert len(set(crops)) == count
    return crops


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    random = np.random.default_rng(width * height)
    shape = (height, width) if channels == 1 else (height, width, channels)
    return Image.fromarray(random.integers(0, 256, shape, np.uint8))


def png_chunk(name: bytes, data: bytes, *, crc: int | None = None) -> bytes:
    checksum = zlib.crc32(name + data) if crc is None else crc
    return len(data).to_bytes(4, "big") + name + data + checksum.to_bytes(4, "big")


def png_of_zeros(width: int, height: int) -> bytes:
    """A whole, valid 1-bit PNG of black pixels, however large: its compressed blocks are one block many times over."""
    row = 1 + (width + 7) // 8
    block_rows = max(1, (1 << 20) // row)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(row * block_rows)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = packer.compress(bytes(row * (height % block_rows))) + packer.flush()
    adler = (row * height % 65521) << 16 | 1
    data = b"\x78\x9c" + block * (height // block_rows) + rest + adler.to_bytes(4, "big")
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


# Bodies


def multipart(parts: Iterable[Part], boundary: str = BOUNDARY) -> bytes:
    """Parts as (header lines without the last line break, data)."""
    lines = b"".join(
        b"--" + boundary.encode() + b"\r\n" + head.encode("utf-8", "surrogateescape") + b"\r\n\r\n" + data + b"\r\n"
        for head, data in parts
    )
    return lines + b"--" + boundary.encode() + b"--\r\n"


def image_part(
    data: bytes, *, file_name: str | None = None, media_type: str | None = None, field: str = "image"
) -> Part:
    named = "" if file_name is None else f'; filename="{file_name}"'
    typed = "" if media_type is None else f"\r\nContent-Type: {media_type}"
    return f'Content-Disposition: form-data; name="{field}"{named}{typed}', data


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def json_body(images: Sequence[bytes], **keys: Any) -> bytes:
    return json.dumps({"images": [{"b64": base64_text(data)} for data in images], **keys}).encode()


# Models


def write_model(
    folder: Path, graph: onnx.ModelProto, *, manifest: str | None = None, labels: Sequence[str] = ()
) -> Path:
    """A model folder with version 1; returns the folder."""
    (folder / "1").mkdir(parents=True)
    onnx.save(graph, str(folder / "1" / "model.onnx"))
    if manifest is not None:
        (folder / "model.toml").write_text(manifest)
    if labels:
        (folder / "labels.txt").write_text("\n".join(labels) + "\n")
    return folder


def _model(nodes: list[onnx.NodeProto], inputs: Any, outputs: Any, weights: list[onnx.TensorProto]) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "test", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model


def mean_color_model() -> onnx.ModelProto:
    """(n, 3, h, w) to three logits: how red, green and blue the picture is."""
    shape = ["n", 3, "h", "w"]
    return _model(
        [
            helper.make_node("ReduceMean", ["pixels"], ["means"], axes=[2, 3], keepdims=0),
            helper.make_node("Mul", ["means", "gain"], ["logits"]),
        ],
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [_weight("gain", np.float32(4.0))],
    )


def slow_model(products: int = 60) -> onnx.ModelProto:
    """As `mean_color_model`, and besides a tower of matrix products: more than 100 ms an image on one thread.

    The tower's result goes into the answer with a weight that does not show, so that nothing optimises it away.
    """
    random = np.random.default_rng(7)
    side = 1024
    square = (random.standard_normal((side, side)) / np.sqrt(side)).astype(np.float32)
    base = random.standard_normal((256, side)).astype(np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["means", "widen"], ["wide"]),  # (n, 1024)
        helper.make_node("Unsqueeze", ["wide", "one"], ["column"]),  # (n, 1, 1024)
        helper.make_node("Add", ["column", "base"], ["tower_0"]),  # (n, 256, 1024)
    ]
    nodes += [
        helper.make_node("MatMul", [f"tower_{step}", "square"], [f"tower_{step + 1}"]) for step in range(products)
    ]
    nodes += [
        helper.make_node("ReduceMean", [f"tower_{products}"], ["height"], axes=[1, 2], keepdims=0),  # (n,)
        helper.make_node("Unsqueeze", ["height", "one"], ["heights"]),
        helper.make_node("Mul", ["heights", "nothing"], ["trace"]),
        helper.make_node("Mul", ["means", "gain"], ["colors"]),
        helper.make_node("Add", ["colors", "trace"], ["logits"]),
    ]
    weights = [
        _weight("widen", random.standard_normal((3, side)).astype(np.float32)),
        _weight("base", base),
        _weight("square", square),
        _weight("nothing", np.float32(1e-9)),
        _weight("gain", np.float32(4.0)),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
    ]
    return _model(
        nodes,
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        weights,
    )


def _weight(name: str, value: npt.NDArray[np.float32] | np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, np.float32), name)


COLORS = ("red", "green", "blue")
COLOR_MANIFEST = 'schema = 1\n[input]\npreset = "unit"\nsize = [8, 8]\nresize = "stretch"\n'


def plain_color(name: str) -> bytes:
    """A PNG that `mean_color_model` calls by its name."""
    return encoded(Image.new("RGB", (8, 8), name))
