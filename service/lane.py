"""Where a version's work runs: which threads, and how many executions at once.

A lane takes one blocking job (decode, run, finish a batch), runs it somewhere and tells on the event loop how it
ended. All lanes of a process share one set of execution threads, as many as there are usable CPUs, so that several
models share the machine instead of fighting over it. Knows nothing of what a job does.
"""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

ResultT = TypeVar("ResultT")

ItemT = TypeVar("ItemT")

End = Callable[[ResultT | None, BaseException | None], None]  # is told a job's result, or what it raised
_Listener = tuple[asyncio.AbstractEventLoop, End[Any]]
_Job = tuple[Callable[[], Any], _Listener | None]  # None: it helps another job, which waits for it


class Lane(Protocol):
    @property
    def width(self) -> int:
        """How many jobs may usefully run at once."""
        ...

    @property
    def ahead(self) -> int:
        """How many jobs more it takes, for whoever has just ended one: the next then begins without the event loop."""
        ...

    def start(self, job: Callable[[], ResultT], end: End[ResultT], *, light: bool = False) -> None:
        """Run `job` and call `end` on the event loop, once: where the loop runs the job itself, before this returns.

        `light` says that it takes less time than the event loop can be spared for.
        """
        ...

    def spread(self, work: Callable[[ItemT], None], items: Sequence[ItemT]) -> None:
        """Called by a job: do `work`, which must not raise, for each of `items`, and return when all of it is done.

        On the job's own thread, and on others where the lane has any to spare.
        """
        ...


class ExecutionThreads:
    """The process's execution threads, and the jobs that wait for one. Owned by the server, which closes them last.

    Where they are as many as the CPUs of the affinity mask each keeps to one of them. Left alone, Linux puts two busy
    threads on one CPU for milliseconds while the other is idle. But while the event loop runs models itself they roam:
    else it would find no CPU that is not somebody's.

    Of several idle threads the one that worked last gets the job: its caches hold the network.
    """

    def __init__(self, count: int, cpus: Collection[int] = ()) -> None:
        self.count = count
        self.lost = 0
        self.inline_jobs = 0  # that ran on the event loop
        self._cpus = sorted(cpus) if len(cpus) == count > 1 else []
        self._lock = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self._idle: list[SimpleQueue[_Job | None]] = []  # of each idle thread, where it is handed a job; None ends it
        self._is_closed = False
        self._start()

    def start(self, job: Callable[[], ResultT], end: End[ResultT]) -> None:
        """Run `job` on the first thread that is free, then call `end` on the event loop that runs here.

        Raises RuntimeError once the threads are closed.
        """
        listener = asyncio.get_running_loop(), end
        with self._lock:
            if self._is_closed:
                raise RuntimeError("The execution threads are closed.")
            if self._idle:
                self._idle.pop().put((job, listener))
            else:
                self._waiting.append((job, listener))

    def spread(self, work: Callable[[ItemT], None], items: Sequence[ItemT]) -> None:
        """Do `work` for each of `items`, on this thread and on those that are idle now; return when all is done."""
        shared = _Shared(work, items)
        with self._lock:
            for _ in range(min(len(self._idle), len(items) - 1)):
                self._idle.pop().put((shared.help, None))
        shared.help()
        shared.done.wait()

    def is_alone(self) -> bool:
        """Whether the thread that asks is one of these, and no other has work."""
        return len(self._idle) == self.count - 1 and threading.current_thread() in self._threads

    def replace_lost(self, lost: int) -> None:
        """Work on with new threads; of the old ones those that hang stay behind, the others finish what they have."""
        self.lost += lost
        self._start()

    def close(self) -> None:
        """Wait for what runs and waits, and end the threads."""
        with self._lock:
            self._is_closed = True
            for hand in self._idle:
                hand.put(None)
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        unclaimed = deque(self._cpus)
        self._threads = [
            threading.Thread(target=self._serve, args=(unclaimed,), name=f"execution_{place}", daemon=True)
            for place in range(self.count)
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self, unclaimed: deque[int]) -> None:
        """One thread's life: job after job, until it is replaced or there are no more.

        It stands ready for the next one before it tells how the last one ended: whoever is told then finds it idle.
        """
        hand = SimpleQueue[_Job | None]()
        place = _Place(unclaimed.popleft(), self._cpus) if unclaimed else None
        inline_jobs = self.inline_jobs
        self._stand_ready(hand)
        while (job := hand.get()) is not None:
            if place is not None:
                place.keep(inline_jobs == self.inline_jobs)
                inline_jobs = self.inline_jobs
            tell = _run(*job)
            del job  # or it would be kept until the next one
            self._stand_ready(hand)
            tell()
            del tell  # likewise, and an error and this frame would hold each other, and the batch

    def _stand_ready(self, hand: "SimpleQueue[_Job | None]") -> None:
        """Have the job put into `hand` that waited longest, or the next to come; None where none will."""
        with self._lock:
            if threading.current_thread() not in self._threads:
                hand.put(None)
            elif self._waiting:
                hand.put(self._waiting.popleft())
            elif self._is_closed:
                hand.put(None)
            else:
                self._idle.append(hand)


class _Shared(Generic[ItemT]):
    """Work that several threads do together: each takes the next item until there is none."""

    def __init__(self, work: Callable[[ItemT], None], items: Sequence[ItemT]) -> None:
        self._work = work
        self._items = deque(items)
        self._lock = threading.Lock()
        self._left = len(items)
        self.done = threading.Event()
        if not items:
            self.done.set()

    def help(self) -> None:
        with suppress(IndexError):  # nothing is left to be taken
            while True:
                item = self._items.popleft()
                try:
                    self._work(item)
                finally:
                    with self._lock:
                        self._left -= 1
                        if not self._left:
                            self.done.set()


class _Place:
    """Where one thread may run: on a CPU of its own, or on any. Used by that thread."""

    def __init__(self, own: int, every: Collection[int]) -> None:
        self._own = own
        self._every = every
        self._is_kept = False

    def keep(self, is_kept: bool) -> None:
        """Keep to the own CPU from here on, or roam."""
        if is_kept is self._is_kept:
            return
        self._is_kept = is_kept
        with suppress(OSError):  # the container's CPUs are others by now
            os.sched_setaffinity(0, {self._own} if is_kept else self._every)


def _run(job: Callable[[], Any], listener: _Listener | None) -> Callable[[], None]:
    """Run `job` in this thread; what is returned tells its listener, on the listener's event loop, how it ended."""
    if listener is None:
        job()
        return _tell_nobody
    loop, end = listener
    try:
        return partial(_tell, loop, partial(end, job(), None))
    except BaseException as error:  # noqa: BLE001  # whatever it is, it belongs to whoever listens
        return partial(_tell, loop, partial(end, None, error))


def _tell(loop: asyncio.AbstractEventLoop, end: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody listens
        loop.call_soon_threadsafe(end)


def _tell_nobody() -> None:
    pass


class FusedLane:
    """Every execution thread decodes, runs and finishes its own batch: on a CPU the fastest shape for a real network.

    A session with one thread inside serves them all; two such threads beat one session of two threads by a fifth.
    """

    def __init__(self, threads: ExecutionThreads, width: int) -> None:
        self._threads = threads
        self.width = width
        self.ahead = 1 if width == threads.count else 0  # fewer than the threads is a bound that one more would break

    def start(self, job: Callable[[], ResultT], end: End[ResultT], *, light: bool = False) -> None:
        self._threads.start(job, end)

    def spread(self, work: Callable[[ItemT], None], items: Sequence[ItemT]) -> None:
        for item in items:
            work(item)


class DeviceLane:
    """Beside a device: two batches under way, one being filled by every thread that is idle, while the device has one.

    A device wants large batches and runs one at a time, but decoding what it runs in 5 ms takes a thread 100.
    """

    ahead = 0

    def __init__(self, threads: ExecutionThreads, width: int = 2) -> None:
        self._threads = threads
        self.width = width

    def start(self, job: Callable[[], ResultT], end: End[ResultT], *, light: bool = False) -> None:
        self._threads.start(job, end)

    def spread(self, work: Callable[[ItemT], None], items: Sequence[ItemT]) -> None:
        self._threads.spread(work, items)


class InlineLane:
    """Light jobs on the event loop itself, others on a thread: for models so small that Python is most of the work.

    Two threads share one interpreter, so a thread adds nothing there but the way to it and back: 50 microseconds alone,
    and under load the fight for the interpreter's lock.
    """

    width = 1
    ahead = 0

    def __init__(self, threads: ExecutionThreads) -> None:
        self._threads = threads

    def start(self, job: Callable[[], ResultT], end: End[ResultT], *, light: bool = False) -> None:
        if not light:
            self._threads.start(job, end)
            return
        self._threads.inline_jobs += 1
        try:
            result = job()
        except Exception as error:  # noqa: BLE001  # as on a thread
            end(None, error)
        else:
            end(result, None)

    def spread(self, work: Callable[[ItemT], None], items: Sequence[ItemT]) -> None:
        for item in items:
            work(item)
