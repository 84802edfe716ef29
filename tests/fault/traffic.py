"""Clients for the faults: good ones that are timed, and ones that mean harm."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.support import bodies, raw_http
from tests.support.raw_http import Connection, IncompleteAnswer

COLORS = "/api/v1/models/colors/classify"


def classify(model: str, image: bytes | None = None, **headers: str) -> bytes:
    path = f"/api/v1/models/{model}/classify"
    body = bodies.plain_color("red") if image is None else image
    return raw_http.request("POST", path, {"Content-Type": bodies.PNG, **headers}, body)


@dataclass
class Timed:
    """Answers by status, with how long each took."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    headers: list[dict[str, str]] = field(default_factory=list)  # of refusals

    def note(self, status: int, seconds: float) -> None:
        self.seconds.setdefault(status, []).append(seconds)

    def add(self, other: "Timed") -> None:
        """What another one noted too."""
        for status, seconds in other.seconds.items():
            self.seconds.setdefault(status, []).extend(seconds)
        self.headers += other.headers

    def count(self, status: int) -> int:
        return len(self.seconds.get(status, []))

    @property
    def total(self) -> int:
        return sum(map(len, self.seconds.values()))

    def percentile(self, share: float, status: int = 200) -> float:
        ordered = sorted(self.seconds.get(status, [0.0]))
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def until(condition: Callable[[], object], what: str, timeout_seconds: float) -> None:
    """`poll`, while this event loop goes on."""
    give_up_at = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < give_up_at, f"{what}: not within {timeout_seconds:g} s"
        await asyncio.sleep(0.02)


async def good_traffic(port: int, seconds: float, clients: int = 4, pause: float = 0.004) -> Timed:
    """A few clients that ask one thing after the other; a lost connection counts as status 0."""
    timed, end_at, request = Timed(), time.monotonic() + seconds, classify("colors")

    async def client() -> None:
        connection = await Connection.open(port)
        while time.monotonic() < end_at:
            started_at = time.monotonic()
            try:
                status = (await connection.ask(request)).status_code
            except (IncompleteAnswer, OSError):
                status, connection = 0, await Connection.open(port)
            timed.note(status, time.monotonic() - started_at)
            await asyncio.sleep(pause)
        await connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return timed


async def drip(port: int, start: bytes, every_seconds: float, most_seconds: float) -> tuple[float, bytes]:
    """Send `start`, then a byte now and again, until the server ends it: after how long, and what it said."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(start)
    began_at, said = time.monotonic(), b""

    async def listen() -> None:
        nonlocal said
        try:
            while data := await reader.read(65_536):
                said += data
        except OSError:
            pass

    listening = asyncio.create_task(listen())
    while not listening.done() and time.monotonic() - began_at < most_seconds:
        await asyncio.wait({listening}, timeout=every_seconds)
        if not listening.done():
            writer.write(b"x")
    lasted = time.monotonic() - began_at
    listening.cancel()
    writer.transport.abort()
    return lasted, said


async def open_loop(port: int, requests: Sequence[bytes], rate: float, seconds: float) -> Timed:
    """Poisson arrivals, each timed from when it was due, over as many kept connections as it takes."""
    timed, idle, gaps = Timed(), list[Connection](), random.Random(7)

    async def one(request: bytes, due_at: float) -> None:
        connection = idle.pop() if idle else await Connection.open(port)
        try:
            answer = await connection.ask(request)
        except (IncompleteAnswer, OSError):
            timed.note(0, time.monotonic() - due_at)
            return
        timed.note(answer.status_code, time.monotonic() - due_at)
        if answer.status_code == 503:
            timed.headers.append(answer.headers)
        idle.append(connection)

    tasks, due_at = set[asyncio.Task[None]](), time.monotonic()
    end_at = due_at + seconds
    while due_at < end_at:
        await asyncio.sleep(max(0.0, due_at - time.monotonic()))
        task = asyncio.create_task(one(requests[len(tasks) % len(requests)], due_at))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        due_at += gaps.expovariate(rate)
    await asyncio.gather(*tasks)
    for connection in idle:
        await connection.close()
    return timed


async def probe(port: int, path: str, seconds: float, every_seconds: float = 1.0) -> Timed:
    """One GET a moment, each over a connection of its own, at most a second long."""
    timed = Timed()
    for _ in range(int(seconds / every_seconds)):
        started_at = time.monotonic()
        try:
            async with asyncio.timeout(1.0):
                connection = await Connection.open(port)
                status = (await connection.ask(raw_http.request("GET", path))).status_code
                await connection.close()
        except (TimeoutError, OSError, IncompleteAnswer):
            status = 0
        timed.note(status, time.monotonic() - started_at)
        await asyncio.sleep(max(0.0, every_seconds - (time.monotonic() - started_at)))
    return timed


def statuses(said: Sequence[bytes]) -> Counter[int]:
    """The statuses in what several connections said; 0 for nothing."""
    return Counter(int(one[9:12]) if one.startswith(b"HTTP/1.1 ") else 0 for one in said)
