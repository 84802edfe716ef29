"""Rounding a convolution's weights to int8 so that its output changes as little as possible. numpy only.

Each weight alone is best rounded to its nearest step. Together they are not: what one weight's rounding adds to the
output, the next can take back, as far as their inputs go together (GPTQ, Frantar et al., 2022, for which it needs the
second moments of what the weights see). What is left on average goes into the bias (Nagel et al., 2019): the mean of an
input is far from 0 after a ReLU, and shifts add up from layer to layer.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

STEPS = 127  # of symmetric int8
_DAMPING = 0.01  # of the mean second moment: inputs that hardly vary in the calibration images may do so in service
_MOST_INPUTS = 2400  # to an output: the cost grows with the third power, and 2,400 take some seconds a layer


@dataclass(slots=True)
class Seen:
    """What the weights of a convolution see, group by group: sums over positions of images."""

    count: int
    sums: Floats  # (groups, inputs)
    products: Floats | None  # (groups, inputs, inputs); None where there are too many inputs

    @classmethod
    def nothing(cls, groups: int, inputs: int) -> "Seen":
        products = np.zeros((groups, inputs, inputs)) if inputs <= _MOST_INPUTS else None
        return cls(0, np.zeros((groups, inputs)), products)

    def add(self, windows: npt.NDArray[np.float32]) -> None:
        """`windows` (groups, positions, inputs)."""
        self.count += windows.shape[1]
        self.sums += windows.sum(axis=1, dtype=np.float64)
        if self.products is not None:
            self.products += np.matmul(windows.transpose(0, 2, 1), windows)


def windows_of(
    images: npt.NDArray[np.float32],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    groups: int,
    most: int,
) -> npt.NDArray[np.float32]:
    """What a kernel sees of (n, channels, h, w): (groups, positions, inputs), at most `most` positions an image.

    `pads` as ONNX has them: top, left, bottom, right.
    """
    padded = np.pad(images, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(2, 3))[:, :, :: strides[0], :: strides[1]]
    n, channels, height, width = windows.shape[:4]
    places = np.linspace(0, height * width - 1, min(most, height * width)).astype(int)  # the same in every image
    seen = windows[:, :, places // width, places % width]  # (n, channels, positions, kh, kw)
    parts = seen.reshape(n, groups, channels // groups, len(places), -1).transpose(1, 0, 3, 2, 4)
    return parts.reshape(groups, n * len(places), -1)


def rounded(weight: npt.NDArray[np.float32], seen: Seen) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The weights (out, in / groups, ...) on the grid of int8, and what that adds to each output on average.

    The grid is the one that the largest weight of each output gives, as quantization tools choose it.
    """
    groups = len(seen.sums)
    flat = weight.astype(np.float64).reshape(groups, len(weight) // groups, -1)
    result = np.stack([_group(flat[at], None if seen.products is None else seen.products[at]) for at in range(groups)])
    means = seen.sums / max(1, seen.count)
    shift = np.einsum("goi,gi->go", result - flat, means).reshape(-1)
    return result.reshape(weight.shape).astype(np.float32), shift.astype(np.float32)


def _group(weight: Floats, products: Floats | None) -> Floats:
    """(out, in) to its grid, one input after the other, the strongest first; the rest makes up for each error."""
    largest = np.abs(weight).max(axis=1, keepdims=True)
    step = np.where(largest == 0, 1.0, largest / STEPS)
    if products is None or not products.any():
        return np.asarray(np.rint(weight / step) * step)
    order = np.argsort(-np.diag(products))
    moments = products[np.ix_(order, order)]
    moments = moments + np.eye(len(order)) * _DAMPING * np.mean(np.diag(moments))
    factor = np.linalg.cholesky(np.linalg.inv(moments)).T  # upper: row i says how the later inputs go with input i
    left, result = weight[:, order].copy(), np.empty_like(weight)
    for at in range(len(order)):
        on_grid = np.clip(np.rint(left[:, at] / step[:, 0]), -STEPS, STEPS) * step[:, 0]
        error = (left[:, at] - on_grid) / factor[at, at]
        left[:, at + 1 :] -= np.outer(error, factor[at, at + 1 :])
        result[:, order[at]] = on_grid
    places = np.abs(weight).argmax(axis=1)  # the weight that the grid hangs on stays at its end
    rows = np.arange(len(weight))
    result[rows, places] = np.sign(weight[rows, places]) * STEPS * step[:, 0]
    return result
