"""A Fovea server of our own as a child process on a free port of 127.0.0.1, for benchmarks."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

_START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class LocalServer:
    url: str
    pid: int
    ready_seconds: float


@contextmanager
def local_server(arguments: Sequence[str] = (), cpus: Collection[int] = ()) -> Iterator[LocalServer]:
    """Start `fovea serve` (on `cpus` only, where some are named), wait until it is ready, end it by its pid."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "service", "serve", "--server.port", str(port), "--server.drain-delay-s", "0"]
    started_at = time.perf_counter()
    process = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.DEVNULL,
        preexec_fn=partial(os.sched_setaffinity, 0, cpus) if cpus else None,  # no thread runs yet
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while not _is_ready(url):
            if process.poll() is not None or time.perf_counter() - started_at > _START_SECONDS:
                raise RuntimeError(f"the server did not become ready (exit code {process.poll()})")
            time.sleep(0.05)
        yield LocalServer(url, process.pid, time.perf_counter() - started_at)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        process.kill()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
