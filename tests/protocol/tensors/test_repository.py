"""Repository index, load and unload: what they change, who may, and that statistics go on."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from tests.protocol.tensors.conftest import ADMIN, TOKEN
from tests.support import oip, tiny_models
from tests.support.server_process import ServerProcess

LOAD, UNLOAD = "/v2/repository/models/spare/load", "/v2/repository/models/spare/unload"
ROWS = np.ones((2, 2), np.float32)
ASK = oip.body(oip.tensor("a", ROWS), oip.tensor("b", ROWS))


@pytest.fixture
def spare(repository: Path, client: httpx2.Client) -> Iterator[Path]:
    """A model that a test may load, change and unload."""
    folder = tiny_models.write_model(repository, "spare", tiny_models.adder(), manifest=None, labels=None)
    assert client.post(LOAD, headers=ADMIN).status_code == 200
    yield folder
    client.post(UNLOAD, headers=ADMIN)
    shutil.rmtree(folder)


def index(client: httpx2.Client, **body: Any) -> dict[tuple[str, str], dict[str, str]]:
    answer = client.post("/v2/repository/index", json=body)
    assert answer.status_code == 200
    return {(one["name"], one.get("version", "")): one for one in answer.json()}


def ask(client: httpx2.Client) -> int:
    return client.post("/v2/models/spare/infer", content=ASK).status_code


def test_index_shows_every_version_with_its_state(client: httpx2.Client) -> None:
    found = index(client)
    assert found["colors", "2"] == {"name": "colors", "version": "2", "state": "READY"}
    assert found["broken", "1"]["state"] == "UNAVAILABLE"
    assert found["broken", "1"]["reason"]
    assert ("broken", "1") not in index(client, ready=True)


def test_index_takes_a_post_without_body_and_type(server: ServerProcess, client: httpx2.Client) -> None:
    assert client.post("/v2/repository/index").json()
    assert client.post("/v2/repository/index", content=b"{}").json()
    assert client.post("/v2/repository/index", content=b'{"ready": "yes"}').status_code == 400
    assert client.post("/v2/repository/index", content=b"[]").status_code == 400


def test_an_unload_takes_a_model_out_until_it_is_loaded(client: httpx2.Client, spare: Path) -> None:
    assert ask(client) == 200
    assert client.post(UNLOAD, headers=ADMIN, json={"parameters": {"unload_dependents": False}}).status_code == 200
    assert ask(client) == 503
    assert client.get("/v2/models/spare/ready").status_code == 503
    assert index(client)["spare", "1"]["state"] in ("UNAVAILABLE", "UNLOADING")
    assert index(client)["spare", "1"]["reason"] == "unloaded"
    assert client.post(LOAD, headers=ADMIN).status_code == 200
    assert ask(client) == 200


def test_an_unload_is_held_while_others_are_loaded(client: httpx2.Client, spare: Path) -> None:
    """A load looks at the whole folder, as the poll does."""
    client.post(UNLOAD, headers=ADMIN)
    assert client.post("/v2/repository/models/sum/load", headers=ADMIN).status_code == 200
    assert ask(client) == 503


def test_statistics_never_fall(client: httpx2.Client, spare: Path) -> None:
    assert ask(client) == 200
    (before,) = client.get("/v2/models/spare/stats").json()["model_stats"]
    assert client.post(UNLOAD, headers=ADMIN).status_code == 200
    assert client.post(LOAD, headers=ADMIN).status_code == 200
    (after,) = client.get("/v2/models/spare/stats").json()["model_stats"]
    assert after == before
    assert ask(client) == 200
    (later,) = client.get("/v2/models/spare/stats").json()["model_stats"]
    assert later["inference_count"] == before["inference_count"] + 2


def test_a_load_takes_up_changed_files_of_a_version_in_service(client: httpx2.Client, spare: Path) -> None:
    tiny_models.save(tiny_models.adder(shape=("N", 3)), spare / "1" / "model.onnx")
    assert ask(client) == 200  # until somebody says so
    assert client.post(LOAD, headers=ADMIN).status_code == 200
    assert client.get("/v2/models/spare").json()["inputs"][0]["shape"] == [-1, 3]
    assert ask(client) == 400


def test_a_load_that_fails_leaves_what_serves(client: httpx2.Client, spare: Path) -> None:
    (spare / "1" / "model.onnx").write_bytes(b"half a file")
    answer = client.post(LOAD, headers=ADMIN)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("failed to load 'spare'")
    assert ask(client) == 200


def test_a_load_takes_up_a_new_version_at_once(client: httpx2.Client, spare: Path) -> None:
    shutil.copytree(spare / "1", spare / "2")
    assert client.post(LOAD, headers=ADMIN).status_code == 200
    assert client.get("/v2/models/spare/ready").json()["version"] == "2"


def test_a_model_that_cannot_be_loaded_says_why(client: httpx2.Client) -> None:
    answer = client.post("/v2/repository/models/broken/load", headers=ADMIN)
    assert answer.status_code == 400
    assert "1/model.onnx" in answer.json()["error"]


@pytest.mark.parametrize("action", ["load", "unload"])
def test_an_unknown_model_is_404(client: httpx2.Client, action: str) -> None:
    assert client.post(f"/v2/repository/models/nothing/{action}", headers=ADMIN).status_code == 404


@pytest.mark.parametrize(
    "parameters",
    [
        {"config": "{}"},
        {"file:1/model.onnx": "AAAA"},
        {"unload_dependents": "yes"},
        ["config"],
        "config",
    ],
)
@pytest.mark.parametrize("path", ["/v2/repository/models/sum/load", "/v2/repository/models/sum/unload"])
def test_overrides_are_refused(client: httpx2.Client, path: str, parameters: Any) -> None:
    assert client.post(path, headers=ADMIN, json={"parameters": parameters}).status_code == 400
    assert client.get("/v2/models/sum/ready").status_code == 200


@pytest.mark.parametrize("body", [b"[" * 60_000, b"{" * 100, b"\xff", b'{"a": ' + b"1" * 60_000 + b"}"])
def test_bodies_that_cannot_be_read_are_refused(client: httpx2.Client, body: bytes) -> None:
    assert client.post("/v2/repository/models/sum/load", headers=ADMIN, content=body).status_code == 400


@pytest.mark.parametrize("path", ["index", "models/sum/load", "models/sum/unload"])
def test_a_body_of_too_many_bytes_is_413(client: httpx2.Client, path: str) -> None:
    answer = client.post(f"/v2/repository/{path}", headers=ADMIN, content=b" " * (64 * 1024 + 1))
    assert answer.status_code == 413
    assert "65,536" in answer.json()["error"]
    assert client.get("/v2/models/sum/ready").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": TOKEN},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer " + "x" * 8000},
        [("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {TOKEN}")],
    ],
)
@pytest.mark.parametrize("action", ["load", "unload"])
def test_nobody_else_may(client: httpx2.Client, headers: Any, action: str) -> None:
    answer = client.post(f"/v2/repository/models/sum/{action}", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/v2/models/sum/ready").status_code == 200


@pytest.mark.parametrize("path", ["/v2/repository/models/sum/unload/", "//v2/repository/models/sum/unload"])
def test_no_other_path_leads_there(client: httpx2.Client, path: str) -> None:
    assert client.post(f"{client.base_url}{path}", headers=ADMIN).status_code == 404
    assert client.get("/v2/models/sum/ready").status_code == 200


def test_without_a_token_they_are_off(repository: Path) -> None:
    with ServerProcess(repository, "--repository.poll-interval-s", "0") as other:
        other.wait_until_ready()
        for action in ("load", "unload"):
            answer = httpx2.post(f"{other.url}/v2/repository/models/sum/{action}", headers=ADMIN)
            oip.lint("POST", f"/v2/repository/models/sum/{action}", answer)
            assert answer.status_code == 403
