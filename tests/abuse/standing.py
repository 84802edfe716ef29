"""The standing criteria: what must hold after every case, whatever it was."""

import os
from dataclasses import dataclass
from typing import Any

import psutil

from tests.support import bodies, raw_http
from tests.support.answers import assert_gives_nothing_away, assert_same_predictions, predictions_of, problem_of
from tests.support.raw_http import RawAnswer
from tests.support.server_process import ServerProcess, poll

_GOLDEN = "/api/v1/models/digits/classify"
_MOST_LINE_BYTES = 2048
_POOLED_THREADS = min(32, (os.cpu_count() or 1) + 4) + len(os.sched_getaffinity(0))  # made when first needed, and kept
_SPARE_FDS = 2  # the tests' own kept connections come and go


@dataclass(frozen=True)
class OwedLine:
    """What the log must say of one refusal; `canary` is text that it must not hold."""

    name: str
    request_id: str
    status: int
    canary: str | None

    def is_met_by(self, lines: list[dict[str, Any]]) -> bool:
        """By one line of an answer; what the request set going, a model tried again for one, has lines of its own."""
        if [line["status"] for line in lines if "status" in line] != [self.status]:
            return False
        text = max(map(str, lines), key=len)
        return len(text) < _MOST_LINE_BYTES and (self.canary is None or self.canary not in str(lines))


class Baseline:
    """A server before anything was done to it."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._owed: list[OwedLine] = []
        self._process = psutil.Process(server.pid)
        self._request = raw_http.request(
            "POST", _GOLDEN, {"Content-Type": bodies.PNG, "Connection": "close"}, bodies.drawn_digit(3)
        )
        for _ in range(20):
            self._golden = self._ask()
        assert self._golden[0]["label"] == "3"
        assert self._golden[0]["score"] > 0.99
        self._fds = self._process.num_fds()
        self._threads = self._process.num_threads()

    def assert_golden(self) -> None:
        """The server lives, and gives the golden request its golden answer."""
        assert self._server.is_running
        livez = raw_http.request("GET", "/livez", {"Connection": "close"})
        assert raw_http.exchange(self._server.port, livez, timeout_seconds=1.0).status_code == 200
        assert_same_predictions(self._ask(), self._golden, tolerance=1e-5)

    def assert_nothing_left(self) -> None:
        """No descriptor, thread or file more than before."""

        def is_level() -> bool:
            fds, threads = self._process.num_fds(), self._process.num_threads()
            return fds <= self._fds + _SPARE_FDS and threads <= self._threads + _POOLED_THREADS

        poll(is_level, "descriptors and threads are as before", 5.0)
        files = [file.path for file in self._process.open_files()]
        assert not [path for path in files if path.startswith("/tmp") and "pytest" not in path]

    def cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def rss_bytes(self) -> int:
        return int(self._process.memory_info().rss)

    def owe_line(self, owed: OwedLine) -> None:
        """A refusal that must be found in the log by `assert_lines`: lines are written a moment later, and together."""
        self._owed.append(owed)

    def assert_lines(self) -> None:
        """Every refusal left one line, short, with its status and nothing of what it must not hold."""
        owed, self._owed = self._owed, []
        try:
            poll(lambda: not self._unmet(owed), "the lines are there", every_seconds=0.1)
        except AssertionError:
            unmet = self._unmet(owed)
            assert not unmet, unmet  # which says what was found

    def _unmet(self, owed: list[OwedLine]) -> dict[str, list[dict[str, Any]]]:
        """What the log says of refusals that it does not say as it must, by the case's name."""
        found: dict[str, list[dict[str, Any]]] = {}
        for line in list(self._server.lines):
            found.setdefault(line.get("request_id", ""), []).append(line)
        said = {one: found.get(one.request_id, []) for one in owed}
        return {one.name: lines for one, lines in said.items() if not one.is_met_by(lines)}

    def _ask(self) -> list[dict[str, Any]]:
        return predictions_of(raw_http.exchange(self._server.port, self._request))


def assert_error_is_documented(answer: RawAnswer, path: str, code: str | None) -> None:
    """An error in the form of its protocol, which gives nothing of ours away."""
    assert len(answer.content) < 4096
    assert answer.headers["x-content-type-options"] == "nosniff"
    if answer.headers["content-type"] == "application/problem+json":
        problem_of(answer, answer.status_code, code)
    else:
        assert path.startswith(("/v1", "/v2")), answer
        assert answer.headers["content-type"] == "application/json"
        assert answer.json().keys() == {"error"}
        assert_gives_nothing_away(answer)
