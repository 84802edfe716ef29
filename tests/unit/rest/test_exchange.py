"""An exchange writes what uvicorn's own cycle writes, and a whole answer in one piece."""

import asyncio
import logging
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


def start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


def length(body: bytes) -> tuple[bytes, bytes]:
    return (b"content-length", b"%d" % len(body))


def answered(
    kind: type[RequestResponseCycle], messages: list[dict[str, Any]], method: str = "POST", *, keep_alive: bool = True
) -> dict[str, Any]:
    """What became of an answer: what was written, in how many pieces, and how it ended."""
    transport = _Transport()
    ended: list[bool] = []

    async def run() -> str:
        cycle = kind(
            scope={"method": method},  # type: ignore[typeddict-item]
            transport=transport,
            flow=FlowControl(transport),
            logger=logging.getLogger("test"),
            access_logger=logging.getLogger("test"),
            access_log=False,
            default_headers=[_DATE],
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=keep_alive,
            on_response=lambda: ended.append(True),
        )
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
