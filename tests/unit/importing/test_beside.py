"""Configuration files of publishers and label files of trainers, each as they are found in the wild."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.errors import ConfigurationError
from service.workbench.importing import beside, labels

VIT = {
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    "resample": 2, "rescale_factor": 1 / 255, "size": {"height": 224, "width": 224},
}  # fmt: skip
TIMM = {
    "architecture": "resnet18", "num_classes": 2, "label_names": ["n01", "n02"],
    "label_descriptions": {"n01": "tench", "n02": "shark"},
    "pretrained_cfg": {
        "input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    },
}  # fmt: skip


def read(folder: Path, properties: dict[str, str] | None = None, **files: Any) -> beside.Beside:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return beside.read(folder / "model.onnx", properties or {})


def test_nothing_beside_says_nothing(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert (found.input, found.labels, found.task) == ({}, None, None)


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        (VIT, {"size": [224, 224], "resize": "stretch", "interpolation": "bilinear", "mean": [0.5] * 3}),
        (
            VIT | {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3},
            {"size": [224, 224], "resize": "shortest_side", "resize_to": 256, "interpolation": "bicubic"},
        ),
        (VIT | {"size": {"shortest_edge": 384}, "crop_pct": 0.875}, {"size": [384, 384], "resize": "stretch"}),
        (
            VIT | {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
            {"size": [224, 224], "resize": "shortest_side", "resize_to": 256},
        ),
        (VIT | {"size": 224}, {"size": [224, 224], "resize_to": 224}),
        (VIT | {"do_normalize": False, "do_flip_channel_order": True}, {"mean": [0.0], "std": [1.0], "color": "bgr"}),
        (VIT | {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}, {"mean": [1.0]}),
        (VIT | {"do_rescale": False}, {"scale": 1.0}),
    ],
)
def test_a_processor_of_hugging_face_becomes_keys_of_the_manifest(
    tmp_path: Path, config: dict[str, Any], keys: dict[str, Any]
) -> None:
    found = read(tmp_path, preprocessor_config=config).input
    assert {key: found[key] for key in keys} == keys


def test_a_stretch_before_a_crop_is_said_to_be_unclear(tmp_path: Path) -> None:
    config = VIT | {"size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": 224}
    (unclear,) = read(tmp_path, preprocessor_config=config).unclear
    assert "256 x 256" in unclear and "224 x 224" in unclear


def test_timm_says_sizes_numbers_and_labels(tmp_path: Path) -> None:
    found = read(tmp_path, config=TIMM)
    assert found.input["resize_to"] == 235  # floor(224 / 0.95)
    assert found.input["interpolation"] == "bicubic"
    assert found.input["mean"] == [0.485, 0.456, 0.406]
    assert found.labels == ("tench", "shark")


def test_labels_and_task_of_a_transformer_are_taken(tmp_path: Path) -> None:
    config = {"id2label": {"1": "dog", "0": "cat"}, "problem_type": "multi_label_classification"}
    found = read(tmp_path, config=config)
    assert (found.labels, found.task) == (("cat", "dog"), "multilabel")


def test_names_in_the_metadata_of_an_onnx_file_are_taken(tmp_path: Path) -> None:
    assert read(tmp_path, {"names": "{0: 'cat', 1: 'dog'}"}).labels == ("cat", "dog")
    assert read(tmp_path, {"names": "__import__('os')"}).labels is None


def test_values_of_the_wrong_kind_are_refused_with_what_to_say(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"not understood.*--size.*--mean"):
        read(tmp_path, preprocessor_config=VIT | {"image_mean": "grey"})


def test_a_broken_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"config.json beside the model is not JSON"):
        beside.read(tmp_path / "model.onnx", {})


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("labels.txt", "cat\ndog\n\n", ("cat", "dog")),
        ("labels.txt", "0 cat\n1 big dog\n", ("cat", "big dog")),  # Teachable Machine
        ("labels.txt", "7 up\n8 ball\n", ("7 up", "8 ball")),
        ("names.json", '["cat", "dog"]', ("cat", "dog")),
        ("names.json", '{"dog": 1, "cat": 0}', ("cat", "dog")),  # Keras' class_indices
        ("names.json", '{"0": "cat", "1": "dog"}', ("cat", "dog")),
    ],
)
def test_label_files_of_every_kind_are_read(tmp_path: Path, name: str, text: str, wanted: tuple[str, ...]) -> None:
    (tmp_path / name).write_text(text)
    assert labels.read(str(tmp_path / name)) == wanted


def test_class_folders_are_labels_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("dog", "cat", ".git"):
        (tmp_path / name).mkdir()
    assert labels.read(str(tmp_path)) == ("cat", "dog")


@pytest.mark.parametrize("text", ['{"a": 0, "b": 2}', "[]", "3", "{"])
def test_a_json_that_is_no_labels_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"labels\.json"):
        labels.read(str(tmp_path / "labels.json"))
