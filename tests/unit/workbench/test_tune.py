"""The search on a machine of the test's own: what is tried, what wins, and that the budget ends it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service.config import Settings
from service.workbench import tune
from service.workbench.trials import Candidate, Point
from service.workbench.tune import Options, Search
from tests.support.clock import FakeClock


class Machine:
    """Does 100 images a second for each execution thread, more in batches; waiting grows with clients and batch."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.tried: list[Candidate] = []

    @asynccontextmanager
    async def served(self, candidate: Candidate) -> AsyncIterator[Candidate]:
        self.tried.append(candidate)
        self.clock.advance(0.5)
        yield candidate

    async def window(self, here: Candidate, pictures: Sequence[bytes], clients: int, seconds: float) -> Point:
        self.clock.advance(seconds)
        gain = 1.0 + 0.1 * min(here.max_batch_size, 8) - 0.02 * here.max_batch_size - here.max_queue_delay_ms / 10
        capacity = 100.0 * here.instances * here.intra_op_threads**0.8 * gain
        rate = min(capacity, clients * 60.0)
        p99 = 10.0 + 1000.0 * clients / rate + here.max_batch_size + here.max_queue_delay_ms
        return Point(clients, rate, p99 / 2, p99)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(FakeClock())
    monkeypatch.setattr(tune, "window", made.window)
    monkeypatch.setattr(Search, "_served", lambda _, candidate: made.served(candidate))
    monkeypatch.setattr(tune.Budget.__init__, "__defaults__", (made.clock,))
    return made


def search(p99_ms: float, budget_s: float = 90.0, **changed: Any) -> Search:
    options = Options("m", p99_ms, budget_s)
    arguments = {"cpus": 2, "batch_sizes": (1, 2, 4, 8, 16, 32)} | changed
    return Search(Settings(), "m", 1, [b""], options, **arguments)


def test_most_throughput_within_the_bound_wins(machine: Machine) -> None:
    winner = search(200.0).run()
    assert winner is not None
    assert winner.candidate == Candidate(2, 1, 8)
    assert winner.best is not None
    assert winner.best.p99_ms <= 200.0
    assert {(tried.instances, tried.intra_op_threads) for tried in machine.tried} == {(2, 1), (1, 2)}
    assert {tried.max_batch_size for tried in machine.tried} == {1, 2, 4, 8, 16, 32}


def test_tight_bound_is_kept_by_another_manifest(machine: Machine) -> None:
    winner = search(30.0).run()
    assert winner is not None
    assert winner.best is not None
    assert winner.best.p99_ms <= 30.0
    assert winner.candidate.max_batch_size < 8


def test_bound_that_nothing_keeps_has_no_winner(machine: Machine) -> None:
    assert search(5.0).run() is None


@pytest.mark.parametrize("budget_s", [2.0, 10.0, 30.0, 90.0])
def test_search_ends_within_its_budget(machine: Machine, budget_s: float) -> None:
    began_at = machine.clock()
    found = search(200.0, budget_s)
    assert found.run() is not None
    longest_climb = 0.5 + len(tune._CLIENTS) * min(1.0, budget_s / 40)
    assert machine.clock() - began_at <= budget_s + longest_climb


def test_graph_with_a_fixed_batch_is_tried_with_one(machine: Machine) -> None:
    winner = search(200.0, batch_sizes=(1,)).run()
    assert winner is not None
    assert {tried.max_batch_size for tried in machine.tried} == {1}


def test_version_with_a_manifest_of_its_own_gets_the_keys(tmp_path: Path) -> None:
    (tmp_path / "2").mkdir()
    assert tune._manifest_of(tmp_path, 2) == tmp_path / "model.toml"
    (tmp_path / "2" / "model.toml").write_text("schema = 1\n")
    assert tune._manifest_of(tmp_path, 2) == tmp_path / "2" / "model.toml"
