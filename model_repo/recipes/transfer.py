"""Teaches the features of `imagenet` new classes, from a few hundred pictures, on a CPU, without any framework.

    make recipe NAME=transfer ARGS="--data photos --name pets"

Every picture goes once through the network up to its last layer; a new last layer is fitted to the 1,280 numbers that
come out. The result is the same network with that layer, served like any other.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import class_folders
import numpy as np
import onnx
from class_folders import Files
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from tqdm import tqdm

from service import cli, manifest
from service.engine.ort import OrtEngine
from service.engine.spec import ExecutionSpec
from service.errors import FoveaError
from service.imaging.decode import DecodeBudget
from service.imaging.preprocess import Preprocessor
from service.imaging.spec import ImageLimits
from service.messages import ImagePayload

SEED = 28
SHARES = (0.7, 0.15, 0.15)  # fitting, choosing the penalty, measuring
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # on the squared weights; which one is chosen by the second share
STEPS, RATE = 400, 0.05  # of Adam over all pictures at once: converged, in a second
MODEL_REPOSITORY = Path(__file__).resolve().parent.parent

Floats = NDArray[np.float64]


class Backbone:
    """A model of the repository up to the layer that classifies."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        read = manifest.read(folder, 1)
        self.table = read.input
        self.model = onnx.load(folder / "1" / "model.onnx")
        self.layer = next(node for node in reversed(self.model.graph.node) if node.op_type == "Gemm")
        headless = onnx.ModelProto()
        headless.CopyFrom(self.model)
        headless.graph.output.append(helper.make_empty_tensor_value_info(self.layer.input[0]))
        path = scratch / "features.onnx"
        path.write_bytes(headless.SerializeToString())
        self.engine = OrtEngine(path, ExecutionSpec(("cpu",)), intra_op_threads=0)
        labels = manifest.read_labels(folder, 1, read)
        spec = manifest.resolve(read, labels, self.engine.inputs, self.engine.outputs[:1], "cpu").input
        assert spec is not None
        self.spec = spec
        limits = ImageLimits()
        self.preprocessor = Preprocessor(spec, limits, DecodeBudget(limits.decode_bytes))

    def features(self, path: Path, *, mirrored: bool) -> Floats:
        """One row for the picture, and one for its mirror image where asked for."""
        rows = np.empty((2, *self.spec.shape), self.spec.dtype)
        self.preprocessor.prepare(self.preprocessor.inspect(ImagePayload(path.read_bytes())), rows[0])
        rows[1] = rows[0][:, :, ::-1]
        given = rows if mirrored else rows[:1]
        return self.engine.run({self.spec.tensor: given})[-1].reshape(len(given), -1).astype(np.float64)

    def with_head(self, weights: Floats, bias: Floats) -> onnx.ModelProto:
        """The network with another last layer: weights (features, classes)."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        layer = next(node for node in reversed(model.graph.node) if node.op_type == "Gemm")
        is_transposed = any(each.name == "transB" and each.i for each in layer.attribute)
        new = {layer.input[1]: weights.T if is_transposed else weights, layer.input[2]: bias}
        for initializer in model.graph.initializer:
            if initializer.name in new:
                values = np.ascontiguousarray(new[initializer.name], np.float32)
                initializer.CopyFrom(numpy_helper.from_array(values, initializer.name))
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = weights.shape[1]
        return model


def main() -> None:
    """Features, fit, measure, import."""
    arguments = parsed()
    labels, files = class_folders.read(arguments.data)
    with tempfile.TemporaryDirectory() as scratch:
        backbone = Backbone(arguments.backbone, Path(scratch))
        parts = class_folders.split(files, SHARES, SEED)
        fitting, choosing, measuring = (seen(backbone, part, mirrored=place == 0) for place, part in enumerate(parts))
        weights, bias = best_head(fitting, choosing, len(labels))
        measured = class_folders.report(labels, measuring[1], (measuring[0] @ weights + bias).argmax(axis=1))
        print(measured)
        source = Path(scratch) / f"{arguments.name}.onnx"
        source.write_bytes(backbone.with_head(weights, bias).SerializeToString())
        put(backbone, source, labels, arguments, measured)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Teach the features of `imagenet` new classes.")
    parser.add_argument("--data", required=True, type=Path, help="a folder of class folders")
    parser.add_argument("--name", required=True, help="of the new model")
    parser.add_argument("--backbone", type=Path, default=MODEL_REPOSITORY / "imagenet", help="a model's folder")
    parser.add_argument("--model-repo", type=Path, default=MODEL_REPOSITORY)
    return parser.parse_args()


def seen(backbone: Backbone, files: Files, *, mirrored: bool) -> tuple[Floats, NDArray[np.int64]]:
    """Features and classes of the files; pictures that cannot be read are named and left out."""
    rows, classes = [], []
    for path, number in zip(tqdm(files.paths, unit="picture"), files.classes, strict=True):
        try:
            found = backbone.features(path, mirrored=mirrored)
        except (FoveaError, OSError) as error:
            print(f"left out: {path}: {error}")
            continue
        rows.append(found)
        classes.extend([number] * len(found))
    if not rows:
        raise SystemExit("too few pictures: each class needs about ten")
    return np.concatenate(rows), np.array(classes, np.int64)


def best_head(fitting: Any, choosing: Any, classes: int) -> tuple[Floats, Floats]:
    """The layer that is best on pictures it was not fitted to; of equals the one with the stronger penalty."""
    heads = [fitted(*fitting, classes, penalty) for penalty in reversed(PENALTIES)]
    losses = [loss(*choosing, *head) for head in heads]
    return heads[int(np.argmin(losses))]


def fitted(features: Floats, truth: NDArray[np.int64], classes: int, penalty: float) -> tuple[Floats, Floats]:
    """Softmax regression by Adam over all rows, on features of mean 0 and spread 1; the head fits them unscaled."""
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    rows = np.hstack([(features - mean) / spread, np.ones((len(features), 1))])
    targets = np.eye(classes)[truth]
    share = 1 / np.maximum(targets.sum(axis=0), 1)  # every class counts alike, however many pictures it has
    counts = (targets @ share)[:, None] / classes
    head, first, second = np.zeros((rows.shape[1], classes)), 0.0, 0.0
    for step in range(1, STEPS + 1):
        gradient = rows.T @ ((_softmax(rows @ head) - targets) * counts) + penalty * head
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        head -= RATE * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    weights = head[:-1] / spread[:, None]
    return weights, head[-1] - mean @ weights


def loss(features: Floats, truth: NDArray[np.int64], weights: Floats, bias: Floats) -> float:
    chosen = _softmax(features @ weights + bias)[np.arange(len(truth)), truth]
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def put(backbone: Backbone, source: Path, labels: Any, arguments: argparse.Namespace, measured: str) -> None:
    """Import the network, fed as the backbone is."""
    spec = backbone.spec
    flags = {
        "labels": [",".join(labels)], "scale": spec.scale, "mean": spec.mean, "std": spec.std, "color": [spec.color],
        "resize": [spec.resize], "interpolation": [spec.interpolation], "resampler": [spec.resampler],
        "task": ["multiclass"], "activation": ["softmax"],
    }  # fmt: skip
    if spec.resize == "shortest_side":
        flags["resize-to"] = [spec.resize_to]
    words = [str(word) for key, values in flags.items() for word in (f"--{key}", *values)]
    command = ["import", str(source), "--name", arguments.name, "--model-repo", str(arguments.model_repo)]
    if code := cli.main([*command, *words]):
        raise SystemExit(code)
    with (arguments.model_repo / arguments.name / "README.md").open("a", encoding="utf-8") as card:
        card.write(f"\n## Measured on pictures not fitted to\n\n```\n{measured}\n```\n")


if __name__ == "__main__":
    main()
