"""Open-loop load: requests leave when they are due, whatever became of those before.

Latency counts from the moment a request was due, not from when it could be written: otherwise a stalled service would
hold back the very requests that would have shown the stall (coordinated omission). One process, asyncio, connections
kept alive and reused, the one used last first.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import uvloop
from closed_loop import request_bytes
from http_answers import Answers

_MOST_CONNECTIONS = 1000  # under the service's 1,024 requests in flight: what it refuses, it refuses for its queue
_GIVE_UP_SECONDS = 10.0  # after the last arrival; the service's own deadline is 5 s
_SPIN_SECONDS = 0.0005  # sleeps end late by less than this


@dataclass(slots=True)
class Run:
    """What one run saw. `latencies` in seconds from the moment the request was due, of good answers only."""

    asked_rate: float
    seconds: float
    arrivals: int = 0
    shed: int = 0
    failures: int = 0
    latencies: list[float] = field(default_factory=list)
    finished_seconds: float = 0.0  # from the start to the last answer
    client_cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return len(self.latencies) / max(self.seconds, self.finished_seconds)

    @property
    def shed_ratio(self) -> float:
        return self.shed / max(1, self.arrivals)

    @property
    def failure_ratio(self) -> float:
        return self.failures / max(1, self.arrivals)

    def percentile_ms(self, share: float) -> float:
        """Milliseconds below which `share` of the good answers stay."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000.0 if ordered else float("inf")


class _Connection(asyncio.Protocol):
    """One kept-alive connection; at most one request on it at a time."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._answers = Answers()
        self._due_at: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes, due_at: float) -> None:
        self._due_at = due_at
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        head = self._answers.feed(data)
        if head is None:
            return
        status, closes = head[9:12], b"connection: close" in head.lower()
        due_at, self._due_at = self._due_at, None
        assert due_at is not None
        self._load.saw(status, self._answers.body)
        self._load.answered(self, status, due_at, reusable=not closes)

    def connection_lost(self, error: Exception | None) -> None:
        self._load.lost(self, was_waiting=self._due_at is not None)

    def close(self) -> None:
        self._transport.close()


class Load:
    """One run. `seen` is shown the status and the body of every answer."""

    def __init__(
        self,
        url: str,
        requests: Sequence[bytes],
        rate: float,
        seconds: float,
        seed: int,
        seen: Callable[[bytes, bytes], None] = lambda status, body: None,
    ) -> None:
        self._seen = seen
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._requests = requests
        self._gaps = random.Random(seed)
        self._idle: list[_Connection] = []
        self._connections: set[_Connection] = set()
        self._overdue: list[tuple[bytes, float]] = []  # due, and every connection is in use
        self._opening: set[asyncio.Task[None]] = set()
        self._unanswered = 0
        self._all_sent = False
        self._done = asyncio.Event()
        self.run = Run(rate, seconds)

    async def drive(self) -> Run:
        """Send everything when it is due, and wait for the answers."""
        cpu, started_at = time.process_time(), time.perf_counter()
        due_at = started_at + self._gaps.expovariate(self.run.asked_rate)
        while due_at < started_at + self.run.seconds:
            if (wait := due_at - time.perf_counter()) > _SPIN_SECONDS:
                await asyncio.sleep(wait)
            self._send(self._requests[self.run.arrivals % len(self._requests)], due_at)
            due_at += self._gaps.expovariate(self.run.asked_rate)
            if self.run.arrivals % 32 == 0:
                await asyncio.sleep(0)  # a burst must not keep us from reading answers
        self._all_sent = True
        try:
            async with asyncio.timeout(_GIVE_UP_SECONDS if self._unanswered else 0.001):
                await self._done.wait()
        except TimeoutError:
            self.run.failures += self._unanswered
        self.run.finished_seconds = time.perf_counter() - started_at
        self.run.client_cpu_seconds = time.process_time() - cpu
        self._connections, connections = set(), self._connections
        for connection in connections:
            connection.close()
        return self.run

    def _send(self, request: bytes, due_at: float) -> None:
        self.run.arrivals += 1
        self._unanswered += 1
        if self._idle:
            self._idle.pop().send(request, due_at)
        elif len(self._connections) + len(self._opening) < _MOST_CONNECTIONS:
            task = asyncio.get_running_loop().create_task(self._open(request, due_at))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        else:
            self._overdue.append((request, due_at))

    async def _open(self, request: bytes, due_at: float) -> None:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self), *self._address
            )
        except OSError:
            self.run.failures += 1
            self._ended()
            return
        self._connections.add(connection)
        connection.send(request, due_at)

    def saw(self, status: bytes, body: bytes) -> None:
        self._seen(status, body)

    def answered(self, connection: _Connection, status: bytes, due_at: float, *, reusable: bool) -> None:
        if status == b"200":
            self.run.latencies.append(time.perf_counter() - due_at)
        elif status == b"503":
            self.run.shed += 1
        else:
            self.run.failures += 1
        if not reusable:
            self._connections.discard(connection)
        elif self._overdue:
            connection.send(*self._overdue.pop(0))
        else:
            self._idle.append(connection)
        self._ended()

    def lost(self, connection: _Connection, *, was_waiting: bool) -> None:
        if connection in self._connections:
            self._connections.discard(connection)
            if connection in self._idle:
                self._idle.remove(connection)
            if was_waiting:
                self.run.failures += 1
                self._ended()

    def _ended(self) -> None:
        self._unanswered -= 1
        if self._all_sent and not self._unanswered:
            self._done.set()


def open_loop(url: str, bodies: Sequence[bytes], content_type: str, rate: float, seconds: float, seed: int = 0) -> Run:
    """Send Poisson arrivals of `rate` a second to `url` for `seconds`, rotating through `bodies`."""
    requests = [request_bytes(url, body, content_type) for body in bodies]

    async def drive() -> Run:
        return await Load(url, requests, rate, seconds, seed).drive()

    return uvloop.run(drive())
