"""A batcher with a puppet execute, a clock in the test's hand and an observer that remembers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from service.batching.batcher import Batcher
from service.batching.policy import FairShare
from service.batching.request_queue import Entry
from service.batching.spec import BatchingSpec
from tests.support.clock import FakeClock
from tests.support.puppets import BatchLog, PuppetExecute, turns


class Bench:
    """One batcher and everything around it."""

    def __init__(self, clock: FakeClock, spec: BatchingSpec, instances: int, ahead: int) -> None:
        self.clock = clock
        self.execute = PuppetExecute(instances)
        self.log = BatchLog()
        self.batcher: Batcher[str, str] = Batcher(
            spec, FairShare(spec), self.execute, self.log, instances=instances, ahead=ahead, clock=clock
        )

    def submit(self, *items: str, timeout: float = 60.0, share: float = 1.0) -> list[Entry[str, str]]:
        return [self.batcher.submit(item, self.clock.now + timeout, share) for item in items]

    async def end(self) -> None:
        """End everything that is queued or runs, answered or not."""
        drained = asyncio.create_task(self.batcher.drain())
        await turns()
        while not drained.done():
            self.clock.advance(60.0)
            await turns()
            for execution in self.execute.running:
                execution.end()
            await turns()

    @property
    def batches(self) -> list[list[Any]]:
        """The items of every batch so far."""
        return [execution.items for execution in self.execute.batches]


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    clock.take_timers_of(asyncio.get_running_loop(), monkeypatch)
    return clock


@pytest.fixture
async def bench(clock: FakeClock) -> AsyncIterator[Callable[..., Bench]]:
    """Makes a Bench: `bench(max_batch_size=4, instances=2)`. What still runs is ended after the test."""
    made: list[Bench] = []

    def make(*, instances: int = 1, ahead: int = 0, **knobs: Any) -> Bench:
        made.append(Bench(clock, BatchingSpec(**knobs), instances, ahead))
        return made[-1]

    yield make
    for bench in made:
        await bench.end()
