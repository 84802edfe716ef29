"""The log: JSON lines, one for each request worth one, with what is needed to find out what happened."""

import socket
import uuid
from contextlib import ExitStack
from datetime import datetime

import httpx2
import pytest

from tests.support import bodies, raw_http
from tests.support.server_process import Line, ServerProcess, poll

RED = bodies.plain_color("red")
COLORS = "/api/v1/models/colors/classify"


def line_of(server: ServerProcess, request_id: str) -> Line:
    """The one line of a request."""
    line = server.wait_for_line(lambda line: line.get("request_id") == request_id, f"the line of {request_id}")
    assert [entry for entry in server.lines if entry.get("request_id") == request_id] == [line]
    return line


@pytest.fixture
def request_id() -> str:
    return uuid.uuid4().hex


def ask(client: httpx2.Client, path: str, request_id: str, data: bytes = RED, **headers: str) -> int:
    given = {"content-type": bodies.PNG, "x-request-id": request_id, **headers}
    return client.post(path, content=data, headers=given).status_code


class TestRequests:
    def test_good_request_has_one_line_with_its_times(
        self, client: httpx2.Client, server: ServerProcess, request_id: str
    ) -> None:
        assert ask(client, COLORS, request_id) == 200
        line = line_of(server, request_id)
        assert (line["event"], line["level"], line["status"]) == ("request", "info", 200)
        assert (line["method"], line["path"], line["client"]) == ("POST", COLORS, "127.0.0.1")
        assert (line["model"], line["version"], line["images"]) == ("colors", 2, 1)
        assert line["duration_ms"] >= line["infer_ms"] + line["decode_ms"] > 0
        assert line["queue_ms"] >= 0
        datetime.fromisoformat(line["ts"])

    def test_refused_request_says_why(self, client: httpx2.Client, server: ServerProcess, request_id: str) -> None:
        assert ask(client, COLORS, request_id, RED[:-30]) == 422
        line = line_of(server, request_id)
        assert (line["level"], line["status"], line["code"], line["model"]) == (
            "warning",
            422,
            "invalid_image",
            "colors",
        )
        assert "truncated" in line["reason"]

    def test_those_that_come_at_once_have_a_line_each_of_their_own(self, server: ServerProcess) -> None:
        names = {uuid.uuid4().hex: f"nobody-{number}" for number in range(12)}
        with ExitStack() as stack:
            connections = [
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10.0)) for _ in names
            ]
            for connection, (request_id, name) in zip(connections, names.items(), strict=True):
                headers = {"Content-Type": bodies.PNG, "X-Request-ID": request_id}
                connection.sendall(raw_http.request("POST", f"/api/v1/models/{name}/classify", headers, RED))
            for request_id, name in names.items():
                line = line_of(server, request_id)
                assert (line["status"], line["model"]) == (404, name)

    def test_line_of_a_made_id_carries_the_returned_one(self, client: httpx2.Client, server: ServerProcess) -> None:
        answer = client.post(COLORS, content=RED, headers={"content-type": bodies.PNG})
        assert line_of(server, answer.headers["x-request-id"])["status"] == 200

    @pytest.mark.parametrize("path", ["/nowhere", "/v2/nowhere", "/api/v1/models/nothing"])
    def test_what_is_not_found_is_logged(
        self, client: httpx2.Client, server: ServerProcess, request_id: str, path: str
    ) -> None:
        client.get(path, headers={"x-request-id": request_id})
        assert (line_of(server, request_id)["status"], line_of(server, request_id)["path"]) == (404, path)

    def test_deadline_is_logged(self, client: httpx2.Client, server: ServerProcess, request_id: str) -> None:
        assert ask(client, "/api/v1/models/slow/classify?timeout_ms=20", request_id) == 504
        assert line_of(server, request_id)["code"] == "deadline_exceeded"

    def test_trace_of_the_caller_is_kept(self, client: httpx2.Client, server: ServerProcess, request_id: str) -> None:
        trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        assert ask(client, COLORS, request_id, traceparent=trace) == 200
        assert line_of(server, request_id)["traceparent"] == trace

    def test_ill_formed_trace_is_left_out(self, client: httpx2.Client, server: ServerProcess, request_id: str) -> None:
        assert ask(client, COLORS, request_id, traceparent='00-"},{"level":"error') == 200
        assert "traceparent" not in line_of(server, request_id)

    def test_neither_query_nor_body_nor_credentials_are_logged(
        self, client: httpx2.Client, server: ServerProcess, request_id: str
    ) -> None:
        part = bodies.image_part(b"CANARY-BODY", file_name="CANARY-FILE.png")
        headers = {
            "content-type": bodies.MULTIPART,
            "x-request-id": request_id,
            "authorization": "Bearer CANARY-TOKEN",
            "cookie": "CANARY-COOKIE=1",
        }
        answer = client.post(f"{COLORS}?key=CANARY-QUERY", content=bodies.multipart([part]), headers=headers)
        assert answer.status_code == 415
        assert "CANARY" not in str(line_of(server, request_id))

    def test_path_is_cut(self, client: httpx2.Client, server: ServerProcess, request_id: str) -> None:
        client.get("/" + "a" * 4000, headers={"x-request-id": request_id})
        assert len(line_of(server, request_id)["path"]) <= 512

    def test_line_breaks_in_a_path_make_no_second_line(
        self, client: httpx2.Client, server: ServerProcess, request_id: str
    ) -> None:
        client.get('/a%0a{"level":"error","event":"forged"}', headers={"x-request-id": request_id})
        assert line_of(server, request_id)["path"].startswith("/a\n{")
        assert not [line for line in server.lines if line["event"] == "forged"]


class TestProbes:
    @pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/metrics"])
    def test_good_probe_is_not_logged(
        self, client: httpx2.Client, server: ServerProcess, request_id: str, path: str
    ) -> None:
        assert client.get(path, headers={"x-request-id": request_id}).status_code == 200
        ask(
            client, COLORS, request_id + "-after"
        )  # lines come in order: once this one is here, the other will not come
        line_of(server, request_id + "-after")
        assert [line for line in server.lines if line.get("request_id") == request_id] == []

    def test_refused_probe_is_logged(self, client: httpx2.Client, server: ServerProcess, request_id: str) -> None:
        assert client.delete("/livez", headers={"x-request-id": request_id}).status_code == 405
        assert line_of(server, request_id)["status"] == 405


class TestLifecycle:
    def test_every_line_is_a_json_object_with_the_same_head(self, client: httpx2.Client, server: ServerProcess) -> None:
        client.get("/nowhere")
        assert server.stray == []
        for line in list(server.lines):
            assert list(line)[:4] == ["ts", "level", "event", "logger"]

    def test_start_is_logged(self, client: httpx2.Client, server: ServerProcess) -> None:
        assert server.wait_for_event("listening")["port"] == server.port
        started = server.wait_for_event("started")
        assert (started["ready"], started["reason"]) == (True, "serving")

    def test_every_change_of_a_model_is_logged(self, client: httpx2.Client, server: ServerProcess) -> None:
        for old, new in (("UNKNOWN", "LOADING"), ("LOADING", "READY")):
            server.wait_for_event("model_state_change", model="digits", version=1, old=old, new=new)

    def test_reason_of_a_model_that_does_not_load_is_logged(self, client: httpx2.Client, server: ServerProcess) -> None:
        line = server.wait_for_event("model_state_change", model="damaged", version=1, new="UNAVAILABLE")
        assert line["level"] == "warning"
        assert "no ONNX, or damaged" in line["reason"]

    def test_reason_of_a_model_with_a_broken_manifest_is_logged(
        self, client: httpx2.Client, server: ServerProcess
    ) -> None:
        poll(lambda: client.get("/startupz").status_code == 200, "the first look at the repository is over")
        lines = [line for line in server.lines if line.get("model") == "broken" and line["event"] != "request"]
        assert any("sise" in line.get("reason", "") for line in lines), lines
