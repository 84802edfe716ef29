"""Who is at fault in a batch, and how many runs it takes to know."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.isolation import isolate


class Engine:
    """Fails on every batch with a bad item in it."""

    def __init__(self, bad: set[int]) -> None:
        self.bad = bad
        self.runs: list[list[int]] = []
        self.answered: list[int] = []

    def run(self, items: Sequence[int]) -> bool:
        self.runs.append(list(items))
        if self.bad & set(items):
            return False
        self.answered += items
        return True


@pytest.mark.parametrize("position", range(8))
def test_one_of_eight_is_found_in_four_runs_and_its_mates_are_answered(position: int) -> None:
    engine = Engine({position})
    assert isolate(range(8), engine.run) == [position]
    assert sorted(engine.answered) == [item for item in range(8) if item != position]
    assert len(engine.runs) <= math.log2(8) + 1


@given(size=st.integers(1, 64), data=st.data())
def test_everyone_is_answered_once_or_at_fault(size: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
    engine = Engine(bad)
    at_fault = isolate(range(size), engine.run)
    assert set(at_fault) == bad
    assert sorted([*engine.answered, *at_fault]) == list(range(size))
    most = math.ceil(math.log2(size)) + 1
    assert len(engine.runs) <= (most if len(bad) == 1 else most + size)


@given(size=st.integers(2, 64))
def test_a_fault_that_has_passed_is_nobodys(size: int) -> None:
    engine = Engine(set())
    assert isolate(range(size), engine.run) == []
    assert sorted(engine.answered) == list(range(size))
