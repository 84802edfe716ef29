"""A picture as a tutorial's network is fed in training, by the functions that the tutorial calls."""

from pathlib import Path
from typing import IO, Any

import numpy as np
from networks import Network, keras
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


def prepared(network: Network, file: Path | IO[bytes]) -> FloatArray:
    """float32 [height, width, channels], scaled as the network's preset says."""
    return scaled(network, pixels(network, file))


def pixels(network: Network, file: Path | IO[bytes]) -> FloatArray:
    """0..255, at the network's size: by OpenCV (blue first) where the tutorial reads with it, else by `load_img`."""
    if network.flags["resampler"] == "opencv":
        import cv2

        height, width = network.size
        return cv2.resize(cv2.imread(str(file)), (width, height)).astype(np.float32)
    mode = "grayscale" if network.color == "gray" else "rgb"
    loaded: Any = keras.utils.load_img(file, color_mode=mode, target_size=network.size, interpolation="bilinear")
    return keras.utils.img_to_array(loaded)


def scaled(network: Network, picture: FloatArray) -> FloatArray:
    """As the network's authors had it."""
    if network.preset == "caffe":
        return keras.applications.vgg16.preprocess_input(picture.copy())
    if network.preset == "keras_tf":
        return keras.applications.inception_v3.preprocess_input(picture.copy())
    return picture if network.preset == "raw" else picture / np.float32(255)
