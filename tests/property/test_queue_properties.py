"""The queue against a list, and the batcher against its promises, under random sequences of what can happen."""

import asyncio
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.batching.batcher import Batcher
from service.batching.policy import FairShare
from service.batching.request_queue import Entry, RequestQueue
from service.batching.spec import BatchingSpec
from service.errors import DeadlineExceeded, EngineFailed, InvalidImage, Overloaded
from tests.support.clock import FakeClock
from tests.support.puppets import BatchLog, Execution, PuppetExecute, answer, turns


class QueueAgainstList(RuleBasedStateMachine):
    """RequestQueue does what a list would do."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.entries: list[Entry[int, str]] = []
        self.made: list[Entry[int, str]] = []

    @initialize(capacity=st.integers(1, 6))
    def make(self, capacity: int) -> None:
        self.capacity = capacity
        self.queue: RequestQueue[int, str] = RequestQueue(capacity)

    @precondition(lambda self: not self.queue.is_full)
    @rule()
    def push(self) -> None:
        entry: Entry[int, str] = Entry(len(self.made), float(len(self.made)), 1e9, self.loop)
        self.made.append(entry)
        self.entries.append(entry)
        self.queue.push(entry)

    @precondition(lambda self: self.entries)
    @rule()
    def pop(self) -> None:
        assert self.queue.pop() is self.entries.pop(0)

    @precondition(lambda self: self.made)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.made))
        assert self.queue.discard(entry) == (entry in self.entries)
        if entry in self.entries:
            self.entries.remove(entry)

    @invariant()
    def is_bounded_and_in_order(self) -> None:
        assert len(self.queue) == len(self.entries) <= self.capacity
        assert self.queue.is_full == (len(self.entries) == self.capacity)
        assert self.queue.oldest_at == (self.entries[0].queued_at if self.entries else 0.0)

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            assert [self.queue.pop() for _ in range(len(self.queue))] == self.entries
        self.loop.close()


class BatcherAgainstItsPromises(RuleBasedStateMachine):
    """Every entry ends exactly once, whatever callers, clocks and executions do."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.loop.call_later = self.clock.call_later  # type: ignore[method-assign, assignment]
        self.log = BatchLog()
        self.entries: list[Entry[int, str]] = []
        self.forgotten: set[int] = set()
        self.refused = 0

    @initialize(
        instances=st.integers(1, 3),
        ahead=st.integers(0, 1),
        largest=st.integers(1, 4),
        capacity=st.integers(1, 8),
        delay_ms=st.sampled_from([0.0, 0.0, 20.0]),
        wait_ms=st.sampled_from([100.0, 1000.0]),
    )
    def make(self, instances: int, ahead: int, largest: int, capacity: int, delay_ms: float, wait_ms: float) -> None:
        self.spec = BatchingSpec(largest, delay_ms, (), capacity, wait_ms)
        self.instances = instances
        self.execute = PuppetExecute(instances)
        self.batcher: Batcher[int, str] = Batcher(
            self.spec, FairShare(self.spec), self.execute, self.log, instances=instances, ahead=ahead, clock=self.clock
        )

    def happen(self, function: Any = None, *arguments: Any) -> None:
        """Call on the event loop, and let everything that follows happen."""

        async def call() -> None:
            if function is not None:
                function(*arguments)
            await turns()

        self.loop.run_until_complete(call())

    # What callers do

    @rule(timeout=st.sampled_from([0.0, 0.05, 0.5, 60.0]), count=st.integers(1, 4))
    def submit(self, timeout: float, count: int) -> None:
        def call() -> None:
            for _ in range(count):
                try:
                    self.entries.append(self.batcher.submit(len(self.entries), self.clock.now + timeout))
                except Overloaded as error:
                    assert error.reason in ("queue_full", "queue_wait")
                    assert 1 <= error.retry_after_seconds <= 3
                    self.refused += 1

        self.happen(call)

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.entries))
        if not entry.is_done:
            self.forgotten.add(entry.item)
        waiting = self.batcher.waiting
        was_queued = not entry.is_done and entry.dispatched_at is None
        self.batcher.forget(entry)
        assert self.batcher.waiting == waiting - was_queued
        self.happen()

    # What time does

    @rule(seconds=st.sampled_from([0.001, 0.03, 0.2, 2.0]))
    def advance(self, seconds: float) -> None:
        self.happen(self.clock.advance, seconds)

    # What executions do

    def draw_running(self, data: st.DataObject) -> Execution:
        return data.draw(st.sampled_from(self.execute.running))

    @precondition(lambda self: self.execute.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.happen(self.draw_running(data).finish)

    @precondition(lambda self: self.execute.running)
    @rule(data=st.data(), error=st.sampled_from([EngineFailed("engine"), MemoryError(), OverflowError("bug")]))
    def fail(self, data: st.DataObject, error: Exception) -> None:
        self.happen(self.draw_running(data).fail, error)

    @precondition(lambda self: self.execute.running)
    @rule(data=st.data())
    def forget_to_answer(self, data: st.DataObject) -> None:
        self.happen(self.draw_running(data).end)

    @precondition(lambda self: self.execute.running)
    @rule(data=st.data())
    def reject(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.draw_running(data).entries))
        self.happen(entry.reject, InvalidImage("damaged"))
        assert entry.is_done

    # What always holds

    @invariant()
    def limits_hold(self) -> None:
        assert len(self.execute.running) <= self.instances
        assert self.batcher.waiting <= self.spec.max_queue_size
        assert all(1 <= len(batch.entries) <= self.spec.max_batch_size for batch in self.execute.batches)

    @invariant()
    def entries_run_in_order_and_at_most_once(self) -> None:
        executed = [entry.item for batch in self.execute.batches for entry in batch.entries]
        assert executed == sorted(set(executed))

    @invariant()
    def nothing_waits_beside_a_free_instance_but_for_the_delay(self) -> None:
        waiting = [entry for entry in self.entries if not entry.is_done and entry.dispatched_at is None]
        assert self.batcher.waiting == len(waiting)
        if len(self.execute.running) < self.instances:
            delay = self.spec.max_queue_delay_ms / 1000.0
            assert all(self.clock.now < entry.queued_at + delay for entry in waiting)
            assert len(waiting) < self.spec.max_batch_size or not waiting

    @invariant()
    def nobody_waits_beyond_a_deadline(self) -> None:
        assert all(entry.is_done for entry in self.entries if self.clock.now > entry.deadline_at)

    def teardown(self) -> None:
        if hasattr(self, "batcher"):
            self.loop.run_until_complete(self.end())
        self.loop.close()

    async def end(self) -> None:
        """Answer everything that is left: then all entries have ended, each in the one way that it had coming."""
        drained = asyncio.ensure_future(self.batcher.drain())
        await turns()
        for _ in range(len(self.entries) + 2):
            self.clock.advance(self.spec.max_queue_delay_ms / 1000.0)
            await turns()
            for execution in self.execute.running:
                execution.finish()
            await turns()
        assert drained.done()
        assert self.batcher.waiting == 0
        executed = {entry.item for batch in self.execute.batches for entry in batch.entries}
        for entry in self.entries:
            assert entry.is_done
            if entry.future.cancelled():
                assert entry.item in self.forgotten
                continue
            assert entry.item not in self.forgotten
            error = entry.future.exception()
            if error is None:
                assert entry.future.result() == answer(entry.item)
                assert entry.item in executed
            elif isinstance(error, DeadlineExceeded):
                assert self.clock.now >= entry.deadline_at
            else:
                assert (entry.item in executed) != (getattr(error, "reason", "") == "queue_wait")
        assert sum(size for size, _ in self.log.executions) == len(executed)


TestQueueAgainstList = QueueAgainstList.TestCase
TestQueueAgainstList.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBatcherAgainstItsPromises = BatcherAgainstItsPromises.TestCase
TestBatcherAgainstItsPromises.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
