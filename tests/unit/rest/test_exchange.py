"""An exchange writes what uvicorn's own cycle writes, and a whole answer in one piece."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.rest.exchange import Exchange

_DATE = (b"date", b"Sun, 22 Nov 2026 05:00:00 GMT")
_LARGE = bytes(100_000)


class _Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed


def start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


def length(body: bytes) -> tuple[bytes, bytes]:
    return (b"content-length", b"%d" % len(body))


def made(
    kind: type[RequestResponseCycle],
    transport: _Transport,
    method: str,
    on_response: Callable[[], None] = lambda: None,
    *,
    keep_alive: bool = True,
    expect_100_continue: bool = False,
) -> RequestResponseCycle:
    scope: Any = {"method": method}
    logger, flow = logging.getLogger("test"), FlowControl(transport)
    if issubclass(kind, Exchange):
        return kind(
            scope,
            transport,
            flow,
            logger,
            [_DATE],
            set(),
            on_response,
            expect_100_continue=expect_100_continue,
            keep_alive=keep_alive,
        )
    return kind(
        scope=scope,
        transport=transport,
        flow=flow,
        logger=logger,
        access_logger=logger,
        access_log=False,
        default_headers=[_DATE],
        message_event=asyncio.Event(),
        expect_100_continue=expect_100_continue,
        keep_alive=keep_alive,
        on_response=on_response,
    )


def answered(
    kind: type[RequestResponseCycle], messages: list[dict[str, Any]], method: str = "POST", *, keep_alive: bool = True
) -> dict[str, Any]:
    """What became of an answer: what was written, in how many pieces, and how it ended."""
    transport = _Transport()
    ended: list[bool] = []

    async def run() -> str:
        cycle = made(kind, transport, method, lambda: ended.append(True), keep_alive=keep_alive)
        try:
            for message in messages:
                await cycle.send(message)  # type: ignore[arg-type]
        except RuntimeError as error:
            return str(error)
        return f"complete: {cycle.response_complete}"

    end = asyncio.run(run())
    return {
        "bytes": b"".join(transport.writes),
        "pieces": len(transport.writes),
        "is_closed": transport.is_closed,
        "ended": ended,
        "end": end,
    }


ANSWERS = {
    "whole": [start(length(b"{}"), (b"content-type", b"application/json")), part(b"{}")],
    "empty": [start(length(b""), status=204), part(b"")],
    "large": [start(length(_LARGE)), part(_LARGE)],
    "in two parts": [start(length(b"abcd")), part(b"ab", more=True), part(b"cd")],
    "of unknown length": [start(), part(b"ab", more=True), part(b"")],
    "whole, of unknown length": [start(), part(b"ab")],
    "that closes": [start(length(b"{}"), (b"connection", b"close")), part(b"{}")],
    "chunked by its own word": [start((b"transfer-encoding", b"chunked")), part(b"ab")],
    "too short": [start((b"content-length", b"3")), part(b"ab")],
    "too long": [start((b"content-length", b"1")), part(b"ab")],
    "with a line in a header": [start(length(b"{}"), (b"x-a", b"1\r\nx-b: 2")), part(b"{}")],
    "with a bare carriage return": [start(length(b"{}"), (b"x-a", b"1\rx-b: 2")), part(b"{}")],
    "with a bare line feed": [start(length(b"{}"), (b"x-a", b"1\nx-b: 2")), part(b"{}")],
    "started twice": [start(length(b"{}")), part(b"{", more=True), start(length(b"{}"))],
    "after its end": [start(length(b"{}")), part(b"{}"), part(b"{}")],
}


@pytest.mark.parametrize("keep_alive", [True, False], ids=["kept alive", "closed"])
@pytest.mark.parametrize("method", ["POST", "HEAD"])
@pytest.mark.parametrize("name", ANSWERS)
def test_the_bytes_are_uvicorns(name: str, method: str, keep_alive: bool) -> None:
    ours = answered(Exchange, ANSWERS[name], method, keep_alive=keep_alive)
    theirs = answered(RequestResponseCycle, ANSWERS[name], method, keep_alive=keep_alive)
    del ours["pieces"], theirs["pieces"]
    assert ours == theirs


@given(
    body=st.binary(max_size=200),
    headers=st.lists(st.tuples(st.from_regex(rb"x-[a-z]{1,9}", fullmatch=True), st.binary(max_size=20)), max_size=4),
)
def test_no_header_smuggles_anything(body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    messages = [start(length(body), *headers), part(body)]
    ours, theirs = answered(Exchange, messages), answered(RequestResponseCycle, messages)
    assert (ours["bytes"], ours["end"]) == (theirs["bytes"], theirs["end"])


def test_a_whole_answer_is_one_write() -> None:
    assert answered(Exchange, ANSWERS["whole"])["pieces"] == 1
    assert answered(RequestResponseCycle, ANSWERS["whole"])["pieces"] == 2, "uvicorn joins them itself by now"


def test_an_error_between_head_and_body_leaves_room_for_another_answer() -> None:
    again = [start(length(b"{}")), start(length(b"no"), status=500), part(b"no")]
    assert answered(Exchange, again)["bytes"].startswith(b"HTTP/1.1 500")


def _received(kind: type[RequestResponseCycle], pieces: list[bytes], *, expect: bool) -> tuple[list[Any], list[bytes]]:
    """The messages an application receives of a body in `pieces`, asking before and after each, and what was sent."""
    transport = _Transport()

    async def run() -> list[Any]:
        cycle = made(kind, transport, "POST", expect_100_continue=expect)
        messages = []
        for place, piece in enumerate(pieces):
            asked = asyncio.create_task(cycle.receive())
            await asyncio.sleep(0)
            if isinstance(cycle, Exchange):
                cycle.add(piece)
            else:
                cycle.body += piece
            cycle.more_body = place + 1 < len(pieces)
            cycle.message_event.set()
            messages.append(await asked)
        cycle.disconnected = True
        cycle.message_event.set()
        return [*messages, await cycle.receive()]

    return asyncio.run(run()), transport.writes


@pytest.mark.parametrize("expect", [True, False])
@pytest.mark.parametrize("pieces", [[b"ab"], [b""], [b"ab", b"cd", b""]], ids=str)
def test_what_is_received_is_uvicorns(pieces: list[bytes], expect: bool) -> None:
    assert _received(Exchange, pieces, expect=expect) == _received(RequestResponseCycle, pieces, expect=expect)


async def test_pieces_that_came_before_they_were_asked_for_are_one() -> None:
    cycle = made(Exchange, _Transport(), "POST")
    assert isinstance(cycle, Exchange)
    for piece in (b"ab", b"", b"cd", b"e"):
        cycle.add(piece)
    message = await cycle.receive()
    assert message == {"type": "http.request", "body": b"abcde", "more_body": True}
    assert type(message["body"]) is bytes


async def test_a_task_that_has_answered_is_forgotten() -> None:
    tasks: set[asyncio.Task[None]] = set()
    transport = _Transport()
    cycle = Exchange(
        {"method": "POST"},
        transport,
        FlowControl(transport),
        logging.getLogger("test"),
        [],
        tasks,
        lambda: None,
        expect_100_continue=False,
        keep_alive=True,
    )

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in ANSWERS["whole"]:
            await send(message)

    cycle.start(app, asyncio.get_running_loop())
    (task,) = tasks
    await task
    assert not tasks
