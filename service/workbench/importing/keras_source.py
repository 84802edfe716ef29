"""Keras files (.keras of Keras 3, .h5 of any) to ONNX, by Keras' own exporter on PyTorch.

Only the network is loaded: no optimizer, no code out of the file.
"""

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"  # before Keras is imported: its exporter is what this environment has

import h5py
import keras
import numpy as np

from service.errors import ConfigurationError
from service.workbench.importing import graph
from service.workbench.importing.graph import Array
from service.workbench.importing.quiet import silence
from service.workbench.importing.sources import KERAS_GEOMETRY, Open, Source

_AT_A_TIME = 8  # images; a batch of VGG16 at 224 pixels takes 100 MB of activations each


# Which pass pictures on as they are, outside of training; RandomCrop does not.
_ONLY_IN_TRAINING = frozenset(
    name
    for name in dir(keras.layers)
    if name in ("AugMix", "CutMix", "MixUp", "RandAugment") or (name.startswith("Random") and name != "RandomCrop")
)


class _DepthwiseConv2D(keras.layers.DepthwiseConv2D):  # type: ignore[misc]  # Keras has no annotations
    """As TensorFlow's Keras 2 wrote it: with `groups`, which was always 1 and which Keras 3 refuses."""

    def __init__(self, *positional: Any, groups: int = 1, **named: Any) -> None:
        super().__init__(*positional, **named)


def read(path: Path, scratch: Path, sides: Open) -> Source:
    """Load and export. Raises ConfigurationError with what to do."""
    network, without_augmentation = _load(path), _load(path)
    shape = _input_shape(network, sides)
    _rest(without_augmentation)
    with silence():
        without_augmentation(
            np.zeros((2, *shape), np.float32)
        )  # a loaded Sequential has no graph before its first call
    exported = scratch / "keras.onnx"
    _export(without_augmentation, shape, exported, path.name)

    def answer(rows: Array) -> list[Array]:
        with silence():
            found = network.predict(rows, batch_size=_AT_A_TIME, verbose=0)
        return [np.asarray(each) for each in (found if isinstance(found, list | tuple) else [found])]

    return Source(f"Keras {keras.__version__}", graph.load(exported), answer, KERAS_GEOMETRY, _loss(path))


def _rest(network: Any) -> None:
    """Take augmentation out of the way: it does nothing in inference, but its random numbers cannot be exported."""
    for layer in network._flatten_layers():
        if type(layer).__name__ in _ONLY_IN_TRAINING and type(layer).__module__.startswith("keras."):
            layer.call = lambda inputs, **_: inputs


def _load(path: Path) -> Any:
    if path.suffix == ".keras" and not zipfile.is_zipfile(path):
        raise ConfigurationError(f"{path.name} is not a Keras 3 file (a zip archive); an older one is called .h5")
    if path.suffix != ".keras" and _is_weights_only(path):
        raise ConfigurationError(
            f"{path.name} holds weights without the network: save the whole model, by model.save('model.keras')"
        )
    try:
        return keras.saving.load_model(path, {"DepthwiseConv2D": _DepthwiseConv2D}, compile=False, safe_mode=True)
    except Exception as error:
        raise ConfigurationError(f"{path.name}: {_why_not(error)}") from None


def _is_weights_only(path: Path) -> bool:
    try:
        with h5py.File(path) as file:
            return "model_config" not in file.attrs
    except OSError:
        raise ConfigurationError(f"{path.name} is not an HDF5 file") from None


def _why_not(error: Exception) -> str:
    text = " ".join(str(error).split())
    elsewhere = "export it where that code is: model.export('model.onnx', format='onnx'), and import that"
    if "Lambda" in text or "lambda" in text:
        return f"it has a Lambda layer, which is code that loading would run; {elsewhere}"
    if "locate class" in text or "Unknown layer" in text or "register_keras_serializable" in text:
        return f"it has layers of your own, whose code is not in the file ({text[:200]}); {elsewhere}"
    return f"Keras {keras.__version__} cannot load it ({text[:300]}); {elsewhere}"


def _input_shape(network: Any, sides: Open) -> tuple[int, ...]:
    """One image's or clip's shape, with what the command line says in the place of open sides.

    Frames are always fixed: the exporter writes a recurrent layer out for as many as it is shown.
    """
    if len(network.inputs or ()) != 1:
        names = (
            ", ".join(f"{each.name} {list(each.shape[1:])}" for each in network.inputs or ()) or "none that it names"
        )
        raise ConfigurationError(
            f"the model has {len(network.inputs or ())} inputs ({names}); an image can feed one: build and save "
            "one with the others fixed inside it"
        )
    shape = list(network.inputs[0].shape[1:])
    if len(shape) == 4 and shape[0] is None:
        if sides.frames is None:
            raise ConfigurationError(
                "the model takes clips of any length; say the one it was trained with: --frames COUNT"
            )
        shape[0] = sides.frames
    if None in shape:
        if sides.size is None or len(shape) < 3:
            raise ConfigurationError(
                f"the model leaves its input open ({shape}); say the size it was trained with: --size HEIGHT WIDTH"
            )
        shape[-3:-1] = sides.size
    return tuple(shape)


def _export(network: Any, shape: Sequence[int], target: Path, name: str) -> None:
    """For any number of rows; where the exporter cannot (LayerNormalization, attention), for one, opened later on."""
    reason: Exception | None = None
    for rows in (None, 1):
        signature = [keras.InputSpec(shape=(rows, *shape), dtype=network.inputs[0].dtype)]
        try:
            with silence():
                network.export(target, format="onnx", verbose=False, input_signature=signature)
            return
        except Exception as error:
            reason = error
    raise ConfigurationError(
        f"{name}: Keras cannot export it to ONNX: {' '.join(str(reason).split())[:300]}; if a layer is named, replace "
        "it with standard ones, or export to ONNX where the model was trained"
    )


def _loss(path: Path) -> str | None:
    """The name of the training loss in the file, with "from_logits" where it was."""
    try:
        config = _training_config(path)
    except (KeyError, OSError, ValueError):
        return None
    loss = (config or {}).get("loss")
    if isinstance(loss, dict) and isinstance(loss.get("config"), dict):
        name = loss["config"].get("name") or loss.get("class_name", "")
        return f"{name}{' from_logits' if loss['config'].get('from_logits') else ''}"
    return loss if isinstance(loss, str) else None


def _training_config(path: Path) -> dict[str, Any] | None:
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            config: dict[str, Any] | None = json.loads(archive.read("config.json")).get("compile_config")
            return config
    with h5py.File(path) as file:
        text = file.attrs.get("training_config")
    return None if text is None else dict(json.loads(text))
