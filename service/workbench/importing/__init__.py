"""`fovea import`: a trained model's file becomes a folder of the repository.

    sources   the file to ONNX, with the framework's own answers to hold it against   (keras_source, pytorch_source)
    graph     the ONNX graph made fit to serve: one image input, an open batch dimension
    evidence  what the graph does to pixels, and what its last operators give
    beside    what Hugging Face's and timm's files beside the source say; labels, in the forms that people have them
    decisions evidence and flags to a manifest; what nothing says is asked for, by flag
    trial     parity with the framework, and real images under each plausible preprocessing
    writing   manifest, labels, card, golden check; published in one step
    command   the order of all that, and what is printed

Frameworks are imported where they are used: the serving environment has none of them.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.errors import ConfigurationError


def run(given: Mapping[str, Any], repository: Path) -> int:
    """Import with the command line's arguments, by name. Raises ConfigurationError."""
    try:
        return _run(given, repository)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{error.name} is not installed; fovea import needs the extra `import` (ONNX, Keras, PyTorch): "
            "make import SOURCE=... NAME=... ARGS=..., or pip install 'fovea[cpu,import]'"
        ) from None


def _run(given: Mapping[str, Any], repository: Path) -> int:
    from service.workbench.importing.command import Order, import_model
    from service.workbench.importing.decisions import Flags

    names = {field.name for field in dataclasses.fields(Flags)}
    said: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if name in names
    }
    if (size := said["size"]) is not None:
        if len(size) > 2 or min(size) < 1:
            raise ConfigurationError("--size: one side for both, or height and width, in pixels")
        said["size"] = (size[0], size[-1])
    if given["version"] < 1:
        raise ConfigurationError(f"--version {given['version']}: versions are numbered from 1")
    order = Order(given["source"], given["name"], given["version"], tuple(given["images"]), Flags(**said))
    return import_model(order, repository)
