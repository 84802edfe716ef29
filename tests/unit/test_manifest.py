"""model.toml: what it may say, what its errors say, and how it is completed from the graph."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.engine.base import TensorSpec
from service.errors import ModelLoadError
from service.imaging.spec import InputSpec
from service.manifest import PRESETS, Manifest, ModelSpec, VersionsTable, read, read_labels, resolve

NCHW = (TensorSpec("image", "float32", (-1, 3, 224, 224)),)
LOGITS = (TensorSpec("logits", "float32", (-1, 3)),)
LABELS = ("cat", "dog", "cow")
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes `model/model.toml` (or that of a version) and returns the model's folder."""

    def write(text: str | bytes, version: int | None = None) -> Path:
        folder = tmp_path / "model"
        place = folder if version is None else folder / str(version)
        place.mkdir(parents=True, exist_ok=True)
        (place / "model.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder

    return write


def complete(
    *,
    inputs: tuple[TensorSpec, ...] = NCHW,
    outputs: tuple[TensorSpec, ...] = LOGITS,
    labels: tuple[str, ...] | None = LABELS,
    provider: str = "cpu",
    **tables: Any,
) -> ModelSpec:
    """Resolve a manifest of these tables; [input] preset = "unit" unless another is given."""
    tables.setdefault("input", {"preset": "unit"})
    manifest = Manifest.model_validate({key: value for key, value in tables.items() if value is not None})
    return resolve(manifest, labels, inputs, outputs, provider)


def image_input(**changes: Any) -> InputSpec:
    spec = complete(**changes).input
    assert spec is not None
    return spec


def image_tensor(*shape: int, dtype: str = "float32") -> tuple[TensorSpec, ...]:
    return (TensorSpec("image", dtype, shape),)


# Clips


@pytest.mark.parametrize(("graph", "keys", "frames"), [(6, {}, 6), (6, {"frames": 6}, 6), (-1, {"frames": 5}, 5)])
def test_a_time_axis_makes_it_a_clip_of_the_graphs_or_the_manifests_length(
    graph: int, keys: dict[str, int], frames: int
) -> None:
    spec = image_input(inputs=image_tensor(-1, graph, 8, 9, 3), input={"preset": "unit", **keys})
    assert (spec.layout, spec.frames, spec.shape) == ("nthwc", frames, (frames, 8, 9, 3))


# Reading


def test_a_folder_without_a_manifest_gets_the_defaults(tmp_path: Path) -> None:
    assert read(tmp_path) == Manifest()


def test_a_whole_manifest_is_read(write: Write) -> None:
    manifest = read(
        write("""
            schema = 1
            version_policy = { latest = 2 }
            [input]
            scale = 0.5
            mean = [0.1, 0.2, 0.3]
            std = 2
            size = [100, 200]
            color = "bgr"
            [output]
            task = "multilabel"
            thresholds = [0.1, 0.2]
            [batching]
            max_batch_size = 4
            [execution]
            providers = ["cpu"]
            [metadata]
            anything = { at = "all" }
        """)
    )
    assert manifest.version_policy == VersionsTable(latest=2)
    assert manifest.input is not None
    assert (manifest.input.scale, manifest.input.mean, manifest.input.std) == ((0.5,), (0.1, 0.2, 0.3), (2.0,))
    assert manifest.output.thresholds == (0.1, 0.2)
    assert manifest.batching.max_batch_size == 4
    assert manifest.execution_spec.providers == ("cpu",)
    assert manifest.metadata == {"anything": {"at": "all"}}


@pytest.mark.parametrize(
    ("text", "policy"),
    [('"latest"', "latest"), ('"all"', "all"), ("{ latest = 3 }", VersionsTable(latest=3)), ("[1, 3]", (1, 3))],
)
def test_each_version_policy_is_read(write: Write, text: str, policy: object) -> None:
    assert read(write(f"version_policy = {text}")).version_policy == policy


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("inpt = 1", ["inpt", "1", "not a known key", "remove it"]),
        ('[input]\npresett = "unit"', ["input.presett", "'unit'", "not a known key", "move it under [metadata]"]),
        ("[batching]\nmax_batchsize = 4", ["batching.max_batchsize", "4", "not a known key"]),
        ("schema = 2", ["schema", "2", "should be 1"]),
        ("[batching]\nmax_batch_size = 0", ["batching.max_batch_size", "0", "greater than or equal to 1"]),
        ("[batching]\nmax_batch_size = 2000", ["batching.max_batch_size", "2000", "less than or equal to 1024"]),
        ("[batching]\nmax_queue_wait_ms = 0", ["batching.max_queue_wait_ms", "0", "greater than 0"]),
        ("[batching]\npreferred_batch_sizes = [4, 0]", ["batching.preferred_batch_sizes", "0", "greater than"]),
        ("[batching]\nmax_queue_delay_ms = nan", ["batching.max_queue_delay_ms", "nan", "finite"]),
        ('[input]\npreset = "resnet"', ["input.preset", "'resnet'", "'imagenet'"]),
        ('[input]\npreset = "unit"\nsize = [224]', ["input.size", "required"]),
        ('[input]\npreset = "unit"\nsize = [0, 224]', ["input.size", "0", "greater than or equal to 1"]),
        (
            '[input]\npreset = "unit"\nbackground = [0, 0, 256]',
            ["input.background", "256", "less than or equal to 255"],
        ),
        ('[input]\npreset = "unit"\ncolor = "cmyk"', ["input.color", "'cmyk'", "'gray'"]),
        ('[input]\npreset = "unit"\nscale = 1', ["input", "either preset or scale", "not both"]),
        ("[input]\nscale = 1", ["input", "scale, mean and std go together", "give all three"]),
        ("[input]\nscale = 1\nmean = 0\nstd = [1, 0, 1]", ["input", "std must not be 0"]),
        ('[input]\npreset = "unit"\nscale = true', ["input.scale"]),
        (
            '[input]\npreset = "unit"\nresampler = "opencv"\nantialias = true',
            ["input", "OpenCV does not antialias", "antialias = false"],
        ),
        ('[output]\ntask = "regression"', ["output.task", "'regression'", "'multiclass'"]),
        ('[output]\nactivation = "relu"', ["output.activation", "'relu'", "'softmax'"]),
        ("[output]\ntemperature = 0", ["output.temperature", "0", "greater than 0"]),
        ('[execution]\nproviders = ["gpu"]', ["execution", "unknown provider 'gpu'", "cpu, cuda, tensorrt"]),
        ("[execution]\nproviders = []", ["execution.providers", "at least 1"]),
        ("[execution]\ndevice_ids = [-1]", ["execution.device_ids", "-1", "greater than or equal to 0"]),
        ('version_policy = "newest"', ["version_policy", "'newest'", "'latest' or 'all'"]),
        ("version_policy = { latest = 0 }", ["version_policy", "0", "greater than or equal to 1"]),
        ("version_policy = [0]", ["version_policy", "0", "greater than or equal to 1"]),
    ],
)
def test_an_error_names_file_field_value_and_what_to_do(write: Write, text: str, said: list[str]) -> None:
    with pytest.raises(ModelLoadError) as caught:
        read(write(text))
    message = str(caught.value)
    assert message.startswith("model/model.toml: ")
    for words in said:
        assert words in message
    assert len(message.splitlines()) == 1


def test_all_errors_of_a_file_are_told_at_once(write: Write) -> None:
    with pytest.raises(ModelLoadError) as caught:
        read(write("inpt = 1\n[batching]\nmax_batch_size = 0"))
    assert "inpt" in str(caught.value)
    assert "batching.max_batch_size" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"schema = ", b"[input\n", b"a = 1\na = 2", b"name = '\xff\xfe'", b"\x00"], ids=repr
)
def test_a_file_that_is_not_toml_is_refused_by_name(write: Write, content: bytes) -> None:
    with pytest.raises(ModelLoadError, match=r"^model/model\.toml: "):
        read(write(content))


@given(text=st.text() | st.text("[]{}=\"'.,#\n a1-", max_size=40))
@example(text="x = " + "[" * 3000)
@example(text="[batching]\nmax_batch_size = " + "1" * 5000)
@settings(max_examples=150, deadline=None)
def test_any_text_gives_a_manifest_or_says_what_is_wrong(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-text"
    folder.mkdir(exist_ok=True)
    (folder / "model.toml").write_text(text, encoding="utf-8", newline="")
    try:
        assert isinstance(read(folder), Manifest)
    except ModelLoadError as error:
        assert "model.toml: " in str(error)  # either way is right


def test_a_manifest_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.toml").mkdir()
    with pytest.raises(ModelLoadError, match="not a plain file"):
        read(tmp_path)


# A version's own keys


def test_a_version_lays_its_keys_over_the_models(write: Write) -> None:
    write('[input]\npreset = "unit"\nsize = [10, 20]\n[batching]\nmax_batch_size = 4\n')
    folder = write('[input]\nsize = [30, 40]\n[output]\nactivation = "none"\n', version=2)
    manifest = read(folder, 2)
    assert manifest.input is not None
    assert (manifest.input.preset, manifest.input.size) == ("unit", (30, 40))
    assert manifest.output.activation == "none"
    assert manifest.batching.max_batch_size == 4


def test_other_versions_do_not_see_a_versions_keys(write: Write) -> None:
    write("[batching]\nmax_batch_size = 4\n")
    folder = write("[batching]\nmax_batch_size = 9\n", version=2)
    assert read(folder, 1).batching.max_batch_size == 4
    assert read(folder).batching.max_batch_size == 4
    assert read(folder, 2).batching.max_batch_size == 9


def test_a_list_of_a_version_replaces_the_models_list(write: Write) -> None:
    write("[batching]\npreferred_batch_sizes = [1, 2]\n")
    folder = write("[batching]\npreferred_batch_sizes = [8]\n", version=2)
    assert read(folder, 2).batching.preferred_batch_sizes == (8,)


def test_an_error_in_a_versions_manifest_names_that_file(write: Write) -> None:
    folder = write("[batching]\nmax_batch_size = 0\n", version=2)
    with pytest.raises(ModelLoadError, match=r"^model/2/model\.toml: batching\.max_batch_size"):
        read(folder, 2)


# Labels


def labels_of(tmp_path: Path, content: str | bytes, version: int = 1, manifest: Manifest | None = None) -> Any:
    (tmp_path / "labels.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_labels(tmp_path, version, manifest or Manifest())


def test_labels_are_read_one_a_line(tmp_path: Path) -> None:
    assert labels_of(tmp_path, "cat\ndog\nblack and white\n") == ("cat", "dog", "black and white")


@pytest.mark.parametrize("content", ["cat\r\ndog\r\n", "\ufeffcat\ndog", "  cat \ndog\t\n\n\n"])
def test_line_ends_byte_order_marks_and_spaces_are_no_part_of_a_label(tmp_path: Path, content: str) -> None:
    assert labels_of(tmp_path, content) == ("cat", "dog")


def test_labels_may_be_in_any_language(tmp_path: Path) -> None:
    assert labels_of(tmp_path, "K\u00e4se\n\u732b\n\U0001f408\n") == ("K\u00e4se", "\u732b", "\U0001f408")


def test_duplicate_labels_are_told_apart_by_their_index(tmp_path: Path) -> None:
    assert labels_of(tmp_path, "crane\ncat\ncrane\n") == ("crane (0)", "cat", "crane (2)")


@given(lines=st.lists(st.sampled_from(["a", "b", "a (0)", "a (1)", "a (2)", "b (1)"]), min_size=1, max_size=6))
@example(lines=["a", "a", "a (1)"])
@settings(max_examples=100, deadline=None)
def test_labels_are_all_different_and_as_many_as_lines(
    lines: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    labels = labels_of(tmp_path_factory.getbasetemp(), "\n".join(lines))
    assert len(labels) == len(lines)
    assert len(set(labels)) == len(lines)


def test_many_labels_with_a_duplicate_are_told_apart_quickly(tmp_path: Path) -> None:
    """ImageNet-21k has 21,841 labels, several of them twice."""
    lines = [f"label {number}" for number in range(20_000)]
    started = time.process_time()
    labels = labels_of(tmp_path, "\n".join([*lines, lines[7]]))
    assert time.process_time() - started < 1.0
    assert labels[7] == "label 7 (7)"
    assert labels[-1] == "label 7 (20000)"


def test_an_empty_line_between_labels_is_refused_by_its_number(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"labels\.txt: line 2 is empty; one label a line"):
        labels_of(tmp_path, "cat\n\ndog\n")


def test_labels_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"labels\.txt: cannot be read as UTF-8"):
        labels_of(tmp_path, b"K\xe4se\n")


def test_a_version_has_labels_of_its_own_before_the_models(tmp_path: Path) -> None:
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "labels.txt").write_text("own\n")
    assert labels_of(tmp_path, "shared\n", version=2) == ("own",)
    assert labels_of(tmp_path, "shared\n", version=1) == ("shared",)


def test_no_file_gives_no_labels(tmp_path: Path) -> None:
    assert read_labels(tmp_path, 1, Manifest()) is None


@pytest.mark.parametrize("name", ["../labels.txt", "/etc/passwd", "sub/labels.txt"])
def test_a_label_file_outside_the_model_folder_is_refused(tmp_path: Path, name: str) -> None:
    manifest = Manifest.model_validate({"output": {"labels": name}})
    with pytest.raises(ModelLoadError) as caught:
        read_labels(tmp_path, 1, manifest)
    assert f"output.labels = {name!r} is not a plain file name" in str(caught.value)
    assert "put the file beside model.toml" in str(caught.value)


# Scaling


@pytest.mark.parametrize(
    ("preset", "black", "white", "color"),
    [
        ("imagenet", (-2.1179, -2.0357, -1.8044), (2.2489, 2.4286, 2.64), "rgb"),
        ("torchvision", (-2.1179, -2.0357, -1.8044), (2.2489, 2.4286, 2.64), "rgb"),
        ("keras_tf", (-1, -1, -1), (1, 1, 1), "rgb"),
        ("unit", (0, 0, 0), (1, 1, 1), "rgb"),
        ("caffe", (-103.939, -116.779, -123.68), (151.061, 138.221, 131.32), "bgr"),
        ("raw", (0, 0, 0), (255, 255, 255), "rgb"),
    ],
)
def test_a_preset_takes_black_and_white_where_its_name_says(
    preset: str, black: tuple[float, ...], white: tuple[float, ...], color: str
) -> None:
    spec = image_input(input={"preset": preset})
    assert spec.color == color

    def scaled(pixel: int) -> list[float]:
        three = [values * 3 if len(values) == 1 else values for values in (spec.scale, spec.mean, spec.std)]
        return [(pixel * scale - mean) / std for scale, mean, std in zip(*three, strict=True)]

    assert scaled(0) == pytest.approx(black, abs=1e-3)
    assert scaled(255) == pytest.approx(white, abs=1e-3)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_can_be_named_in_a_manifest(preset: str) -> None:
    assert image_input(input={"preset": preset}).scale == PRESETS[preset][0:1]


def test_the_three_numbers_are_taken_as_they_are() -> None:
    spec = image_input(input={"scale": 0.5, "mean": [1, 2, 3], "std": 4})
    assert (spec.scale, spec.mean, spec.std) == ((0.5,), (1, 2, 3), (4,))


@pytest.mark.parametrize("field", ["scale", "mean", "std"])
def test_numbers_that_do_not_match_the_channels_are_refused(field: str) -> None:
    numbers: dict[str, Any] = {"scale": 1, "mean": 0, "std": 1} | {field: [1, 2]}
    with pytest.raises(ModelLoadError, match=rf"input\.{field} has 2 numbers for 3 channels; give one, or one each"):
        complete(input=numbers)


def test_how_pixels_are_scaled_is_never_guessed() -> None:
    with pytest.raises(ModelLoadError, match=r"\[input\] does not say how pixels are scaled; give preset"):
        complete(input={"size": [224, 224]})


@pytest.mark.parametrize("table", [None, {}, {"tensor": "image"}])
def test_a_manifest_without_scaling_is_a_model_that_takes_tensors(table: dict[str, Any] | None) -> None:
    assert complete(input=table).input is None


@pytest.mark.parametrize("preset", ["unit", "imagenet", "keras_tf", "caffe"])
def test_a_uint8_graph_refuses_scaled_pixels_and_names_the_preset(preset: str) -> None:
    with pytest.raises(ModelLoadError, match=r"input 'image' is uint8: .* set preset = \"raw\""):
        complete(input={"preset": preset}, inputs=image_tensor(-1, 224, 224, 3, dtype="uint8"))


@pytest.mark.parametrize("table", [{"preset": "raw"}, {"scale": 1, "mean": [0, 0, 0], "std": [1]}])
def test_a_uint8_graph_takes_raw_pixels(table: dict[str, Any]) -> None:
    assert image_input(input=table, inputs=image_tensor(-1, 224, 224, 3, dtype="uint8")).dtype == "uint8"


# From the graph


@pytest.mark.parametrize(
    ("shape", "layout", "size", "color"),
    [
        ((-1, 3, 224, 192), "nchw", (224, 192), "rgb"),
        ((-1, 224, 192, 3), "nhwc", (224, 192), "rgb"),
        ((-1, 1, 28, 28), "nchw", (28, 28), "gray"),
        ((1, 28, 28, 1), "nhwc", (28, 28), "gray"),
    ],
)
def test_layout_size_and_channels_come_from_the_graph(
    shape: tuple[int, ...], layout: str, size: tuple[int, int], color: str
) -> None:
    spec = image_input(inputs=image_tensor(*shape))
    assert (spec.layout, spec.size, spec.color) == (layout, size, color)
    assert spec.shape == shape[1:]


def test_tensor_names_and_types_come_from_the_graph() -> None:
    outputs = (TensorSpec("first", "float32", (-1, 3)), TensorSpec("second", "float32", (-1, 3)))
    spec = complete(inputs=image_tensor(-1, 3, 8, 8, dtype="float16"), outputs=outputs)
    assert spec.input is not None
    assert (spec.input.tensor, spec.input.dtype, spec.output_tensor) == ("image", "float16", "first")


def test_the_manifest_chooses_among_several_outputs() -> None:
    outputs = (TensorSpec("features", "float32", (-1, 99)), TensorSpec("logits", "float32", (-1, 3)))
    assert complete(outputs=outputs, output={"tensor": "logits"}).output_tensor == "logits"


def test_the_manifest_decides_what_the_graph_leaves_open() -> None:
    table = {"preset": "unit", "size": [32, 48], "layout": "nhwc", "color": "bgr"}
    spec = image_input(input=table, inputs=image_tensor(-1, -1, -1, -1))
    assert (spec.size, spec.layout, spec.color) == ((32, 48), "nhwc", "bgr")


def test_a_channel_dimension_that_is_open_is_three_unless_gray() -> None:
    open_channels = image_tensor(-1, -1, 32, 32)
    assert image_input(input={"preset": "unit", "layout": "nchw"}, inputs=open_channels).channels == 3
    gray = {"preset": "unit", "layout": "nchw", "color": "gray"}
    assert image_input(input=gray, inputs=open_channels).channels == 1


@pytest.mark.parametrize(("size", "resize_to"), [((224, 224), 256), ((28, 28), 32), ((96, 192), 219)])
def test_the_short_side_is_the_crop_over_seven_eighths(size: tuple[int, int], resize_to: int) -> None:
    assert image_input(inputs=image_tensor(-1, 3, *size)).resize_to == resize_to


@pytest.mark.parametrize(
    ("table", "antialias"),
    [({}, True), ({"resampler": "opencv"}, False), ({"resampler": "tf"}, False), ({"antialias": False}, False)],
)
def test_antialiasing_is_what_the_resampler_is_known_for(table: dict[str, Any], antialias: bool) -> None:
    assert image_input(input={"preset": "unit"} | table).antialias is antialias


@pytest.mark.parametrize(("provider", "size"), [("cpu", 8), ("cuda", 32), ("tensorrt", 32)])
def test_the_largest_batch_depends_on_the_provider(provider: str, size: int) -> None:
    assert complete(provider=provider).batching.max_batch_size == size


def test_a_batch_dimension_fixed_at_one_runs_images_one_by_one() -> None:
    assert complete(inputs=image_tensor(1, 3, 8, 8)).batching.max_batch_size == 1
    explicit = complete(inputs=image_tensor(1, 3, 8, 8), batching={"max_batch_size": 1})
    assert explicit.batching.max_batch_size == 1


def test_the_batching_table_becomes_the_batching_spec() -> None:
    table = {
        "max_batch_size": 5,
        "max_queue_delay_ms": 2.5,
        "preferred_batch_sizes": [2, 4],
        "max_queue_size": 9,
        "max_queue_wait_ms": 70.0,
    }
    spec = complete(batching=table).batching
    assert {name: getattr(spec, name) for name in table} == table | {"preferred_batch_sizes": (2, 4)}


@pytest.mark.parametrize(("task", "activation"), [("multiclass", "softmax"), ("multilabel", "sigmoid")])
def test_the_activation_is_the_tasks_unless_the_manifest_has_one(task: str, activation: str) -> None:
    assert complete(output={"task": task}).task.activation == activation
    assert complete(output={"task": task, "activation": "none"}).task.activation == "none"


def test_a_binary_model_is_one_output_and_two_labels() -> None:
    one = (TensorSpec("p", "float32", (-1, 1)),)
    spec = complete(outputs=one, labels=("no", "yes"), output={"task": "binary", "thresholds": 0.3})
    assert spec.task.labels == ("no", "yes")
    assert spec.task.activation == "sigmoid"
    assert spec.task.thresholds == (0.3,)


@pytest.mark.parametrize(("shape", "count"), [((-1, 5), 5), ((-1, 5, 1, 1), 5), ((-1, -1), 1), ((-1,), 1)])
def test_without_labels_a_tensor_model_counts_its_outputs(shape: tuple[int, ...], count: int) -> None:
    outputs = (TensorSpec("out", "float32", shape),)
    spec = complete(input=None, labels=None, outputs=outputs)
    assert spec.task.labels == tuple(str(index) for index in range(count))


@pytest.mark.parametrize("shape", [(-1, 3), (-1, 3, 1, 1), (-1, -1), (-1, -1, -1), (-1, 3, -1, -1)])
def test_labels_fit_an_output_of_as_many_numbers_or_an_open_one(shape: tuple[int, ...]) -> None:
    assert complete(outputs=(TensorSpec("out", "float32", shape),)).task.labels == LABELS


# Where graph and manifest disagree


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": None}, ["labels.txt is missing", "one label a line"]),
        ({"labels": ("a", "b")}, ["labels.txt has 2 labels", "output 'logits' 3 classes"]),
        ({"output": {"tensor": "probs"}}, ["output.tensor = 'probs' is not in the graph", "logits"]),
        ({"input": {"preset": "unit", "tensor": "x"}}, ["input.tensor = 'x' is not in the graph", "image"]),
        ({"input": {"preset": "unit", "size": [100, 224]}}, ["input.size = [100, 224]", "the graph wants [224, 224]"]),
        (
            {"input": {"preset": "unit", "size": [100, 100]}, "inputs": image_tensor(-1, 3, -1, 224)},
            ["input.size = [100, 100]", "224"],
        ),
        ({"input": {"preset": "unit", "color": "gray"}}, ["'gray'", "3 channels"]),
        ({"inputs": image_tensor(-1, 1, 28, 28), "input": {"preset": "unit", "color": "rgb"}}, ["'rgb'", "1 channels"]),
        ({"inputs": image_tensor(-1, 3, -1, -1)}, ["input.size = [height, width] is needed"]),
        ({"inputs": image_tensor(-1, 3, 3, 3)}, ['input.layout = "nchw" or "nhwc" is needed']),
        ({"inputs": image_tensor(-1, 1, 28, 1)}, ['input.layout = "nchw" or "nhwc" is needed']),
        ({"inputs": image_tensor(-1, 224, 224)}, ["input 'image' has shape [-1, 224, 224]", "4 dimensions"]),
        ({"inputs": image_tensor(-1, 3, 8, 8, dtype="int64")}, ["input 'image' is int64", "float32, float16"]),
        ({"inputs": (*NCHW, *NCHW)}, ["the graph has 2 inputs", "a graph with one"]),
        ({"input": {"preset": "unit", "layout": "nthwc"}}, ["4 dimensions", "clips one of 5"]),
        ({"input": {"preset": "unit", "frames": 8}}, ["input.frames = 8", "no time axis"]),
        ({"inputs": image_tensor(-1, -1, 8, 8, 3)}, ["input.frames is needed"]),
        (
            {"inputs": image_tensor(-1, 4, 8, 8, 3), "input": {"preset": "unit", "frames": 8}},
            ["input.frames = 8", "wants 4"],
        ),
        ({"input": {"preset": "unit", "resize_to": 100}}, ["input.resize_to = 100", "less than the crop of 224"]),
        ({"output": {"thresholds": [0.1, 0.2]}}, ["output.thresholds has 2 numbers for 3 labels", "one, or one each"]),
        ({"output": {"activation": "none", "temperature": 2}}, ["output.temperature needs logits", '"none"']),
        ({"output": {"task": "binary"}}, ['task = "binary" is one output and two labels', '"multiclass"']),
        (
            {"output": {"task": "binary"}, "outputs": (TensorSpec("p", "float32", (-1, 1)),)},
            ['task = "binary" is one output and two labels', "labels.txt 3"],
        ),
        ({"inputs": image_tensor(4, 3, 8, 8)}, ["fixed at 4", "export it with a dynamic one, or 1"]),
        (
            {"inputs": image_tensor(1, 3, 8, 8), "batching": {"max_batch_size": 8}},
            ["batching.max_batch_size = 8", "fixed at 1"],
        ),
        ({"outputs": ()}, ["output.tensor: the graph has none"]),
    ],
)
def test_what_does_not_fit_the_graph_is_refused_and_named(changes: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(ModelLoadError) as caught:
        complete(**changes)
    for words in said:
        assert words in str(caught.value)


def test_a_graph_with_four_channels_is_refused_without_naming_a_color_nobody_gave() -> None:
    with pytest.raises(ModelLoadError, match="4 channels") as caught:
        complete(input={"preset": "unit", "layout": "nchw"}, inputs=image_tensor(-1, 4, 8, 8))
    assert "None" not in str(caught.value)


def test_a_size_that_fits_the_side_that_the_graph_fixes_is_taken() -> None:
    spec = image_input(input={"preset": "unit", "size": [100, 224]}, inputs=image_tensor(-1, 3, -1, 224))
    assert spec.size == (100, 224)


def test_a_tensor_model_may_fix_its_first_dimension() -> None:
    inputs = (TensorSpec("matrix", "float32", (28, 28)),)
    assert complete(input=None, inputs=inputs, labels=None).batching.max_batch_size == 1


def test_a_delay_that_outlasts_the_longest_wait_is_refused(write: Write) -> None:
    """Every request to an idle server would be dropped as overload."""
    with pytest.raises(ModelLoadError, match="max_queue_delay_ms"):
        read(write("[batching]\nmax_queue_delay_ms = 2000\n"))
    with pytest.raises(ModelLoadError, match="max_queue_delay_ms"):
        read(write("[batching]\nmax_queue_delay_ms = 50\nmax_queue_wait_ms = 50\n"))
    assert read(write("[batching]\nmax_queue_delay_ms = 2000\nmax_queue_wait_ms = 3000\n")).batching
