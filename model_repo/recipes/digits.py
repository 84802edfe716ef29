"""Makes `digits`: a small convolutional network that reads handwritten digits, trained on MNIST with Keras."""

import os

os.environ["KERAS_BACKEND"] = "torch"

import exported_model
import idx_datasets
import keras
import torch
from keras import layers

NAME = "digits"
LABELS = tuple(str(digit) for digit in range(10))
SEED = 28
THREADS = 2  # fixed: the order of sums depends on it, and so do the last digits of every weight
EPOCHS = 5
PARITY_IMAGES = 1000
REQUIRED_ACCURACY = 0.985


def main() -> None:
    """Train, export, compare, measure, publish, and fill in the card."""
    make_repeatable()
    data = idx_datasets.mnist()
    network = build()
    network.fit(data.train.inputs(), data.train.labels, epochs=EPOCHS, verbose=2)
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
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(len(LABELS), activation="softmax"),
        ]
    )
    network.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return network


if __name__ == "__main__":
    main()
