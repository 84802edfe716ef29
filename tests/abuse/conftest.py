"""One server for the whole matrix, what must hold after every case, and the report of `make test-abuse`."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.abuse.standing import Baseline
from tests.protocol.tensors.conftest import TOKEN, repository
from tests.support import bodies
from tests.support.scrape import Scrape
from tests.support.server_process import ServerProcess, serving

__all__ = ["repository"]  # a fixture: models of every kind

NASTY_LABELS = ('<script>alert("red")</script>', 'green",\\\u202e', "b" * 10_000)


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[ServerProcess]:
    nasty = bodies.write_model(repository / "nasty", bodies.mean_color_model(), manifest=bodies.COLOR_MANIFEST)
    (nasty / "labels.txt").write_text("\n".join(NASTY_LABELS) + "\n", encoding="utf-8")
    with serving(repository, "--admin.token", TOKEN) as process:
        yield process


@pytest.fixture(scope="session")
def client(server: ServerProcess) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=30.0) as client:
        yield client


@pytest.fixture(scope="session")
def scrape(client: httpx2.Client) -> Callable[[], Scrape]:
    return lambda: Scrape.parse(client.get("/metrics").text)


@pytest.fixture(scope="session")
def baseline(server: ServerProcess) -> Baseline:
    return Baseline(server)


@pytest.fixture
def assert_serves_on(baseline: Baseline) -> Callable[[], None]:
    return baseline.assert_golden


# The report


class Report:
    """What `note` was told, by row: printed at the end where `--abuse-report` was given."""

    def __init__(self) -> None:
        self._rows: dict[int, list[dict[str, Any]]] = defaultdict(list)

    def note(self, row: int, **figures: Any) -> None:
        self._rows[row].append(figures)

    def lines(self) -> Iterator[str]:
        yield f"{'row':>3} {'cases':>5} {'failed':>6} {'slowest ms':>10} {'most CPU ms':>11}  answers"
        for row, cases in sorted(self._rows.items()):
            answers: dict[str, int] = defaultdict(int)
            for case in cases:
                answers[str(case["status"])] += 1
            slowest, most = (max(case[name] for case in cases) * 1000 for name in ("seconds", "cpu_seconds"))
            failed = sum(not case["passed"] for case in cases)
            said = ", ".join(f"{status} x{count}" for status, count in sorted(answers.items()))
            yield f"{row:>3} {len(cases):>5} {failed:>6} {slowest:>10.1f} {most:>11.0f}  {said}"
        every = [case for cases in self._rows.values() for case in cases]
        yield f"{len(self._rows)} rows, {len(every)} cases, {sum(not case['passed'] for case in every)} failed"


_REPORT = Report()


@pytest.fixture(scope="session")
def report() -> Report:
    return _REPORT


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--abuse-report", action="store_true", help="print a table of the abuse matrix, row by row")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.getoption("--abuse-report"):
        terminalreporter.section("abuse matrix")
        for line in _REPORT.lines():
            terminalreporter.line(line)
