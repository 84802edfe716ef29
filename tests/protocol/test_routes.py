"""What every answer has, whatever was asked: request ids, problem details, 404, 405, headers."""

import socket

import httpx2
import pytest

from tests.support import bodies, raw_http
from tests.support.answers import problem_of
from tests.support.server_process import ServerProcess

DIGITS = "/api/v1/models/digits/classify"
ALL_KINDS_OF_ANSWER = [
    ("GET", "/livez", 200),
    ("GET", "/metrics", 200),
    ("GET", "/docs", 200),
    ("GET", "/static/style.css", 200),
    ("GET", "/api/v1/models", 200),
    ("GET", "/api/v1/models/nothing", 404),
    ("GET", "/nowhere", 404),
    ("GET", "/static/nothing.css", 404),
    ("DELETE", "/livez", 405),
    ("POST", DIGITS, 415),
    ("GET", "/v2/nowhere", 404),
]


class TestRequestId:
    @pytest.mark.parametrize("given", ["a", "Z9._-", "0123456789abcdef" * 4])
    def test_well_formed_id_is_taken(self, client: httpx2.Client, given: str) -> None:
        answer = client.post(
            DIGITS, content=bodies.drawn_digit(1), headers={"x-request-id": given, "content-type": bodies.PNG}
        )
        assert answer.headers["x-request-id"] == given
        assert answer.json()["request_id"] == given

    @pytest.mark.parametrize("given", ["", "a" * 65, "two words", "semi;colon", "<script>", "a/b", "caf\u00e9", "a\tb"])
    def test_ill_formed_id_is_replaced(self, server: ServerProcess, given: str) -> None:
        answer = raw_http.exchange(server.port, raw_http.request("GET", "/livez", {"X-Request-ID": given}))
        assert answer.status_code == 200
        assert answer.headers["x-request-id"] != given
        assert 8 <= len(answer.headers["x-request-id"]) <= 64

    def test_made_ids_are_not_repeated(self, client: httpx2.Client) -> None:
        assert len({client.get("/livez").headers["x-request-id"] for _ in range(50)}) == 50

    @pytest.mark.parametrize(("method", "path", "status"), ALL_KINDS_OF_ANSWER)
    def test_id_is_returned_with_every_answer(self, client: httpx2.Client, method: str, path: str, status: int) -> None:
        answer = client.request(method, path, headers={"x-request-id": "asked-1"})
        assert answer.status_code == status
        assert answer.headers.get_list("x-request-id") == ["asked-1"]

    def test_id_stands_in_the_problem(self, client: httpx2.Client) -> None:
        answer = client.get("/api/v1/models/nothing", headers={"x-request-id": "asked-2"})
        assert problem_of(answer, 404)["request_id"] == "asked-2"


@pytest.mark.parametrize(("method", "path", "status"), ALL_KINDS_OF_ANSWER)
def test_browsers_are_told_not_to_guess_types(client: httpx2.Client, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_answer_does_not_say_what_serves_it(client: httpx2.Client) -> None:
    assert "server" not in client.get("/livez").headers


@pytest.mark.parametrize("path", ["/api/v1/models", "/livez", DIGITS])
def test_foreign_origin_gets_no_permission(client: httpx2.Client, path: str) -> None:
    asked = {"origin": "http://example.org", "access-control-request-method": "POST"}
    preflight = client.options(path, headers=asked)
    assert preflight.status_code == 405
    assert not [name for name in preflight.headers if name.startswith("access-control-")]
    assert not [name for name in client.get("/livez", headers=asked).headers if name.startswith("access-control-")]


class TestUnknownRoutes:
    @pytest.mark.parametrize(
        "path",
        [
            "/nowhere",
            "/api",
            "/api/v1",
            "/api/v1/",
            "/api/v1/models/",
            "/api/v1/models/digits/",
            "/api/v1/models/digits/versions/1",
            "/api/v1/models/digits/classify/",
            "/api/v2/models",
            "/livez/",
            "/LIVEZ",
            "//livez",
            "/v1x",
            "/v20/models",
            "/static/../app.py",
            "/static/%2e%2e/app.py",
            "/docs-assets/..%2f..%2f__init__.py",
            "/static/nothing.css",
            "/static/",
        ],
    )
    def test_unknown_route_is_a_problem(self, server: ServerProcess, path: str) -> None:
        answer = raw_http.exchange(server.port, raw_http.request("GET", path))
        problem_of(answer, 404, "not_found")

    @pytest.mark.parametrize(
        "path", ["/v1", "/v1/nowhere", "/v2/models/", "/v2/nowhere", "/v2/models/digits/trace/setting"]
    )
    @pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
    def test_unknown_route_of_the_tensor_protocols_says_error(
        self, client: httpx2.Client, method: str, path: str
    ) -> None:
        answer = client.request(method, path)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/json"
        body = answer.json()
        assert body.keys() == {"error"}
        assert body["error"]


class TestMethods:
    @pytest.mark.parametrize(
        ("path", "allowed"),
        [
            ("/api/v1/models", {"GET", "HEAD"}),
            ("/api/v1/models/digits", {"GET", "HEAD"}),
            (DIGITS, {"POST"}),
            ("/api/v1/models/digits/versions/1/classify", {"POST"}),
        ],
    )
    @pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
    def test_other_method_is_refused_with_the_allowed_ones(
        self, client: httpx2.Client, path: str, allowed: set[str], method: str
    ) -> None:
        answer = client.request(method, path)
        problem_of(answer, 405, "method_not_allowed")
        assert {name.strip() for name in answer.headers["allow"].split(",")} == allowed

    @pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/metrics", "/"])
    def test_probes_name_head_among_the_allowed_methods(self, client: httpx2.Client, path: str) -> None:
        answer = client.put(path)
        problem_of(answer, 405, "method_not_allowed")
        assert {name.strip() for name in answer.headers["allow"].split(",")} == {"GET", "HEAD"}

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    def test_reading_what_is_for_writing_is_refused(self, client: httpx2.Client, method: str) -> None:
        answer = client.request(method, DIGITS)
        assert answer.status_code == 405
        assert answer.headers["allow"] == "POST"

    @pytest.mark.parametrize("method", ["TRACE", "CONNECT", "FOO"])
    def test_strange_method_is_refused(self, server: ServerProcess, method: str) -> None:
        assert raw_http.exchange(server.port, raw_http.request(method, "/livez")).status_code in (400, 405)


class TestConnections:
    def test_body_that_nobody_reads_does_not_shift_the_next_answer(self, server: ServerProcess) -> None:
        with_body = raw_http.request("GET", "/livez", body=b"ignored")
        requests = with_body + raw_http.request("GET", "/api/v1/models/nothing", {"Connection": "close"})
        answers = _all_answers(server.port, requests)
        assert answers.count(b"HTTP/1.1 200 OK") == 1
        assert answers.count(b"HTTP/1.1 404 Not Found") == 1

    def test_pipelined_requests_are_answered_in_order(self, server: ServerProcess) -> None:
        names = [f"n{index}" for index in range(30)]
        requests = b"".join(raw_http.request("GET", "/livez", {"X-Request-ID": name}) for name in names)
        requests += raw_http.request("GET", "/livez", {"X-Request-ID": "last", "Connection": "close"})
        answers = _all_answers(server.port, requests).decode()
        ids = [line.split(": ")[1] for line in answers.split("\r\n") if line.startswith("x-request-id")]
        assert ids == [*names, "last"]


def _all_answers(port: int, requests: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 10.0) as connection:
        connection.sendall(requests)
        received = b""
        while data := connection.recv(65536):
            received += data
    return received
