"""`fovea serve` as a real process: started on a free port, watched through its log lines, ended by its process id.

Owns the process and the threads that read its pipes. Knows nothing of what is asked of the server.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROJECT = Path(__file__).resolve().parents[2]
MODEL_REPO = PROJECT / "model_repo"
FOVEA = Path(sys.executable).with_name("fovea")  # the installed command of the environment that runs the tests

Line = dict[str, Any]


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without any setting of Fovea or OpenTelemetry, and with `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FOVEA_", "OTEL_"))}
    return kept | dict(extra or {})


def run_fovea(
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    timeout_seconds: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """Run a `fovea` command to its end."""
    return subprocess.run(
        [str(FOVEA), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=clean_environment(environment),
        cwd=folder,
        timeout=timeout_seconds,
        check=False,
    )


def poll(condition: Callable[[], Any], what: str, timeout_seconds: float = 20.0, every_seconds: float = 0.01) -> Any:
    """Ask until `condition` gives something true, and return that. Raises AssertionError after `timeout_seconds`."""
    give_up_at = time.monotonic() + timeout_seconds
    while True:
        if found := condition():
            return found
        assert time.monotonic() < give_up_at, f"{what}: not within {timeout_seconds:g} s"
        time.sleep(every_seconds)


@contextmanager
def serving(repository: Path, *arguments: str) -> Iterator["ServerProcess"]:
    """A ready server that looks at its folder once, and at the end stops without delay and without complaint."""
    settings = ("--server.drain-delay-s", "0", "--repository.poll-interval-s", "0", *arguments)
    with ServerProcess(repository, *settings) as process:
        yield process.wait_until_ready()
        assert process.stop() == 0


class ServerProcess:
    """One running server. `lines` holds every log line so far; use as a context manager, or call `close`."""

    def __init__(
        self,
        repository: Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        port: int = 0,
        command: Sequence[str] | None = None,
    ) -> None:
        self.lines: list[Line] = []
        self.stray: list[str] = []  # what came on stdout and was no JSON object
        self._news = threading.Condition()
        self._ended = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        fovea = [str(FOVEA)] if command is None else command
        self._process = subprocess.Popen(
            [*fovea, "serve", "--model-repo", str(repository), "--server.port", str(port), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=clean_environment(environment),
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="server-log", daemon=True)
        self._reader.start()
        try:
            self.port: int = self.wait_for_event("listening")["port"]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def stderr(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode("utf-8", "replace")

    def get(self, path: str, timeout_seconds: float = 5.0) -> tuple[int, bytes]:
        """Status and body of one GET over a connection of its own. Raises OSError where there is no listener."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_seconds)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def status_of(self, path: str) -> int:
        """The status of one GET; 0 where nobody listens."""
        try:
            return self.get(path)[0]
        except (OSError, http.client.HTTPException):
            return 0

    def wait_until_ready(self, timeout_seconds: float = 40.0) -> Self:
        def ready() -> bool:
            assert self.is_running, f"the server ended with {self._process.returncode}: {self.stderr or self.lines}"
            return self.status_of("/readyz") == 200

        poll(ready, "/readyz is 200", timeout_seconds)
        return self

    def wait_for_line(
        self, wanted: Callable[[Line], bool], what: str = "the log line", timeout_seconds: float = 20.0
    ) -> Line:
        """The first log line, past or future, that `wanted` accepts."""
        looked_at = 0
        give_up_at = time.monotonic() + timeout_seconds
        with self._news:
            while True:
                for line in self.lines[looked_at:]:
                    if wanted(line):
                        return line
                looked_at = len(self.lines)
                if self._ended or not self._news.wait(give_up_at - time.monotonic()):
                    raise AssertionError(f"{what} did not come; stderr: {self.stderr!r}; log: {self.lines[-20:]}")

    def wait_for_event(self, event: str, timeout_seconds: float = 20.0, **fields: Any) -> Line:
        def wanted(line: Line) -> bool:
            return line["event"] == event and all(line.get(name) == value for name, value in fields.items())

        return self.wait_for_line(wanted, f"event {event!r} {fields or ''}", timeout_seconds)

    def signal(self, number: int = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    def wait(self, timeout_seconds: float = 40.0) -> int:
        """The exit code; every line that was written is in `lines` then."""
        code = self._process.wait(timeout_seconds)
        self._reader.join(timeout_seconds)
        return code

    def stop(self, timeout_seconds: float = 40.0) -> int:
        """SIGTERM, and the exit code."""
        self.signal()
        return self.wait(timeout_seconds)

    def close(self) -> None:
        """End the process if it still runs, and free what belongs to it."""
        if self.is_running:
            self._process.kill()
        self._process.wait(10.0)
        self._reader.join(10.0)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            try:
                line = json.loads(raw)
            except ValueError:
                line = None
            with self._news:
                if isinstance(line, dict):
                    self.lines.append(line)
                else:
                    self.stray.append(raw.decode("utf-8", "replace"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


def requests_logged(lines: Sequence[Line], request_id: str) -> list[Line]:
    """The access lines of one request."""
    return [line for line in list(lines) if line["event"] == "request" and line.get("request_id") == request_id]
