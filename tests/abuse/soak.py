"""Soak: many requests of every kind, good, bad and broken off, and then: is the process what it was?

    python -m tests.abuse.soak --requests 20000

A second run, against a server that keeps 1 KiB of every request on purpose, must fail: what could not see that leak
would see none. Exit code 0 where the first held and the second did not.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import psutil

from tests.abuse import rows_of_bodies, rows_of_http, rows_of_images
from tests.abuse.cases import DIGITS, IMAGENET, Case
from tests.support import bodies, raw_http
from tests.support.scrape import Scrape
from tests.support.server_process import MODEL_REPO, PROJECT, ServerProcess, poll

WARM_UP = 2_000  # Triton's rule: memory is stable from here on
CLIENTS = 8
_AT_ONCE = 48
BAD, BROKEN_OFF, PHOTOGRAPHS = 0.08, 0.02, 0.05  # shares; the rest are small pictures in six formats
MOST_GROWTH = 10 * 2**20
MOST_DRIFT = 2  # descriptors, threads, tasks
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
LEAKY = str(PROJECT / "tests" / "abuse" / "leaky_server.py")


@dataclass(frozen=True)
class Census:
    """What a process holds."""

    rss_bytes: int
    fds: int
    threads: int
    tasks: int
    files: int

    @classmethod
    def of(cls, server: ServerProcess, folder: Path) -> "Census":
        process = psutil.Process(server.pid)
        scrape = Scrape.parse(server.get("/metrics")[1].decode())
        tasks = int(scrape.total("fovea_event_loop_tasks"))
        files = sum(1 for _ in folder.rglob("*"))
        return cls(process.memory_info().rss, process.num_fds(), process.num_threads(), tasks, files)


def good_requests() -> tuple[list[bytes], list[bytes]]:
    """Small pictures in six formats, and photographs."""
    small = [
        raw_http.request(
            "POST", DIGITS, {"Content-Type": f"image/{kind.lower()}"}, bodies.drawn_digit(digit, kind=kind)
        )
        for digit in range(10)
        for kind in FORMATS
    ]
    photographs = [
        raw_http.request("POST", IMAGENET, {"Content-Type": bodies.JPEG}, crop) for crop in bodies.different_crops(20)
    ]
    return small, photographs


def bad_cases() -> list[Case]:
    tables = (rows_of_bodies, rows_of_images, rows_of_http)
    every = [case for table in tables for case in table.CASES]
    refused = [case for case in every if case.is_small and case.cpu_seconds <= 1.0 and 200 not in case.statuses]
    return [case for case in refused if case.method != "HEAD"]  # whose answers have a length and no body


class Caller:
    """One client: keeps its connection for good requests; bad and broken ones have theirs."""

    def __init__(self, port: int, seed: int, answers: Counter[int]) -> None:
        self._port = port
        self._pick = random.Random(seed)
        self._answers = answers
        self._small, self._photographs = good_requests()
        self._bad = bad_cases()
        self._kept: raw_http.Connection | None = None

    async def call(self, count: int) -> None:
        for _ in range(count):
            chance = self._pick.random()
            if chance < BAD:
                await self._once(self._pick.choice(self._bad).request("soak"))
            elif chance < BAD + BROKEN_OFF:
                await self._leave(self._pick.choice(self._photographs))
            else:
                few = chance < BAD + BROKEN_OFF + PHOTOGRAPHS
                await self._ask(self._pick.choice(self._photographs if few else self._small))
        if self._kept is not None:
            await self._kept.close()

    async def _ask(self, request: bytes) -> None:
        if self._kept is None:
            self._kept = await raw_http.Connection.open(self._port)
        self._answers[(await self._kept.ask(request)).status_code] += 1

    async def _once(self, request: bytes) -> None:
        connection = await raw_http.Connection.open(self._port)
        try:
            self._answers[(await connection.ask(request)).status_code] += 1
        except (raw_http.IncompleteAnswer, OSError):
            self._answers[0] += 1
        await connection.close()

    async def _leave(self, request: bytes) -> None:
        """Send a part of a request, or all of it, and go."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(request[: self._pick.randint(1, len(request))])
        await asyncio.sleep(self._pick.random() * 0.005)
        writer.transport.abort()
        del reader


async def call_all(port: int, count: int, seed: int) -> Counter[int]:
    answers: Counter[int] = Counter()
    callers = [Caller(port, seed + index, answers) for index in range(CLIENTS)]
    await asyncio.gather(*(caller.call(count // CLIENTS) for caller in callers))
    return answers


async def fill(port: int) -> None:
    """So much at once that every network runs its largest batches, side by side: it keeps what memory they take."""
    small, photographs = good_requests()

    async def one(requests: Sequence[bytes]) -> None:
        connection = await raw_http.Connection.open(port)
        for request in requests:
            await connection.ask(request)
        await connection.close()

    for requests in (small, photographs):
        await asyncio.gather(*(one(requests) for _ in range(_AT_ONCE)))


def at_rest(server: ServerProcess, folder: Path) -> Census:
    """The census once every request has ended and every connection is gone."""

    def is_quiet() -> bool:
        scrape = Scrape.parse(server.get("/metrics")[1].decode())
        return scrape.total("fovea_inflight_requests") == 0 and scrape.total("fovea_open_connections") <= 1

    poll(is_quiet, "the server is at rest", every_seconds=0.5)
    return Census.of(server, folder)


def soak(requests: int, command: Sequence[str] | None = None) -> list[str]:
    """What went wrong; prints what was measured."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {"TMPDIR": folder}
        formats = "jpeg,png,webp,gif,bmp,tiff"
        settings = ("--limits.image-formats", formats, "--log.success-sample", "0")
        arguments = (*settings, "--repository.poll-interval-s", "0", "--server.drain-delay-s", "0")
        with ServerProcess(MODEL_REPO, *arguments, environment=environment, command=command) as server:
            server.wait_until_ready()
            asyncio.run(fill(server.port))
            asyncio.run(call_all(server.port, WARM_UP, seed=1))
            before, started_at = at_rest(server, Path(folder)), time.monotonic()
            answers = asyncio.run(call_all(server.port, requests, seed=100))
            seconds = time.monotonic() - started_at
            after = at_rest(server, Path(folder))
    print(f"{requests:,} requests in {seconds:.0f} s; answers: {dict(sorted(answers.items()))}")
    faults = [f"{count} answers {status}" for status, count in answers.items() if status >= 500]
    for field in fields(Census):
        was, now = getattr(before, field.name), getattr(after, field.name)
        bound = {"rss_bytes": MOST_GROWTH, "files": 0}.get(field.name, MOST_DRIFT)
        print(f"  {field.name:<10} {was:>12,} -> {now:>12,}  grown by {now - was:>12,}, at most {bound:>12,}")
        if now - was > bound:
            faults.append(f"{field.name} grew by {now - was:,}; at most {bound:,}")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description="Many requests, and a look at what stays behind.")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--leak-bytes", type=int, default=1024, help="of the negative control; 0 leaves it out")
    arguments = parser.parse_args()
    faults = soak(arguments.requests)
    print("soak:", "; ".join(faults) or "held")
    if not arguments.leak_bytes:
        return bool(faults)
    control = soak(20_000, [sys.executable, LEAKY, str(arguments.leak_bytes)])
    seen = any("rss_bytes" in fault for fault in control)
    print(f"negative control, {arguments.leak_bytes} bytes a request:", "; ".join(control) or "NOT SEEN")
    return bool(faults) or not seen


if __name__ == "__main__":
    sys.exit(main())
