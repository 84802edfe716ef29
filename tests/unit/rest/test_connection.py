"""Deadlines and caps of a connection: a real parser and a real application, the transport and the clock in our hand."""

import asyncio
import json
import socket
import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest
from starlette.requests import Request
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from service.config import LimitSettings, Settings
from service.errors import FoveaError
from service.metrics import Metrics
from service.rest.connection import Connection, next_piece
from service.rest.guard import LOOK_SECONDS, ConnectionGuard
from service.rest.middleware import RequestLayer
from service.server import InferenceServer
from tests.support.clock import FakeClock

GET = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: a\r\n"
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
KEEP_ALIVE = 75.0


class FakeTransport:
    """What was written, and whether it was closed; `unsent` is what the kernel would not take yet."""

    def __init__(self) -> None:
        self.written = b""
        self.unsent = 0
        self.connected: socket.socket | None = None
        self.is_closed = False
        self.is_aborted = False
        self.is_reading = True
        self.lost: Callable[[], None] = lambda: None

    def write(self, data: bytes) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, name: str) -> Any:
        return {"peername": ("192.0.2.7", 5), "socket": self.connected}.get(name)

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True
        self.lost()

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True


class House:
    """Connections under one guard. The application reads the body, waits for `may_answer`, and says how it went."""

    def __init__(self, **limits: Any) -> None:
        self.clock = FakeClock()
        self.metrics = Metrics("test")
        self.guard = ConnectionGuard(LimitSettings(**limits), KEEP_ALIVE, self.metrics, self.clock)
        self.state = ServerState()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.reads = True
        self.seen: list[str] = []
        self.config = Config(self._app, interface="asgi3", lifespan="off", log_config=None, proxy_headers=False)

    def connect(self) -> tuple[Connection, FakeTransport]:
        connection = Connection(guard=self.guard, config=self.config, server_state=self.state, app_state={})
        transport = FakeTransport()
        transport.lost = lambda: connection.connection_lost(None)
        connection.connection_made(cast(asyncio.Transport, transport))
        return connection, transport

    async def pass_time(self, seconds: float) -> None:
        """With a look every so often, as in life."""
        await settle()
        for _ in range(int(seconds / LOOK_SECONDS)):
            self.clock.advance(LOOK_SECONDS)
            self.guard.look(cast(Any, self.state.connections))
            await settle()

    def closed_for(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value("fovea_connections_closed_total", {"reason": reason}) or 0.0

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        said, more, size = "whole", self.reads, 0
        try:
            while more:
                piece, more = await next_piece(Request(scope, receive))
                size += len(piece)
        except FoveaError as error:
            said = error.code
        self.seen.append(f"{said} {size}")
        await self.may_answer.wait()
        body = said.encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def status_of(transport: FakeTransport) -> int:
    return int(transport.written.split(b" ", 2)[1]) if transport.written else 0


class TestHead:
    async def test_client_that_says_nothing_is_left_without_a_word(self) -> None:
        house = House()
        _, transport = house.connect()
        await house.pass_time(5)
        assert not transport.is_closed
        await house.pass_time(1)
        assert transport.is_closed
        assert transport.written == b""
        assert house.closed_for("header_deadline") == 1

    async def test_dripping_head_is_refused_at_its_deadline(self) -> None:
        house = House()
        connection, transport = house.connect()
        for byte in b"GET /l":
            connection.data_received(bytes([byte]))
            await house.pass_time(1)
        assert status_of(transport) == 408
        assert transport.is_closed
        assert house.seen == []

    async def test_deadline_begins_anew_with_each_request(self) -> None:
        house = House()
        connection, transport = house.connect()
        connection.data_received(GET)
        await house.pass_time(60)
        connection.data_received(GET[:10])
        await house.pass_time(5)
        assert not transport.is_closed
        connection.data_received(GET[10:])
        await settle()
        assert house.seen == ["whole 0"] * 2

    async def test_next_head_may_wait_while_an_answer_is_under_way(self) -> None:
        house = House()
        house.may_answer.clear()
        connection, transport = house.connect()
        connection.data_received(GET + GET[:10])
        await house.pass_time(20)
        assert not transport.is_closed
        house.may_answer.set()
        await settle()
        assert status_of(transport) == 200

    @pytest.mark.parametrize(
        ("target", "fields", "status"),
        [
            ("/" + "a" * 4095, [], 200),
            ("/" + "a" * 4096, [], 414),
            ("/", ["X: y"] * 99, 200),
            ("/", ["X: y"] * 100, 431),
            ("/", [f"Cookie: {'c' * 16_300}"], 200),
            ("/", [f"Cookie: {'c' * 16_400}"], 431),
            ("/", [f"X-{index}: {'c' * 1000}" for index in range(17)], 431),
        ],
    )
    @pytest.mark.parametrize("piece", [1 << 20, 1000])
    async def test_heads_have_their_limits(self, target: str, fields: list[str], status: int, piece: int) -> None:
        house = House()
        connection, transport = house.connect()
        head = "\r\n".join([f"GET {target} HTTP/1.1", "Host: a", *fields, "", ""]).encode()
        for start in range(0, len(head), piece):
            connection.data_received(head[start : start + piece])
        await settle()
        assert status_of(transport) == status
        assert transport.is_closed == (status != 200)

    async def test_head_without_end_is_refused_as_it_comes(self) -> None:
        house = House()
        connection, transport = house.connect()
        connection.data_received(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
        sent = 0
        while not transport.is_closed and sent < 1 << 20:
            connection.data_received(b"x" * 4096)
            sent += 4096
        assert status_of(transport) == 431
        assert sent < 32 * 1024

    async def test_large_body_before_it_does_not_make_a_head_too_large(self) -> None:
        house = House()
        connection, transport = house.connect()
        body = bytes(200_000)
        connection.data_received(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body + GET[:8])
        connection.data_received(GET[8:])
        await settle()
        assert house.seen == ["whole 200000", "whole 0"]
        assert not transport.is_closed

    @pytest.mark.parametrize(
        "head",
        [
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a/b?c\r\n\r\n",
            b"GET http://elsewhere/livez HTTP/1.1\r\nHost: a\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
            b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
        ],
    )
    async def test_what_is_no_request_to_us_is_refused_with_a_problem(self, head: bytes) -> None:
        house = House()
        connection, transport = house.connect()
        connection.data_received(head)
        await settle()
        assert status_of(transport) == 400
        assert transport.is_closed
        problem = json.loads(transport.written.partition(b"\r\n\r\n")[2])
        assert problem["code"] == "malformed_http"
        assert problem["request_id"].encode() in transport.written
        assert house.seen == []

    async def test_what_came_whole_is_answered_before_garbage_ends_the_connection(self) -> None:
        house = House()
        connection, transport = house.connect()
        connection.data_received(GET + GET + b"\0\0garbage\r\n\r\n")
        await settle()
        assert transport.written.count(b"HTTP/1.1 200") == 2
        assert b"400" not in transport.written
        assert transport.is_closed

    async def test_request_that_asks_for_another_protocol_is_answered_in_this_one_and_no_more(self) -> None:
        house = House()
        connection, transport = house.connect()
        connection.data_received(GET[:-2] + UPGRADE + b"\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        await settle()
        assert transport.written.count(b"HTTP/1.1 200") == 1
        assert transport.is_closed

    @pytest.mark.parametrize("piece", [1 << 20, 100, 7, 1])
    @pytest.mark.parametrize("before", [b"", b"\r\n\r\n"])
    async def test_its_body_is_read(self, piece: int, before: bytes) -> None:
        house = House()
        connection, transport = house.connect()
        sent = before + POST + UPGRADE + b"Content-Length: 9\r\n\r\n\r\n\r\n12345" + GET
        for start in range(0, len(sent), piece):
            connection.data_received(sent[start : start + piece])
        await settle()
        assert house.seen == ["whole 9", "whole 0"]
        assert not transport.is_closed

    async def test_no_tunnel_is_opened(self) -> None:
        house = House()
        connection, transport = house.connect()
        connection.data_received(b"CONNECT /livez HTTP/1.1\r\nHost: a\r\n" + UPGRADE + b"\r\n" + GET)
        await settle()
        assert status_of(transport) == 400
        assert house.seen == []


class TestBody:
    async def test_body_that_stops_is_failed_and_the_connection_closed(self) -> None:
        house = House()
        connection, transport = house.connect()
        connection.data_received(POST + b"Content-Length: 100\r\n\r\nabc")
        await house.pass_time(10)
        assert house.seen == []
        await house.pass_time(1)
        assert house.seen == ["body_timeout 3"]
        assert transport.is_closed
        assert not transport.is_aborted  # the answer goes out
        assert house.closed_for("body_deadline") == 1

    async def test_body_that_makes_progress_has_a_second_for_each_256_kib(self) -> None:
        house = House()
        connection, _ = house.connect()
        connection.data_received(POST + b"Content-Length: 4000000\r\n\r\n" + bytes(256 * 1024 * 8))
        await house.pass_time(18)
        assert house.seen == []
        await house.pass_time(1)
        assert house.seen == ["body_timeout 2097152"]

    async def test_no_body_may_take_longer_than_the_longest(self) -> None:
        house = House()
        connection, _ = house.connect()
        connection.data_received(POST + b"Content-Length: 40000000\r\n\r\n")
        for _ in range(30):
            connection.data_received(bytes(1 << 20))
            await house.pass_time(1)
        assert house.seen == []
        await house.pass_time(1)
        assert house.seen[0].startswith("body_timeout")

    async def test_request_that_nobody_reads_is_closed_after_two_looks(self) -> None:
        house = House()
        house.reads = False
        house.may_answer.clear()
        connection, transport = house.connect()
        connection.data_received(POST + b"Content-Length: 100\r\n\r\nabc")
        await house.pass_time(12)
        assert transport.is_aborted

    @pytest.mark.parametrize(
        ("field", "piece", "most"),
        [
            (b"Transfer-Encoding: chunked", b"1000\r\n" + bytes(4096) + b"\r\n", 1000 + 64 * 1024),
            (b"Content-Length: 9999999", bytes(4096), 2 * (1000 + 64 * 1024)),
        ],
    )
    async def test_rest_of_a_body_that_was_answered_early_is_bounded_in_bytes(
        self, field: bytes, piece: bytes, most: int
    ) -> None:
        house = House(body_bytes=1000, json_body_bytes=1000, tensor_body_bytes=1000)
        house.reads = False
        connection, transport = house.connect()
        connection.data_received(POST + field + b"\r\n\r\n")
        await settle()
        assert status_of(transport) == 200
        sent = 0
        while not transport.is_closed and sent < 1 << 20:
            connection.data_received(piece)
            sent += 4096
        assert most < sent <= most + 4096

    async def test_rest_of_a_body_that_was_answered_early_is_bounded_in_time(self) -> None:
        house = House()
        house.reads = False
        connection, transport = house.connect()
        connection.data_received(POST + b"Content-Length: 100\r\n\r\n")
        await house.pass_time(11)
        assert transport.is_closed

    async def test_one_byte_chunks_are_refused_at_once(self) -> None:
        house = House()
        connection, _ = house.connect()
        connection.data_received(POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 100_000)
        await settle()
        assert house.seen == ["malformed_request 0"]
        assert connection._pieces < 2000

    @pytest.mark.parametrize("flood", [b"1;" + b"e" * 10_000 + b"\r\nx\r\n", b"X-Trailer: " + b"t" * 1000 + b"\r\n"])
    async def test_frames_of_a_body_are_bounded(self, flood: bytes) -> None:
        house = House()
        connection, _ = house.connect()
        first = b"" if flood.startswith(b"1;") else b"0\r\n"
        connection.data_received(POST + b"Transfer-Encoding: chunked\r\n\r\n" + first)
        sent = 0
        while not house.seen and sent < 1 << 20:
            connection.data_received(flood)
            sent += len(flood)
            await settle()
        assert house.seen == ["malformed_request 0"] or house.seen[0].startswith("malformed_request")
        assert sent < 128 * 1024

    async def test_trailers_do_not_become_headers(self) -> None:
        house = House()
        connection, _ = house.connect()
        connection.data_received(
            POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nAuthorization: Bearer stolen\r\n\r\n"
        )
        await settle()
        assert house.seen == ["whole 1"]
        assert b"authorization" not in dict(connection.scope["headers"])

    @pytest.mark.parametrize(
        "frame", [b"g\r\nx\r\n", b"-1\r\nx\r\n", b"0x1\r\nx\r\n", b"f" * 17 + b"\r\n", b"1\r\nxx\r\n"]
    )
    async def test_broken_chunk_fails_the_request_and_ends_the_connection(self, frame: bytes) -> None:
        house = House()
        connection, transport = house.connect()
        connection.data_received(POST + b"Transfer-Encoding: chunked\r\n\r\n" + frame + GET)
        await settle()
        assert len(house.seen) == 1
        assert house.seen[0].startswith("malformed_request")
        assert transport.is_closed

    async def test_body_of_a_refused_expectation_is_not_waited_for(self) -> None:
        house = House()
        house.reads = False
        connection, transport = house.connect()
        connection.data_received(POST + b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n")
        await settle()
        assert status_of(transport) == 200
        assert transport.is_closed


class TestAnswers:
    async def test_idle_connection_is_closed_after_its_time(self) -> None:
        house = House()
        connection, transport = house.connect()
        connection.data_received(GET)
        await house.pass_time(KEEP_ALIVE)
        assert not transport.is_closed
        await house.pass_time(1)
        assert transport.is_closed
        assert house.closed_for("header_deadline") == 0

    async def test_long_answer_is_not_idleness(self) -> None:
        house = House()
        house.may_answer.clear()
        connection, transport = house.connect()
        connection.data_received(GET)
        await house.pass_time(200)
        assert not transport.is_closed

    async def test_client_that_does_not_read_is_cut_off(self) -> None:
        house = House()
        connection, transport = house.connect()
        connection.data_received(GET)
        transport.unsent = 1
        await house.pass_time(29)
        assert not transport.is_closed
        await house.pass_time(1)
        assert transport.is_aborted
        assert house.closed_for("write_stall") == 1

    async def test_client_that_reads_on_is_not(self) -> None:
        house = House()
        connection, transport = house.connect()
        connection.data_received(GET)
        transport.unsent = 1
        for _ in range(3):
            await house.pass_time(20)
            connection.pause_writing()
            connection.resume_writing()
        assert not transport.is_closed


async def test_a_connection_that_cannot_be_looked_at_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House()
    _, odd = house.connect()
    _, other = house.connect()
    monkeypatch.setattr(odd, "get_write_buffer_size", lambda: 1 / 0)
    await house.pass_time(1)
    assert odd.is_aborted
    assert not other.is_closed
    await house.pass_time(5)
    assert other.is_closed


class TestRoom:
    async def test_one_that_only_waits_makes_room(self) -> None:
        house = House(connections=2)
        _, silent = house.connect()
        connection, busy = house.connect()
        house.may_answer.clear()
        connection.data_received(GET)
        await house.pass_time(2)
        _, third = house.connect()
        assert silent.is_closed
        assert not busy.is_closed
        assert not third.is_closed
        assert house.closed_for("connection_limit") == 1

    async def test_each_of_several_that_come_at_once_takes_a_place_of_its_own(self) -> None:
        house = House(connections=2)
        silent = [house.connect()[1] for _ in range(2)]
        for transport in silent:
            transport.lost = lambda: None  # the event loop tells of it in its next turn
        await house.pass_time(2)
        came = [house.connect()[1] for _ in range(3)]
        assert [transport.is_closed for transport in silent] == [True, True]
        assert [transport.is_closed for transport in came] == [False, False, True]
        assert status_of(came[2]) == 503

    async def test_one_whose_client_has_spoken_does_not(self) -> None:
        house = House(connections=1)
        _, transport = house.connect()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            transport.connected = ours
            await house.pass_time(2)
            theirs.send(b"G")
            assert status_of(house.connect()[1]) == 503
            assert not transport.is_closed
            ours.recv(1)
            assert not house.connect()[1].is_closed
            assert transport.is_closed

    async def test_where_all_are_busy_the_new_one_is_refused(self) -> None:
        house = House(connections=2)
        house.may_answer.clear()
        for _ in range(2):
            house.connect()[0].data_received(GET)
        await house.pass_time(2)
        _, third = house.connect()
        assert status_of(third) == 503
        assert b"retry-after: 1\r\n" in third.written
        assert third.is_closed

    async def test_scrape_shows_how_many_there_are(self) -> None:
        house = House()
        house.connect()
        house.connect()
        await house.pass_time(1)
        assert house.metrics.registry.get_sample_value("fovea_open_connections") == 2


async def test_idle_connection_keeps_nothing_of_the_request_that_it_brought() -> None:
    """A thousand of them wait for as long as their clients please; the last image of each would be a gigabyte."""
    held: list[weakref.ref[Any]] = []

    class Image(bytearray):
        """Something to refer to weakly, as a request's ticket refers to its images."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        image = Image((await receive())["body"])
        held.append(weakref.ref(image))
        scope["fovea"].fields["model"] = image
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    house = House()
    house.config = Config(
        RequestLayer(app, InferenceServer(Settings(), "0")),
        interface="asgi3",
        lifespan="off",
        log_config=None,
        proxy_headers=False,
    )
    connection, transport = house.connect()
    connection.data_received(POST + b"Content-Length: 3\r\n\r\nabc")
    await settle()
    assert status_of(transport) == 200
    assert [image() for image in held] == [None]
    assert connection.cycle.scope["path"] == "/x"
