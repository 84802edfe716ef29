"""A closed loop of HTTP clients in one process: each sends its next request when it has its answer.

Small enough to drive some ten thousand requests a second from one core; knows just enough HTTP for that (keep-alive,
Content-Length). Measures latency from the last byte written to the last byte read.
"""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import uvloop
from http_answers import Answers


@dataclass(slots=True)
class Window:
    """What one window of load saw: all answers, and how many of the good ones came within its seconds.

    When the window ends every client still waits for an answer, and fewer and fewer work the server while they come.
    """

    seconds: float
    latencies: list[float] = field(default_factory=list)  # in seconds
    failures: int = 0
    in_time: int = 0

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return self.in_time / self.seconds

    def percentile(self, share: float) -> float:
        """Latency in milliseconds below which `share` of the answers stay."""
        if not self.latencies:
            return float("nan")
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000.0


def request_bytes(url: str, body: bytes, content_type: str) -> bytes:
    """One POST, ready to be written again and again."""
    parts = urlsplit(url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Client(asyncio.Protocol):
    def __init__(self, requests: "itertools.cycle[bytes]", window: Window, ends_at: float) -> None:
        self._requests = requests
        self._window = window
        self._ends_at = ends_at
        self._answers = Answers()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        head = self._answers.feed(data)
        if head is None:
            return
        now = time.perf_counter()
        if head.startswith(b"HTTP/1.1 200 "):
            self._window.latencies.append(now - self._sent_at)
            self._window.in_time += now < self._ends_at
        else:
            self._window.failures += 1
        if now < self._ends_at:
            self._send()
        else:
            self._finish()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self._window.failures += 1
            self._finish()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(next(self._requests))

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
        self._transport.close()


async def _run(url: str, requests: Sequence[bytes], clients: int, seconds: float) -> Window:
    parts = urlsplit(url)
    window = Window(seconds)
    loop = asyncio.get_running_loop()
    ends_at = time.perf_counter() + seconds
    waiting = []
    for number in range(clients):
        rotated = itertools.cycle([*requests[number % len(requests) :], *requests[: number % len(requests)]])
        _, client = await loop.create_connection(
            lambda rotated=rotated: _Client(rotated, window, ends_at), parts.hostname, parts.port
        )
        waiting.append(client.done)
    await asyncio.gather(*waiting)
    return window


def closed_loop(url: str, bodies: Sequence[bytes], content_type: str, clients: int, seconds: float) -> Window:
    """Drive `url` with `clients` connections for `seconds`, rotating through `bodies`."""
    requests = [request_bytes(url, body, content_type) for body in bodies]
    return uvloop.run(_run(url, requests, clients, seconds))
