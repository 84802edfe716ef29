"""Rows of the abuse matrix that take more than one request, or a look at how an answer came."""

import json
import socket
from collections.abc import Callable

import psutil
import pytest

from tests.abuse.cases import DIGITS, IMAGENET, INFER, JSON, MIB, SEVEN, nested, padded_photo
from tests.abuse.rows_of_bodies import BOMB
from tests.support import raw_http
from tests.support.answers import problem_of
from tests.support.bodies import JPEG, MULTIPART, PNG, image_part, multipart
from tests.support.scrape import Scrape
from tests.support.server_process import ServerProcess


@pytest.mark.parametrize("size", [20 * MIB - 1, 20 * MIB])
def test_row27_body_up_to_the_limit_is_taken(server: ServerProcess, size: int) -> None:
    """The trailer behind a JPEG's end is ignored, so that padding makes the size."""
    request = raw_http.request("POST", IMAGENET, {"Content-Type": JPEG}, padded_photo(size))
    assert raw_http.exchange(server.port, request).json()["results"][0]["image"]["width"] == 64


@pytest.mark.parametrize(
    ("path", "media_type", "limit"),
    [(IMAGENET, JPEG, 20), (IMAGENET, MULTIPART, 20), (IMAGENET, JSON, 28), (INFER, JSON, 32)],
    ids=["raw", "multipart", "json", "v2"],
)
def test_row28_upload_without_an_end_is_cut_off_near_the_limit(
    server: ServerProcess, assert_serves_on: Callable[[], None], path: str, media_type: str, limit: int
) -> None:
    """Answered at the limit, and cut off under a sender who goes on."""
    piece = b"%x\r\n%s\r\n" % (MIB // 4, bytes(MIB // 4))
    head = raw_http.request("POST", path, {"Content-Type": media_type, "Transfer-Encoding": "chunked"})
    with socket.create_connection(("127.0.0.1", server.port), 10.0) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
        connection.sendall(head)
        sent = _send_until_answered(connection, piece, 80 * MIB)
        assert raw_http.read_answer(connection).status_code == 413
        assert sent <= (limit + 12) * MIB  # the limit, and what lies in the buffers of two sockets
        with pytest.raises(ConnectionError):
            for _ in range(200):
                connection.sendall(piece)
    assert_serves_on()


def test_row28_v2_at_its_limit_is_read(server: ServerProcess) -> None:
    headers = {"Content-Length": str(32 * MIB), "Inference-Header-Content-Length": "0"}
    request = raw_http.request("POST", INFER, headers, bytes(32 * MIB))
    assert raw_http.exchange(server.port, request).status_code == 400  # a batch of two million rows


def test_row27_declared_length_over_the_limit_is_refused_before_the_body(server: ServerProcess) -> None:
    head = raw_http.request("POST", IMAGENET, {"Content-Type": JPEG, "Content-Length": str(20 * MIB + 1)})
    problem_of(raw_http.exchange(server.port, head), 413, "payload_too_large")


def test_row37_over_limit_length_is_refused_without_asking_for_the_body(server: ServerProcess) -> None:
    headers = {"Content-Type": JPEG, "Content-Length": str(20 * MIB + 1), "Expect": "100-continue"}
    with socket.create_connection(("127.0.0.1", server.port), 10.0) as connection:
        connection.sendall(raw_http.request("POST", IMAGENET, headers))
        problem_of(raw_http.read_answer(connection), 413)
        assert connection.recv(1) == b""  # what would come now, body or request, cannot be told apart


def test_row37_body_within_the_limit_is_asked_for(server: ServerProcess) -> None:
    headers = {"Content-Type": PNG, "Content-Length": str(len(SEVEN)), "Expect": "100-continue"}
    with socket.create_connection(("127.0.0.1", server.port), 10.0) as connection:
        connection.sendall(raw_http.request("POST", DIGITS, headers))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(SEVEN)
        assert raw_http.read_answer(connection).status_code == 200


def test_row47_form_is_refused_before_its_body(server: ServerProcess) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Content-Length": "4000000"}
    problem_of(raw_http.exchange(server.port, raw_http.request("POST", IMAGENET, headers)), 415)


def test_row09_bombs_are_never_unpacked(server: ServerProcess) -> None:
    request = raw_http.request("POST", IMAGENET, {"Content-Type": PNG}, BOMB)
    process = psutil.Process(server.pid)
    raw_http.exchange(server.port, request)
    before = process.memory_info().rss
    for _ in range(20):
        assert raw_http.exchange(server.port, request).status_code == 422
    assert process.memory_info().rss - before < 16 * MIB


def test_row45_names_of_files_come_back_cut_to_255_characters(server: ServerProcess) -> None:
    part = image_part(SEVEN, file_name="n" * 1000)
    request = raw_http.request("POST", DIGITS, {"Content-Type": MULTIPART}, multipart([part]))
    assert raw_http.exchange(server.port, request).json()["results"][0]["name"] == "n" * 255


def test_row50_deepest_allowed_nesting_is_read(server: ServerProcess) -> None:
    request = raw_http.request("POST", DIGITS, {"Content-Type": JSON}, nested(32))
    problem_of(raw_http.exchange(server.port, request), 422, "invalid_parameter")


def test_row54_addresses_in_a_request_are_never_visited(server: ServerProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0)
        address = f"http://127.0.0.1:{trap.getsockname()[1]}/cat.jpg"
        for value in (
            {"images": [{"url": address}]},
            {"images": [{"b64": address}]},
            {"images": [], "image_url": address},
        ):
            request = raw_http.request("POST", DIGITS, {"Content-Type": JSON}, json.dumps(value).encode())
            assert raw_http.exchange(server.port, request).status_code in (400, 422)
        with pytest.raises(BlockingIOError):
            trap.accept()


def test_row60_names_of_models_make_no_series(server: ServerProcess, scrape: Callable[[], Scrape]) -> None:
    def ask(name: str) -> None:
        path = f"/api/v1/models/{name}/classify"
        assert (
            raw_http.exchange(server.port, raw_http.request("POST", path, {"Content-Type": PNG}, SEVEN)).status_code
            == 404
        )

    ask("unknown-0")
    before = scrape()
    for index in range(1, 100):
        ask(f"unknown-{index}")
    after = scrape()
    assert after.samples.keys() == before.samples.keys()
    other = {"model": "_other", "version": "_other", "protocol": "native", "outcome": "client_error"}
    assert after.grown(before, "fovea_requests_total", **other) == 99


def test_row58_parameters_that_nobody_knows_do_not_change_the_answer(server: ServerProcess) -> None:
    plain, more = (
        raw_http.exchange(
            server.port, raw_http.request("POST", f"{DIGITS}{query}", {"Content-Type": PNG}, SEVEN)
        ).json()
        for query in ("", "?utm_source=x&top-k=1")
    )
    assert plain["results"] == more["results"]


def _answered(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        connection.settimeout(10.0)


def _send_until_answered(connection: socket.socket, piece: bytes, most: int) -> int:
    """How much; the answer can still be read where the connection has been ended under us meanwhile."""
    sent = 0
    try:
        while sent < most and not _answered(connection):
            connection.sendall(piece)
            sent += len(piece)
    except ConnectionError:
        pass
    return sent


@pytest.mark.parametrize("count", [1000])
def test_row81_pipelined_requests_are_answered_in_order(server: ServerProcess, count: int) -> None:
    ids = [f"n{index}" for index in range(count)]
    requests = b"".join(raw_http.request("GET", "/livez", {"X-Request-ID": one}) for one in ids[:-1])
    requests += raw_http.request("GET", "/livez", {"X-Request-ID": ids[-1], "Connection": "close"})
    with socket.create_connection(("127.0.0.1", server.port), 10.0) as connection:
        connection.sendall(requests)
        received = b""
        while data := connection.recv(1 << 20):
            received += data
    lines = [line for line in received.decode().split("\r\n") if line.startswith("x-request-id: ")]
    assert [line.split(": ")[1] for line in lines] == ids


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.thorough)])
def test_row81_one_connection_serves_on_and_on(server: ServerProcess, count: int) -> None:
    request = raw_http.request("GET", "/livez")
    with socket.create_connection(("127.0.0.1", server.port), 10.0) as connection:
        for _ in range(count):
            connection.sendall(request)
            assert raw_http.read_answer(connection).status_code == 200


def test_row29_smuggled_request_is_never_answered(server: ServerProcess) -> None:
    """Whatever the two lengths make of the body, what stands in it is no request."""
    inside = b"GET /livez HTTP/1.1\r\nHost: a\r\nX-Request-ID: smuggled\r\n\r\n"
    for fields in (
        {"Content-Length": str(len(inside)), "Transfer-Encoding": "chunked"},
        {"Transfer-Encoding": "chunked", "Content-Length": "0"},
        {"Content-Length": "0", "Transfer-Encoding": "xchunked"},
    ):
        with socket.create_connection(("127.0.0.1", server.port), 10.0) as connection:
            connection.sendall(raw_http.request("POST", DIGITS, fields, inside))
            received = b""
            while data := connection.recv(65_536):
                received += data
        assert received.startswith(b"HTTP/1.1 400 ")
        assert received.count(b"HTTP/1.1 4") == 1
        assert b"HTTP/1.1 2" not in received
        assert b"smuggled" not in received


def test_row05_refused_images_are_let_go_of_at_once(server: ServerProcess) -> None:
    """An error holds the frames it went through, and they hold the image: a cycle would keep it until a collection."""
    half = raw_http.request("POST", DIGITS, {"Content-Type": PNG}, SEVEN[: len(SEVEN) // 2] + bytes(MIB))
    process = psutil.Process(server.pid)
    for _ in range(10):
        assert raw_http.exchange(server.port, half).status_code == 422
    before = process.memory_info().rss
    for _ in range(100):
        raw_http.exchange(server.port, half)
    assert process.memory_info().rss - before < 32 * MIB
