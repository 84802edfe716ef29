"""The batcher with a puppet execute: what it forms, whom it answers, and what becomes of everyone else."""

import asyncio
import logging
from collections.abc import Callable

import pytest

from service.batching.batch import Batch
from service.batching.batcher import Batcher, End
from service.batching.policy import FairShare
from service.batching.request_queue import Entry
from service.batching.spec import BatchingSpec
from service.errors import (
    DeadlineExceeded,
    EngineFailed,
    FoveaError,
    InvalidImage,
    OutOfMemory,
    Overloaded,
)
from tests.support.clock import FakeClock
from tests.support.puppets import BatchLog, answer, turns
from tests.unit.batching.conftest import Bench

MakeBench = Callable[..., Bench]

DEADLINE = 1060.0  # of what a bench submits at its first moment


async def occupied(bench: Bench) -> None:
    """Give the only instance something to do, so that what comes next waits."""
    bench.submit("blocker")
    await turns()
    assert bench.batches == [["blocker"]]


# Neighbours


async def test_neighbours_of_a_cancelled_entry_are_answered(bench: MakeBench) -> None:
    b = bench()
    await occupied(b)
    first, second, third = b.submit("first", "second", "third")
    b.execute.running[0].finish()
    await turns()
    assert b.batches[-1] == ["first", "second", "third"]
    b.batcher.forget(second)
    b.execute.running[0].finish()
    assert await first.future == answer("first")
    assert await third.future == answer("third")
    assert second.future.cancelled()


async def test_an_entry_that_turns_out_bad_is_answered_before_its_neighbours_finish(bench: MakeBench) -> None:
    b = bench()
    await occupied(b)
    first, second, third = b.submit("first", "second", "third")
    b.execute.running[0].finish()
    await turns()
    execution = b.execute.running[0]
    await asyncio.to_thread(second.reject, InvalidImage("second is damaged"))
    with pytest.raises(InvalidImage, match="second is damaged"):
        await second.future
    assert not execution.is_ended
    assert not first.is_done
    assert not third.is_done
    execution.finish()
    assert await first.future == answer("first")
    assert await third.future == answer("third")


async def test_an_entry_cancelled_in_the_queue_is_not_executed_and_the_others_are(bench: MakeBench) -> None:
    b = bench()
    await occupied(b)
    first, second, third = b.submit("first", "second", "third")
    b.batcher.forget(second)
    b.execute.running[0].finish()
    await turns()
    assert b.batches[-1] == ["first", "third"]
    b.execute.running[0].finish()
    assert await asyncio.gather(first.future, third.future) == [answer("first"), answer("third")]


async def test_an_entry_is_rejected_only_once_and_keeps_its_first_fault(bench: MakeBench) -> None:
    b = bench()
    (entry,) = b.submit("one")
    await turns()
    entry.reject(InvalidImage("the first"))
    entry.reject(InvalidImage("the second"))
    await turns()
    b.execute.running[0].finish()
    with pytest.raises(InvalidImage, match="the first"):
        await entry.future


async def test_the_next_batch_is_in_execution_before_the_answers_of_the_last_are_read(bench: MakeBench) -> None:
    """A caller writes its answer on the event loop: an instance must not stand idle for that."""
    b = bench()
    await occupied(b)
    first, second = b.submit("first", "second")
    in_execution_when_read: list[int] = []
    first.future.add_done_callback(lambda _: in_execution_when_read.append(len(b.execute.batches)))
    b.execute.running[0].finish()
    await turns()
    (third,) = b.submit("third")
    b.execute.running[0].finish()
    await asyncio.gather(first.future, second.future)
    assert in_execution_when_read == [3]
    b.execute.running[0].finish()
    assert await third.future == answer("third")


# Formed late


async def test_expired_entry_is_dropped_before_execution(bench: MakeBench, clock: FakeClock) -> None:
    b = bench()
    await occupied(b)
    expired = b.batcher.submit("expired", clock.now + 0.5)
    alive = b.batcher.submit("alive", clock.now + 5.0)
    clock.advance(0.5)
    b.execute.running[0].finish()
    await turns()
    assert b.batches[-1] == ["alive"]
    with pytest.raises(DeadlineExceeded):
        await expired.future
    assert not alive.is_done


async def test_an_entry_fails_at_its_deadline_while_it_waits(bench: MakeBench, clock: FakeClock) -> None:
    b = bench()
    await occupied(b)
    waiting, longer = b.batcher.submit("waiting", clock.now + 0.5), b.batcher.submit("longer", clock.now + 0.7)
    clock.advance(0.499)
    assert not waiting.is_done
    clock.advance(0.001)
    assert isinstance(waiting.future.exception(), DeadlineExceeded)
    assert b.batcher.waiting == 1
    clock.advance(0.2)
    assert isinstance(longer.future.exception(), DeadlineExceeded)
    assert b.batcher.waiting == 0


async def test_an_entry_fails_at_its_deadline_while_it_runs_and_its_neighbour_is_answered(
    bench: MakeBench, clock: FakeClock
) -> None:
    b = bench()
    short, neighbour = b.batcher.submit("short", clock.now + 0.5), b.batcher.submit("neighbour", clock.now + 5.0)
    await turns()
    clock.advance(0.5)
    assert isinstance(short.future.exception(), DeadlineExceeded)
    b.execute.running[0].finish()
    assert await neighbour.future == answer("neighbour")
    await b.batcher.drain()


async def test_one_timer_stands_at_the_earliest_deadline(bench: MakeBench, clock: FakeClock) -> None:
    b = bench()
    await occupied(b)
    now = clock.now
    for timeout in (3.0, 4.0, 2.0, 5.0):
        b.batcher.submit("any", now + timeout)
    assert clock.timers == [now + 2.0]
    clock.advance(2.0)
    assert clock.timers == [now + 3.0]


async def test_an_entry_whose_deadline_is_a_moment_away_is_executed(bench: MakeBench, clock: FakeClock) -> None:
    b = bench()
    await occupied(b)
    b.batcher.submit("close", clock.now + 0.5)
    clock.advance(0.499)
    b.execute.running[0].finish()
    await turns()
    assert b.batches[-1] == ["close"]


async def test_places_of_dropped_entries_are_filled_from_behind(bench: MakeBench, clock: FakeClock) -> None:
    b = bench(max_batch_size=2)
    await occupied(b)
    for item, timeout in (("gone", 0.1), ("a", 9.0), ("gone too", 0.1), ("b", 9.0), ("c", 9.0)):
        b.batcher.submit(item, clock.now + timeout)
    clock.advance(0.2)
    b.execute.running[0].finish()
    await turns()
    assert b.batches[-1] == ["a", "b"]


async def test_when_everyone_has_expired_nothing_is_executed_and_the_batcher_goes_on(
    bench: MakeBench, clock: FakeClock
) -> None:
    b = bench()
    await occupied(b)
    entries = b.submit("x", "y", timeout=0.1)
    clock.advance(1.0)
    b.execute.running[0].finish()
    await turns()
    assert b.batches == [["blocker"]]
    assert all(isinstance(entry.future.exception(), DeadlineExceeded) for entry in entries)
    b.submit("next")
    await turns()
    assert b.batches[-1] == ["next"]


async def test_an_entry_that_waited_too_long_is_dropped_as_overload(bench: MakeBench, clock: FakeClock) -> None:
    b = bench(max_queue_wait_ms=1000)
    await occupied(b)
    (late,) = b.submit("late")
    clock.advance(0.6)
    (fresh,) = b.submit("fresh")
    clock.advance(0.6)
    b.execute.running[0].finish()
    await turns()
    assert b.batches[-1] == ["fresh"]
    with pytest.raises(Overloaded) as caught:
        await late.future
    assert caught.value.reason == "queue_wait"
    assert not fresh.is_done


async def test_an_entry_that_waited_exactly_as_long_as_allowed_is_executed(bench: MakeBench, clock: FakeClock) -> None:
    b = bench(max_queue_wait_ms=500)
    await occupied(b)
    b.submit("patient")
    clock.advance(0.5)
    b.execute.running[0].finish()
    await turns()
    assert b.batches[-1] == ["patient"]


async def test_dispatched_entries_know_when_they_left_the_queue(bench: MakeBench, clock: FakeClock) -> None:
    b = bench()
    await occupied(b)
    (entry,) = b.submit("one")
    assert entry.dispatched_at is None
    queued_at = clock.now
    clock.advance(0.25)
    b.execute.running[0].finish()
    await turns()
    assert entry.queued_at == queued_at
    assert entry.dispatched_at == queued_at + 0.25


# Bounded


async def test_a_full_queue_refuses(bench: MakeBench) -> None:
    b = bench(max_queue_size=2)
    await occupied(b)
    b.submit("a", "b")
    with pytest.raises(Overloaded) as caught:
        b.submit("c")
    assert caught.value.reason == "queue_full"
    assert b.batcher.waiting == 2


async def test_a_cancelled_entry_gives_its_place_back_at_once(bench: MakeBench) -> None:
    b = bench(max_queue_size=2)
    await occupied(b)
    first, _ = b.submit("a", "b")
    b.batcher.forget(first)
    assert b.batcher.waiting == 1
    b.submit("c")
    assert b.batcher.waiting == 2


async def test_what_arrives_in_one_turn_of_the_loop_shares_a_batch(bench: MakeBench) -> None:
    b = bench(max_batch_size=4)
    b.submit("a")
    b.submit("b", "c")
    assert b.batches == []
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert b.batches == [["a", "b", "c"]]


async def one_a_turn(bench: Bench, items: str, clock: FakeClock | None = None, seconds: float = 0.0) -> None:
    for item in items:
        bench.submit(item)
        await asyncio.sleep(0)
        if clock is not None:
            clock.now += seconds


async def test_what_arrives_in_turns_one_after_the_other_shares_a_batch(bench: MakeBench) -> None:
    b = bench(max_batch_size=4)
    await one_a_turn(b, "abc")
    assert b.batches == []
    await turns(2)
    assert b.batches == [["a", "b", "c"]]


async def test_arrivals_without_end_hold_a_batch_back_until_it_is_full(bench: MakeBench) -> None:
    b = bench(max_batch_size=4)
    await one_a_turn(b, "abcdefgh")
    assert b.batches[0] == ["a", "b", "c", "d"]


async def test_arrivals_without_end_hold_a_batch_back_for_ten_milliseconds_at_most(
    bench: MakeBench, clock: FakeClock
) -> None:
    b = bench(max_batch_size=32)
    await one_a_turn(b, "abcdefgh", clock, 0.004)
    assert b.batches == [["a", "b", "c", "d"]]  # what came in the turn after them too


async def test_an_execution_that_cannot_even_start_fails_its_batch_and_the_next_one_runs(clock: FakeClock) -> None:
    begun: list[list[str]] = []

    def execute(batch: Batch[str, str], end: End[str, str]) -> None:
        begun.append([entry.item for entry in batch.begin()])
        if len(begun) == 1:
            raise RuntimeError("The execution threads are closed.")
        end([(entry, answer(entry.item)) for entry in batch.entries], None)

    spec = BatchingSpec(max_batch_size=1)
    batcher: Batcher[str, str] = Batcher(spec, FairShare(spec), execute, BatchLog(), instances=1, clock=clock)
    first, second = (batcher.submit(item, clock.now + 60.0) for item in ("a", "b"))
    with pytest.raises(EngineFailed):
        await first.future
    assert await second.future == answer("b")
    await batcher.drain()


async def test_what_goes_wrong_after_an_execution_has_ended_takes_no_answer_and_no_instance(clock: FakeClock) -> None:
    def execute(batch: Batch[str, str], end: End[str, str]) -> None:
        batch.begin()
        end([(entry, answer(entry.item)) for entry in batch.entries], None)
        raise RuntimeError("in the recording")

    spec = BatchingSpec(max_batch_size=1)
    batcher: Batcher[str, str] = Batcher(spec, FairShare(spec), execute, BatchLog(), instances=1, clock=clock)
    entries = [batcher.submit(item, clock.now + 60.0) for item in ("a", "b")]
    assert [await entry.future for entry in entries] == [answer("a"), answer("b")]
    await batcher.drain()


@pytest.mark.parametrize(("seconds", "at_once"), [(0.001, 10), (0.004, 3), (0.020, 1)])
async def test_an_execution_that_never_yields_is_followed_by_others_for_ten_milliseconds(
    clock: FakeClock, seconds: float, at_once: int
) -> None:
    ran: list[tuple[int, str]] = []  # (turn of the loop, item)
    turn = 0

    def execute(batch: Batch[str, str], end: End[str, str]) -> None:
        clock.now += seconds
        ran.extend((turn, entry.item) for entry in batch.begin())
        end([(entry, entry.item) for entry in batch.entries], None)

    spec = BatchingSpec(max_batch_size=1)
    batcher: Batcher[str, str] = Batcher(spec, FairShare(spec), execute, BatchLog(), instances=1, clock=clock)
    entries = [batcher.submit(str(number), clock.now + 60.0) for number in range(40)]
    while not all(entry.is_done for entry in entries):
        turn += 1
        await asyncio.sleep(0)
    assert [item for _, item in ran] == [str(number) for number in range(40)]
    first = ran[0][0]
    assert at_once <= sum(when == first for when, _ in ran) <= at_once + 2


async def test_a_free_instance_takes_what_arrived_before_anybody_is_refused(bench: MakeBench) -> None:
    b = bench(max_batch_size=1, max_queue_size=2)
    b.submit("a", "b", "c")
    with pytest.raises(Overloaded):
        b.submit("d")
    await turns()
    assert b.batches == [["a"]]


async def test_a_backlog_slower_than_the_longest_wait_is_refused_by_the_measured_rate(
    bench: MakeBench, clock: FakeClock
) -> None:
    b = bench(max_batch_size=1, max_queue_wait_ms=1000, max_queue_size=256)
    await occupied(b)
    clock.advance(0.4)  # so one entry takes 0.4 s
    b.execute.running[0].finish()
    await turns()
    b.submit("running")
    await turns()
    b.submit("1", "2")
    assert b.batcher.backlog_seconds == pytest.approx(0.8)
    with pytest.raises(Overloaded) as caught:
        b.submit("3")  # 0.4 s for what runs, 0.8 s for what waits
    assert caught.value.reason == "queue_wait"
    assert b.batcher.waiting == 2


async def test_the_wait_is_that_of_batches_as_large_as_the_backlog_will_make(
    bench: MakeBench, clock: FakeClock
) -> None:
    b = bench(instances=2, max_batch_size=4)
    b.submit("blocker 1", "blocker 2")
    await turns()
    b.submit("a", "b", "c", "d")
    for execution in b.execute.running:
        execution.finish()
    await turns()
    assert b.batches[2:] == [["a", "b"], ["c"]]
    clock.advance(0.8)
    b.execute.running[0].finish()
    await turns()
    assert b.batches[4:] == [["d"]]
    b.submit("x")
    assert b.batcher.backlog_seconds == 0.0  # goes as a batch of one, and those took no time
    b.submit("y", "z")
    assert b.batcher.backlog_seconds == pytest.approx(0.8)  # batches of two, of which one is enough for both instances
    b.submit("1", "2", "3", "4", "5", "6")
    assert b.batcher.backlog_seconds == pytest.approx(1.6)  # nine entries: batches of four, two rounds


async def test_one_slow_execution_refuses_nobody(bench: MakeBench, clock: FakeClock) -> None:
    """A stalled moment is not the rate: what then really waits too long is dropped when its batch forms."""
    b = bench(max_batch_size=1, max_queue_wait_ms=1000.0)
    for seconds in (0.01, 5.0):
        b.submit("one")
        await turns()
        clock.advance(seconds)
        b.execute.running[0].finish()
        await turns()
    b.submit("running")
    await turns()
    b.submit("1", "2", "3")
    assert b.batcher.backlog_seconds < 1.0


async def test_the_measured_rate_follows_a_model_that_becomes_faster(bench: MakeBench, clock: FakeClock) -> None:
    b = bench(max_batch_size=1)
    rates = []
    for seconds in [1.0] + [0.1] * 40:
        b.submit("one")
        await turns()
        clock.advance(seconds)
        b.execute.running[0].finish()
        await turns()
        b.submit("running")
        await turns()
        b.submit("waiting")
        rates.append(b.batcher.backlog_seconds)
        for _ in range(2):
            await turns()
            clock.advance(seconds)
            b.execute.running[0].finish()
        await turns()
    assert rates[0] == pytest.approx(1.0)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.1, rel=0.05)


async def test_an_empty_queue_refuses_nobody_however_slow_the_model_is(bench: MakeBench, clock: FakeClock) -> None:
    b = bench(max_queue_wait_ms=1000)
    await occupied(b)
    clock.advance(50.0)
    b.execute.running[0].finish()
    await turns()
    b.submit("running")
    (entry,) = b.submit("waiting")
    assert not entry.is_done


@pytest.mark.parametrize(("seconds_per_entry", "retry_after"), [(0.0001, 1), (0.45, 2), (2.0, 3)])
async def test_retry_after_is_one_to_three_seconds_by_the_backlog(
    bench: MakeBench, clock: FakeClock, seconds_per_entry: float, retry_after: int
) -> None:
    b = bench(max_batch_size=1, max_queue_size=4, max_queue_wait_ms=60_000)
    await occupied(b)
    clock.advance(seconds_per_entry)
    b.execute.running[0].finish()
    await turns()
    b.submit("running", "1", "2", "3", "4")
    with pytest.raises(Overloaded) as caught:
        b.submit("5")
    assert caught.value.retry_after_seconds == retry_after


async def test_half_of_the_queue_is_kept_for_those_who_may_use_all_of_it(bench: MakeBench) -> None:
    b = bench(max_batch_size=1, max_queue_size=4)
    await occupied(b)
    b.submit("1", "2", share=0.5)
    with pytest.raises(Overloaded) as caught:
        b.submit("3", share=0.5)
    assert caught.value.reason == "queue_full"
    b.submit("3", "4")
    with pytest.raises(Overloaded):
        b.submit("5")


async def test_half_of_the_wait_is_kept_for_those_who_may_use_all_of_it(bench: MakeBench, clock: FakeClock) -> None:
    b = bench(max_batch_size=1, max_queue_wait_ms=1000)
    await occupied(b)
    clock.advance(0.25)
    b.execute.running[0].finish()
    await turns()
    b.submit("running", "1", "2")  # a third would wait 0.75 s
    with pytest.raises(Overloaded) as caught:
        b.submit("3", share=0.5)
    assert caught.value.reason == "queue_wait"
    b.submit("3")


async def test_a_refused_entry_changes_nothing(bench: MakeBench) -> None:
    b = bench(max_queue_size=1)
    await occupied(b)
    (waiting,) = b.submit("waiting")
    for _ in range(5):
        with pytest.raises(Overloaded):
            b.submit("refused")
    b.execute.running[0].finish()
    await turns()
    b.execute.running[0].finish()
    assert await waiting.future == answer("waiting")
    assert b.batches == [["blocker"], ["waiting"]]


# Faults of an execution


async def test_an_execution_that_raises_fails_its_batch_and_no_other(
    bench: MakeBench, caplog: pytest.LogCaptureFixture
) -> None:
    b = bench(instances=2, max_batch_size=2)
    (one,) = b.submit("one")
    (two,) = b.submit("two")
    await turns()
    (three,) = b.submit("three")
    broken, good = b.execute.running
    broken.fail(ValueError("secret detail"))
    await turns()
    with pytest.raises(EngineFailed, match=r"^The model failed on this batch\.$"):
        await one.future
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == ["execution_failed"]
    good.finish()
    await turns()
    b.execute.running[0].finish()
    assert await two.future == answer("two")
    assert await three.future == answer("three")


async def test_every_entry_of_a_failed_batch_is_failed(bench: MakeBench) -> None:
    b = bench()
    await occupied(b)
    entries = b.submit("a", "b", "c")
    b.execute.running[0].finish()
    await turns()
    b.execute.running[0].fail(EngineFailed("The model gave nonsense."))
    await turns()
    for entry in entries:
        with pytest.raises(EngineFailed, match="nonsense"):
            await entry.future


async def test_an_entry_answered_before_its_execution_raises_keeps_its_answer(bench: MakeBench) -> None:
    b = bench()
    await occupied(b)
    first, second = b.submit("first", "second")
    b.execute.running[0].finish()
    await turns()
    first.resolve("early")
    b.execute.running[0].fail(EngineFailed("late"))
    await turns()
    assert await first.future == "early"
    with pytest.raises(EngineFailed):
        await second.future


async def test_running_out_of_memory_is_said_as_such(bench: MakeBench) -> None:
    b = bench()
    (entry,) = b.submit("large")
    await turns()
    b.execute.running[0].fail(MemoryError())
    with pytest.raises(OutOfMemory) as caught:
        await entry.future
    assert caught.value.reason == "out_of_memory"
    assert 1 <= caught.value.retry_after_seconds <= 3


async def test_a_fault_of_ours_reaches_the_caller_as_it_is(bench: MakeBench) -> None:
    b = bench()
    (entry,) = b.submit("one")
    await turns()
    error = Overloaded("no room", reason="out_of_memory")
    b.execute.running[0].fail(error)
    with pytest.raises(FoveaError) as caught:
        await entry.future
    assert caught.value is error


async def test_an_execution_that_forgets_an_entry_fails_it(bench: MakeBench) -> None:
    b = bench()
    await occupied(b)
    first, forgotten = b.submit("first", "forgotten")
    b.execute.running[0].finish()
    await turns()
    first.resolve("answered")
    b.execute.running[0].end()
    await turns()
    assert await first.future == "answered"
    with pytest.raises(EngineFailed, match="this is a bug"):
        await forgotten.future


async def test_after_a_failed_execution_the_instance_is_free_again(bench: MakeBench) -> None:
    b = bench()
    b.submit("bad")
    await turns()
    (waiting,) = b.submit("good")
    b.execute.running[0].fail(RuntimeError("broken"))
    await turns()
    b.execute.running[0].finish()
    assert await waiting.future == answer("good")


async def test_a_fault_that_nobody_reads_makes_no_noise(bench: MakeBench, caplog: pytest.LogCaptureFixture) -> None:
    b = bench()
    b.submit("abandoned")
    await turns()
    b.execute.running[0].fail(EngineFailed("nobody listens"))
    await turns()
    assert [record for record in caplog.records if record.name.startswith("service")] == []


# Work-conserving


async def test_with_an_idle_instance_nothing_waits(bench: MakeBench, clock: FakeClock) -> None:
    b = bench(instances=3)
    for number, item in enumerate(("a", "b", "c"), start=1):
        b.submit(item)
        await turns()
        assert b.batches[-1] == [item]
        assert b.batcher.waiting == 0
        assert len(b.execute.running) == number
    assert clock.timers == [DEADLINE]
    assert clock.now == 1000.0


async def test_never_more_executions_than_instances(bench: MakeBench) -> None:
    b = bench(instances=2, max_batch_size=1)
    b.submit(*"abcdef")
    await turns()
    for left in range(4, 0, -1):
        assert len(b.execute.running) == 2
        assert b.batcher.waiting == left
        b.execute.running[0].finish()
        await turns()


async def test_while_all_instances_are_busy_the_queue_grows_into_a_batch(bench: MakeBench) -> None:
    b = bench(max_batch_size=4)
    await occupied(b)
    b.submit(*"abcdef")
    b.execute.running[0].finish()
    await turns()
    assert b.batches[-1] == list("abcd")
    b.execute.running[0].finish()
    await turns()
    assert b.batches[-1] == list("ef")


async def test_a_free_instance_leaves_the_others_their_share(bench: MakeBench) -> None:
    b = bench(instances=2, max_batch_size=8)
    b.submit("x", "y")
    await turns()
    b.submit(*"abcdef")
    b.execute.running[0].finish()
    await turns()
    assert b.batches[2:] == [list("abc")]
    b.execute.running[0].finish()
    await turns()
    assert b.batches[3:] == [list("de")]


# One ahead


async def test_one_batch_more_stands_ready_and_grows_until_it_is_begun(bench: MakeBench) -> None:
    b = bench(ahead=1, max_batch_size=4)
    await occupied(b)
    for number, item in enumerate("abcdef", start=1):
        b.submit(item)
        await turns()
        assert b.batcher.waiting == number
    assert len(b.batches) == 1
    b.execute.running[0].finish()
    await turns()
    assert b.batches[1:] == [list("abcd")]
    assert b.batcher.waiting == 2


async def test_what_stands_ready_is_the_share_of_one_instance(bench: MakeBench) -> None:
    b = bench(instances=2, ahead=1, max_batch_size=8)
    b.submit("x", "y")
    await turns()
    b.submit(*"abcdef")
    await turns()
    b.execute.running[0].finish()
    await turns()
    assert b.batches[2:] == [list("abc")]


async def test_whoever_leaves_a_batch_that_stands_ready_makes_room_and_is_not_run(bench: MakeBench) -> None:
    b = bench(ahead=1, max_batch_size=2)
    await occupied(b)
    first, *_ = b.submit(*"abc")
    await turns()
    b.batcher.forget(first)
    assert b.batcher.waiting == 2
    b.submit("d")
    await turns()
    b.execute.running[0].finish()
    await turns()
    assert b.batches[1:] == [list("bc")]


async def test_a_batch_that_everyone_left_is_no_execution(bench: MakeBench) -> None:
    b = bench(ahead=1)
    await occupied(b)
    (entry,) = b.submit("a")
    await turns()
    b.batcher.forget(entry)
    b.execute.running[0].finish()
    await turns()
    assert len(b.batches) == len(b.log.executions) == 1
    b.submit("b")
    await turns()
    assert b.batches[1:] == [["b"]]


async def test_a_deadline_passes_in_a_batch_that_stands_ready(bench: MakeBench, clock: FakeClock) -> None:
    b = bench(ahead=1)
    await occupied(b)
    (entry,) = b.submit("a", timeout=0.5)
    await turns()
    clock.advance(0.5)
    await turns()
    with pytest.raises(DeadlineExceeded):
        await entry.future
    assert b.batcher.waiting == 0
    b.execute.running[0].finish()
    await turns()
    assert len(b.batches) == 1


async def test_what_stands_ready_counts_against_the_queue(bench: MakeBench) -> None:
    b = bench(ahead=1, max_queue_size=2)
    await occupied(b)
    b.submit(*"ab")
    await turns()
    with pytest.raises(Overloaded) as caught:
        b.submit("c")
    assert caught.value.reason == "queue_full"


async def test_the_wait_is_by_the_way_through_all_places(bench: MakeBench, clock: FakeClock) -> None:
    """A batch that stands ready while another runs takes twice as long; but then two are on their way at once."""
    b = bench(ahead=1, max_batch_size=1, max_queue_wait_ms=60_000)
    b.submit(*(str(number) for number in range(105)))
    for _ in range(100):
        await turns()
        clock.advance(0.1)
        b.execute.running[0].finish()
    await turns()
    assert b.batcher.waiting == 4
    assert b.batcher.backlog_seconds == pytest.approx(0.4, rel=0.01)


async def test_nobody_joins_a_batch_that_has_begun(clock: FakeClock) -> None:
    batch: Batch[str, str] = Batch([], clock, is_open=True)
    assert batch.begin() == []

    def joining(wanted: object) -> list[Entry[str, str]]:
        pytest.fail("asked who joins")

    batch.grow(joining)


# Delay


async def test_a_batch_waits_for_company_as_long_as_the_delay_says(bench: MakeBench, clock: FakeClock) -> None:
    b = bench(max_queue_delay_ms=10)
    b.submit("a")
    clock.advance(0.004)
    b.submit("b")
    await turns()
    assert b.batches == []
    assert clock.timers == [pytest.approx(1000.010), DEADLINE]
    clock.advance(0.0059)
    await turns()
    assert b.batches == []
    clock.advance(0.0001)
    await turns()
    assert b.batches == [["a", "b"]]


async def test_a_full_batch_does_not_wait_for_the_delay(bench: MakeBench, clock: FakeClock) -> None:
    b = bench(max_queue_delay_ms=10, max_batch_size=2)
    b.submit("a", "b")
    await turns()
    assert b.batches == [["a", "b"]]
    assert clock.now == 1000.0
    assert clock.timers == [DEADLINE]


async def test_the_delay_counts_from_the_oldest_entry_that_is_left(bench: MakeBench, clock: FakeClock) -> None:
    b = bench(max_queue_delay_ms=10)
    (first,) = b.submit("first")
    clock.advance(0.006)
    b.submit("second")
    b.batcher.forget(first)
    clock.advance(0.006)
    await turns()
    assert b.batches == []
    clock.advance(0.004)
    await turns()
    assert b.batches == [["second"]]


async def test_a_batch_delayed_for_company_is_not_split_over_instances(bench: MakeBench, clock: FakeClock) -> None:
    b = bench(max_queue_delay_ms=10, instances=4, max_batch_size=8)
    b.submit(*"abcd")
    clock.advance(0.010)
    await turns()
    assert b.batches == [list("abcd")]


# Drain


async def test_drain_of_an_idle_batcher_returns_at_once(bench: MakeBench) -> None:
    await asyncio.wait_for(bench().batcher.drain(), timeout=1.0)


async def test_drain_waits_for_what_is_queued_and_what_runs(bench: MakeBench) -> None:
    b = bench(max_batch_size=1)
    b.submit("running", "queued")
    await turns()
    drained = asyncio.create_task(b.batcher.drain())
    await turns()
    assert not drained.done()
    b.execute.running[0].finish()
    await turns()
    assert b.batches == [["running"], ["queued"]]
    assert not drained.done()
    b.execute.running[0].finish()
    await turns()
    assert drained.done()


async def test_drain_ends_when_the_last_queued_entry_is_forgotten(bench: MakeBench) -> None:
    b = bench(max_queue_delay_ms=1000)
    (entry,) = b.submit("waiting")
    drained = asyncio.create_task(b.batcher.drain())
    await turns()
    assert not drained.done()
    b.batcher.forget(entry)
    await turns()
    assert drained.done()


async def test_drain_waits_for_an_execution_that_nobody_listens_to(bench: MakeBench) -> None:
    b = bench()
    (entry,) = b.submit("running")
    await turns()
    b.batcher.forget(entry)
    drained = asyncio.create_task(b.batcher.drain())
    await turns()
    assert not drained.done()
    b.execute.running[0].end()
    await turns()
    assert drained.done()


async def test_what_is_submitted_while_draining_is_answered_too(bench: MakeBench) -> None:
    b = bench()
    b.submit("first")
    drained = asyncio.create_task(b.batcher.drain())
    await turns()
    (late,) = b.submit("late")
    b.execute.running[0].finish()
    await turns()
    assert not drained.done()
    b.execute.running[0].finish()
    await turns()
    assert await late.future == answer("late")
    assert drained.done()


# What the observer hears


async def test_the_observer_hears_every_execution_with_its_size_and_seconds(bench: MakeBench, clock: FakeClock) -> None:
    b = bench()
    await occupied(b)
    b.submit("a", "b")
    clock.advance(0.5)
    b.execute.running[0].finish()
    await turns()
    clock.advance(0.25)
    b.execute.running[0].finish()
    await turns()
    assert b.log.executions == [(1, 0.5), (2, 0.25)]


async def test_what_waits_is_counted_until_it_leaves_as_a_batch(bench: MakeBench) -> None:
    b = bench()
    await occupied(b)
    b.submit("a", "b")
    await turns()
    assert b.batcher.waiting == 2
    b.execute.running[0].finish()
    await turns()
    assert b.batcher.waiting == 0
