"""ONNX files through `fovea import`: what is read, asked for or refused, and that the result is served."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from service import cli, manifest
from service.workbench.importing import decisions
from tests.support import tiny_models
from tests.support.tiny_models import best_labels, classifier, classify, graph, picture, serving
from tests.unit.importing.conftest import LABELS, UNIT, Import


def with_front(nodes: list[onnx.NodeProto], constants: dict[str, Any], **options: Any) -> onnx.ModelProto:
    """A colour classifier behind `nodes`, which take "pixels" to "image"."""
    model = classifier(**options)
    for place, node in enumerate(nodes):
        model.graph.node.insert(place, node)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.float32(v), k) for k, v in constants.items())
    model.graph.input[0].name = "pixels"
    return model


def rescaled(scale: float, offset: float = 0.0, **options: Any) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Mul", ["pixels", "factor"], ["multiplied"]),
        helper.make_node("Add", ["multiplied", "offset"], ["image"]),
    ]
    return with_front(nodes, {"factor": scale, "offset": offset}, **options)


def flat(batch: int | str = "N") -> onnx.ModelProto:
    """Red, green and blue of one pixel, as a row of three numbers times four."""
    nodes = [helper.make_node("MatMul", ["row", "weights"], ["scores"])]
    weights = np.tile(np.eye(3), (4, 1)) * tiny_models.GAIN / 4
    shapes = {"row": ("float32", (batch, 12))}, {"scores": ("float32", (batch, 3))}
    return graph(nodes, *shapes, {"weights": weights.astype(np.float32)})


async def answers(repository: Path, *pictures: bytes) -> list[str]:
    async with serving(repository) as server:
        assert server.repository.status("mine").reason == ""
        return best_labels(await classify(server.pipeline, "mine", *pictures))


COLORS = [picture("red"), picture("blue"), picture("green")]


@pytest.mark.parametrize(
    ("model", "flags", "keys"),
    [
        (classifier(), UNIT, {"layout": "nchw", "activation": "softmax"}),
        (classifier(layout="nhwc", ending="Softmax"), UNIT, {"layout": "nhwc", "activation": "none"}),
        (classifier(batch=1), UNIT, {}),
        (classifier(batch=4), UNIT, {}),
        (classifier(size=("h", "w")), (*UNIT, "--size", "8", "12"), {"size": [8, 12]}),
        (classifier(channels=3, size=(3, 3)), (*UNIT, "--layout", "nchw"), {"layout": "nchw"}),
        (classifier(ending="Sigmoid"), UNIT, {"task": "multilabel", "activation": "none"}),
        (classifier(dtype="uint8"), (), {"preset": "raw"}),
        (rescaled(1 / 255), (), {"preset": "raw"}),
        (rescaled(1 / 127.5, -1.0), (), {"preset": "raw"}),
        (rescaled(2.0, -1.0), (), {"preset": "unit"}),
        (classifier(), ("--scale", "1", "--mean", "127", "--std", "128"), {"scale": [1.0], "mean": [127.0]}),
        (flat(), (*UNIT, "--size", "2", "2"), {"layout": "nhwc", "size": [2, 2]}),
        (flat(batch=1), (*UNIT, "--size", "2"), {"size": [2, 2]}),
    ],
)
async def test_a_graph_is_read_written_and_served(
    import_model: Import, repository: Path, model: onnx.ModelProto, flags: tuple[str, ...], keys: dict[str, Any]
) -> None:
    said = import_model(model, *flags, *LABELS, "--resize", "stretch")
    assert said.code == 0, said
    table = manifest.read(repository / "mine").model_dump(exclude_unset=True)
    written = table["input"] | table["output"]
    assert {key: list(v) if isinstance(v := written[key], tuple) else v for key in keys} == keys
    assert written["decode"] == "exact"
    assert await answers(repository, *COLORS) == ["red", "blue", "green"]


@pytest.mark.parametrize(("scale", "offset"), [(1 / 60, 0.0), (1.0, -0.05), (0.5, 0.5), (3.0, 0.1)])
def test_a_scaling_that_tells_nothing_of_what_it_is_fed_is_shown_and_asked_about(
    import_model: Import, scale: float, offset: float
) -> None:
    """Such as a BatchNormalization of pictures that were centred before it."""
    said = import_model(rescaled(scale, offset), *LABELS)
    assert said.code == 2
    assert "--preset" in said.err and f"The graph itself does x * {scale:.4g}" in said.err


async def test_a_fixed_batch_is_opened(import_model: Import, repository: Path) -> None:
    said = import_model(classifier(batch=4), *UNIT, *LABELS)
    assert "the batch dimension was fixed at 4; it is open now" in said.out
    (entry,) = onnx.load(repository / "mine/1/model.onnx").graph.input
    assert entry.type.tensor_type.shape.dim[0].dim_param == "N"


async def test_weights_listed_as_inputs_are_none(import_model: Import, repository: Path) -> None:
    model = classifier(batch=1)
    model.ir_version = 3
    model.opset_import[0].version = 9
    for initializer in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(initializer.name, initializer.data_type, list(initializer.dims))
        )
    said = import_model(model, *UNIT, *LABELS, "--resize", "stretch")
    assert said.code == 0, said
    assert "it is open now" in said.out
    assert await answers(repository, *COLORS) == ["red", "blue", "green"]


def test_a_batch_that_cannot_be_opened_stays_one_or_is_refused(import_model: Import, repository: Path) -> None:
    def mixing(batch: int) -> onnx.ModelProto:
        nodes = [
            helper.make_node("ReduceMean", ["image", "axes"], ["means"], keepdims=0),
            helper.make_node("Add", ["means", "table"], ["scores"]),  # a row for each of the batch, no more
        ]
        constants = {"axes": np.array([2, 3], np.int64), "table": np.zeros((batch + 1, 3), np.float32)[:batch]}
        shape = ("float32", (batch, 3, 8, 8))
        constants["table"] += np.arange(batch, dtype=np.float32)[:, None]
        return graph(nodes, {"image": shape}, {"scores": ("float32", (batch, 3))}, constants)

    said = import_model(mixing(2), *UNIT, *LABELS)
    assert said.code == 2
    assert "fixed at 2" in said.err and "dynamic_shapes" in said.err
    assert not list(repository.iterdir())


def test_gray_pictures_without_a_channel_get_one(import_model: Import, repository: Path) -> None:
    nodes = [helper.make_node("ReduceMean", ["rows", "axes"], ["scores"], keepdims=0)]
    model = graph(
        nodes, {"rows": ("float32", ("N", 5, 3))}, {"scores": ("float32", ("N", 3))}, {"axes": np.array([1], np.int64)}
    )
    said = import_model(model, *UNIT, *LABELS, "--activation", "softmax")
    assert said.code == 0, said
    table = manifest.read(repository / "mine").input
    assert table is not None and (table.color, table.size) == ("gray", (5, 3))


def test_one_sigmoid_unit_is_binary_with_two_labels(import_model: Import, repository: Path) -> None:
    assert import_model(tiny_models.one_unit(), *UNIT, "--labels", "dark,light").code == 0
    output = manifest.read(repository / "mine").output
    assert (output.task, output.activation) == ("binary", "none")


def test_one_number_without_activation_and_two_labels_is_a_logit_and_said_to_be_a_guess(import_model: Import) -> None:
    said = import_model(tiny_models.one_unit(ending=None), *UNIT, "--labels", "dark,light")
    assert said.code == 0
    assert "? binary" in said.out and "--activation" in said.out


def test_everything_that_is_missing_is_asked_for_at_once(import_model: Import, repository: Path) -> None:
    said = import_model(classifier())
    assert said.code == 2
    for flag in ("--preset", "--scale", "--labels", "--try"):
        assert flag in said.err
    assert not list(repository.iterdir())


def detector() -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", ["image"], ["boxes"])]
    shape = ("float32", ("N", 3, 8, 8))
    return graph(nodes, {"image": shape}, {"boxes": shape})


def text_reader() -> onnx.ModelProto:
    """Reads an image in strips, as networks for text do: a row of scores for each, where its shape promises one."""
    constants = {"strips": np.array([8, 1, 24], np.int64), "matrix": np.ones((24, 3), np.float32)}
    nodes = [
        helper.make_node("Reshape", ["image", "strips"], ["rows"]),
        helper.make_node("MatMul", ["rows", "matrix"], ["scores"]),
    ]
    return graph(nodes, {"image": ("float32", (1, 3, 8, 8))}, {"scores": ("float32", (1, "seqlen"))}, constants)


def ending_in(operator: str, **attributes: Any) -> onnx.ModelProto:
    model = classifier()
    model.graph.node[-1].CopyFrom(helper.make_node(operator, ["logits"], ["scores"], **attributes))
    if operator == "ArgMax":
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("scores", TensorProto.INT64, ["N", 1]))
    return model


def foreign() -> onnx.ModelProto:
    model = classifier()
    model.graph.node[-1].CopyFrom(helper.make_node("Swish", ["logits"], ["scores"], domain="my.lab"))
    model.opset_import.append(helper.make_opsetid("my.lab", 1))
    return model


def across_the_batch(axis: int) -> onnx.ModelProto:
    """LogSoftmax of one image's scores (axis 1), or of each score over all images (axis 0), as some have it."""
    return ending_in("LogSoftmax", axis=axis)


def only_single_images() -> onnx.ModelProto:
    """An open batch dimension on a graph that has room for one image."""
    model = classifier()
    logits = model.graph.node[-1]
    logits.CopyFrom(helper.make_node("Reshape", ["logits", "one_row"], ["scores"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 3], np.int64), "one_row"))
    return model


def quantized_as_it_runs() -> onnx.ModelProto:
    """As onnxruntime's quantize_dynamic: the steps of the integers follow from the largest mean of the whole batch."""
    model = classifier()
    product = next(node for node in model.graph.node if node.op_type == "MatMul")
    place = list(model.graph.node).index(product)
    product.input[0] = "means_again"
    parts = ["means_as_uint8", "step", "zero"]
    model.graph.node.insert(place, helper.make_node("DynamicQuantizeLinear", ["means"], parts))
    model.graph.node.insert(place + 1, helper.make_node("DequantizeLinear", parts, ["means_again"]))
    return model


def newer() -> onnx.ModelProto:
    model = classifier()
    model.opset_import[0].version = 99
    return model


@pytest.mark.parametrize(
    ("model", "flags", "said"),
    [
        (tiny_models.adder(), (), ["2 inputs", "a float32", "an image can feed one"]),
        (tiny_models.two_outputs(), ("--size", "2"), ["2 outputs", "--output NAME", "double", "half"]),
        (flat(), (), ["flat row of 12 numbers", "--size"]),
        (flat(), ("--size", "3"), ["--size 3 3", "12"]),
        (classifier(channels=4), UNIT, ["--layout"]),
        (classifier(size=("h", "w")), UNIT, ["any size", "--size"]),
        (classifier(), ("--size", "9"), ["--size 9 9", "8 x 8"]),
        (classifier(size=(3, 3)), UNIT, ["--layout nchw"]),
        (detector(), UNIT, ["[3, 8, 8]", "no row of scores", "--output"]),
        (text_reader(), UNIT, ["[8, 1, 3]", "for one image", "no row of scores"]),
        (ending_in("ArgMax", axis=1), UNIT, ["ArgMax", "which class won"]),
        (ending_in("Tanh"), UNIT, ["Tanh", "--activation"]),
        (across_the_batch(0), UNIT, ["beside it", "softmax over dimension 0", "batch_first"]),
        (tiny_models.batch_mixer(), UNIT, ["beside it", "on each image"]),
        (only_single_images(), UNIT, ["5 images do not run at once", "dynamic_axes"]),
        (foreign(), UNIT, ["my.lab::Swish", "ONNX Runtime does not have"]),
        (newer(), UNIT, ["opset 99", "export it with opset 20"]),
        (classifier(), (*UNIT, "--labels", "a,b"), ["2 labels", "3 outputs", "--labels"]),
        (classifier(), (*UNIT, "--labels", "nowhere"), ["nowhere", "no such file or folder"]),
        (classifier(), (*UNIT, "--scale", "1"), ["either --preset or --scale"]),
        (classifier(), ("--mean", "0.5"), ["need --scale", "1/255"]),
        (classifier(), ("--scale", "1", "--std", "0"), ["std must not be 0"]),
        (classifier(), (*UNIT, "--size", "1", "2", "3"), ["--size: one side for both"]),
        (classifier(), (*UNIT, "--version", "0"), ["--version 0", "numbered from 1"]),
        (classifier(), (*UNIT, "--resize-to", "4"), ["resize_to = 4", "less than the crop"]),
        (rescaled(1 / 255), UNIT, ["--preset unit", "twice", "--preset raw"]),
        (classifier(channels=1, matrix=np.ones((1, 3))), (*UNIT, "--color", "bgr"), ["--color bgr", "gray"]),
        (classifier(), (*UNIT, "--frames", "4"), ["--frames", "clips"]),
        (classifier(), (*UNIT, "--name", "../x"), ["--name ../x", "letters, digits"]),
        (tiny_models.one_unit(ending=None), UNIT, ["one number", "--task binary"]),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(
    import_model: Import, repository: Path, model: onnx.ModelProto, flags: tuple[str, ...], said: list[str]
) -> None:
    given = flags if "--labels" in flags or "one number" in said else (*flags, *LABELS)
    ended = import_model(model, *given)
    assert ended.code == 2, ended
    for words in said:
        assert words in ended.err, ended.err
    assert not list(repository.iterdir())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("weights.pth", ["without the network", "torch.export.save"]),
        ("model.safetensors", ["torch.export.save"]),
        ("model.tflite", ["tf2onnx"]),
        ("model.txt", ["cannot be imported", ".onnx, .keras"]),
        ("broken.onnx", ["is not an ONNX file"]),
    ],
)
def test_another_kind_of_file_is_told_how_to_be_exported(
    import_model: Import, tmp_path: Path, name: str, said: list[str]
) -> None:
    (tmp_path / name).write_bytes(b"nothing of the kind")
    ended = import_model(tmp_path / name)
    assert ended.code == 2
    for words in said:
        assert words in ended.err


def test_a_framework_that_is_not_installed_is_named_with_the_way_to_it(import_model: Import, tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"")
    ended = import_model(tmp_path / "model.pt2")
    assert ended.code == 2
    assert "torch is not installed" in ended.err and "make import" in ended.err


async def test_scores_of_each_image_alone_are_imported(import_model: Import, repository: Path) -> None:
    said = import_model(across_the_batch(1), *UNIT, *LABELS, "--resize", "stretch")
    assert said.code == 0, said
    assert await answers(repository, *COLORS) == ["red", "blue", "green"]


def test_a_graph_that_quantizes_whole_batches_is_imported_and_that_is_said(import_model: Import) -> None:
    said = import_model(quantized_as_it_runs(), *UNIT, *LABELS)
    assert said.code == 0, said
    assert "together ? an image's numbers move by" in said.out and "max_batch_size = 1" in said.out


def test_weights_that_do_not_lie_beside_the_graph_are_missed(import_model: Import, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(classifier(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    ended = import_model(path, *UNIT, *LABELS)
    assert ended.code == 2
    assert "must lie beside it" in ended.err


async def test_trying_shows_each_preprocessing_and_counts_what_it_gets_right(
    import_model: Import, tmp_path: Path
) -> None:
    for color in tiny_models.COLORS:
        for number in range(2):
            place = tmp_path / "photos" / color / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(picture(color))
    said = import_model(classifier(), *LABELS, "--try", tmp_path / "photos")
    assert said.code == 2  # the scaling is still to be said
    shown = said.out.split("right answers for 6 images")[1]
    assert [line.split() for line in shown.splitlines()[1:] if "--preset unit" in line] == [
        ["--preset", "unit", "100.0%"]
    ]
    assert "--preset caffe" in shown
    said = import_model(classifier(), *UNIT, *LABELS, "--try", tmp_path / "photos")
    assert said.code == 0
    wrong_order = next(line for line in said.out.split("right answers")[1].splitlines() if "--color bgr" in line)
    assert wrong_order.split()[-1] == "33.3%"
    assert "served as it is in the file" in said.out


def test_a_damaged_picture_among_those_tried_is_shown_and_passed_over(
    import_model: Import, tmp_path: Path, repository: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(tiny_models.damaged_picture())
    (tmp_path / "good.png").write_bytes(picture("red"))
    said = import_model(classifier(batch=1), *UNIT, *LABELS, "--try", tmp_path / "bad.png", tmp_path / "good.png")
    assert said.code == 0, said
    assert "damaged" in said.out
    assert "1 real pictures" in said.out
    assert (repository / "mine/1/golden-1.png").read_bytes() == picture("red")


async def test_a_second_version_goes_beside_the_first_where_it_is_fed_alike(
    import_model: Import, repository: Path
) -> None:
    assert import_model(classifier(), *UNIT, *LABELS).code == 0
    taken = import_model(classifier(), *UNIT, *LABELS)
    assert taken.code == 2 and "--version 2" in taken.err
    assert import_model(classifier(), *UNIT, *LABELS, "--version", "2").code == 0
    other = import_model(classifier(), "--scale", "1", *LABELS, "--version", "3")
    assert other.code == 2 and "another --name" in other.err
    assert sorted(path.name for path in (repository / "mine").iterdir() if path.is_dir()) == ["1", "2"]
    assert await answers(repository, picture("green")) == ["green"]


def test_what_it_answers_at_import_is_written_down(import_model: Import, tmp_path: Path, repository: Path) -> None:
    assert import_model(classifier(), *UNIT, *LABELS).code == 0
    golden = json.loads((repository / "mine/1/golden.json").read_text())
    assert [case["file"] for case in golden["cases"]] == ["golden-1.png", "golden-2.png", "golden-3.png"]
    (tmp_path / "mine.png").write_bytes(picture("blue"))
    assert import_model(classifier(), *UNIT, *LABELS, "--version", "2", "--try", tmp_path / "mine.png").code == 0
    (case,) = json.loads((repository / "mine/2/golden.json").read_text())["cases"]
    assert (repository / "mine/2" / case["file"]).read_bytes() == picture("blue")
    best = case["predictions"][0]
    assert (best["label"], best["index"]) == ("blue", 2)
    assert best["score"] == pytest.approx(np.exp(4) / (np.exp(4) + 2), abs=1e-5)


def test_the_report_says_what_is_known_what_is_guessed_and_how_equal_it_is(import_model: Import) -> None:
    said = import_model(classifier(), *UNIT, *LABELS)
    assert "scaling    unit   (--preset)" in said.out
    assert "colour   ? rgb" in said.out and "--color bgr" in said.out
    assert "parity     the graph is served as it is" in said.out
    opened = import_model(classifier(batch=2), *UNIT, *LABELS, "--version", "2")
    assert "0.0e+00 at most, on 5 random pictures" in opened.out


@pytest.mark.parametrize(
    ("flags", "shown", "resize_to"),
    [
        ((), "? shortest_side, 256, bilinear", 256),
        (("--resize-to", "224"), "? shortest_side, 224, bilinear", 224),
        (("--resize", "stretch"), "? stretch, bilinear", None),
    ],
)
def test_the_side_before_the_crop_is_shown_and_written_down(
    import_model: Import, repository: Path, flags: tuple[str, ...], shown: str, resize_to: int | None
) -> None:
    said = import_model(classifier(size=(224, 224)), *UNIT, *LABELS, *flags)
    assert said.code == 0, said
    (line,) = (line for line in said.out.splitlines() if line.startswith("resize"))
    assert shown in line
    assert ("--resize-to, --interpolation" in line) == (not flags)
    assert ("without the crop: --resize stretch" in line) == (not flags)
    table = manifest.read(repository / "mine").input
    assert table is not None and table.resize_to == resize_to


def test_a_hugging_face_config_beside_the_model_is_followed(
    import_model: Import, tmp_path: Path, repository: Path
) -> None:
    path = tiny_models.save(classifier(), tmp_path / "published" / "model.onnx")
    processor = {
        "do_resize": True, "size": {"shortest_edge": 10}, "do_center_crop": True,
        "crop_size": {"height": 8, "width": 8}, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    (path.parent / "preprocessor_config.json").write_text(json.dumps(processor))
    (path.parent / "config.json").write_text(json.dumps({"id2label": {"0": "cat", "1": "dog", "2": "cow"}}))
    said = import_model(path)
    assert said.code == 0, said
    table = manifest.read(repository / "mine").input
    assert table is not None
    assert (table.mean, table.std, table.resize, table.resize_to, table.interpolation) == (
        (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "shortest_side", 10, "bicubic",
    )  # fmt: skip
    assert (repository / "mine/labels.txt").read_text().split() == ["cat", "dog", "cow"]


def test_a_graph_that_leaves_every_side_open_is_channels_first_where_it_convolves(
    import_model: Import, repository: Path
) -> None:
    nodes = [
        helper.make_node("Conv", ["pixel_values", "kernel"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    open_sides = {"pixel_values": ("float32", ("batch", "channels", "height", "width"))}
    kernel = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    model = graph(nodes, open_sides, {"logits": ("float32", ("batch", 3))}, {"kernel": kernel})
    assert "--size" in import_model(model, *UNIT, *LABELS).err
    said = import_model(model, *UNIT, *LABELS, "--size", "8")
    assert said.code == 0, said
    table = manifest.read(repository / "mine").input
    assert table is not None and (table.layout, table.size) == ("nchw", (8, 8))


def test_labels_that_stand_twice_are_shown(import_model: Import) -> None:
    assert "more than once: crane" in import_model(classifier(), *UNIT, "--labels", "crane,crane,heron").out
    assert "more than once" not in import_model(classifier(), *UNIT, *LABELS, "--version", "2").out


@pytest.mark.parametrize(
    ("given", "size", "mean"),
    [
        (["--size", "8", "--mean", "104", "117", "123"], [8], [104.0, 117.0, 123.0]),
        (["--size", "8,9", "--mean", "104,117,123"], [8, 9], [104.0, 117.0, 123.0]),
        (["--size", "8x9", "--mean", "104,", "117,", "123"], [8, 9], [104.0, 117.0, 123.0]),
        (["--size", "8", "9", "--mean=-1,.5,1e2"], [8, 9], [-1.0, 0.5, 100.0]),
    ],
)
def test_numbers_are_taken_as_people_write_them(given: list[str], size: list[int], mean: list[float]) -> None:
    said = cli._parser().parse_args(["import", "net.onnx", "--name", "net", *given])
    assert (said.size, said.mean) == (size, mean)


@pytest.mark.parametrize("given", [("--mean", "1;2"), ("--size", "8.5"), ("--mean", ","), ("--size", "axb")])
def test_what_are_no_numbers_is_said_by_flag(given: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli._parser().parse_args(["import", "net.onnx", "--name", "net", *given])
    assert f"argument {given[0]}: {given[1]!r}" in capsys.readouterr().err


def test_the_command_line_knows_the_presets_of_the_manifest() -> None:
    assert set(cli._PRESETS) == set(manifest.PRESETS)
    parser = cli._parser()
    given = vars(parser.parse_args(["import", "x.onnx", "--name", "x"]))
    assert set(decisions.Flags.__dataclass_fields__) <= set(given)
