"""Weights rounded together against weights rounded one by one."""

import numpy as np
import numpy.typing as npt
import pytest

from service.workbench.rounding import Seen, rounded, windows_of


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def inputs(random: np.random.Generator, groups: int, count: int, width: int) -> npt.NDArray[np.float32]:
    """Like activations after a ReLU: correlated, and with a mean far from 0."""
    mixed = random.normal(size=(groups, count, 4)) @ random.normal(size=(groups, 4, width))
    return np.maximum(0.0, mixed + random.normal(0.5, 0.3, (groups, count, width))).astype(np.float32)


def nearest(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    step = np.abs(weight).max(axis=tuple(range(1, weight.ndim)), keepdims=True) / 127
    return np.rint(weight / step) * step


@pytest.mark.parametrize(("groups", "out", "width"), [(1, 16, 48), (12, 12, 9), (2, 8, 18)])
def test_outputs_change_less_than_with_each_weight_rounded_alone(
    random: np.random.Generator, groups: int, out: int, width: int
) -> None:
    weight = random.normal(size=(out, width, 1, 1)).astype(np.float32)
    x = inputs(random, groups, 4000, width)
    seen = Seen.nothing(groups, width)
    seen.add(x[:, :2000])
    together, shift = rounded(weight, seen)

    def error(changed: npt.NDArray[np.float32], added: npt.NDArray[np.float32]) -> float:
        difference = (changed - weight).reshape(groups, out // groups, width)
        outputs = np.einsum("goi,gni->gno", difference, x[:, 2000:]) - added.reshape(groups, 1, -1)
        return float(np.mean(outputs**2))

    assert error(together, shift) < 0.5 * error(nearest(weight), np.zeros(out, np.float32))


def test_rounded_weights_lie_where_a_quantizer_finds_them(random: np.random.Generator) -> None:
    weight = random.normal(size=(16, 48, 1, 1)).astype(np.float32)
    seen = Seen.nothing(1, 48)
    seen.add(inputs(random, 1, 1000, 48))
    result, _ = rounded(weight, seen)
    np.testing.assert_allclose(nearest(result), result, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.abs(result).max(axis=1), np.abs(weight).max(axis=1), rtol=1e-6)


def test_shift_is_what_rounding_adds_on_average(random: np.random.Generator) -> None:
    weight, x = random.normal(size=(4, 6, 1, 1)).astype(np.float32), inputs(random, 1, 500, 6)
    seen = Seen.nothing(1, 6)
    seen.add(x)
    result, shift = rounded(weight, seen)
    added = (x[0] @ (result - weight)[:, :, 0, 0].T).mean(axis=0)
    np.testing.assert_allclose(shift, added, atol=1e-5)


def test_layers_with_too_many_inputs_are_rounded_to_the_nearest(random: np.random.Generator) -> None:
    weight = random.normal(size=(2, 3000, 1, 1)).astype(np.float32)
    seen = Seen.nothing(1, 3000)
    seen.add(inputs(random, 1, 10, 3000))
    assert seen.products is None
    np.testing.assert_allclose(rounded(weight, seen)[0], nearest(weight), rtol=1e-5, atol=1e-7)


def test_weights_that_are_all_zero_stay_so(random: np.random.Generator) -> None:
    weight = np.zeros((2, 3, 1, 1), np.float32)
    seen = Seen.nothing(1, 3)
    seen.add(inputs(random, 1, 10, 3))
    assert not rounded(weight, seen)[0].any()


@pytest.mark.parametrize(
    ("kernel", "strides", "pads", "groups"),
    [((1, 1), (1, 1), (0, 0, 0, 0), 1), ((3, 3), (2, 2), (0, 0, 1, 1), 1), ((3, 5), (1, 2), (1, 2, 1, 2), 4)],
)
def test_windows_are_what_a_convolution_sees(
    random: np.random.Generator,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    groups: int,
) -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    images = random.normal(size=(2, 4, 8, 10)).astype(np.float32)
    weight = random.normal(size=(8, 4 // groups, *kernel)).astype(np.float32)
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], strides=strides, pads=pads, group=groups)
    (expected,) = ReferenceEvaluator(node).run(None, {"x": images, "w": weight})
    windows = windows_of(images, kernel, strides, pads, groups, 10_000)
    outputs = np.einsum("goi,gpi->gop", weight.reshape(groups, 8 // groups, -1), windows).reshape(8, 2, -1)
    np.testing.assert_allclose(outputs.transpose(1, 0, 2).reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)
