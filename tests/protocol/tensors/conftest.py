"""One server for the tensor protocols, with small models of every kind and an admin token; its client lints answers."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support import bodies, oip, tiny_models
from tests.support.server_process import MODEL_REPO, ServerProcess, serving

TOKEN = "a-token-for-tests"
ADMIN = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed models, and beside them:

    colors      images or tensors of 8 x 8; versions 1 and 2, of which the policy names both
    sum         two inputs, one output, int64
    both        one input, two outputs, float32
    open        two inputs whose second dimension is open
    fixed       shape [3, 2], so no rows
    half        float16
    inverse     infinite where the input is nought
    echo        strings
    look_up     a table of three numbers, by index
    broken      a model.onnx that is no ONNX
    """
    root = tmp_path_factory.mktemp("tensors") / "model_repo"
    shutil.copytree(MODEL_REPO, root, ignore=shutil.ignore_patterns("recipes"))
    manifest = bodies.COLOR_MANIFEST.replace("\n", "\nversion_policy = [1, 2]\n", 1)
    colors = bodies.write_model(root / "colors", bodies.mean_color_model(), manifest=manifest, labels=bodies.COLORS)
    shutil.copytree(colors / "1", colors / "2")
    graphs = {
        "sum": tiny_models.adder(dtype="int64"),
        "both": tiny_models.two_outputs(),
        "open": tiny_models.adder(shape=("N", "w")),
        "fixed": tiny_models.adder(shape=(3, 2)),
        "half": tiny_models.adder(dtype="float16"),
        "inverse": _inverse(),
        "echo": _echo(),
        "look_up": _look_up(),
    }
    for name, graph in graphs.items():
        tiny_models.write_model(root, name, graph, manifest=None, labels=None)
    tiny_models.write_model(root, "broken", b"no graph at all", manifest=None, labels=None)
    return root


def _inverse() -> onnx.ModelProto:
    rows = ("float32", ("N", 2))
    return tiny_models.graph([helper.make_node("Reciprocal", ["x"], ["y"])], {"x": rows}, {"y": rows})


def _look_up() -> onnx.ModelProto:
    node = helper.make_node("Gather", ["table", "index"], ["value"])
    table = {"table": np.float32([1, 2, 3])}
    return tiny_models.graph([node], {"index": ("int64", ("N",))}, {"value": ("float32", ("N",))}, table)


def _echo() -> onnx.ModelProto:
    sides = [helper.make_tensor_value_info(name, TensorProto.STRING, ("N", 2)) for name in ("text", "same")]
    graph = helper.make_graph([helper.make_node("Identity", ["text"], ["same"])], "echo", sides[:1], sides[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", tiny_models.OPSET)], ir_version=10)


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[ServerProcess]:
    with serving(repository, "--admin.token", TOKEN) as process:
        yield process


@pytest.fixture(scope="session")
def client(server: ServerProcess) -> Iterator[httpx2.Client]:
    def check(response: httpx2.Response) -> None:
        if response.url.path.startswith("/v2"):
            response.read()
            oip.lint(response.request.method, response.url.path, response)

    with httpx2.Client(base_url=server.url, timeout=30.0, event_hooks={"response": [check]}) as client:
        yield client


@pytest.fixture
def golden(client: httpx2.Client) -> Callable[[], None]:
    """That the server lives, and gives the golden request its golden answer."""
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)

    def check() -> None:
        assert client.get("/v2/health/live").status_code == 200
        answer = client.post("/v2/models/both/infer", content=oip.body(oip.tensor("x", rows)))
        np.testing.assert_array_equal(oip.outputs_of(answer)["double"], rows * 2)

    return check
