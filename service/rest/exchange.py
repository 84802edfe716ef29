"""One request and its answer on a connection: uvicorn's cycle, writing an answer that is whole in one piece.

uvicorn writes head and body apart: without Nagle's algorithm that is two packets, and twice the kernel's work for them.
Holding the head back is what ASGI asks for: nothing of an answer is sent before the first of its body. And a small body
that came whole is handed on as it came, without uvicorn's event and its two copies.
"""

import asyncio
import logging
from collections.abc import Callable, MutableSet
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

_CONTROL = bytes({*range(0x20), 0x7F} - {0x09})  # of which a head has its ends of lines and nothing else
_FRAMING = frozenset({b"content-length", b"connection", b"transfer-encoding"})
_JOINED_BYTES = 64 * 1024  # a larger body is worth a write of its own, not a copy


class News:
    """Whether there is something new to receive: an event that one waits for at most."""

    __slots__ = ("_waiting", "is_there")

    def __init__(self) -> None:
        self.is_there = False
        self._waiting: asyncio.Future[None] | None = None

    def set(self) -> None:
        self.is_there = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def wait(self) -> None:
        """Return once there is."""
        if not self.is_there:
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None


class Exchange(RequestResponseCycle):
    """See the module. Of answers in parts, of unknown length or to HEAD every byte is uvicorn's own.

    `tasks` has the task that answers it for as long as that runs.
    """

    message_event: News  # type: ignore[assignment]
    body: Any  # bytes as they came, or a bytearray of several pieces

    def __init__(  # what uvicorn's cycle is made of, less what this one has itself
        self,
        scope: Any,
        transport: asyncio.Transport,
        flow: FlowControl,
        logger: logging.Logger,
        default_headers: list[tuple[bytes, bytes]],
        tasks: MutableSet[asyncio.Task[None]],
        on_response: Callable[[], None],
        *,
        expect_100_continue: bool,
        keep_alive: bool,
    ) -> None:
        self.scope = scope
        self.transport = transport
        self.flow = flow
        self.logger = self.access_logger = logger
        self.access_log = False
        self.default_headers = default_headers
        self.message_event = News()
        self.on_response = on_response
        self.disconnected = False
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = expect_100_continue
        self.body = b""
        self.more_body = True
        self.response_started = self.response_complete = False
        self.chunked_encoding = None
        self.expected_content_length = 0
        self._tasks = tasks
        self._head: Any = None  # the message that starts the answer, until the body's first

    def add(self, piece: bytes) -> None:
        """One more piece of the body has come."""
        if not self.body:
            self.body = piece
        else:
            if not isinstance(self.body, bytearray):
                self.body = bytearray(self.body)
            self.body += piece
        self.message_event.set()

    def start(self, app: Any, loop: asyncio.AbstractEventLoop) -> None:
        """Let `app` answer it, in a task."""
        self._task = loop.create_task(self.run_asgi(app))
        self._tasks.add(self._task)

    async def run_asgi(self, app: Any) -> None:
        try:
            await super().run_asgi(app)
        finally:
            self._tasks.discard(self._task)

    async def receive(self) -> Any:
        """As uvicorn's."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete:
            self.flow.resume_reading()
            news = self.message_event
            if not news.is_there:
                await news.wait()
            news.is_there = False
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = self.body, b""
        return {"type": "http.request", "body": bytes(body), "more_body": self.more_body}

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
        pieces = [STATUS_LINE[head["status"]]]
        length = None
        headers = [*self.default_headers, *head["headers"]]
        for name, value in headers:
            if name in _FRAMING:
                if length is not None or name != b"content-length":
                    return None
                length = value
            pieces += (name, b": ", value, b"\r\n")
        if length != b"%d" % len(body):
            return None
        pieces.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        start = b"".join(pieces)
        lines = len(headers) + (2 if self.keep_alive else 3)
        controls = len(start) - len(start.translate(None, _CONTROL))
        is_clean = controls == 2 * lines and start.count(b"\r\n") == lines
        return start + body if is_clean else None

    def _write_whole(self, answer: bytes) -> None:
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.transport.write(answer)
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
