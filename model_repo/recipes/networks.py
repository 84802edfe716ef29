"""The networks of five well-read tutorials on convolutional networks, built in Keras 3 exactly as they stand there.

Each builds a compiled, untrained network. Owns layers, losses and how each was fed; knows no data. The applications
(ResNet50, VGG16, ...) come without their published weights: `weights` names them for whoever can download them.
"""

import os

os.environ["KERAS_BACKEND"] = "torch"

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
from keras import layers

Weights = str | None

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MNIST = tuple("0123456789")
BLOOD_CELLS = ("EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE", "NEUTROPHIL")
TWO_CLASSES = ("class 0", "class 1")  # index 0 is the class below 0.5


@dataclass(frozen=True)
class Network:
    """One row: how it is built, and what `fovea import` is told of how it was trained (`flags`)."""

    build: Callable[[], keras.Model]
    labels: Sequence[str]
    size: tuple[int, int]
    preset: str = "unit"
    flags: dict[str, str] = field(default_factory=dict)  # further ones, without the two dashes
    frames: int = 0
    batch_size: int = 32
    epochs: int = 10
    augment: bool = False

    @property
    def color(self) -> str:
        return self.flags.get("color", "rgb")


def mnist_cnn() -> keras.Model:
    """347,146 parameters; five epochs of MNIST."""
    return _compiled(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ],
        "sparse_categorical_crossentropy",
    )


def cifar_cnn_same() -> keras.Model:
    """Three convolutions with padding; one-hot labels, batches of 64, a fifth for validation."""
    return _compiled(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ],
        "categorical_crossentropy",
    )


def cifar_cnn() -> keras.Model:
    """Two convolutions without padding."""
    return _compiled(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ],
        "sparse_categorical_crossentropy",
    )


def binary_cnn() -> keras.Model:
    """Two classes and one sigmoid unit: 7,392,449 parameters, nearly all of them behind Flatten."""
    return _binary(
        [
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
        ]
    )


def binary_cnn_dropout() -> keras.Model:
    """As `binary_cnn`, regularised by Dropout."""
    return _binary(
        [
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Dropout(0.25),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Dropout(0.25),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.5),
        ]
    )


def binary_cnn_batchnorm() -> keras.Model:
    """As `binary_cnn`, regularised by BatchNormalization."""
    return _binary(
        [
            layers.Conv2D(32, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.BatchNormalization(),
        ]
    )


def binary_resnet50(weights: Weights = None) -> keras.Model:
    """Transfer learning: a frozen ResNet50 without its head, and a new one."""
    base = keras.applications.ResNet50(weights=weights, include_top=False, input_shape=(128, 128, 3))
    base.trainable = False
    return _binary([base, layers.Flatten(), layers.Dense(128, activation="relu")])


def binary_clip_lstm(side: int = 128) -> keras.Model:
    """Clips of any length: the same convolution over every frame, an LSTM over the frames."""
    each = layers.TimeDistributed
    return _compiled(
        [
            keras.Input((None, side, side, 3)),
            each(layers.Conv2D(32, 3, activation="relu")),
            each(layers.MaxPooling2D(2)),
            each(layers.Flatten()),
            layers.LSTM(64),
            layers.Dense(1, activation="sigmoid"),
        ],
        "binary_crossentropy",
    )


def blood_cells() -> keras.Model:
    """Four kinds of white blood cells, read by OpenCV: blue first."""
    return _compiled(
        [
            keras.Input((200, 200, 3)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2, strides=2),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2, strides=2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(4, activation="softmax"),
        ],
        "sparse_categorical_crossentropy",
    )


def vgg16(weights: Weights = None) -> keras.Model:
    """A frozen VGG16 with a fresh head; fed as its authors did, blue first and less the mean colour."""
    return _fresh_head(keras.applications.VGG16(weights=weights, include_top=False, input_shape=(128, 128, 3)))


def inception_v3(weights: Weights = None) -> keras.Model:
    """A frozen InceptionV3 with a fresh head, fed -1..1."""
    return _fresh_head(keras.applications.InceptionV3(weights=weights, include_top=False, input_shape=(128, 128, 3)))


def efficientnet_b0(weights: Weights = None) -> keras.Model:
    """A frozen EfficientNetB0 with a fresh head; it scales pixels itself."""
    return _fresh_head(keras.applications.EfficientNetB0(weights=weights, include_top=False, input_shape=(128, 128, 3)))


# ViT-B/16, which Keras does not carry


@keras.saving.register_keras_serializable("fovea")
class ClassToken(layers.Layer):
    """A learned token in front of the patches."""

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.token = self.add_weight(shape=(1, 1, shape[-1]), initializer="zeros", name="token")

    def call(self, patches: Any) -> Any:
        token = 0 * patches[:, :1] + self.token  # one for each picture, however many there are
        return keras.ops.concatenate([token, patches], axis=1)


@keras.saving.register_keras_serializable("fovea")
class Positions(layers.Layer):
    """A learned position added to every token."""

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.table = self.add_weight(shape=(1, *shape[1:]), initializer="random_normal", name="positions")

    def call(self, tokens: Any) -> Any:
        return tokens + self.table


def vit_b16(blocks: int = 12) -> keras.Model:
    """ViT-B/16 without its head: the class token after `blocks` blocks of 768 numbers and 12 heads."""
    picture = keras.Input((128, 128, 3))
    patches = layers.Conv2D(768, 16, strides=16)(picture)
    tokens = Positions()(ClassToken()(layers.Reshape((64, 768))(patches)))
    for _ in range(blocks):
        inner = layers.LayerNormalization(epsilon=1e-6)(tokens)
        tokens = layers.Add()([tokens, layers.MultiHeadAttention(12, 64)(inner, inner)])
        inner = layers.LayerNormalization(epsilon=1e-6)(tokens)
        inner = layers.Dense(768)(layers.Dense(3072, activation="gelu")(inner))
        tokens = layers.Add()([tokens, inner])
    tokens = layers.LayerNormalization(epsilon=1e-6)(tokens)
    return keras.Model(picture, tokens[:, 0], name="vit_b16")


def binary_vit_b16(blocks: int = 12) -> keras.Model:
    """Transfer learning on a vision transformer."""
    return _binary([vit_b16(blocks), layers.Flatten(), layers.Dense(128, activation="relu")])


def _compiled(parts: Sequence[Any], loss: str) -> keras.Model:
    network = keras.Sequential(list(parts))
    network.compile(optimizer="adam", loss=loss, metrics=["accuracy"])  # Adam's own rate is the 0.001 that is asked for
    return network


def _binary(parts: Sequence[Any]) -> keras.Model:
    head = layers.Dense(1, activation="sigmoid")
    return _compiled([keras.Input((128, 128, 3)), *parts, head], "binary_crossentropy")


def _fresh_head(base: keras.Model) -> keras.Model:
    base.trainable = False
    head = [layers.GlobalAveragePooling2D(), layers.Dense(3, activation="softmax")]
    return _compiled([keras.Input((128, 128, 3)), base, *head], "sparse_categorical_crossentropy")


_FOLDER = {"resampler": "pil", "interpolation": "bilinear", "resize": "stretch"}  # load_img(interpolation="bilinear")
_OPENCV = {"resampler": "opencv", "interpolation": "bilinear", "resize": "stretch", "color": "bgr"}
_TWO = (TWO_CLASSES, (128, 128))
_THREE = (("a", "b", "c"), (128, 128))

NETWORKS: dict[str, Network] = {
    "mnist_cnn": Network(mnist_cnn, MNIST, (28, 28), flags=_FOLDER | {"color": "gray"}, epochs=5),
    "cifar_cnn_same": Network(cifar_cnn_same, CIFAR10, (32, 32), flags=_FOLDER, batch_size=64, epochs=15),
    "cifar_cnn": Network(cifar_cnn, CIFAR10, (32, 32), flags=_FOLDER),
    "binary_cnn": Network(binary_cnn, *_TWO, flags=_FOLDER, augment=True),
    "binary_cnn_dropout": Network(binary_cnn_dropout, *_TWO, flags=_FOLDER, augment=True),
    "binary_cnn_batchnorm": Network(binary_cnn_batchnorm, *_TWO, flags=_FOLDER, augment=True),
    "binary_resnet50": Network(binary_resnet50, *_TWO, flags=_FOLDER, epochs=5),
    "binary_clip_lstm": Network(binary_clip_lstm, *_TWO, flags=_FOLDER, frames=6),
    "binary_vit_b16": Network(binary_vit_b16, *_TWO, flags=_FOLDER),
    "blood_cells": Network(blood_cells, BLOOD_CELLS, (200, 200), flags=_OPENCV, batch_size=16, epochs=5),
    "vgg16": Network(vgg16, *_THREE, "caffe", _FOLDER),
    "inception_v3": Network(inception_v3, *_THREE, "keras_tf", _FOLDER),
    "efficientnet_b0": Network(efficientnet_b0, *_THREE, "raw", _FOLDER),
}
