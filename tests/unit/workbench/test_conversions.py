"""int8 and fp16 copies of small networks, and the correction that keeps int8 near the original."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import helper

from service.errors import ConfigurationError
from service.workbench import conversions, stem
from tests.support import tiny_models

IMAGES = np.random.default_rng(0).random((32, 3, 16, 16)).astype(np.float32)


def network(*, layers: int = 4, groups: int = 1, batch: int | str = "N") -> onnx.ModelProto:
    """Convolutions with ReLUs, their weights far from anything int8 holds exactly, pooled into three scores."""
    random = np.random.default_rng(1)
    nodes, constants, before, channels = [], {}, "image", 3
    for at in range(layers):
        of_group = channels // (groups if at else 1)
        weight = random.normal(0.0, (of_group * 9) ** -0.5, (16, of_group, 3, 3)).astype(np.float32)
        constants |= {f"w{at}": weight, f"b{at}": random.normal(0.1, 0.1, 16).astype(np.float32)}
        nodes.append(
            helper.make_node(
                "Conv", [before, f"w{at}", f"b{at}"], [f"c{at}"], pads=[1, 1, 1, 1], group=groups if at else 1
            )
        )
        nodes.append(helper.make_node("Relu", [f"c{at}"], [f"r{at}"]))
        before, channels = f"r{at}", 16
    constants["head"] = random.normal(size=(16, 3)).astype(np.float32)
    nodes += [
        helper.make_node("GlobalAveragePool", [before], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["scores"]),
    ]
    sides = {"image": ("float32", (batch, 3, 16, 16))}, {"scores": ("float32", (batch, 3))}
    return tiny_models.graph(nodes, *sides, constants)


def photographic(
    *, kernel: int = 3, stride: int = 2, pads: Sequence[int] = (0, 0, 1, 1), channels: int = 3, activation: str = "Clip"
) -> onnx.ModelProto:
    """A network whose first convolution strides over a picture of 16 x 24 pixels."""
    random = np.random.default_rng(2)
    constants = {
        "w0": random.normal(0.0, 0.2, (16, channels, kernel, kernel)).astype(np.float32),
        "b0": random.normal(0.1, 0.1, 16).astype(np.float32),
        "w1": random.normal(0.0, 0.1, (16, 16, 3, 3)).astype(np.float32),
        "b1": np.zeros(16, np.float32),
        "head": random.normal(size=(16, 3)).astype(np.float32),
        "least": np.float32(0.0),
        "most": np.float32(6.0),
    }
    acts = {"Clip": ["c0", "least", "most"], "Relu": ["c0"], "Sigmoid": ["c0"]}[activation]
    nodes = [
        helper.make_node("Conv", ["image", "w0", "b0"], ["c0"], pads=list(pads), strides=[stride, stride]),
        helper.make_node(activation, acts, ["r0"]),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c1"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["scores"]),
    ]
    sides = {"image": ("float32", ("N", channels, 16, 24))}, {"scores": ("float32", ("N", 3))}
    return tiny_models.graph(nodes, *sides, constants)


def pictures(channels: int = 3) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (32, 16, 24, channels), np.uint8)


def answers(path: Path, images: npt.NDArray[Any] = IMAGES) -> npt.NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    result: npt.NDArray[np.float32] = session.run(None, {"image": images})[0]
    return result


@pytest.mark.parametrize("groups", [1, 16])
def test_int8_copy_answers_like_the_original_and_is_int8_inside(tmp_path: Path, groups: int) -> None:
    source = tiny_models.save(network(groups=groups), tmp_path / "source.onnx")
    conversions.int8(source, tmp_path / "int8.onnx", IMAGES)
    before, after = answers(source), answers(tmp_path / "int8.onnx")
    assert np.abs(after - before).max() < 0.05 * np.ptp(before)
    ops = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert ops.count("Conv") == 4
    assert "QuantizeLinear" in ops


def test_layers_are_quantized_but_the_pictures_own_and_what_comes_after_them(tmp_path: Path) -> None:
    model = network()
    model.graph.node.append(helper.make_node("Softmax", ["scores"], ["chances"]))
    model.graph.output[0].name = "chances"
    source = tiny_models.save(model, tmp_path / "source.onnx")
    conversions.int8(source, tmp_path / "int8.onnx", IMAGES)
    graph = onnx.load(tmp_path / "int8.onnx").graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    weighted = [node for node in graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    assert [made_by.get(node.input[1]) for node in weighted] == [None, *["DequantizeLinear"] * 4]
    assert made_by["chances"] == "Softmax"


@pytest.mark.parametrize("conversion", [conversions.int8, conversions.fp16])
def test_graph_with_a_fixed_batch_is_converted_too(tmp_path: Path, conversion: conversions.Conversion) -> None:
    source = tiny_models.save(network(batch=1), tmp_path / "source.onnx")
    conversion(source, tmp_path / "copy.onnx", IMAGES)
    before, after = answers(source, IMAGES[:1]), answers(tmp_path / "copy.onnx", IMAGES[:1])
    assert np.abs(after - before).max() < 0.1


def test_same_conversion_gives_the_same_bytes(tmp_path: Path) -> None:
    source = tiny_models.save(network(), tmp_path / "source.onnx")
    for name in ("one", "other"):
        conversions.int8(source, tmp_path / name, IMAGES)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_rounding_together_takes_most_of_the_error_on_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_models.save(network(layers=8), tmp_path / "source.onnx")
    conversions.int8(source, tmp_path / "together.onnx", IMAGES)
    monkeypatch.setattr(conversions, "_round_weights", lambda *_: None)
    conversions.int8(source, tmp_path / "plain.onnx", IMAGES)
    together, plain = (
        np.abs((answers(tmp_path / f"{name}.onnx") - answers(source)).mean(axis=0)).mean()
        for name in ("together", "plain")
    )
    assert together < plain * 0.7


def test_fp16_copy_keeps_its_inputs_and_outputs(tmp_path: Path) -> None:
    source = tiny_models.save(network(), tmp_path / "source.onnx")
    conversions.fp16(source, tmp_path / "fp16.onnx", IMAGES)
    assert np.abs(answers(tmp_path / "fp16.onnx") - answers(source)).max() < 0.01
    assert (tmp_path / "fp16.onnx").stat().st_size < 0.7 * source.stat().st_size


def test_network_without_layers_is_refused(tmp_path: Path) -> None:
    source = tiny_models.save(tiny_models.inverse(), tmp_path / "source.onnx")
    with pytest.raises(ConfigurationError, match="nothing to quantize"):
        conversions.int8(source, tmp_path / "int8.onnx", IMAGES[:, :, :8, :8])


def test_missing_tools_are_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversions, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"make quantize.*fovea\[quantize\]"):
        conversions.require_tools()


STEMS: dict[str, dict[str, Any]] = {
    "EfficientNet's": {},
    "as PyTorch pads": {"pads": (1, 1, 1, 1)},
    "ResNet's": {"kernel": 7, "pads": (3, 3, 3, 3)},
    "of patches": {"kernel": 4, "stride": 4, "pads": (0, 0, 0, 0)},
    "gray": {"channels": 1},
    "with a ReLU": {"activation": "Relu"},
    "with what stays behind": {"activation": "Sigmoid"},
}


@pytest.mark.parametrize("kind", STEMS)
def test_a_first_convolution_over_several_pixels_gives_the_same_numbers(tmp_path: Path, kind: str) -> None:
    model = photographic(**STEMS[kind])
    channels = STEMS[kind].get("channels", 3)
    before = tiny_models.save(model, tmp_path / "before.onnx")
    assert stem.widen(model)
    after = tiny_models.save(model, tmp_path / "after.onnx")
    widened = next(node for node in onnx.load(after).graph.node if node.op_type == "Conv")
    weight = next(tensor for tensor in onnx.load(after).graph.initializer if tensor.name == widened.input[1])
    assert weight.dims[1] % 4 == 0
    rows = (pictures(channels).transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)
    np.testing.assert_allclose(answers(after, rows), answers(before, rows), atol=1e-5)


@pytest.mark.parametrize(
    "kind",
    [
        {"stride": 1, "pads": (1, 1, 1, 1)},
        {"pads": (0, 0, 0, 0)},  # its output is no half of the picture
        {"kernel": 3, "stride": 5, "pads": (0, 0, 0, 0)},
    ],
    ids=["without a stride", "not half as wide", "of a stride that the width is no multiple of"],
)
def test_other_first_convolutions_stay_as_they_are(kind: dict[str, Any]) -> None:
    model = photographic(**kind)
    before = model.SerializeToString()
    assert not stem.widen(model)
    assert model.SerializeToString() == before


def test_int8_copy_takes_the_pixels_themselves_where_it_may(tmp_path: Path) -> None:
    source = tiny_models.save(photographic(), tmp_path / "source.onnx")
    pixels = stem.Pixels(1 / 128, 127)
    rows = ((pictures().astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(pixels.of(rows, "nchw"), pictures())
    assert conversions.int8(source, tmp_path / "pixels.onnx", rows, pixels)
    assert not conversions.int8(source, tmp_path / "floats.onnx", rows)
    before, by_floats = answers(source, rows), answers(tmp_path / "floats.onnx", rows)
    by_pixels = answers(tmp_path / "pixels.onnx", pictures())
    assert np.abs(by_pixels - before).max() < 0.05 * np.ptp(before)
    np.testing.assert_allclose(by_pixels, by_floats, atol=0.01 * np.ptp(before))
    graph = onnx.load(tmp_path / "pixels.onnx").graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    weighted = [node for node in graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    assert [made_by.get(node.input[1]) for node in weighted] == ["DequantizeLinear"] * 3
