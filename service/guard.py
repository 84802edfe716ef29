"""Guard: watches over one version's engine. What hangs is ended, what always fails is taken out of service.

*Hung.* An execution that takes longer than `limits.timeout_ms` three times over is asked to end. One that has not ended
`GIVE_UP_SECONDS` later is given up: its callers, who had their 504 long ago, are let go, and its thread is lost.

*Always failing.* Failures in a row, with nothing answered between, may be the inputs' fault. So the engine is then
tried with an input that it is known to run: the one it was warmed up with. Where that fails too the version is out of
service until a later try succeeds. Traffic need not come for that: nothing sends any to what is not ready.

Belongs to the event loop. Knows no entries.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from service.engine.base import Engine
from service.errors import EngineFailed
from service.lane import End, Lane
from service.metrics import ModelMetrics

logger = logging.getLogger(__name__)

GIVE_UP_SECONDS = 5.0  # for a graph to reach the end of the node that it is in
FAILURES = 5  # in a row ...
WITHIN_SECONDS = 10.0  # ... and in this time
RETRY_SECONDS = 5.0

ResultT = TypeVar("ResultT")


class Guard:
    """See the module. `trial` runs an input that is known to be good, and raises where it fails; None has none."""

    def __init__(
        self,
        name: str,
        lane: Lane,
        engine: Engine,
        trial: Callable[[], object] | None,
        metrics: ModelMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fault = ""  # why the version is out of service; empty while it is in
        self._broken_at = 0.0
        self._name = name
        self._lane = lane
        self._engine = engine
        self._trial = trial
        self._metrics = metrics
        self._clock = clock
        self._runs: set[_Run[Any]] = set()
        self._failed_at: deque[float] = deque(maxlen=FAILURES)
        self._trying: asyncio.Task[None] | None = None

    def start(self, job: Callable[[], ResultT], end: End[ResultT], *, light: bool = False) -> None:
        """Run `job` in the lane, and call `end` as the lane does; with EngineFailed where the job was given up."""
        run = _Run(job, end, self._runs, self._clock)
        self._runs.add(run)
        self._lane.start(run, run.ended, light=light)

    def succeeded(self) -> None:
        """An execution was answered."""
        if self._failed_at:
            self._failed_at.clear()

    def failed(self) -> None:
        """An execution failed for everyone in it."""
        self._failed_at.append(self._clock())
        in_a_row = len(self._failed_at) == FAILURES and self._failed_at[-1] - self._failed_at[0] <= WITHIN_SECONDS
        if in_a_row and self._trial is not None and self._trying is None:
            self._trying = asyncio.get_running_loop().create_task(self._try_until_well(self._trial), name="trial")

    def look(self, limit_seconds: float) -> int:
        """End what has run for longer than the limit; returns how many threads are lost for good."""
        now = self._clock()
        lost = 0
        for run in list(self._runs):
            seconds = now - run.began_at if run.began_at is not None else 0.0
            if seconds <= limit_seconds:
                continue
            if seconds > limit_seconds + GIVE_UP_SECONDS:
                lost += 1
                run.ended(None, EngineFailed("The execution hung and was given up."))
                logger.error("execution_given_up", extra={"model": self._name, "seconds": round(seconds, 1)})
            elif not run.is_terminated:
                run.is_terminated = True
                self._engine.terminate()
                self._metrics.hung()
                logger.error("execution_hung", extra={"model": self._name, "seconds": round(seconds, 1)})
        return lost

    @property
    def broken_seconds(self) -> float:
        """How long the version has been out of service by now."""
        return self._clock() - self._broken_at if self.fault else 0.0

    async def close(self) -> None:
        if self._trying is not None:
            self._trying.cancel()
            await asyncio.wait({self._trying})

    async def _try_until_well(self, trial: Callable[[], object]) -> None:
        try:
            while not await self._is_well(trial):
                if not self.fault:
                    self._broken_at = self._clock()
                    self.fault = "its engine fails on every input; it is tried again every few seconds"
                    self._metrics.broken(True)
                    logger.error("engine_broken", extra={"model": self._name, "failures": FAILURES})
                await asyncio.sleep(RETRY_SECONDS)
            self._failed_at.clear()
            if self.fault:
                self.fault = ""
                self._metrics.broken(False)
                logger.warning("engine_well_again", extra={"model": self._name})
        finally:
            self._trying = None

    async def _is_well(self, trial: Callable[[], object]) -> bool:
        """Whether `trial` runs. Raises what says nothing about the engine."""
        tried: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        self.start(trial, lambda _, error: None if tried.done() else tried.set_result(error))
        error = await tried
        if error is None or isinstance(error, EngineFailed | MemoryError):
            return error is None
        raise error


class _Run(Generic[ResultT]):
    """One execution under way: the job, as the lane calls it. `began_at` is when it did."""

    __slots__ = ("_clock", "_end", "_job", "_runs", "began_at", "is_terminated")

    def __init__(
        self,
        job: Callable[[], ResultT],
        end: End[ResultT],
        runs: "set[_Run[Any]]",
        clock: Callable[[], float],
    ) -> None:
        self._job = job
        self._end = end
        self._runs = runs
        self._clock = clock
        self.began_at: float | None = None
        self.is_terminated = False

    def __call__(self) -> ResultT:
        self.began_at = self._clock()
        return self._job()

    def ended(self, result: ResultT | None, error: BaseException | None) -> None:
        """Whichever comes first is told: that the job ended, or that it was given up."""
        if self in self._runs:
            self._runs.remove(self)
            self._end(result, error)
