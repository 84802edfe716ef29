"""The tutorials' networks with drawn weights, and Keras' own way from a picture to its scores."""

import io
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from networks import NETWORKS, Network  # of model_repo/recipes, which `make test-import` puts on the path
from pictures import prepared

from service.workbench.importing import keras_source
from service.workbench.importing.quiet import silence
from tests.support import clips, frozen_networks
from tests.support.bodies import PHOTOGRAPHS

__all__ = ["NETWORKS", "Network"]

PICTURES = ("chelsea.png", "coffee.png", "rocket.jpg")
_SPREAD = 0.5  # of the logits over the pictures; more would show the noise of float32 in fifty layers
_MOST_TIMES = 1000.0  # more would show the noise of float32
_SHIFT = 16  # pixels from one view of a picture to the next

Floats = npt.NDArray[np.float32]


def drawn_network(name: str, network: Network) -> tuple[Any, float]:
    """The network with the weights of `frozen_networks.drawn`, and what its last kernel was multiplied by."""
    built = network.build()
    if network.frames:
        built(np.zeros((1, network.frames, *network.size, 3), np.float32))
    for place, variable in enumerate(built.weights):
        variable.assign(frozen_networks.drawn(variable.name, variable.shape, place))
    _settle(built, network)
    return built, _spread(built, network)


def _settle(built: Any, network: Network) -> None:
    """Give every BatchNormalization the statistics of pictures, as training would: else deep networks fade out.

    Of many views of each: the statistics of three pictures alone would make a deep network so nervous that the last bit
    of its input moves its scores by 1e-4.
    """
    norms = [each for each in built._flatten_layers() if isinstance(each, keras.layers.BatchNormalization)]
    if not norms:
        return
    before = [(layer, layer.trainable) for layer in built._flatten_layers()]
    momentum = [norm.momentum for norm in norms]
    for layer, _ in before:
        layer.trainable = True
    for norm in norms:
        norm.momentum = 0.0
    rows = [prepared(network, PHOTOGRAPHS / picture) for picture in PICTURES]
    views = [np.roll(row[:, ::turn], _SHIFT * at, (0, 1)) for row in rows for turn in (1, -1) for at in range(4)]
    built(np.stack(views), training=True)
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value
    for layer, value in before:
        layer.trainable = value


def _spread(built: Any, network: Network) -> float:
    """Make the pictures' scores differ, none near 0 or 1: returns what the last kernel is multiplied by for it."""
    kernel, bias = built.layers[-1].weights
    logits = np.stack([_logits(predict(built, network, picture)) for picture in PICTURES]) - np.asarray(bias.numpy())
    times = float(_SPREAD / np.std(logits, axis=0).max())
    assert times < _MOST_TIMES, f"the pictures' scores hardly differ: {logits}"
    kernel.assign(np.asarray(kernel.numpy()) * np.float32(times))
    bias.assign(-times * logits.mean(axis=0))
    return times


def last_kernel(built: Any) -> Any:
    return built.layers[-1].kernel


def _logits(scores: Floats) -> Floats:
    scores = np.clip(scores.astype(np.float64), 1e-12, 1 - 1e-12)
    return np.log(scores / (1 - scores)) if scores.size == 1 else np.log(scores)


def predict(built: Any, network: Network, picture: str) -> Floats:
    """Keras' own scores for one picture, prepared by Keras' own functions (or OpenCV's, where the tutorial does)."""
    row = _clip(network, picture) if network.frames else prepared(network, PHOTOGRAPHS / picture)
    with silence():
        return np.asarray(built.predict(row[None], verbose=0)[0])


def _clip(network: Network, picture: str) -> Floats:
    frames = clips.frames((PHOTOGRAPHS / picture).read_bytes())
    shown = [frames[place] for place in clips.shown(len(frames), network.frames)]
    return np.stack([prepared(network, io.BytesIO(frame)) for frame in shown])


def import_flags(network: Network) -> list[str]:
    """What `fovea import` is told."""
    flags = {"labels": ",".join(network.labels), "preset": network.preset} | network.flags
    if network.frames:
        flags["frames"] = str(network.frames)
    return [word for name, value in flags.items() for word in (f"--{name}", value)]


def export(built: Any, network: Network, path: Path) -> None:
    """As ONNX, by Keras."""
    shape = (network.frames, *network.size, 3) if network.frames else built.input_shape[1:]
    keras_source._export(built, shape, path, path.name)
