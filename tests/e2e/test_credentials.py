"""A server that asks for tokens, over TLS, and lets one foreign page in: all its routes, and the files behind it."""

import re
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.rest.credentials import PUBLIC
from tests.support import bodies, raw_http
from tests.support.answers import predictions_of, problem_of
from tests.support.scrape import Scrape
from tests.support.server_process import ServerProcess, poll, run_fovea
from tests.support.tls import Identity, self_signed

ADMIN, CALLER, FILED = "admin-0123456789abcdef", "caller-0123456789abcdef", "filed-0123456789abcdef"
ORIGIN = "https://pages.example"
CLASSIFY = "/api/v1/models/colors/classify"
LOAD = "/v2/repository/models/colors/load"


def as_who(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("guarded")
    bodies.write_model(root / "colors", bodies.mean_color_model(), manifest=bodies.COLOR_MANIFEST, labels=bodies.COLORS)
    return root


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("secrets") / "tokens"
    file.write_text(f"# team b\n{FILED}\n")
    return file


@pytest.fixture(scope="module")
def server(repository: Path, tokens: Path) -> Iterator[ServerProcess]:
    arguments = ["--auth.tokens-file", str(tokens), "--server.cors-origins", ORIGIN, "--server.drain-delay-s", "0"]
    environment = {"FOVEA_ADMIN__TOKEN": ADMIN, "FOVEA_AUTH__TOKENS": f"other-0123456789abcdef,{CALLER}"}
    with ServerProcess(repository, *arguments, environment=environment) as process:
        yield process.wait_until_ready()
        assert process.stop() == 0
        said = str(process.lines) + process.stderr
        assert not [token for token in (ADMIN, CALLER, FILED) if token in said]


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=10.0) as client:
        yield client


def routes(client: httpx2.Client) -> Iterator[tuple[str, str]]:
    """Every method and path of the OpenAPI document, and some that are not in it."""
    document: dict[str, Any] = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        filled = re.sub(r"\{version\}", "1", re.sub(r"\{model\}", "colors", path))
        yield from ((method.upper(), filled) for method in operations)
    yield from [
        ("GET", "/nowhere"),
        ("POST", "/v2/logging"),
        ("GET", "/api/v1"),
        ("OPTIONS", CLASSIFY),
        ("GET", "/static"),
    ]


def test_no_route_outside_the_public_list_answers_a_stranger(client: httpx2.Client) -> None:
    asked = list(routes(client))
    assert len(asked) > 25
    for method, path in asked:
        for headers in ({}, as_who("wrong-0123456789abcdef")):
            status = client.request(method, path, headers=headers).status_code
            assert (status in (200, 503)) if path in PUBLIC else (status == 401), (method, path, status)


@pytest.mark.parametrize("path", [*sorted(PUBLIC), "/static/style.css", "/docs-assets/swagger-ui.css"])
def test_what_is_public_stays_open(client: httpx2.Client, path: str) -> None:
    assert client.get(path).status_code == 200


def test_routes_for_changing_the_server_are_refused_to_who_may_only_ask(client: httpx2.Client) -> None:
    refused = {
        path
        for method, path in routes(client)
        if client.request(method, path, headers=as_who(CALLER)).status_code == 403
    }
    assert refused >= {LOAD, LOAD.replace("/load", "/unload")}
    assert all("repository/models" in path or path.endswith("rollout") for path in refused)
    answer = client.post(LOAD, headers=as_who(CALLER))
    assert answer.json()["error"]
    assert client.post(LOAD, headers=as_who(ADMIN)).status_code == 200


@pytest.mark.parametrize("token", [CALLER, FILED, ADMIN, "other-0123456789abcdef"])
def test_each_token_gets_answers(client: httpx2.Client, token: str) -> None:
    headers = {"Content-Type": bodies.PNG, **as_who(token)}
    answer = client.post(CLASSIFY, content=bodies.plain_color("red"), headers=headers)
    assert predictions_of(answer)[0]["label"] == "red"


def test_the_command_line_sends_the_token_of_its_settings(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(bodies.plain_color("red"))
    asked = ["classify", "red.png", "--url", server.url, "--model", "colors", "--top-k", "1"]
    assert "red" in run_fovea(*asked, environment={"FOVEA_AUTH__TOKENS": CALLER}, folder=tmp_path).stdout
    without = run_fovea(*asked, folder=tmp_path)
    assert without.returncode != 0
    assert "401 unauthorized" in without.stderr


def test_a_stranger_is_answered_before_the_body_and_cut_off(server: ServerProcess) -> None:
    head = raw_http.request("POST", CLASSIFY, {"Content-Type": bodies.PNG, "Content-Length": "10000000"})
    with socket.create_connection(("127.0.0.1", server.port), 10.0) as connection:
        connection.sendall(head)
        answer = raw_http.read_answer(connection)
        problem_of(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.closes
        assert connection.recv(1) == b""


def test_a_file_of_tokens_is_followed(client: httpx2.Client, tokens: Path) -> None:
    def status(token: str) -> int:
        return client.get("/api/v1/models", headers=as_who(token)).status_code

    assert status(FILED) == 200
    tokens.write_text("rotated-0123456789abcdef\n")
    poll(lambda: status("rotated-0123456789abcdef") == 200, "the new token opens", 3.0)
    assert status(FILED) == 401
    tokens.write_text(f"{FILED}\n")
    poll(lambda: status(FILED) == 200, "the old one is back", 3.0)


def test_refusals_are_counted(client: httpx2.Client) -> None:
    before = Scrape.parse(client.get("/metrics").text)
    client.get("/api/v1/models")
    after = Scrape.parse(client.get("/metrics").text)
    assert after.grown(before, "fovea_auth_failures_total", reason="unauthorized") == 1


class TestForeignPages:
    def test_the_one_that_is_named_may_ask_and_send_its_token(self, client: httpx2.Client) -> None:
        asked = {
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        preflight = client.options(CLASSIFY, headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        answer = client.get("/api/v1/models", headers={"Origin": ORIGIN, **as_who(CALLER)})
        assert answer.headers["access-control-allow-origin"] == ORIGIN

    @pytest.mark.parametrize(
        "origin", ["https://elsewhere.example", f"{ORIGIN}.evil.example", "null", "http://pages.example"]
    )
    def test_no_other_may(self, client: httpx2.Client, origin: str) -> None:
        preflight = client.options(CLASSIFY, headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
        assert preflight.status_code == 400
        assert "access-control-allow-origin" not in preflight.headers
        assert "access-control-allow-origin" not in client.get("/livez", headers={"Origin": origin}).headers


# TLS


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return self_signed(tmp_path_factory.mktemp("tls"))


def test_https_is_served_and_drained(repository: Path, identity: Identity) -> None:
    files = ["--server.tls-certificate", str(identity.certificate), "--server.tls-key", str(identity.key)]
    with ServerProcess(repository, *files, "--server.drain-delay-s", "0") as server:
        server.wait_for_event("started")
        trusting = ssl.create_default_context(cafile=str(identity.certificate))
        with httpx2.Client(base_url=f"https://localhost:{server.port}", verify=trusting, timeout=10.0) as client:
            answer = client.post(CLASSIFY, content=bodies.plain_color("blue"), headers={"Content-Type": bodies.PNG})
            assert predictions_of(answer)[0]["label"] == "blue"
        assert server.status_of("/livez") == 0  # no plain HTTP on this port
        assert server.stop() == 0


def test_https_clients_that_say_no_goodbye_do_not_hold_up_the_end(repository: Path, identity: Identity) -> None:
    """As a client does that looks at its connection only when it has something to ask."""
    files = ["--server.tls-certificate", str(identity.certificate), "--server.tls-key", str(identity.key)]
    with ServerProcess(repository, *files, "--server.drain-delay-s", "0") as server:
        server.wait_for_event("started")
        trusting = ssl.create_default_context(cafile=str(identity.certificate))
        with (
            socket.create_connection(("127.0.0.1", server.port)) as plain,
            trusting.wrap_socket(plain, server_hostname="localhost") as idle,
            socket.create_connection(("127.0.0.1", server.port)),  # which shakes no hands
        ):
            idle.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert idle.recv(1000).startswith(b"HTTP/1.1 200 ")
            asked_at = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - asked_at < 15  # of the 30 that requests may take


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["--server.tls-certificate", "nowhere.pem"], "server.tls_certificate: cannot use nowhere.pem: No such file"),
        (["--server.tls-key", "key.pem"], "server.tls_key: is of no use without server.tls_certificate"),
        (["--auth.tokens-file", "nowhere"], "auth.tokens_file: nowhere: No such file"),
        (["--auth.tokens", ""], "--auth.tokens: Value error, is empty"),
        (["--admin.token", " "], "--admin.token: Value error, is empty"),
    ],
)
def test_what_cannot_be_kept_safe_is_not_started(
    repository: Path, tmp_path: Path, settings: list[str], said: str
) -> None:
    ended = run_fovea("serve", "--model-repo", repository, "--server.port", "0", *settings, folder=tmp_path)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
