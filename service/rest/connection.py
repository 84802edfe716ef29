"""One HTTP connection: uvicorn's httptools protocol, taught to bound its client and to end without losing a request.

uvicorn waits for ever for a head or a body, and keeps headers of any size; `guard` has the limits. It closes a
connection that has no request under way, even one whose request is already in the kernel's buffer: a client believes
that to be sent.
"""

import asyncio
import re
import select
import socket
import struct
from collections.abc import Collection
from enum import Enum
from functools import lru_cache
from typing import Any, cast
from urllib.parse import unquote

import httptools
from starlette.requests import Request
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import BodyTimeout, ClientDisconnected, FoveaError, MalformedRequest
from service.rest.context import RequestContext
from service.rest.exchange import Exchange
from service.rest.guard import LOOK_SECONDS, ConnectionGuard, Refused

FIRST_REQUEST_SECONDS = 1.0  # a client that has just connected sends its request within this, or has none
_HOST = re.compile(rb"[A-Za-z0-9._~:\[\]%-]*")  # names, addresses, a port
_RESET = struct.pack("ii", 1, 0)  # linger for no time: a reset instead of megabytes for a reader who does not read
_KEPT = 256  # request targets and hosts: a service's callers send the same few
_HEAD_END = b"\r\n\r\n"
_UPGRADE_FIELDS = frozenset({b"connection", b"upgrade", b"http2-settings"})
_MANY_PIECES, _SMALL_PIECE = 1024, 16  # this many pieces of a body shorter than that on average are an attack
_FRAME_BYTES = 64 * 1024  # of chunk sizes, extensions and trailers, beside as many as there are of the body


@lru_cache(_KEPT)
def _target(url: bytes) -> tuple[str, bytes, bytes]:
    """Of a request target the path, decoded and as it came, and the query. Raises HttpParserInvalidURLError."""
    parsed = httptools.parse_url(url)
    path = parsed.path.decode("ascii")
    return unquote(path) if "%" in path else path, parsed.path, parsed.query or b""


@lru_cache(_KEPT)
def _is_host(value: bytes) -> bool:
    return _HOST.fullmatch(value) is not None


class Departure:
    """What a connection tells whoever answers a request.

    `waiting` is the task to be cancelled when the client has gone, which `has_gone` then says; `fault` is why the rest
    of the body will not come.
    """

    __slots__ = ("fault", "has_gone", "waiting")

    def __init__(self) -> None:
        self.waiting: asyncio.Task[Any] | None = None
        self.has_gone = False
        self.fault: FoveaError | None = None

    def leave(self) -> None:
        self.has_gone = True
        if self.waiting is not None:
            self.waiting.cancel()


async def next_piece(request: Request) -> tuple[bytes, bool]:
    """The next bytes of a body, and whether more will come.

    Raises ClientDisconnected, or the fault that the connection found: BodyTimeout, MalformedRequest.
    """
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnected("The client left while sending.")
    departure: Departure = request.scope["fovea.departure"]
    if (fault := departure.fault) is not None:
        raise type(fault)(*fault.args)  # its own would hold the frames that hold it
    return message["body"], message["more_body"]


class Stage(Enum):
    """What the connection waits for from its client."""

    HEAD = 1  # the head of a request, of which bytes may be there; also on a connection that has just been made
    BODY = 2  # the rest of a body
    NOTHING = 3  # the request is whole: it is being answered, or has been, and the next may come


class _AsksForUpgrade(Exception):
    """Raised inside the parser."""


class Connection(HttpToolsProtocol):
    """Holds its client to the guard's limits; closes at shutdown only when nothing is about to be read.

    Every scope has a `Departure` under "fovea.departure": a call instead of a task that waits beside every request.
    """

    cycle: Exchange

    def __init__(self, *, guard: ConnectionGuard, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._guard = guard
        self._stage = Stage.HEAD
        self._since = guard.clock()  # when the stage began, or the last answer ended
        self._fed = 0  # bytes of the message now read: those that came with its first byte, and all since
        self._first_fed = 0  # the former
        self._feed = 0  # bytes the parser has at the moment
        self._body_bytes = 0
        self._pieces = 0  # of the body
        self._tail = b""  # of a head that has not ended: as much as may belong to its end
        self._departure = Departure()
        self._is_broken = False  # nothing more can be read
        self._unsent_since: float | None = None

    # Events of the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connections = cast(Collection[Connection], self.connections)
        if not self._guard.has_room(connections):
            self._refuse("connection_limit")

    def data_received(self, data: bytes) -> None:
        if self._is_broken:
            return
        self._feed = len(data)
        self._fed += self._feed
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._parsing_stopped(error.__context__, data)
        else:
            if self._stage is not Stage.NOTHING:
                self._parsing_goes_on(data)

    def connection_lost(self, exc: Exception | None) -> None:
        cycle = self.cycle
        super().connection_lost(exc)
        if cycle is not None and not cycle.response_complete:
            departure: Departure = cycle.scope["fovea.departure"]  # type: ignore[typeddict-item]
            departure.leave()

    def resume_writing(self) -> None:
        self._unsent_since = None
        super().resume_writing()

    # Events of the parser

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._departure = Departure()
        self.scope["fovea.departure"] = self._departure  # type: ignore[typeddict-unknown-key]
        self._stage = Stage.HEAD
        self._since = self._guard.clock()
        self._fed = self._first_fed = self._feed
        self._body_bytes = self._pieces = 0
        self._tail = b""

    def on_headers_complete(self) -> None:
        guard = self._guard
        if len(self.url) > guard.uri_bytes:
            raise Refused("uri_too_long")
        if len(self.headers) > guard.head_fields or (
            self._fed > guard.head_bytes and self._head_bytes() > guard.head_bytes
        ):
            raise Refused("headers_too_large")
        if self.url[:1] != b"/" or not self._has_one_host():
            raise Refused("malformed_http")
        if self.parser.should_upgrade():
            raise _AsksForUpgrade
        scope, version = self.scope, self.parser.get_http_version()
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["path"], scope["raw_path"], scope["query_string"] = _target(self.url)
        self.headers = []  # trailers come here, where nobody looks: the scope has the list of the head
        self._stage = Stage.BODY
        waits = self.is_answering
        self.cycle = Exchange(
            scope,
            self.transport,
            self.flow,
            self.logger,
            self.server_state.default_headers,
            self.tasks,
            self.on_response_complete,
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
        )
        if waits:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))
        else:
            self.cycle.start(self.app, self.loop)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._pieces += 1
        if self._pieces > _MANY_PIECES and self._body_bytes < self._pieces * _SMALL_PIECE:
            raise Refused("malformed_http")
        cycle = self.cycle
        if cycle.response_complete:
            if self._body_bytes > self._guard.body_bytes and self._is_endless():
                raise Refused("malformed_http")
            return
        cycle.add(body)
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()

    def on_message_complete(self) -> None:
        self._stage = Stage.NOTHING
        if not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()

    def on_response_complete(self) -> None:
        """As uvicorn's, without its timer for an idle connection: the guard looks."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._since = self._guard.clock()
        never_continued = self.expect_100_continue and self._stage is Stage.BODY and not self._body_bytes
        if self.pipeline:
            self.flow.resume_reading()
            cycle, app = self.pipeline.pop()
            cast(Exchange, cycle).start(app, self.loop)
        elif self._is_broken or never_continued:
            self.transport.close()
        else:
            self.flow.resume_reading()

    # Limits

    def keep_to_time(self, now: float) -> None:
        """Close what is over its time. A client that we ourselves let wait is not."""
        if self._is_stalled(now):
            self.end("write_stall")
        elif self.flow.read_paused:
            self._since += LOOK_SECONDS
        elif self._stage is Stage.HEAD:
            if now - self._since > self._guard.head_seconds and not self.is_answering:
                self._give_up_head()
        elif self._stage is Stage.BODY:
            if now - self._since > self._guard.body_seconds(self._body_bytes):
                self._give_up_body()
        elif not self.is_answering and now - self._since > self._guard.keep_alive_seconds:
            self._close_unless_spoken_to()

    def is_waiting(self, now: float) -> bool:
        """Whether the connection only waits for its client, and has for a second, as far as has been read."""
        is_idle = self._stage is not Stage.BODY and not self.is_answering
        return is_idle and now - self._since > FIRST_REQUEST_SECONDS and not self.transport.is_closing()

    def is_spoken_to(self) -> bool:
        """Whether the client has sent something that has not been read yet."""
        return _has_unread_data(self.transport)

    def end(self, reason: str) -> None:
        """Close at once, whatever is under way; what the kernel still has to send is forgotten with it."""
        self._guard.note(reason, self.client)
        connected = self.transport.get_extra_info("socket")
        if connected is not None and connected.fileno() >= 0:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    @property
    def is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _is_stalled(self, now: float) -> bool:
        if not self.transport.get_write_buffer_size():
            self._unsent_since = None
        elif self._unsent_since is None:
            self._unsent_since = now - LOOK_SECONDS  # at the earliest
        return self._unsent_since is not None and now - self._unsent_since >= self._guard.write_seconds

    def _close_unless_spoken_to(self) -> None:
        if not self.is_spoken_to():
            self.transport.close()

    def _give_up_head(self) -> None:
        if self._fed:
            self._refuse("header_deadline")
        else:
            self.end("header_deadline")

    def _give_up_body(self) -> None:
        """Tell whoever answers; where nobody listens until the next look, close."""
        if self._is_broken or self.cycle.response_complete:
            self.end("body_deadline")
            return
        self._guard.count("body_deadline")
        seconds = self._guard.body_seconds(self._body_bytes)
        self._fail(BodyTimeout(f"The body did not arrive within {seconds:.3g} s."))

    def _is_endless(self) -> bool:
        """Of a body beyond every limit, answered already: whether to stop reading. One with a length may run out."""
        is_chunked = any(name == b"transfer-encoding" for name, _ in self.scope["headers"])
        return is_chunked or self._body_bytes > 2 * self._guard.body_bytes

    def _is_flooded(self) -> bool:
        """Bytes that make no progress: a head without end, or chunks that are mostly their own frames."""
        later = self._fed - self._first_fed
        if self._stage is Stage.HEAD:
            return later > self._guard.head_bytes + self._guard.uri_bytes
        return later > 2 * self._body_bytes + _FRAME_BYTES

    def _parsing_goes_on(self, data: bytes) -> None:
        if self._is_flooded():
            self._stop_reading("headers_too_large" if self._stage is Stage.HEAD else "malformed_http")
        elif self._stage is Stage.HEAD:
            self._tail = (self._tail + data[1 - len(_HEAD_END) :])[1 - len(_HEAD_END) :]

    def _parsing_stopped(self, cause: BaseException | None, data: bytes) -> None:
        if isinstance(cause, _AsksForUpgrade) and not self.is_answering and self.parser.get_method() != b"CONNECT":
            self._parse_without_upgrade(data)
        else:
            self._stop_reading(cause.reason if isinstance(cause, Refused) else "malformed_http")

    def _parse_without_upgrade(self, data: bytes) -> None:
        """The same request, not asking for another protocol: llhttp would drop its body. Java's client asks for h2c."""
        begun = self._tail + (data if self._tail else data.lstrip(b"\r\n"))
        rest = begun[begun.index(_HEAD_END) + len(_HEAD_END) :]
        kept = [b"%s: %s\r\n" % field for field in self.headers if field[0] not in _UPGRADE_FIELDS]
        head = b"%s %s HTTP/1.1\r\n%s\r\n" % (self.parser.get_method(), self.url, b"".join(kept))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self.data_received(head + rest)

    def _stop_reading(self, reason: str) -> None:
        """The parser can go no further: refuse what it was at, but never before what came whole is answered."""
        self._is_broken = True
        self.flow.pause_reading()
        if self._stage is Stage.BODY and self.is_answering:
            self._guard.count(reason)
            self._fail(MalformedRequest("The body is not framed as RFC 9112 has it, or in uselessly small chunks."))
        elif self.is_answering:
            self.cycle.keep_alive = False
        else:
            self._refuse(reason)

    def _fail(self, fault: FoveaError) -> None:
        self._is_broken = True
        self._departure.fault = fault
        self.cycle.message_event.set()

    def _refuse(self, reason: str) -> None:
        self._is_broken = True
        if not self.transport.is_closing():
            request_id = RequestContext(self.headers or []).request_id  # the caller's own, where it has come
            self.transport.write(self._guard.refusal(reason, self.client, request_id))
            self.transport.close()

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers)

    def _has_one_host(self) -> bool:
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) == 1:
            return _is_host(hosts[0])
        return not hosts and self.parser.get_http_version() == "1.0"

    # Shutdown

    def shutdown(self) -> None:
        """No further requests: finish what runs, read what was sent, then close."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        elif self.cycle is None or self.is_spoken_to():
            self.loop.call_later(FIRST_REQUEST_SECONDS, self._close_if_idle)
        else:
            self._close_at_last()

    def _close_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self._close_at_last()
        else:
            self.cycle.keep_alive = False

    def _close_at_last(self) -> None:
        """Over TLS a client that has everything gets a second for its goodbye: many never say it, and all wait."""
        self.transport.close()
        if not self.transport.get_write_buffer_size():
            self.loop.call_later(FIRST_REQUEST_SECONDS, self.transport.abort)


def _has_unread_data(transport: asyncio.Transport) -> bool:
    connected = transport.get_extra_info("socket")
    if connected is None or connected.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(connected.fileno(), select.POLLIN)
    return bool(poll.poll(0))
