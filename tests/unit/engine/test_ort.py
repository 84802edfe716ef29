"""OrtEngine on real sessions: signatures, providers and what their absence is called, faults."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from service.engine.ort import OrtEngine
from service.engine.providers import NAME_OF, PROVIDERS
from service.engine.spec import ExecutionSpec
from service.errors import EngineFailed, ModelLoadError
from tests.support import tiny_models

CPU = ExecutionSpec(("cpu",))
needs_no_gpu = pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="about an onnxruntime without CUDA"
)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return tiny_models.save(tiny_models.classifier(), tmp_path / "model.onnx")


# Signatures


@pytest.mark.parametrize(
    ("dtype", "layout", "size", "batch", "shape"),
    [
        ("float32", "nchw", (8, 6), "N", (-1, 3, 8, 6)),
        ("float32", "nhwc", (8, 6), "N", (-1, 8, 6, 3)),
        ("uint8", "nhwc", (8, 6), 1, (1, 8, 6, 3)),
        ("float16", "nchw", ("height", "width"), None, (-1, 3, -1, -1)),
        ("float64", "nchw", (8, 6), 4, (4, 3, 8, 6)),
    ],
)
def test_the_signature_is_the_graphs_own(
    tmp_path: Path, dtype: str, layout: str, size: tuple, batch: object, shape: tuple
) -> None:
    model = tiny_models.classifier(dtype=dtype, layout=layout, size=size, batch=batch)
    engine = OrtEngine(tiny_models.save(model, tmp_path / "model.onnx"), CPU)
    (image,) = engine.inputs
    assert (image.name, image.dtype, image.shape) == ("image", dtype, shape)
    (scores,) = engine.outputs
    assert (scores.name, scores.dtype) == ("scores", "float32")


def test_an_engine_does_not_keep_the_bytes_that_it_was_made_of(graph: Path) -> None:
    model = graph.read_bytes()
    before = sys.getrefcount(model)
    engine = OrtEngine(model, CPU)
    assert sys.getrefcount(model) == before
    engine.close()


def test_a_graph_fed_what_it_asks_for_answers(graph: Path) -> None:
    rows = np.zeros((2, 3, 8, 8), np.float32)
    rows[1, 2] = 1.0
    (scores,) = OrtEngine(graph, CPU).run({"image": rows})
    np.testing.assert_allclose(scores, [[0, 0, 0], [0, 0, tiny_models.GAIN]], atol=1e-6)


# Providers: the list is the permission


@needs_no_gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpu_that_is_not_there_is_not_replaced_by_the_cpu_unasked(graph: Path, provider: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        OrtEngine(graph, ExecutionSpec((provider,)))
    message = str(caught.value)
    assert "no execution provider of the manifest works" in message
    assert f"{provider}: not in this onnxruntime" in message
    assert "install the extra `gpu`" in message


@needs_no_gpu
def test_the_cpu_stands_in_where_the_manifest_allows_it_and_says_so(graph: Path) -> None:
    engine = OrtEngine(graph, ExecutionSpec(("cuda", "cpu")))
    assert engine.provider.name == "cpu"
    assert engine.provider.fallback_reason is not None
    assert engine.provider.fallback_reason.startswith("cuda: not in this onnxruntime")


def test_the_preferred_provider_has_no_fallback_reason(graph: Path) -> None:
    engine = OrtEngine(graph, ExecutionSpec(("cpu", "cuda")))
    assert engine.provider.name == "cpu"
    assert engine.provider.fallback_reason is None


def test_every_provider_has_a_name_of_its_own_a_remedy_and_options() -> None:
    assert set(NAME_OF.values()) == set(PROVIDERS)
    for name, provider in PROVIDERS.items():
        assert provider.name == name
        assert "install" in provider.remedy
        assert isinstance(provider.options(ExecutionSpec(device_ids=(1,))), dict)


def test_a_gpu_provider_is_given_the_manifests_device() -> None:
    for name in ("cuda", "tensorrt"):
        assert PROVIDERS[name].options(ExecutionSpec(device_ids=(3,)))["device_id"] == 3


# Session options


@pytest.mark.parametrize(("asked", "default", "expected"), [(0, 1, 1), (0, 2, 2), (3, 1, 3)])
def test_threads_inside_a_run_are_the_manifests_or_the_callers(
    graph: Path, monkeypatch: pytest.MonkeyPatch, asked: int, default: int, expected: int
) -> None:
    seen: list[ort.SessionOptions] = []
    real = ort.InferenceSession

    def session(path: str, options: ort.SessionOptions, **rest: object) -> ort.InferenceSession:
        seen.append(options)
        return real(path, options, **rest)

    monkeypatch.setattr(ort, "InferenceSession", session)
    OrtEngine(graph, ExecutionSpec(("cpu",), intra_op_threads=asked), intra_op_threads=default)
    (options,) = seen
    assert options.intra_op_num_threads == expected
    assert options.inter_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


# Faults


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08"], ids=["empty", "garbage", "truncated"])
def test_a_damaged_file_is_refused_with_the_runtimes_reason(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError) as caught:
        OrtEngine(path, CPU)
    message = str(caught.value)
    assert "cpu: " in message
    assert len(message.splitlines()) == 1


def test_why_a_file_is_refused_does_not_tell_where_it_lies_on_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(ModelLoadError) as caught:
        OrtEngine(path, CPU)
    assert str(tmp_path) not in str(caught.value)


def test_an_operator_that_is_not_known_is_refused(tmp_path: Path) -> None:
    model = tiny_models.classifier()
    model.graph.node[-1].op_type = "Telepathy" * 1000
    with pytest.raises(ModelLoadError, match="Telepathy") as caught:
        OrtEngine(tiny_models.save(model, tmp_path / "model.onnx"), CPU)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "feeds",
    [
        {"image": np.zeros((1, 3, 5, 5), np.float32)},
        {"image": np.zeros((1, 3, 8, 8), np.float64)},
        {"picture": np.zeros((1, 3, 8, 8), np.float32)},
        {},
    ],
    ids=["shape", "dtype", "name", "nothing"],
)
def test_a_run_that_fails_says_nothing_of_the_inside(graph: Path, feeds: dict) -> None:
    engine = OrtEngine(graph, CPU)
    with pytest.raises(EngineFailed, match=r"^The model failed on this input\.$"):
        engine.run(feeds)


class Broken:
    """A session whose run fails with a text of the runtime's."""

    def __init__(self, message: str) -> None:
        self.message = message

    def run(self, *_: object) -> None:
        raise RuntimeError(self.message)


@pytest.mark.parametrize(
    "message", ["std::bad_alloc", "[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 9"]
)
def test_an_allocation_that_fails_is_a_memory_error(graph: Path, monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    engine = OrtEngine(graph, CPU)
    monkeypatch.setattr(engine, "_session", Broken(message))
    with pytest.raises(MemoryError):
        engine.run({"image": np.zeros((1, 3, 8, 8), np.float32)})
