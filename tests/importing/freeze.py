"""Writes the frozen networks of the default suite.

    PYTHONPATH=model_repo/recipes .venv-import/bin/python -m tests.importing.freeze [NAME...]

Needs Keras. Run it when a network changes, or the exporter.
"""

import itertools
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnx
from onnx import numpy_helper

from tests.importing import keras_networks
from tests.importing.keras_networks import NETWORKS, Network
from tests.support import frozen_networks

# Made smaller for the default suite: 86 and 33 million weights take seconds to draw, and these are the same layers.
SMALLER = {
    "binary_vit_b16": {"build": partial(networks.binary_vit_b16, blocks=1)},
    "binary_clip_lstm": {"build": partial(networks.binary_clip_lstm, side=64), "size": (64, 64)},
}
_KEPT = 2048  # numbers; smaller initializers stay in the file as they are


def main(wanted: Sequence[str]) -> None:
    frozen_networks.FOLDER.mkdir(parents=True, exist_ok=True)
    for name in wanted or NETWORKS:
        freeze(name, replace(NETWORKS[name], **SMALLER.get(name, {})))


def freeze(name: str, network: Network) -> None:
    built, times = keras_networks.drawn_network(name, network)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        keras_networks.export(built, network, path)
        model = onnx.load(path)
    sources = _strip(model, _variables(built, times))
    _forget(model)
    scores = {picture: keras_networks.predict(built, network, picture).tolist() for picture in keras_networks.PICTURES}
    facts = {
        "labels": list(network.labels),
        "flags": keras_networks.import_flags(network),
        "frames": network.frames,
        "scores": scores,
        "weights": sources,
    }
    frozen_networks.FOLDER.joinpath(f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))
    frozen_networks.FOLDER.joinpath(f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(
        name,
        f"times {times:.3g}, {model.ByteSize():,} bytes",
        {key: np.round(value, 3).tolist() for key, value in scores.items()},
    )


def _variables(built: Any, times: float) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Every variable: how it is drawn, and its values."""
    found = []
    for place, variable in enumerate(built.weights):
        factor = times if variable is keras_networks.last_kernel(built) else 1.0
        drawn = {"name": variable.name, "shape": list(variable.shape), "place": place, "times": factor}
        found.append((drawn, np.asarray(variable.numpy())))
    return found


def _strip(model: onnx.ModelProto, variables: list[tuple[dict[str, Any], np.ndarray]]) -> dict[str, Any]:
    """Take the data of large initializers away; return where each comes from."""
    sources = {}
    for initializer in model.graph.initializer:
        values = numpy_helper.to_array(initializer)
        if values.size <= _KEPT:
            continue
        sources[initializer.name] = _source(initializer.name, values, variables)
        initializer.ClearField("raw_data")
        initializer.ClearField("float_data")
    return sources


def _source(name: str, values: np.ndarray, variables: list[tuple[dict[str, Any], np.ndarray]]) -> dict[str, Any]:
    for drawn, variable in variables:
        if variable.size != values.size:
            continue
        for axes in itertools.permutations(range(variable.ndim)):
            if np.array_equal(variable.transpose(axes).reshape(values.shape), values):
                return drawn | {"axes": list(axes)}
    raise SystemExit(f"{name} {values.shape} is none of the network's variables: the exporter computed it")


def _forget(model: onnx.ModelProto) -> None:
    del model.graph.value_info[:]
    for described in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        described.ClearField("doc_string")
        described.ClearField("metadata_props")


if __name__ == "__main__":
    main(sys.argv[1:])
