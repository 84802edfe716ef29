"""One request and its answer on a connection: uvicorn's cycle, writing an answer that is whole in one piece.

uvicorn writes head and body apart: without Nagle's algorithm that is two packets, and twice the kernel's work for them.
Holding the head back is what ASGI asks for: nothing of an answer is sent before the first of its body.
"""

import re
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # beside the ends of lines, which are counted
_JOINED_BYTES = 64 * 1024  # a larger body is worth a write of its own, not a copy


class Exchange(RequestResponseCycle):
    """See the module. Of answers in parts, of unknown length or to HEAD every byte is uvicorn's own."""

    def __init__(self, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._head: Any = None  # the message that starts the answer, until the body's first

    async def send(self, message: Any) -> None:
        """As uvicorn's. Raises RuntimeError on messages out of turn."""
        if message["type"] == "http.response.start" and not self.response_started:
            self._head = message
            return
        head, self._head = self._head, None
        if head is not None:
            answer = self._joined(head, message)
            if answer is not None:
                self._write_whole(answer)
                return
            await super().send(head)
        await super().send(message)

    def _joined(self, head: Any, message: Any) -> bytes | None:
        """Head and body of an answer that is whole, small and says its length; of any other None: uvicorn's way."""
        body: bytes = message.get("body", b"")
        if message.get("more_body", False) or len(body) > _JOINED_BYTES:
            return None
        if self.flow.write_paused or self.disconnected or self.scope["method"] == "HEAD":
            return None
        headers = [*self.default_headers, *head["headers"]]
        if not _is_plain(headers, len(body)):
            return None
        pieces = [STATUS_LINE[head["status"]]]
        for name, value in headers:
            pieces += (name, b": ", value, b"\r\n")
        pieces.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        lines = len(headers) + (2 if self.keep_alive else 3)
        start = b"".join(pieces)
        is_clean = start.count(b"\r") == start.count(b"\n") == lines and _CONTROL.search(start) is None
        return start + body if is_clean else None

    def _write_whole(self, answer: bytes) -> None:
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.transport.write(answer)
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


def _is_plain(headers: Iterable[tuple[bytes, bytes]], length: int) -> bool:
    """Whether they give just this length, and say nothing of the connection."""
    lengths = []
    for name, value in headers:
        if name == b"content-length":
            lengths.append(value)
        elif name in (b"connection", b"transfer-encoding"):
            return False
    return lengths == [b"%d" % length]
