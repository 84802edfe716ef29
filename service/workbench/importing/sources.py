"""A model's file, of whatever kind, as ONNX with its framework's own answers beside it.

To add a kind: a row in `READERS`. What cannot be read is answered with how to export it.
"""

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from service.errors import ConfigurationError
from service.workbench.importing import graph
from service.workbench.importing.graph import Array


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a framework's users bring pictures to the network's size, as far as that is customary; a guess, always.

    `otherwise` names what else they do, and what to say then.
    """

    keys: dict[str, Any]
    because: str
    otherwise: str


@dataclass(frozen=True, slots=True)
class Open:
    """What the command line says of sides that a network leaves open: (height, width), and the frames of a clip."""

    size: tuple[int, int] | None = None
    frames: int | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """`answer` takes rows as the source's own input has them and returns every output, as the framework computes it.

    `loss` is what it was trained with, where the file says so.
    """

    framework: str
    model: onnx.ModelProto
    answer: Callable[[Array], list[Array]]
    geometry: Geometry
    loss: str | None = None
    is_onnx: bool = False
    properties: dict[str, str] = field(default_factory=dict)


KERAS_GEOMETRY = Geometry(
    {"resize": "stretch", "interpolation": "bilinear", "resampler": "tf", "antialias": False},
    "as image_dataset_from_directory and tf.image.resize do it",
    "load_img and ImageDataGenerator: --resampler pil --interpolation nearest",
)
TORCH_GEOMETRY = Geometry(
    {"resize": "shortest_side", "interpolation": "bilinear", "resampler": "pil"},
    "torchvision's Resize and CenterCrop",
    "without the crop: --resize stretch, or say --resize-to",
)


def read(path: Path, scratch: Path, sides: Open) -> Source:
    """Read the file. Raises ConfigurationError with what to do."""
    if not path.exists():
        raise ConfigurationError(f"{path}: no such file")
    reader = READERS.get(path.suffix.lower())
    if path.is_dir() or reader is None:
        raise ConfigurationError(f"{path.name}: {_how_to_export(path)}")
    return reader(path, scratch, sides)


def in_steps(run: Callable[[Array], Sequence[Array]], rows: Array, step: int) -> list[Array]:
    """What `run` gives for all rows, `step` at a time, the last step filled up; all at once where `step` is 0."""
    step = step or len(rows)
    filled = np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % step, axis=0)])
    parts = [run(filled[at : at + step]) for at in range(0, len(filled), step)]
    return [np.concatenate(column)[: len(rows)] for column in zip(*parts, strict=True)]


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_onnx(path: Path, scratch: Path, sides: Open) -> Source:
    model = graph.load(path)

    opened = cache(lambda: graph.open_engine(path))

    def answer(rows: Array) -> list[Array]:
        engine = opened()
        fixed = engine.inputs[0].shape[:1]
        return in_steps(lambda part: engine.run({engine.inputs[0].name: part}), rows, max((0, *fixed)))

    producer = model.producer_name.lower()
    is_keras = any(word in producer for word in ("tf2onnx", "keras", "tensorflow"))
    framework = f"ONNX, written by {model.producer_name or 'an unnamed exporter'} {model.producer_version}".rstrip()
    properties = {entry.key: entry.value for entry in model.metadata_props}
    return Source(framework, model, answer, KERAS_GEOMETRY if is_keras else TORCH_GEOMETRY, None, True, properties)


def _read_keras(path: Path, scratch: Path, sides: Open) -> Source:
    from service.workbench.importing import keras_source  # late: loads Keras and PyTorch

    return keras_source.read(path, scratch, sides)


def _read_pytorch(path: Path, scratch: Path, sides: Open) -> Source:
    from service.workbench.importing import pytorch_source  # late: loads PyTorch

    return pytorch_source.read(path, scratch)


READERS: dict[str, Callable[[Path, Path, Open], Source]] = {
    ".onnx": _read_onnx,
    ".keras": _read_keras,
    ".h5": _read_keras,
    ".hdf5": _read_keras,
    ".pt2": _read_pytorch,
}

_TORCH_EXPORT = (
    "in the program that has the network's class: torch.export.save(torch.export.export(model.eval(), "
    "(torch.zeros(2, 3, HEIGHT, WIDTH),), dynamic_shapes=({0: torch.export.Dim.AUTO},)), 'model.pt2'), and import that"
)


def _how_to_export(path: Path) -> str:
    suffix = path.suffix.lower()
    if (path / "saved_model.pb").exists() or suffix == ".pb":
        return "a TensorFlow SavedModel: python -m tf2onnx.convert --saved-model FOLDER --output m.onnx; import that"
    if suffix in (".pt", ".pth", ".ckpt", ".bin", ".safetensors"):
        what = "a TorchScript archive" if _is_torchscript(path) else "weights, or a pickled object, without the network"
        return f"{what}; {_TORCH_EXPORT}"
    if suffix == ".tflite":
        return "a TensorFlow Lite file: python -m tf2onnx.convert --tflite FILE --output model.onnx, and import that"
    if path.is_dir():
        return "a folder; name the file in it (.onnx, .keras, .h5 or .pt2)"
    return f"cannot be imported; what can: {', '.join(READERS)}"


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())
