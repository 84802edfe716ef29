"""Tensors through the pipeline with real (tiny) graphs: rows, shapes that cannot share a batch, faults, statistics."""

import asyncio
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from service.engine.base import TensorSpec
from service.engine.ort import OrtEngine
from service.errors import InvalidTensor
from service.messages import ImagePayload, ModelRef
from service.model import LoadedModel
from service.server import InferenceServer
from service.tensors import Array, Signature, TensorRequest, TensorResult, Tensors, items_of, signature_of
from tests.support import tiny_models
from tests.support.tiny_models import classify, damaged_picture, picture, serving, write_model


async def infer(server: InferenceServer, model: str = "model", **tensors: npt.ArrayLike) -> TensorResult:
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    return await ask(server, model, arrays)


async def ask(server: InferenceServer, model: str, given: Tensors | tuple[ImagePayload, ...]) -> TensorResult:
    ref = ModelRef(model)
    with server.pipeline.admit("v2", ref) as ticket:
        ticket.body_received()
        return await server.pipeline.infer(TensorRequest(ref, lambda _: given, time.monotonic() + 60), ticket)


def loaded(server: InferenceServer, name: str = "model") -> LoadedModel:
    (model,) = [one.loaded for one in server.repository.status(name).versions if one.loaded is not None]
    return model


def planes(*colors: str) -> npt.NDArray[np.float32]:
    """Pictures of one colour as the tensor that the server makes of them."""
    rows = [np.broadcast_to(np.asarray(tiny_models.RGB[color], np.float32) / 255, (8, 8, 3)) for color in colors]
    return np.ascontiguousarray(np.stack(rows).transpose(0, 3, 1, 2))


def tensors_only(root: Path, graph: onnx.ModelProto, manifest: str | None = None) -> None:
    write_model(root, "model", graph, manifest=manifest, labels=None)


# Answers


async def test_rows_are_answered_in_order_with_the_graphs_own_numbers(tmp_path: Path) -> None:
    write_model(tmp_path, "model")
    async with serving(tmp_path) as server:
        result = await infer(server, image=planes("red", "blue", "yellow"))
        assert result.rows == 3
        expected = np.array([[1, 0, 0], [0, 0, 1], [1, 1, 0]]) * tiny_models.GAIN
        np.testing.assert_allclose(result.outputs["scores"], expected, atol=1e-5)


async def test_an_image_gives_the_same_raw_outputs_as_its_tensor(tmp_path: Path) -> None:
    write_model(tmp_path, "model")
    async with serving(tmp_path) as server:
        of_images = await ask(server, "model", (ImagePayload(picture("red")), ImagePayload(picture("green"))))
        of_tensors = await infer(server, image=planes("red", "green"))
        np.testing.assert_allclose(of_images.outputs["scores"], of_tensors.outputs["scores"], atol=1e-5)


async def test_images_rows_and_raw_images_share_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path, "model", manifest=tiny_models.UNIT + "[batching]\nmax_queue_delay_ms = 100\n")
    sizes = sizes_of_runs(monkeypatch)
    async with serving(tmp_path) as server:
        sizes.clear()
        native, raw, rows = await asyncio.gather(
            classify(server.pipeline, "model", picture("red")),
            ask(server, "model", (ImagePayload(picture("green")),)),
            infer(server, image=planes("blue", "red")),
        )
        assert sizes == [4]
        assert tiny_models.best_labels(native) == ["red"]
        assert raw.outputs["scores"].argmax(1).tolist() == [1]
        assert rows.outputs["scores"].argmax(1).tolist() == [2, 0]


async def test_several_inputs_and_outputs_keep_their_names(tmp_path: Path) -> None:
    write_model(tmp_path, "sum", tiny_models.adder(), manifest=None, labels=None)
    write_model(tmp_path, "both", tiny_models.two_outputs(), manifest=None, labels=None)
    async with serving(tmp_path) as server:
        one = np.arange(6, dtype=np.float32).reshape(3, 2)
        total = await infer(server, "sum", b=one, a=one * 10)
        np.testing.assert_array_equal(total.outputs["sum"], one * 11)
        rows = np.arange(8, dtype=np.float32).reshape(2, 4)
        both = await infer(server, "both", x=rows)
        assert list(both.outputs) == ["double", "half"]
        np.testing.assert_array_equal(both.outputs["double"], rows * 2)
        np.testing.assert_array_equal(both.outputs["half"], rows / 2)


async def test_a_request_of_more_rows_than_a_batch_spreads_over_executions(tmp_path: Path) -> None:
    tensors_only(tmp_path, tiny_models.adder(), "[batching]\nmax_batch_size = 4\n")
    async with serving(tmp_path) as server:
        rows = np.arange(50, dtype=np.float32).reshape(25, 2)
        result = await infer(server, a=rows, b=rows)
        np.testing.assert_array_equal(result.outputs["sum"], rows * 2)
        assert max(loaded(server).statistics.batches) <= 4


async def test_a_graph_of_fixed_shape_takes_each_request_alone_and_whole(tmp_path: Path) -> None:
    tensors_only(tmp_path, tiny_models.adder(shape=(3, 2)))
    async with serving(tmp_path) as server:
        assert not loaded(server).signature.is_batched
        whole = np.arange(6, dtype=np.float32).reshape(3, 2)
        results = await asyncio.gather(*(infer(server, a=whole * n, b=whole) for n in range(4)))
        for n, result in enumerate(results):
            np.testing.assert_array_equal(result.outputs["sum"], whole * (n + 1))
        with pytest.raises(InvalidTensor, match=r"\[2, 2\]; the model takes \[3, 2\]"):
            await infer(server, a=whole[:2], b=whole[:2])


async def test_an_image_graph_of_batch_one_takes_many_rows(tmp_path: Path) -> None:
    write_model(tmp_path, "model", tiny_models.classifier(batch=1))
    async with serving(tmp_path) as server:
        result = await infer(server, image=planes("red", "blue", "green"))
        assert result.outputs["scores"].argmax(1).tolist() == [0, 2, 1]


async def test_neighbouring_rows_reach_the_engine_without_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors_only(tmp_path, tiny_models.adder())
    seen: list[Array] = []
    real = OrtEngine.run

    def run(self: OrtEngine, feeds: dict[str, Array]) -> list[Array]:
        seen.append(feeds["a"])
        return real(self, feeds)

    monkeypatch.setattr(OrtEngine, "run", run)
    async with serving(tmp_path) as server:
        rows = np.ones((8, 2), np.float32)
        await infer(server, a=rows, b=rows)
        assert all(np.shares_memory(array, rows) for array in seen)


async def test_rows_that_lie_askew_in_memory_are_copied(tmp_path: Path) -> None:
    """A tensor behind JSON of odd length, where nobody aligned it."""
    for name, graph in {"model": tiny_models.adder(), "fixed": tiny_models.adder(shape=(3, 2))}.items():
        write_model(tmp_path, name, graph, manifest=None, labels=None)
    async with serving(tmp_path) as server:
        room = np.zeros(25, np.uint8)
        askew = room[1:].view(np.float32).reshape(3, 2)
        askew[:] = 3
        assert not askew.flags.aligned
        for name in ("model", "fixed"):
            result = await infer(server, name, a=askew, b=askew)
            np.testing.assert_array_equal(result.outputs["sum"], np.full((3, 2), 6))


# Shapes that cannot share a batch


def sizes_of_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []
    real = OrtEngine.run

    def run(self: OrtEngine, feeds: dict[str, Array]) -> list[Array]:
        sizes.append(len(next(iter(feeds.values()))))
        return real(self, feeds)

    monkeypatch.setattr(OrtEngine, "run", run)
    return sizes


WAITS = "[batching]\nmax_queue_delay_ms = 200\nmax_batch_size = 8\n[execution]\ninstances = 1\n"


async def test_rows_of_different_shapes_run_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors_only(tmp_path, tiny_models.adder(shape=("N", "w")), WAITS)
    sizes = sizes_of_runs(monkeypatch)
    async with serving(tmp_path) as server:
        given = [np.full((2, width), width, np.float32) for width in (3, 5, 3)]
        results = await asyncio.gather(*(infer(server, a=rows, b=rows) for rows in given))
        for rows, result in zip(given, results, strict=True):
            np.testing.assert_array_equal(result.outputs["sum"], rows * 2)
        assert sorted(sizes) == [2, 4]


async def test_a_tensor_that_the_graph_fails_on_takes_no_neighbour_with_it(tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("Gather", ["table", "index"], ["value"])]
    graph = tiny_models.graph(
        nodes, {"index": ("int64", ("N",))}, {"value": ("float32", ("N",))}, {"table": np.float32([1, 2, 3])}
    )
    tensors_only(tmp_path, graph, WAITS)
    async with serving(tmp_path) as server:
        good, bad, also_good = await asyncio.gather(
            infer(server, index=np.array([0, 2])),
            infer(server, index=np.array([99])),
            infer(server, index=np.array([1])),
            return_exceptions=True,
        )
        assert isinstance(bad, InvalidTensor)
        assert isinstance(good, TensorResult)
        assert isinstance(also_good, TensorResult)
        assert good.outputs["value"].tolist() == [1, 3]
        assert also_good.outputs["value"].tolist() == [2]


async def test_shapes_that_fit_the_signature_and_not_the_graph_are_the_callers_fault(tmp_path: Path) -> None:
    tensors_only(tmp_path, tiny_models.adder(shape=("N", "w")))
    async with serving(tmp_path) as server:
        with pytest.raises(InvalidTensor, match="cannot run on this input"):
            await infer(server, a=np.zeros((1, 3), np.float32), b=np.zeros((1, 5), np.float32))


# Refusals


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"a": np.zeros((1, 2), np.float32)}, "'b' is missing"),
        ({"a": np.zeros((1, 2), np.float32), "b": np.zeros((1, 2), np.float32), "c": np.zeros(1)}, "no input 'c'"),
        ({"a": np.zeros((1, 2)), "b": np.zeros((1, 2), np.float32)}, "float64; the model takes float32"),
        (
            {"a": np.zeros((1, 3), np.float32), "b": np.zeros((1, 3), np.float32)},
            r"\[1, 3\]; the model takes \[-1, 2\]",
        ),
        ({"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)}, r"\[2\]"),
        ({"a": np.zeros((1, 2), np.float32), "b": np.zeros((2, 2), np.float32)}, "different numbers of rows"),
        ({"a": np.zeros((0, 2), np.float32), "b": np.zeros((0, 2), np.float32)}, "0 rows"),
        ({"a": np.zeros((65, 2), np.float32), "b": np.zeros((65, 2), np.float32)}, "65 rows; a request has 1 to 64"),
    ],
)
async def test_what_does_not_fit_is_refused_with_its_reason(
    tmp_path: Path, tensors: dict[str, Array], reason: str
) -> None:
    tensors_only(tmp_path, tiny_models.adder())
    async with serving(tmp_path) as server:
        with pytest.raises(InvalidTensor, match=reason):
            await infer(server, **tensors)


async def test_a_damaged_image_is_refused_as_a_whole_request(tmp_path: Path) -> None:
    write_model(tmp_path, "model")
    async with serving(tmp_path) as server:
        with pytest.raises(InvalidTensor):
            await ask(server, "model", (ImagePayload(picture("red")), ImagePayload(damaged_picture())))
        assert (await infer(server, image=planes("red"))).outputs["scores"].argmax() == 0


# Signatures


def spec(name: str, *shape: int, rows: str = "") -> TensorSpec:
    return TensorSpec(name, "float32", shape, rows)


@pytest.mark.parametrize(
    ("inputs", "outputs", "is_batched"),
    [
        ([spec("a", -1, 2)], [spec("y", -1)], True),
        ([spec("a", -1, 2, rows="N")], [spec("y", -1, rows="M")], False),
        ([spec("a", -1, 2, rows="N")], [spec("y", -1)], True),
        ([spec("a", 4, 2)], [spec("y", 4)], False),
        ([spec("a", -1, 2), spec("b")], [spec("y", -1)], False),
        ([spec("a", -1, 2)], [spec("y")], False),
    ],
)
def test_rows_are_told_apart_only_where_every_tensor_has_them(
    inputs: list[TensorSpec], outputs: list[TensorSpec], is_batched: bool
) -> None:
    assert signature_of(inputs, outputs).is_batched == is_batched


def test_a_graph_fed_with_images_shows_the_outputs_that_have_rows() -> None:
    signature = signature_of([spec("image", -1, 3, 8, 8)], [spec("scores", -1, 3), spec("scale")], "image")
    assert [output.name for output in signature.outputs] == ["scores"]
    assert signature.is_batched


def test_items_of_an_unbatched_request_are_one() -> None:
    signature = Signature((spec("a", 3),), (spec("y", 3),), is_batched=False)
    (item,) = items_of(signature, {"a": np.zeros(3, np.float32)}, 64)
    assert item.row is None


# Statistics


async def test_statistics_grow_and_go_on_after_a_reload(tmp_path: Path) -> None:
    write_model(tmp_path, "model")
    async with serving(tmp_path) as server:
        await infer(server, image=planes("red", "green", "blue"))
        await classify(server.pipeline, "model", picture("red"))
        with pytest.raises(InvalidTensor):
            await infer(server, image=np.zeros((1, 3, 8, 8)))
        await asyncio.sleep(0)  # what ended in this turn is recorded in the next
        before = loaded(server).statistics
        assert (before.requests.count, before.fail.count, before.inferences) == (2, 1, 4)
        assert before.requests.infer.nanoseconds > 0
        assert sum(size * batch.infer.count for size, batch in before.batches.items()) == 4
        assert before.executions == sum(batch.infer.count for batch in before.batches.values())
        await server.repository.unload("model")
        await server.repository.load("model")
        again = loaded(server).statistics
        assert again.inferences == 4
        await infer(server, image=planes("red"))
        assert again.inferences == 5
