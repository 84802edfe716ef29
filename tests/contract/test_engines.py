"""What every engine must do, over the table of engines. A second engine adds a row here."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import helper

from service.engine.base import Engine, TensorSpec
from service.engine.ort import OrtEngine
from service.engine.padded import PaddedEngine, bucket_sizes
from service.engine.spec import ExecutionSpec
from service.engine.wide import WideEngine
from service.errors import EngineFailed, ModelLoadError
from tests.support import tiny_models

Open = Callable[[Path], Engine]


def _padded(path: Path) -> Engine:
    engine = OrtEngine(path, ExecutionSpec(("cpu",)))
    with_rows = [place for place, output in enumerate(engine.outputs) if output.shape[:1] == (-1,)]
    return PaddedEngine(engine, with_rows, bucket_sizes(8))


def _wide(path: Path) -> Engine:
    spec = ExecutionSpec(("cpu",))
    return WideEngine(OrtEngine(path, spec), OrtEngine(path, spec, intra_op_threads=2), lambda: True)


ENGINES: dict[str, Open] = {
    "ort": lambda path: OrtEngine(path, ExecutionSpec(("cpu",))),
    "padded": _padded,
    "wide": _wide,
}


@pytest.fixture(params=sorted(ENGINES))
def open_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[onnx.ModelProto], Engine]:
    def make(model: onnx.ModelProto) -> Engine:
        return ENGINES[request.param](tiny_models.save(model, tmp_path / "model.onnx"))

    return make


def test_inputs_and_outputs_are_the_graphs_in_its_order(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(tiny_models.two_outputs())
    assert engine.inputs == (TensorSpec("x", "float32", (-1, 4)),)
    assert engine.outputs == (TensorSpec("double", "float32", (-1, 4)), TensorSpec("half", "float32", (-1, 4)))


def test_a_run_gives_every_output_in_graph_order(open_engine: Callable[..., Engine]) -> None:
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    double, half = open_engine(tiny_models.two_outputs()).run({"x": rows})
    np.testing.assert_array_equal(double, rows * 2)
    np.testing.assert_array_equal(half, rows / 2)


def test_several_inputs_are_fed_by_name(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(tiny_models.adder(dtype="int64"))
    (total,) = engine.run({"b": np.array([[10, 20]]), "a": np.array([[1, 2]])})
    np.testing.assert_array_equal(total, [[11, 22]])
    assert total.dtype == np.int64


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_a_batch_of_any_size_gives_a_row_each(open_engine: Callable[..., Engine], size: int) -> None:
    rows = np.random.default_rng(size).random((size, 3, 8, 8), np.float32)
    (scores,) = open_engine(tiny_models.classifier()).run({"image": rows})
    np.testing.assert_allclose(scores, rows.mean((2, 3)) * tiny_models.GAIN, rtol=1e-5)


def test_a_row_does_not_depend_on_its_neighbours(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(tiny_models.classifier(ending="Softmax"))
    rows = np.random.default_rng(0).random((5, 3, 8, 8), np.float32)
    (together,) = engine.run({"image": rows})
    alone = np.concatenate([engine.run({"image": row[None]})[0] for row in rows])
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_a_run_leaves_what_it_was_fed_as_it_was(open_engine: Callable[..., Engine]) -> None:
    rows = np.random.default_rng(0).random((2, 4)).astype(np.float32)
    before = rows.copy()
    open_engine(tiny_models.two_outputs()).run({"x": rows})
    np.testing.assert_array_equal(rows, before)


def test_a_view_can_be_fed(open_engine: Callable[..., Engine]) -> None:
    """A batch is the first rows of a larger buffer, where images were refused."""
    buffer = np.random.default_rng(0).random((8, 4)).astype(np.float32)
    double, _ = open_engine(tiny_models.two_outputs()).run({"x": buffer[:3]})
    np.testing.assert_array_equal(double, buffer[:3] * 2)


def test_several_threads_may_run_at_once(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(tiny_models.two_outputs())

    def ask(number: int) -> bool:
        rows = np.full((1 + number % 5, 4), number, np.float32)
        double, half = engine.run({"x": rows})
        return bool((double == number * 2).all() and (half == number / 2).all() and len(double) == len(rows))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(400)))


def test_a_failed_run_does_not_spoil_the_next(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(tiny_models.two_outputs())
    with pytest.raises(EngineFailed):
        engine.run({"x": np.zeros((1, 5), np.float32)})
    double, _ = engine.run({"x": np.ones((1, 4), np.float32)})
    np.testing.assert_array_equal(double, [[2, 2, 2, 2]])


def test_the_provider_in_use_is_known(open_engine: Callable[..., Engine]) -> None:
    provider = open_engine(tiny_models.two_outputs()).provider
    assert provider.name == "cpu"
    assert provider.fallback_reason is None


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_a_file_that_is_no_model_is_refused_as_such(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelLoadError):
        ENGINES[name](tmp_path / "model.onnx")


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_a_file_that_is_not_there_is_refused_as_such(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError):
        ENGINES[name](tmp_path / "model.onnx")


def test_after_close_the_file_can_be_opened_again(open_engine: Callable[..., Engine]) -> None:
    open_engine(tiny_models.two_outputs()).close()
    double, _ = open_engine(tiny_models.two_outputs()).run({"x": np.ones((1, 4), np.float32)})
    assert double.shape == (1, 4)


def test_a_closed_engine_runs_no_more(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(tiny_models.two_outputs())
    engine.close()
    with pytest.raises(Exception):  # noqa: B017  # using it is a bug of ours: any exception, but no crash
        engine.run({"x": np.ones((1, 4), np.float32)})


def test_memory_of_larger_executions_is_given_back(open_engine: Callable[..., Engine]) -> None:
    row = np.ones((1, 4), np.float32)
    model = tiny_models.graph(
        [
            helper.make_node("Tile", ["x", "repeats"], ["wide"]),
            helper.make_node("ReduceMax", ["wide"], ["y"], keepdims=0),
        ],
        {"x": ("float32", ("N", 4))},
        {"y": ("float32", ())},
        {"repeats": np.array([1, 250_000])},
    )
    engine = open_engine(model)
    for rows in (1, 2):  # what its first execution took an arena keeps
        engine.run({"x": row.repeat(rows, 0)})
    before = resident_mib()
    engine.run({"x": row.repeat(64, 0)})  # 256 MB in between
    assert resident_mib() > before + 200
    engine.shrink({"x": row})
    assert resident_mib() < before + 40
    assert engine.run({"x": row})[0].max() == 1.0


def resident_mib() -> float:
    return psutil.Process().memory_info().rss / 2**20
