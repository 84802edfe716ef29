"""Trains a network of the tutorials and puts it into the repository, served from then on like any other.

    make recipe NAME=tutorial ARGS="--network mnist_cnn"
    make recipe NAME=tutorial ARGS="--network binary_cnn --data photos --name pets"

`--data` is a folder of class folders; MNIST and Fashion-MNIST come from packages.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import class_folders
import idx_datasets
import numpy as np
from networks import NETWORKS, Network, keras
from numpy.typing import NDArray
from pictures import pixels, scaled

from service import cli

SEED = 28
SHARES = (0.7, 0.2, 0.1)  # training, validation, test
PATIENCE = 3  # epochs without a better validation accuracy before training ends
PACKAGED = {"mnist": idx_datasets.mnist, "fashion": idx_datasets.fashion_mnist}
MODEL_REPOSITORY = Path(__file__).resolve().parent.parent

Part = tuple[Any, NDArray[np.int64]]  # pictures, as paths or as an array, and their classes


class Batches(keras.utils.PyDataset):
    """Pictures of files (or of an array) in batches, read when they are needed.

    Those to train on come in another order each epoch, and augmented where the tutorial does that.
    """

    def __init__(self, network: Network, part: Part, one_hot: int, *, train: bool) -> None:
        super().__init__(workers=2)
        self.network, self.one_hot = network, one_hot
        self.pictures, self.classes = part
        self.order = np.arange(len(self.classes))
        self.random = np.random.default_rng(SEED) if train else None
        self.augment = augmentation() if train and network.augment else None
        self.on_epoch_end()

    def __len__(self) -> int:
        return -(-len(self.order) // self.network.batch_size)

    def __getitem__(self, batch: int) -> tuple[Any, Any]:
        start = batch * self.network.batch_size
        places = self.order[start : start + self.network.batch_size]
        rows = np.stack([self._picture(self.pictures[place]) for place in places])
        if self.augment is not None:
            rows = keras.ops.convert_to_numpy(self.augment(rows, training=True))
        classes = self.classes[places]
        targets = np.eye(self.one_hot)[classes] if self.one_hot else classes
        return scaled(self.network, rows), targets

    def _picture(self, picture: Any) -> Any:
        return pixels(self.network, picture) if isinstance(picture, Path) else picture[..., None].astype(np.float32)

    def on_epoch_end(self) -> None:
        if self.random is not None:
            self.random.shuffle(self.order)


def augmentation() -> Any:
    """Rotation by 20 degrees, shifts and zoom by a fifth, and a horizontal flip; the edges are drawn out."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.RandomRotation(20 / 360, fill_mode="nearest"),
            layers.RandomTranslation(0.2, 0.2, fill_mode="nearest"),
            layers.RandomZoom(0.2, fill_mode="nearest"),
            layers.RandomFlip("horizontal"),
        ]
    )


def main() -> None:
    """Read, train, measure, draw, import."""
    arguments = parsed()
    keras.utils.set_random_seed(SEED)
    network = NETWORKS[arguments.network]
    labels, parts = read(network, arguments)
    built = network.build()
    train, validation, test = (batches(built, network, part, train=place == 0) for place, part in enumerate(parts))
    history = fit(built, train, validation, arguments.epochs or network.epochs)
    measured = class_folders.report(labels, test.classes, decided(built.predict(test, verbose=0)))
    print(measured)
    put(built, network, labels, arguments, history, measured)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a network of the tutorials and serve it.")
    names = [name for name, network in NETWORKS.items() if not network.frames]
    parser.add_argument("--network", required=True, choices=names)
    parser.add_argument("--data", help="a folder of class folders; or mnist, fashion")
    parser.add_argument("--name", help="of the model (default: the network's)")
    parser.add_argument("--epochs", type=int, help="at most (default: the tutorial's)")
    parser.add_argument("--model-repo", type=Path, default=MODEL_REPOSITORY)
    return parser.parse_args()


def read(network: Network, arguments: argparse.Namespace) -> tuple[Sequence[str], list[Part]]:
    """Labels, and training, validation and test data."""
    name = arguments.data or ("mnist" if network.color == "gray" else None)
    if name is None:
        raise SystemExit("--data FOLDER is needed: one folder of pictures for each class")
    if name in PACKAGED:
        data = PACKAGED[name]()
        cut = len(data.train.labels) * 9 // 10  # MNIST brings no validation set
        images, classes = data.train.images, data.train.labels
        parts = [(images[:cut], classes[:cut]), (images[cut:], classes[cut:]), (data.test.images, data.test.labels)]
        return network.labels, parts
    labels, files = class_folders.read(Path(name))
    if len(labels) != len(network.labels):
        raise SystemExit(f"--data {name} has {len(labels)} classes, and {arguments.network} {len(network.labels)}")
    return labels, [(part.paths, part.classes) for part in class_folders.split(files, SHARES, SEED)]


def batches(built: Any, network: Network, part: Part, *, train: bool) -> Batches:
    one_hot = built.output_shape[-1] if built.loss == "categorical_crossentropy" else 0
    return Batches(network, part, one_hot, train=train)


def fit(built: Any, train: Batches, validation: Batches, epochs: int) -> dict[str, list[float]]:
    """Train with Keras' progress bar; the network keeps the weights of the epoch that validates best."""
    best = keras.callbacks.EarlyStopping("val_accuracy", patience=PATIENCE, mode="max", restore_best_weights=True)
    return dict(built.fit(train, validation_data=validation, epochs=epochs, callbacks=[best]).history)


def decided(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """The class of each row: the best of several, or one side of a half."""
    return (scores[:, 0] >= 0.5).astype(np.int64) if scores.shape[1] == 1 else scores.argmax(axis=1)


def curves(history: dict[str, list[float]]) -> str:
    """Accuracy in training and validation by epoch, as an SVG."""
    epochs = len(history["accuracy"])
    lines = []
    for key, color in (("accuracy", "#1f6feb"), ("val_accuracy", "#d1570b")):
        points = " ".join(
            f"{40 + 400 * i / max(epochs - 1, 1):.1f},{220 - 200 * v:.1f}" for i, v in enumerate(history[key])
        )
        lines.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        y = 244 if key == "accuracy" else 262
        name = "training" if key == "accuracy" else "validation"
        lines.append(f'<text x="40" y="{y}" fill="{color}">{name} accuracy, at the end {history[key][-1]:.3f}</text>')
    marks = [
        f'<path d="M40 {220 - 50 * i}H440" stroke="#ccc"/><text x="8" y="{224 - 50 * i}">{i / 4:g}</text>'
        for i in range(5)
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 460 272" font-family="sans-serif" font-size="13">'
        f'<rect width="460" height="272" fill="#fff"/>{"".join(marks + lines)}</svg>\n'
    )


def put(
    built: Any, network: Network, labels: Sequence[str], arguments: argparse.Namespace, history: Any, measured: str
) -> None:
    """Import the network as any other, and leave its curves and figures beside it."""
    name = arguments.name or arguments.network
    flags = {"labels": ",".join(labels), "preset": network.preset} | network.flags
    words = [word for key, value in flags.items() for word in (f"--{key}", value)]
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / f"{name}.keras"
        built.save(source)
        code = cli.main(["import", str(source), "--name", name, "--model-repo", str(arguments.model_repo), *words])
    if code:
        raise SystemExit(code)
    folder = arguments.model_repo / name
    (folder / "curves.svg").write_text(curves(history), encoding="utf-8")
    with (folder / "README.md").open("a", encoding="utf-8") as card:
        card.write(
            f"\n## Measured on pictures not trained on\n\n```\n{measured}\n```\n\n![accuracy by epoch](curves.svg)\n"
        )


if __name__ == "__main__":
    main()
