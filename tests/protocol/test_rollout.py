"""/api/v1/models/{model}/rollout over HTTP: roles, refusals, canaries that stick, a shadow that reports."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support import bodies
from tests.support.server_process import ServerProcess, poll, serving

TOKEN = "a-token-for-tests"
ADMIN = {"authorization": f"Bearer {TOKEN}"}
ROLLOUT = "/api/v1/models/colors/rollout"
CLASSIFY = "/api/v1/models/colors/classify"
NOBODY = {"stable": None, "canary": None, "shadow": None}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Versions 1 to 3 of a model of colours; 4 is no ONNX."""
    root = tmp_path_factory.mktemp("rollout")
    folder: Path = bodies.write_model(
        root / "colors", bodies.mean_color_model(), manifest=bodies.COLOR_MANIFEST, labels=bodies.COLORS
    )
    for version in ("2", "3", "4"):
        shutil.copytree(folder / "1", folder / version)
    (folder / "4" / "model.onnx").write_bytes(b"no graph")
    with serving(root, "--admin.token", TOKEN) as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, headers=ADMIN, timeout=30) as client:
        yield client
        assert client.patch(ROLLOUT, json=NOBODY).status_code == 200


def changed(client: httpx2.Client, **body: Any) -> dict[str, Any]:
    answer = client.patch(ROLLOUT, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert client.get(ROLLOUT).json()["in_force"] == found["in_force"]
    return found


def version_of(client: httpx2.Client, key: str | None = None) -> int:
    headers = {"content-type": bodies.PNG} | ({"x-fovea-key": key} if key else {})
    answer = client.post(CLASSIFY, content=bodies.plain_color("red"), headers=headers)
    assert answer.status_code == 200
    assert answer.json()["results"][0]["predictions"][0]["label"] == "red"
    return int(answer.json()["version"])


def test_one_call_names_the_stable_version_and_one_takes_it_back(client: httpx2.Client) -> None:
    assert version_of(client) == 3
    assert changed(client, stable=1)["in_force"] == {"stable": 1, "canary": None, "shadow": None}
    assert version_of(client) == 1
    assert changed(client, stable=2)["stable"] == 2
    assert version_of(client) == 2
    changed(client, stable=1)
    assert version_of(client) == 1


def test_a_canary_has_its_share_and_its_keys_stick(client: httpx2.Client) -> None:
    found = changed(client, stable=1, canary={"version": 2, "percent": 50})
    assert found["in_force"] == {"stable": 1, "canary": {"version": 2, "percent": 50.0}, "shadow": None}
    answered = [version_of(client) for _ in range(60)]
    assert 10 <= answered.count(2) <= 50
    by_key = {key: version_of(client, key) for key in map(str, range(30))}
    assert set(by_key.values()) == {1, 2}
    for key, version in by_key.items():
        assert version_of(client, key) == version
    changed(client, canary={"version": 2, "percent": 80})
    assert all(version_of(client, key) == 2 for key, version in by_key.items() if version == 2)
    changed(client, canary=None)
    assert {version_of(client, key) for key in by_key} == {1}


def test_a_version_that_is_asked_for_is_answered_whatever_the_roles(client: httpx2.Client) -> None:
    changed(client, stable=1, canary={"version": 2, "percent": 100})
    picture = bodies.plain_color("red")
    answer = client.post(
        "/api/v1/models/colors/versions/1/classify", content=picture, headers={"content-type": bodies.PNG}
    )
    assert answer.json()["version"] == "1"
    assert version_of(client) == 2


def test_a_shadow_reports_how_it_compares(client: httpx2.Client) -> None:
    changed(client, stable=1, shadow={"version": 1, "percent": 100})

    def asked_and_compared() -> dict[str, Any] | None:
        version_of(client)  # again and again: what comes while there is no idle time is left out
        found: dict[str, Any] = client.get(ROLLOUT).json()["comparison"]
        return found if found["compared"] >= 5 else None

    seen = poll(asked_and_compared, "comparison")
    assert seen["agreement"] == 1
    assert seen["mean_score_difference"] == 0
    assert seen["milliseconds"]["stable"] > 0
    assert seen["disagreements"] == []


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"stable": 9}, 404, "no version 9"),
        ({"stable": 4}, 409, "no ONNX"),
        ({"canary": {"version": 4, "percent": 1}}, 409, "no ONNX"),
        ({"stable": 1, "canary": {"version": 1, "percent": 1}}, 422, "is the stable one"),
        ({"stable": "1"}, 422, "stable"),
        ({"stable": 0}, 422, "stable"),
        ({"canary": {"version": 2}}, 422, "percent"),
        ({"canary": {"version": 2, "percent": 101}}, 422, "percent"),
        ({"canary": 2}, 422, "canary"),
        ({"stabel": 1}, 422, "stabel"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    client: httpx2.Client, body: dict[str, Any], status: int, says: str
) -> None:
    before = client.get(ROLLOUT).json()
    answer = client.patch(ROLLOUT, json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert says in answer.json()["detail"]
    assert client.get(ROLLOUT).json() == before


@pytest.mark.parametrize("body", [b"{", b"[]", b"1", b"\xff"])
def test_what_is_no_object_is_malformed(client: httpx2.Client, body: bytes) -> None:
    assert client.patch(ROLLOUT, content=body).status_code == 400


def test_an_unknown_model_is_404(client: httpx2.Client) -> None:
    assert client.get("/api/v1/models/nobody/rollout").status_code == 404
    assert client.patch("/api/v1/models/nobody/rollout", json={}).status_code == 404


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}])
def test_nobody_else_may_look_or_change(server: ServerProcess, headers: dict[str, str]) -> None:
    for method in ("GET", "PATCH"):
        assert httpx2.request(method, server.url + ROLLOUT, headers=headers).status_code == 401


def test_roles_and_refusals_are_scraped(client: httpx2.Client) -> None:
    changed(client, stable=1, canary={"version": 2, "percent": 25})
    client.patch(ROLLOUT, json={"stable": 4})
    text = client.get("/metrics").text
    assert 'fovea_rollout_share{model="colors",role="stable",version="1"} 0.75' in text
    assert 'fovea_rollout_share{model="colors",role="canary",version="2"} 0.25' in text
    assert 'fovea_model_refusals_total{model="colors",reason="files"}' in text
