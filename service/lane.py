"""Where a version's work runs: which threads, and how many executions at once.

A lane takes one blocking job (decode, run, finish a batch) and awaits it somewhere. All lanes of a process share one
set of execution threads, as many as there are usable CPUs, so that several models share the machine instead of
fighting over it. Knows nothing of what a job does.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

ResultT = TypeVar("ResultT")


class Lane(Protocol):
    @property
    def width(self) -> int:
        """How many jobs may usefully run at once."""
        ...

    async def run(self, job: Callable[[], ResultT], *, light: bool = False) -> ResultT:
        """Run `job`; raises what it raises. A job that started is never abandoned half-way.

        `light` says that it takes less time than the event loop can be spared for.
        """
        ...


class ExecutionThreads:
    """The process's execution threads. Owned by the server, which closes them last.

    Where they are as many as the CPUs of the affinity mask each keeps to one of them. Left alone, Linux puts two busy
    threads on one CPU for milliseconds while the other is idle: measured on two CPUs, 7 % of the photographs a second.
    """

    def __init__(self, count: int, cpus: Collection[int] = ()) -> None:
        self.count = count
        self.lost = 0
        self._cpus = sorted(cpus) if len(cpus) == count > 1 else []
        self.pool = self._new_pool()

    def _new_pool(self) -> ThreadPoolExecutor:
        self._unclaimed = deque(self._cpus)
        return ThreadPoolExecutor(self.count, thread_name_prefix="execution", initializer=self._settle)

    def replace_lost(self, lost: int) -> None:
        """Work on with new threads; of the old ones those that hang stay behind, the others finish what they have."""
        self.lost += lost
        self.pool.shutdown(wait=False)
        self.pool = self._new_pool()

    def _settle(self) -> None:
        if self._unclaimed:
            os.sched_setaffinity(0, {self._unclaimed.popleft()})

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)


class FusedLane:
    """Every execution thread decodes, runs and finishes its own batch: on a CPU the fastest shape for a real network.

    A session with one thread inside serves them all; two such threads beat one session of two threads by a fifth.
    """

    def __init__(self, threads: ExecutionThreads, width: int) -> None:
        self._threads = threads
        self.width = width

    async def run(self, job: Callable[[], ResultT], *, light: bool = False) -> ResultT:
        return await asyncio.get_running_loop().run_in_executor(self._threads.pool, job)


class InlineLane:
    """Light jobs on the event loop itself, others on a thread: for models so small that Python is most of the work.

    Two threads share one interpreter, so a thread adds nothing there but the way to it and back: 50 microseconds alone,
    and under load the fight for the interpreter's lock.
    """

    width = 1

    def __init__(self, threads: ExecutionThreads) -> None:
        self._threads = FusedLane(threads, self.width)

    async def run(self, job: Callable[[], ResultT], *, light: bool = False) -> ResultT:
        return job() if light else await self._threads.run(job)
