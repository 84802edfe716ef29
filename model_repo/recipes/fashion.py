"""Makes `fashion`: a convolutional network that names articles of clothing, trained on Fashion-MNIST with Keras."""

import os

os.environ["KERAS_BACKEND"] = "torch"

import exported_model
import idx_datasets
import keras
import torch
from idx_datasets import Split
from keras import layers

NAME = "fashion"
LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SEED = 28
THREADS = 2  # fixed: the order of sums depends on it, and so do the last digits of every weight
MAX_EPOCHS = 15
PATIENCE = 4  # epochs without a better validation accuracy before training ends
BATCH_SIZE = 64
VALIDATION_SPLIT = 0.2
PARITY_IMAGES = 1000
REQUIRED_ACCURACY = 0.9


def main() -> None:
    """Train, export, compare, measure, publish, and fill in the card."""
    make_repeatable()
    data = idx_datasets.fashion_mnist()
    network = build()
    best_epoch = train(network, data.train)
    with exported_model.draft(NAME) as path:
        network.export(path, format="onnx", verbose=False)
        exported_model.seal(path, "input", "probabilities")
        inputs, truth = data.test.inputs(), data.test.labels
        exported = exported_model.predict(path, inputs)
        framework = network.predict(inputs[:PARITY_IMAGES], verbose=0)
        difference = exported_model.require_parity(framework, exported[:PARITY_IMAGES])
        reached = exported_model.require_accuracy(exported, truth, REQUIRED_ACCURACY)
        hardest, recall = exported_model.hardest_class(exported, truth, LABELS)
        figures = [
            *exported_model.file_figures(path),
            ("Parameters", f"{network.count_params():,}"),
            ("Test accuracy", f"{reached:.2%} of {len(truth):,} images"),
            ("Hardest class", f"{hardest}, {recall:.1%} recognised"),
            ("Parity with Keras", f"{difference:.1e} on {PARITY_IMAGES:,} test images"),
            ("Epoch kept", f"{best_epoch} of at most {MAX_EPOCHS}"),
        ]
    exported_model.write_labels(NAME, LABELS)
    exported_model.write_figures(NAME, figures)


def make_repeatable() -> None:
    """Fix everything that chance decides: first weights, order of images, order of sums."""
    keras.utils.set_random_seed(SEED)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(THREADS)


def build() -> keras.Model:
    """The network, compiled: float32 [n, 28, 28, 1] in 0..1 to ten probabilities."""
    network = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(len(LABELS), activation="softmax"),
        ]
    )
    network.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    return network


def train(network: keras.Model, split: Split) -> int:
    """Train, leave the network with the weights of the epoch that validates best, return that epoch (from 1)."""
    keep_best = keras.callbacks.EarlyStopping("val_accuracy", patience=PATIENCE, mode="max", restore_best_weights=True)
    network.fit(
        split.inputs(),
        keras.utils.to_categorical(split.labels, len(LABELS)),
        epochs=MAX_EPOCHS,
        batch_size=BATCH_SIZE,
        validation_split=VALIDATION_SPLIT,
        callbacks=[keep_best],
        verbose=2,
    )
    return keep_best.best_epoch + 1


if __name__ == "__main__":
    main()
