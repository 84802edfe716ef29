"""Settings and manifest keys against the contract."""

import tomllib

import pytest
from pydantic import BaseModel

from service import manifest as manifests
from service.config import Settings, fields
from service.manifest import Manifest

NAMES = {  # contract.md section 1: names and defaults that scripts rely on
    "server.host": "127.0.0.1",
    "server.port": 8000,
    "server.root_path": "",
    "server.cors_origins": (),
    "server.drain_delay_s": 5.0,
    "repository.poll_interval_s": 5.0,
    "repository.required": (),
    "admin.token": None,
    "auth.tokens": (),
    "limits.max_images": 16,
    "limits.max_rows": 64,
    "limits.timeout_ms": 5000,
    "limits.image_formats": ("jpeg", "png", "webp"),
    "log.level": "info",
    "log.success_sample": 1.0,
}

# contract.md section 2, word for word but for comments, and [rollout] of section 6
MANIFEST = """
schema = 1
version_policy = "latest"

[input]
preset = "imagenet"
scale = 0.00392156862745098
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
tensor = "input"
size = [224, 224]
color = "rgb"
layout = "nchw"
frames = 1
resize = "shortest_side"
resize_to = 256
antialias = true
interpolation = "bilinear"
resampler = "pil"
decode = "fast"
exif = "apply"
background = [255, 255, 255]

[output]
task = "multiclass"
activation = "softmax"
labels = "labels.txt"
tensor = "logits"
temperature = 1.0
thresholds = 0.5

[batching]
max_batch_size = 8
max_queue_delay_ms = 0
preferred_batch_sizes = []
max_queue_size = 256
max_queue_wait_ms = 1000

[execution]
providers = ["cuda", "cpu"]
device_ids = [0]
instances = 0
intra_op_threads = 0

[rollout]
stable = 3
canary = { version = 4, percent = 10 }
shadow = { version = 5, percent = 20 }

[metadata]
"""
DEFAULTS = {  # of those keys whose default is a value of its own, and not "from the graph" or "from the preset"
    "version_policy": "latest",
    "input.frames": 1,
    "input.resize": "shortest_side",
    "input.interpolation": "bilinear",
    "input.resampler": "pil",
    "input.decode": "fast",
    "input.exif": "apply",
    "input.background": (255, 255, 255),
    "output.task": "multiclass",
    "output.labels": "labels.txt",
    "output.temperature": 1.0,
    "output.thresholds": (0.5,),
    "batching.max_queue_delay_ms": 0.0,
    "batching.preferred_batch_sizes": (),
    "batching.max_queue_size": 256,
    "batching.max_queue_wait_ms": 1000.0,
    "execution.providers": ("cuda", "cpu"),
    "execution.device_ids": (0,),
    "execution.instances": 0,
    "execution.intra_op_threads": 0,
}
CHOICES = {
    "input.preset": ["imagenet", "torchvision", "keras_tf", "unit", "caffe", "raw"],
    "input.color": ["rgb", "bgr", "gray"],
    "input.layout": ["nchw", "nhwc", "nthwc"],
    "input.resize": ["stretch", "shortest_side", "letterbox"],
    "input.interpolation": ["nearest", "bilinear", "bicubic", "area", "lanczos"],
    "input.resampler": ["pil", "opencv", "tf"],
    "input.decode": ["fast", "exact"],
    "input.exif": ["apply", "ignore"],
    "output.task": ["multiclass", "multilabel", "binary"],
    "output.activation": ["softmax", "sigmoid", "none"],
}
TABLES: dict[str, type[BaseModel]] = {
    "input": manifests.InputTable,
    "output": manifests.OutputTable,
    "batching": manifests.BatchingTable,
    "execution": manifests.ExecutionTable,
    "rollout": manifests.RolloutTable,
}


@pytest.mark.parametrize(("section", "name"), [(section, name) for section, name, _ in fields()])
def test_every_setting_has_a_description(section: str, name: str) -> None:
    description = {(where, what): field.description for where, what, field in fields()}[section, name]
    assert description
    assert description.endswith(".")


@pytest.mark.parametrize("section", sorted(Settings.model_fields))
def test_every_section_says_what_it_is_for(section: str) -> None:
    annotation = Settings.model_fields[section].annotation
    assert annotation is not None
    assert annotation.__doc__


@pytest.mark.parametrize(("name", "default"), sorted(NAMES.items()), ids=lambda value: str(value))
def test_a_setting_of_the_contract_exists_with_its_default(name: str, default: object) -> None:
    section, field = name.split(".")
    assert getattr(getattr(Settings(), section), field) == default


def test_the_repository_is_model_repo_by_default() -> None:
    assert str(Settings().repository.path) == "model_repo"


def test_durations_and_sizes_say_their_unit() -> None:
    for section, name, field in fields():
        if field.annotation is float and "sample" not in name:
            assert name.endswith(("_s", "_ms")), f"{section}.{name}"


def test_the_manifest_of_the_contract_has_exactly_the_keys_there_are() -> None:
    tree = tomllib.loads(MANIFEST)
    names = {field.alias or name for name, field in Manifest.model_fields.items()}
    assert names == set(tree)
    for table, model in TABLES.items():
        assert set(model.model_fields) == set(tree[table]), table


@pytest.mark.parametrize("without", [("preset",), ("scale", "mean", "std")], ids=["three numbers", "preset"])
def test_the_manifest_of_the_contract_is_taken(without: tuple[str, ...]) -> None:
    tree = tomllib.loads(MANIFEST)
    for key in without:
        del tree["input"][key]
    assert Manifest.model_validate(tree).schema_version == 1


@pytest.mark.parametrize(("key", "default"), sorted(DEFAULTS.items()), ids=lambda value: str(value))
def test_a_key_left_out_has_the_default_of_the_contract(key: str, default: object) -> None:
    manifest = Manifest.model_validate({"input": {}})
    table, _, name = key.rpartition(".")
    assert getattr(getattr(manifest, table) if table else manifest, name) == default


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in CHOICES.items() for value in values])
def test_a_choice_of_the_contract_is_taken(key: str, value: str) -> None:
    table, name = key.split(".")
    tree = {table: {name: value}}
    if value == "opencv":
        tree[table]["antialias"] = False
    assert getattr(getattr(Manifest.model_validate(tree), table), name) == value
