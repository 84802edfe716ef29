"""What every lane must do, over all of them. A lane runs jobs somewhere, and shares out what a job wants shared."""

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from service.lane import DeviceLane, ExecutionThreads, FusedLane, InlineLane, Lane
from tests.support.puppets import PATIENCE_SECONDS, ran, turns, until

LANES: dict[str, Callable[[ExecutionThreads], Lane]] = {
    "fused": lambda threads: FusedLane(threads, threads.count),
    "fused, narrower": lambda threads: FusedLane(threads, 1),
    "device": DeviceLane,
    "inline": InlineLane,
}


@pytest.fixture
def threads() -> Iterator[ExecutionThreads]:
    threads = ExecutionThreads(3)
    yield threads
    threads.close()


@pytest.fixture(params=sorted(LANES))
def lane(request: pytest.FixtureRequest, threads: ExecutionThreads) -> Lane:
    return LANES[request.param](threads)


@pytest.mark.parametrize("light", [True, False])
async def test_a_job_gives_its_result(lane: Lane, light: bool) -> None:
    assert await ran(lane, lambda: "done", light=light) == "done"


@pytest.mark.parametrize("light", [True, False])
async def test_what_a_job_raises_comes_back(lane: Lane, light: bool) -> None:
    def job() -> None:
        raise MemoryError("in the job")

    with pytest.raises(MemoryError, match="in the job"):
        await ran(lane, job, light=light)


@pytest.mark.parametrize("light", [True, False])
async def test_an_end_is_told_once_on_the_event_loop(lane: Lane, light: bool) -> None:
    told: list[tuple[object, object, int]] = []
    lane.start(lambda: "done", lambda result, error: told.append((result, error, threading.get_ident())), light=light)
    await until(lambda: bool(told))
    await turns()
    assert told == [("done", None, threading.get_ident())]


async def test_it_takes_a_job_at_least_and_never_more_ahead_than_run(lane: Lane) -> None:
    assert lane.width >= 1
    assert 0 <= lane.ahead <= lane.width


@pytest.mark.parametrize("light", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
async def test_what_is_spread_is_done_once_each_before_it_returns(lane: Lane, light: bool, count: int) -> None:
    done: list[int] = []

    def job() -> list[int]:
        lane.spread(done.append, range(count))
        return sorted(done)

    assert await ran(lane, job, light=light) == list(range(count))


async def test_two_jobs_may_spread_at_once(lane: Lane) -> None:
    def job() -> int:
        done: list[int] = []
        lane.spread(done.append, range(200))
        return len(done)

    assert await asyncio.gather(*(ran(lane, job) for _ in range(8))) == [200] * 8


async def test_work_beside_a_device_is_shared_with_every_idle_thread(threads: ExecutionThreads) -> None:
    lane, together = DeviceLane(threads), threading.Barrier(threads.count)
    await until(lambda: len(threads._idle) == threads.count)
    await ran(lane, lambda: lane.spread(lambda _: together.wait(PATIENCE_SECONDS), range(threads.count)))
    assert not together.broken


async def test_work_beside_a_device_waits_for_no_thread_that_is_busy(threads: ExecutionThreads) -> None:
    lane, may_end = DeviceLane(threads), threading.Event()
    busy = [asyncio.create_task(ran(FusedLane(threads, 3), lambda: may_end.wait(PATIENCE_SECONDS))) for _ in range(2)]
    await until(lambda: len(threads._idle) == 1)
    done: list[str] = []
    await ran(lane, lambda: lane.spread(lambda _: done.append(threading.current_thread().name), range(20)))
    assert len(done) == 20
    assert len(set(done)) == 1
    may_end.set()
    await asyncio.gather(*busy)
