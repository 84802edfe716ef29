"""Limits of a server whose operator made them narrow: its own deadline, slow bodies, bounded work in flight."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support import bodies, raw_http
from tests.support.answers import predictions_of, problem_of
from tests.support.scrape import Scrape
from tests.support.server_process import ServerProcess, poll

RED = bodies.plain_color("red")
COLORS = "/api/v1/models/colors/classify"
_ONE_AT_A_TIME = "[batching]\nmax_batch_size = 1\nmax_queue_wait_ms = 20000\n[execution]\ninstances = 1\n"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("narrow")
    bodies.write_model(root / "colors", bodies.mean_color_model(), manifest=bodies.COLOR_MANIFEST, labels=bodies.COLORS)
    bodies.write_model(
        root / "slow", bodies.slow_model(), manifest=bodies.COLOR_MANIFEST + _ONE_AT_A_TIME, labels=bodies.COLORS
    )
    settings = {
        "server.drain-delay-s": "0",
        "limits.timeout-ms": "400",
        "limits.body-timeout-s": "1",
        "limits.inflight-requests": "4",
        "limits.inflight-bytes": "100000",
        "limits.body-bytes": "80000",
        "limits.max-images": "3",
        "limits.image-formats": "png,gif",
        "limits.decoded-pixels": "10000",
        "limits.image-side": "200",
    }
    arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
    with ServerProcess(root, *arguments) as server:
        yield server.wait_until_ready()


def post(server: ServerProcess, body: bytes, media_type: str = bodies.PNG, path: str = COLORS) -> raw_http.RawAnswer:
    return raw_http.exchange(server.port, raw_http.request("POST", path, {"Content-Type": media_type}, body))


def test_caller_cannot_lengthen_the_server_s_deadline(narrow: ServerProcess) -> None:
    """Twelve images of the slow model, one after the other, take several times the deadline."""
    started_at = time.monotonic()
    body = bodies.json_body([RED] * 3, timeout_ms=60_000)
    busy = [raw_http.request("POST", "/api/v1/models/slow/classify", {"Content-Type": "application/json"}, body)] * 4
    with ExitStack() as stack:
        connections = []
        for request in busy:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", narrow.port), 20.0))
            connection.sendall(request)
            connections.append(connection)
        last = [raw_http.read_answer(connection) for connection in connections][-1]
    problem_of(last, 504, "deadline_exceeded")
    assert time.monotonic() - started_at < 5.0


def test_body_that_does_not_arrive_is_given_up(narrow: ServerProcess) -> None:
    head = raw_http.request("POST", COLORS, {"Content-Type": bodies.PNG, "Content-Length": "5000"}, b"\x89PNG")
    answer = raw_http.exchange(narrow.port, head)
    problem_of(answer, 408, "body_timeout")


def test_requests_in_flight_are_bounded_and_places_come_back(narrow: ServerProcess) -> None:
    def under_way() -> float:
        return Scrape.parse(narrow.get("/metrics")[1].decode()).total("fovea_inflight_requests")

    head = raw_http.request("POST", COLORS, {"Content-Type": bodies.PNG, "Content-Length": "5000"}, b"\x89PNG")
    with ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", narrow.port), 20.0))
            connection.sendall(head)
        poll(lambda: under_way() == 4, "four requests are under way")
        problem_of(post(narrow, RED), 503, "overloaded")
        assert narrow.status_of("/livez") == 200
    poll(lambda: under_way() == 0, "the places are free again")
    assert predictions_of(post(narrow, RED))[0]["label"] == "red"


def test_bytes_in_flight_are_bounded(narrow: ServerProcess) -> None:
    before = Scrape.parse(narrow.get("/metrics")[1].decode())
    started = raw_http.request("POST", COLORS, {"Content-Type": bodies.PNG, "Content-Length": "70001"}, bytes(70_000))
    with socket.create_connection(("127.0.0.1", narrow.port), 20.0) as connection:
        connection.sendall(started)
        answer = poll(lambda: _refused(narrow), "a second large body is refused")
        problem_of(answer, 503, "overloaded")
    after = Scrape.parse(narrow.get("/metrics")[1].decode())
    assert after.grown(before, "fovea_rejected_total", model="colors", reason="inflight_bytes") >= 1


def _refused(server: ServerProcess) -> raw_http.RawAnswer | None:
    """The answer to 60,000 bytes more, where it is a refusal: the first body may not have been read yet."""
    answer = post(server, bytes(60_000))
    return answer if answer.status_code == 503 else None


@pytest.mark.parametrize(
    ("body", "media_type", "status", "code"),
    [
        (bytes(80_001), bodies.PNG, 413, "payload_too_large"),
        (bodies.multipart([bodies.image_part(RED)] * 4), bodies.MULTIPART, 413, "payload_too_large"),
        (bodies.json_body([RED] * 4), "application/json", 413, "payload_too_large"),
        (bodies.encoded(bodies.noise(8, 8), "JPEG"), bodies.JPEG, 415, "unsupported_media_type"),
        (bodies.encoded(bodies.noise(101, 100, 1)), bodies.PNG, 422, "image_too_large"),
        (bodies.encoded(bodies.noise(201, 2, 1)), bodies.PNG, 422, "image_too_large"),
    ],
)
def test_limits_that_the_operator_set_are_kept(
    narrow: ServerProcess, body: bytes, media_type: str, status: int, code: str
) -> None:
    problem_of(post(narrow, body, media_type), status, code)


@pytest.mark.parametrize(
    ("image", "media_type"),
    [
        (bodies.encoded(bodies.noise(100, 100, 1)), bodies.PNG),
        (bodies.encoded(bodies.noise(200, 2, 1)), bodies.PNG),
        (bodies.encoded(bodies.noise(8, 8), "GIF"), "image/gif"),
    ],
)
def test_what_just_fits_is_answered(narrow: ServerProcess, image: bytes, media_type: str) -> None:
    assert len(predictions_of(post(narrow, image, media_type))) == 3
