"""What every batching policy must do, over the table of policies: concrete cases, alone and inside a batcher.

The same promises for all numbers are in tests/property/test_policy_properties.py.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from service.batching.batcher import Batcher
from service.batching.policy import POLICIES, Dispatch, Idle, Policy, QueueView, WaitUntil
from service.batching.request_queue import Entry
from service.batching.spec import BatchingSpec
from tests.support.clock import FakeClock
from tests.support.puppets import BatchLog, PuppetExecute, answer, turns

pytestmark = pytest.mark.parametrize("name", sorted(POLICIES))
Make = Callable[..., tuple[Batcher[str, str], PuppetExecute]]


def make(name: str, **knobs: Any) -> Policy:
    return POLICIES[name](BatchingSpec(**knobs))


def test_nothing_waiting_is_nothing_to_do(name: str) -> None:
    assert isinstance(make(name).decide(QueueView(0, 0.0, 2, 2), 5.0), Idle)


def test_nothing_free_is_nothing_to_do(name: str) -> None:
    assert isinstance(make(name).decide(QueueView(50, 0.0, 0, 2), 5.0), Idle)


def test_one_entry_leaves_at_once_when_an_instance_is_free(name: str) -> None:
    assert make(name).decide(QueueView(1, 5.0, 1, 4), 5.0) == Dispatch(1)


def test_without_a_delay_something_always_leaves(name: str) -> None:
    policy = make(name, max_batch_size=8)
    for waiting in range(1, 40):
        for free in (1, 2, 3):
            assert isinstance(policy.decide(QueueView(waiting, 5.0, free, 3), 5.0), Dispatch)


def test_no_batch_is_larger_than_the_limit(name: str) -> None:
    for knobs in ({}, {"max_queue_delay_ms": 5.0}, {"preferred_batch_sizes": (4, 99)}):
        decision = make(name, max_batch_size=5, **knobs).decide(QueueView(1000, 0.0, 1, 1), 10.0)
        assert isinstance(decision, Dispatch)
        assert decision.size <= 5


def test_with_a_delay_it_waits_for_company_and_says_until_when(name: str) -> None:
    policy = make(name, max_queue_delay_ms=20.0)
    decision = policy.decide(QueueView(1, 5.0, 1, 1), 5.001)
    assert isinstance(decision, WaitUntil)
    assert 5.001 < decision.at <= 5.02
    assert isinstance(policy.decide(QueueView(1, 5.0, 1, 1), 5.02), Dispatch)


def test_a_full_batch_does_not_wait(name: str) -> None:
    policy = make(name, max_queue_delay_ms=1000.0, max_batch_size=4)
    assert policy.decide(QueueView(4, 5.0, 1, 1), 5.0) == Dispatch(4)


def test_it_remembers_nothing(name: str) -> None:
    policy = make(name, preferred_batch_sizes=(2, 4), max_queue_delay_ms=10.0)
    asked = [(QueueView(waiting, 1.0, free, 2), now) for waiting in (1, 3, 9) for free in (1, 2) for now in (1.0, 2.0)]
    first = [policy.decide(view, now) for view, now in asked]
    assert [policy.decide(view, now) for view, now in reversed(asked)] == first[::-1]


# Inside a batcher


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    clock.take_timers_of(asyncio.get_running_loop(), monkeypatch)
    return clock


@pytest.fixture
async def batcher(clock: FakeClock, name: str) -> AsyncIterator[Make]:
    """Makes a batcher with this policy and a puppet execute; everything must have left at the end."""
    made: list[Batcher[str, str]] = []

    def make(instances: int, **knobs: Any) -> tuple[Batcher[str, str], PuppetExecute]:
        spec = BatchingSpec(**knobs)
        execute = PuppetExecute(instances)
        made.append(Batcher(spec, POLICIES[name](spec), execute, BatchLog(), instances=instances, clock=clock))
        return made[-1], execute

    yield make
    for one in made:
        async with asyncio.timeout(5):
            await one.drain()


async def finish_all(execute: PuppetExecute) -> None:
    while execute.running:
        for execution in execute.running:
            execution.finish()
        await turns()


@pytest.mark.parametrize("instances", [1, 2, 4])
@pytest.mark.parametrize("knobs", [{}, {"max_batch_size": 3}, {"preferred_batch_sizes": (2, 4)}])
async def test_everything_submitted_is_answered(
    name: str, batcher: Make, clock: FakeClock, instances: int, knobs: dict[str, Any]
) -> None:
    subject, execute = batcher(instances, **knobs)
    entries: list[Entry[str, str]] = []
    for number in range(30):
        entries.append(subject.submit(str(number), clock.now + 60))
        if number % 7 == 0:
            await turns()
    await turns()
    await finish_all(execute)
    assert [entry.future.result() for entry in entries] == [answer(str(number)) for number in range(30)]


async def test_a_delayed_batch_leaves_when_its_time_has_come(name: str, batcher: Make, clock: FakeClock) -> None:
    subject, execute = batcher(2, max_queue_delay_ms=10.0)
    subject.submit("a", clock.now + 60)
    subject.submit("b", clock.now + 60)
    await turns()
    assert execute.batches == []
    clock.advance(0.010)
    await turns()
    assert sorted(item for execution in execute.batches for item in execution.items) == ["a", "b"]
    await finish_all(execute)
