"""Where work runs."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from service.lane import ExecutionThreads, FusedLane, InlineLane
from tests.support.puppets import PATIENCE_SECONDS, ran, until


@pytest.fixture
def threads() -> Iterator[ExecutionThreads]:
    threads = ExecutionThreads(2)
    yield threads
    threads.close()


async def test_a_job_runs_on_an_execution_thread_and_its_result_comes_back(threads: ExecutionThreads) -> None:
    name = await ran(FusedLane(threads, 2), lambda: threading.current_thread().name)
    assert name.startswith("execution")


async def test_what_a_job_raises_comes_back(threads: ExecutionThreads) -> None:
    def job() -> None:
        raise MemoryError("in the job")

    with pytest.raises(MemoryError, match="in the job"):
        await ran(FusedLane(threads, 2), job)


async def test_as_many_jobs_run_at_once_as_there_are_threads(threads: ExecutionThreads) -> None:
    together = threading.Barrier(2)
    lane = FusedLane(threads, 2)
    await asyncio.gather(*(ran(lane, lambda: together.wait(PATIENCE_SECONDS)) for _ in range(2)))


async def test_a_job_that_started_is_finished_though_nobody_waits(threads: ExecutionThreads) -> None:
    started, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def job() -> None:
        started.set()
        may_end.wait(PATIENCE_SECONDS)
        ended.set()

    task = asyncio.create_task(ran(FusedLane(threads, 2), job))
    await asyncio.to_thread(started.wait, PATIENCE_SECONDS)
    task.cancel()
    may_end.set()
    assert await asyncio.to_thread(ended.wait, PATIENCE_SECONDS)


async def test_of_idle_threads_the_one_that_worked_last_works(threads: ExecutionThreads) -> None:
    together = threading.Barrier(2)
    await asyncio.gather(*(ran(FusedLane(threads, 1), lambda: together.wait(PATIENCE_SECONDS)) for _ in range(2)))
    await until(lambda: len(threads._idle) == 2)
    last = await ran(FusedLane(threads, 1), threading.get_ident)
    for _ in range(20):
        await until(lambda: len(threads._idle) == 2)
        assert await ran(FusedLane(threads, 1), threading.get_ident) == last


async def test_lanes_share_the_threads_of_the_process(threads: ExecutionThreads) -> None:
    used = {await ran(FusedLane(threads, 2), threading.get_ident) for _ in range(20)}
    assert len(used) <= threads.count == 2


# Inline


async def test_a_light_job_runs_on_the_event_loop_and_another_on_a_thread(threads: ExecutionThreads) -> None:
    lane = InlineLane(threads)
    assert await ran(lane, threading.get_ident, light=True) == threading.get_ident()
    assert await ran(lane, threading.get_ident) != threading.get_ident()


async def test_what_an_inline_job_raises_comes_back(threads: ExecutionThreads) -> None:
    def job() -> None:
        raise MemoryError("in the job")

    with pytest.raises(MemoryError, match="in the job"):
        await ran(InlineLane(threads), job, light=True)


async def _keeps_to(count: int, cpus: set[int]) -> list[set[int]]:
    threads = ExecutionThreads(count, cpus)
    together = threading.Barrier(count)

    def job() -> set[int]:
        together.wait(PATIENCE_SECONDS)
        return os.sched_getaffinity(0)

    try:
        return await asyncio.gather(*(ran(FusedLane(threads, 1), job) for _ in range(count)))
    finally:
        threads.close()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no CPU affinity")
async def test_each_thread_keeps_to_a_cpu_where_there_are_as_many() -> None:
    cpus = os.sched_getaffinity(0)
    if len(cpus) < 2:
        pytest.skip("one CPU only")
    found = await _keeps_to(len(cpus), cpus)
    assert sorted(next(iter(one)) for one in found) == sorted(cpus)
    assert all(len(one) == 1 for one in found)
    assert os.sched_getaffinity(0) == cpus


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no CPU affinity")
async def test_threads_roam_where_they_are_fewer_or_more_than_the_cpus() -> None:
    cpus = os.sched_getaffinity(0)
    assert await _keeps_to(len(cpus) + 1, cpus) == [cpus] * (len(cpus) + 1)
    assert await _keeps_to(1, cpus) == [cpus]


class Held:
    """A job that begins and then waits for the test."""

    def __init__(self) -> None:
        self._has_begun, self._may_end = threading.Event(), threading.Event()
        self.end = self._may_end.set

    def __call__(self) -> str:
        self._has_begun.set()
        self._may_end.wait(PATIENCE_SECONDS)
        return "ended"

    @property
    def has_begun(self) -> bool:
        return self._has_begun.is_set()

    async def begun(self) -> None:
        assert await asyncio.to_thread(self._has_begun.wait, PATIENCE_SECONDS)


async def test_a_thread_is_alone_while_no_other_works(threads: ExecutionThreads) -> None:
    lane, other = FusedLane(threads, 2), Held()
    await until(lambda: len(threads._idle) == 2)
    assert not threads.is_alone(), "asked by a thread that is none of them"
    assert await ran(lane, threads.is_alone)
    running = asyncio.create_task(ran(lane, other))
    await other.begun()
    assert not await ran(lane, threads.is_alone)
    other.end()
    await running


async def test_whoever_is_told_that_a_job_ended_finds_its_thread_idle(
    threads: ExecutionThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next job would not be alone, and would run on a thread with cold caches."""
    lane, loop = FusedLane(threads, 2), asyncio.get_running_loop()
    tell = loop.call_soon_threadsafe

    def tell_and_dawdle(*what: Any) -> Any:
        told = tell(*what)
        time.sleep(0.01)  # the thread has lost its CPU just then
        return told

    await until(lambda: len(threads._idle) == 2)
    monkeypatch.setattr(loop, "call_soon_threadsafe", tell_and_dawdle)
    seen = [await ran(lane, lambda: (threads.is_alone(), threading.get_ident())) for _ in range(3)]
    assert set(seen) == {(True, seen[0][1])}


async def test_closing_waits_for_what_runs_and_for_what_waits() -> None:
    threads, job = ExecutionThreads(1), Held()
    running, waiting = (
        asyncio.create_task(ran(FusedLane(threads, 1), job)),
        asyncio.create_task(ran(FusedLane(threads, 1), job)),
    )
    await job.begun()
    closing = asyncio.create_task(asyncio.to_thread(threads.close))
    job.end()
    await closing
    assert await running == await waiting == "ended"


async def test_nothing_runs_after_closing() -> None:
    threads = ExecutionThreads(1)
    await asyncio.to_thread(threads.close)
    with pytest.raises(RuntimeError, match="closed"):
        await ran(FusedLane(threads, 1), lambda: None)


async def test_a_job_that_waits_behind_a_lost_thread_is_taken_by_a_new_one() -> None:
    threads, job = ExecutionThreads(1), Held()
    hanging, waiting = (
        asyncio.create_task(ran(FusedLane(threads, 1), job)),
        asyncio.create_task(ran(FusedLane(threads, 1), lambda: "served")),
    )
    await job.begun()
    threads.replace_lost(1)
    assert await waiting == "served"
    assert not hanging.done()
    job.end()
    await hanging
    await asyncio.to_thread(threads.close)


async def test_the_next_job_begins_though_the_event_loop_is_busy(threads: ExecutionThreads) -> None:
    begun = [threading.Event() for _ in range(3)]
    jobs = [asyncio.create_task(ran(FusedLane(threads, 1), event.set)) for event in begun]
    await asyncio.sleep(0)
    assert all(event.wait(PATIENCE_SECONDS) for event in begun)  # held here, the loop does nothing
    await asyncio.gather(*jobs)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no CPU affinity")
async def test_a_thread_roams_while_the_event_loop_runs_models_itself() -> None:
    cpus = os.sched_getaffinity(0)
    if len(cpus) < 2:
        pytest.skip("one CPU only")
    threads = ExecutionThreads(len(cpus), cpus)
    together = threading.Barrier(len(cpus))

    def job() -> int:
        together.wait(PATIENCE_SECONDS)  # one job for each thread
        return len(os.sched_getaffinity(0))

    async def cpus_of_each() -> set[int]:
        return set(await asyncio.gather(*(ran(FusedLane(threads, 1), job) for _ in cpus)))

    assert await cpus_of_each() == {1}
    await ran(InlineLane(threads), lambda: None, light=True)
    assert await cpus_of_each() == {len(cpus)}
    assert await cpus_of_each() == {1}
    await asyncio.to_thread(threads.close)


async def test_a_cpu_that_was_taken_away_costs_a_thread_its_place_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(who: int, cpus: object) -> None:
        raise OSError("EINVAL: not in the cpuset any more")

    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    threads = ExecutionThreads(2, {0, 1})
    assert [await ran(FusedLane(threads, 1), lambda: "ran") for _ in range(5)] == ["ran"] * 5
    await asyncio.to_thread(threads.close)


def test_one_job_more_is_taken_where_the_threads_are_the_bound(threads: ExecutionThreads) -> None:
    assert FusedLane(threads, 2).ahead == 1
    assert FusedLane(threads, 1).ahead == 0
    assert InlineLane(threads).ahead == 0
