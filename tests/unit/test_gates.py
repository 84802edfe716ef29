"""Versions that must never serve: who keeps them out, and that the version before goes on answering."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from service import golden
from service.engine import onnx_file
from service.errors import GATES, ModelLoadError
from service.model_files import ModelFiles
from service.server import InferenceServer
from tests.support import tiny_models
from tests.support.bad_versions import BAD, write_sums
from tests.support.scrape import Scrape
from tests.support.tiny_models import UNIT, best_labels, classify, picture, serving, write_model

NAMED = UNIT + 'tensor = "image"\n'


async def reason_of(server: InferenceServer, version: int) -> str:
    """Look until the version was tried; why it is out."""
    for _ in range(2):
        await server.repository.reconcile()
    return next(one.reason for one in server.repository.status("model").versions if one.version == version)


@pytest.mark.parametrize("kind", sorted(BAD))
async def test_a_bad_version_stays_out_with_its_reason_and_the_good_one_serves(tmp_path: Path, kind: str) -> None:
    folder = write_model(tmp_path, "model", manifest=NAMED)
    async with serving(tmp_path) as server:
        BAD[kind].make(folder / "1", folder / "2")
        reason = await reason_of(server, 2)
        assert BAD[kind].says in reason
        assert str(tmp_path) not in reason
        assert best_labels(await classify(server.pipeline, "model", picture("red"))) == ["red"]
        assert server.repository.status("model").default == 1
        scrape = Scrape.parse(server.metrics.render().decode())
        assert scrape.total("fovea_model_refusals_total", model="model", reason=BAD[kind].gate) == 1
        assert scrape.total("fovea_model_state", model="model", version="2", state="UNAVAILABLE") == 1


def test_every_gate_that_is_named_is_declared() -> None:
    assert {bad.gate for bad in BAD.values()} < set(GATES)


# Files


async def test_a_version_with_right_checksums_serves(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "model")
    write_sums(folder / "1")
    async with serving(tmp_path, repository={"require_checksums": True}) as server:
        assert server.repository.ready_models == ["model"]


async def test_checksums_can_be_required(tmp_path: Path) -> None:
    write_model(tmp_path, "model")
    async with serving(tmp_path, repository={"require_checksums": True}) as server:
        assert "require_checksums" in server.repository.status("model").reason


@pytest.mark.parametrize("name", ["model.onnx", "labels.txt", "model.toml", "golden.json", "reference.json"])
async def test_one_bit_in_any_file_that_is_loaded_is_noticed(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path, "model")
    shutil.copy(folder / "labels.txt", folder / "1")
    shutil.copy(folder / "model.toml", folder / "1")
    with_golden(folder, predictions=[{"index": 0, "score": 0.5}])
    if name == "reference.json":  # it is read last, by a version that passes
        (folder / "1" / "golden.json").unlink()
    (folder / "1" / "reference.json").write_text("{}")
    write_sums(folder / "1")
    content = bytearray((folder / "1" / name).read_bytes())
    content[-1] ^= 1
    (folder / "1" / name).write_bytes(content)
    async with serving(tmp_path) as server:
        reason = server.repository.status("model").reason
        assert f"1/{name} is not what SHA256SUMS says" in reason
        assert not server.repository.ready_models


async def test_a_file_that_the_checksums_leave_out_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "model")
    write_sums(folder / "1")
    (folder / "1" / "model.toml").write_text("[batching]\nmax_batch_size = 2\n")
    async with serving(tmp_path) as server:
        assert "1/model.toml is not listed in SHA256SUMS" in server.repository.status("model").reason


async def test_files_beside_the_manifest_are_checked_where_they_are_listed(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "model")
    write_sums(folder / "1")
    labels = folder / "labels.txt"
    line = f"{hashlib.sha256(labels.read_bytes()).hexdigest()}  ../labels.txt\n"
    with (folder / "1" / "SHA256SUMS").open("a") as sums:
        sums.write(line)
    async with serving(tmp_path) as server:
        assert server.repository.ready_models == ["model"]
    labels.write_text("rouge\nvert\nbleu\n")
    async with serving(tmp_path) as server:
        assert "labels.txt is not what SHA256SUMS says" in server.repository.status("model").reason


async def test_a_version_over_its_cap_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, "model")
    async with serving(tmp_path, repository={"max_version_bytes": 200}) as server:
        assert "max_version_bytes = 200" in server.repository.status("model").reason


def test_a_pipe_in_the_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    os.mkfifo(tmp_path / "1" / "model.onnx")
    with pytest.raises(ModelLoadError, match="not a plain file"):
        ModelFiles(tmp_path, 1).of_version("model.onnx")


def test_a_file_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").write_bytes(b"before")
    files = ModelFiles(tmp_path, 1)
    assert files.of_version("model.onnx") == b"before"
    (tmp_path / "1" / "model.onnx").write_bytes(b"after")
    assert files.of_version("model.onnx") == b"before"
    assert files.sha256("model.onnx") == hashlib.sha256(b"before").hexdigest()


# The graph


def external(model: onnx.ModelProto, folder: Path) -> None:
    """Move every constant of the graph into a file beside it."""
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)


async def test_external_data_beside_the_model_is_loaded_from_memory(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "model")
    external(tiny_models.classifier(), folder / "1")
    write_sums(folder / "1")
    async with serving(tmp_path) as server:
        assert server.repository.status("model").reason == ""
        assert best_labels(await classify(server.pipeline, "model", picture("blue"))) == ["blue"]


async def test_external_data_is_under_the_checksums_too(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "model")
    external(tiny_models.classifier(), folder / "1")
    write_sums(folder / "1")
    (folder / "1" / "weights.bin").write_bytes(b"\0" * (folder / "1" / "weights.bin").stat().st_size)
    async with serving(tmp_path) as server:
        assert "weights.bin is not what SHA256SUMS says" in server.repository.status("model").reason


def tensor_outside(location: str = "/etc/passwd") -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "outside")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def in_an_attribute(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["extra"], value=tensor_outside()))


def in_a_subgraph(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [], [tensor_outside()])
    model.graph.node.append(helper.make_node("If", ["scores"], ["extra"], then_branch=inner, else_branch=inner))


def in_a_sparse_tensor(model: onnx.ModelProto) -> None:
    indices = numpy_helper.from_array(np.arange(3), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor_outside(), indices, [3]))


def in_a_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["y"], value=tensor_outside())
    model.functions.append(helper.make_function("own", "f", [], ["y"], [node], [helper.make_opsetid("", 18)]))


def in_training(model: onnx.ModelProto) -> None:
    model.training_info.add().algorithm.initializer.append(tensor_outside())


@pytest.mark.parametrize(
    "hide", [in_an_attribute, in_a_subgraph, in_a_sparse_tensor, in_a_function, in_training], ids=lambda f: f.__name__
)
def test_a_tensor_outside_is_found_wherever_it_hides(hide) -> None:
    model = tiny_models.classifier()
    hide(model)
    with pytest.raises(ModelLoadError, match="plain file name"):
        onnx_file.inspect(model.SerializeToString())


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../1/model.onnx", "a/b", "", ".", "..", "a\\b", "*/_ORT_MEM_ADDR_/*", "a\0b"]
)
def test_external_data_elsewhere_is_refused(location: str) -> None:
    model = tiny_models.classifier()
    model.graph.initializer.append(tensor_outside(location))
    with pytest.raises(ModelLoadError) as caught:
        onnx_file.inspect(model.SerializeToString())
    assert caught.value.gate == "external_data"


@pytest.mark.parametrize(
    ("key", "value"),
    [("basepath", "/etc"), ("offset", "-1"), ("length", "x"), ("location", "twice"), ("offset", "1e3")],
)
def test_odd_entries_of_external_data_are_refused(key: str, value: str) -> None:
    model = tiny_models.classifier()
    tensor = tensor_outside("weights.bin")
    tensor.external_data.add(key=key, value=value)
    model.graph.initializer.append(tensor)
    with pytest.raises(ModelLoadError):
        onnx_file.inspect(model.SerializeToString())


@pytest.mark.parametrize("name", ["PyOp", "PythonOp", "EPContext"])
def test_operators_that_run_or_read_something_else_are_refused(name: str) -> None:
    model = tiny_models.classifier()
    model.graph.node.append(helper.make_node(name, ["scores"], ["more"], domain="com.microsoft"))
    with pytest.raises(ModelLoadError, match=name):
        onnx_file.inspect(model.SerializeToString()).check()


def test_functions_of_the_model_itself_are_no_foreign_operators() -> None:
    model = tiny_models.classifier()
    node = helper.make_node("Identity", ["x"], ["y"])
    model.functions.append(helper.make_function("own", "f", ["x"], ["y"], [node], [helper.make_opsetid("", 18)]))
    model.graph.node.append(helper.make_node("f", ["scores"], ["more"], domain="own"))
    onnx_file.inspect(model.SerializeToString()).check()
    model.graph.node.append(helper.make_node("g", ["scores"], ["yet more"], domain="own"))
    with pytest.raises(ModelLoadError, match="'g' of domain 'own'"):
        onnx_file.inspect(model.SerializeToString()).check()


def test_a_graph_of_too_many_nodes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MAX_NODES", 7)
    with pytest.raises(ModelLoadError, match="8 nodes"):
        onnx_file.inspect(tiny_models.classifier().SerializeToString()).check()


def test_a_location_of_more_than_32_bits_is_external_all_the_same() -> None:
    """Parsers keep the lower half of an enum."""
    tensor = tensor_outside("/etc/passwd")
    tensor.ClearField("data_location")
    encoded = tensor.SerializeToString() + bytes([14 << 3]) + b"\x81\x80\x80\x80\x10"
    graph = bytes([5 << 3 | 2]) + onnx_file_length(encoded) + encoded
    model = bytes([7 << 3 | 2]) + onnx_file_length(graph) + graph
    with pytest.raises(ModelLoadError, match="plain file name"):
        onnx_file.inspect(model)


def onnx_file_length(content: bytes) -> bytes:
    size, encoded = len(content), b""
    while size >= 0x80:
        encoded, size = encoded + bytes([size & 0x7F | 0x80]), size >> 7
    return encoded + bytes([size])


@given(content=st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_walked_or_refused(content: bytes) -> None:
    whole = tiny_models.classifier().SerializeToString()
    for candidate in (content, whole[: len(whole) // 2] + content, content + whole):
        try:
            onnx_file.inspect(candidate).check()
        except ModelLoadError as error:
            assert error.gate in GATES


# Golden answers


def with_golden(folder: Path, **changes: object) -> None:
    case = {"seed": 1, "predictions": [{"index": 0, "score": 0.5}]} | changes
    (folder / "1" / "golden.json").write_text(json.dumps({"schema": 1, "cases": [case]}))


async def test_a_version_that_answers_as_before_passes_its_golden_check(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "model")
    certain = float(np.exp(4) / (np.exp(4) + 2))
    (folder / "1" / "red.png").write_bytes(picture("red"))
    with_golden(folder, seed=None, file="red.png", predictions=[{"index": 0, "score": certain}])
    async with serving(tmp_path) as server:
        assert server.repository.status("model").reason == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": None, "file": "red.png", "predictions": [{"index": 0, "score": 0.5}]}, "scores 0.9"),
        ({"seed": None, "file": "red.png", "predictions": [{"index": 1, "score": 0.018}]}, "is the best"),
        ({"seed": None, "file": "gone.png"}, "'gone.png' is missing"),
        ({"seed": None, "file": "../labels.txt"}, "cases.0.file"),
        ({"file": "red.png"}, "either file or seed"),
        ({"predictions": []}, "cases.0.predictions"),
        ({"predictions": [{"index": 77, "score": 0.5}]}, "index 77"),
        ({"seed": None, "file": "labels.txt"}, "golden.json: labels.txt"),
    ],
)
async def test_another_answer_than_the_golden_one_keeps_a_version_out(
    tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    folder = write_model(tmp_path, "model")
    (folder / "1" / "red.png").write_bytes(picture("red"))
    shutil.copy(folder / "labels.txt", folder / "1")
    with_golden(folder, **changes)
    async with serving(tmp_path) as server:
        assert says in server.repository.status("model").reason


async def test_a_model_without_images_has_no_golden_answers(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "model", tiny_models.adder(), manifest=None, labels=None)
    with_golden(folder)
    async with serving(tmp_path) as server:
        assert "takes images" in server.repository.status("model").reason


def test_the_picture_of_a_seed_is_the_same_for_ever() -> None:
    assert hashlib.sha256(golden.picture(7, 20, 30)).hexdigest().startswith("2df819d5eac3")
