"""The batcher: entries in, executions of several entries out, one answer for each.

Theory of operation
===================

A caller submits an item with a deadline and awaits its entry. The batcher keeps the entry in a bounded queue and asks
its policy, whenever something changed, whether a batch should leave now. What can change is exactly this: entries
arrived, an execution ended, or the moment came that the policy had asked for. There is no polling and no thread of its
own; all state lives on the event loop, so there is no lock.

What arrives in one turn of the event loop is looked at together, and while every turn brings more, up to a batch, the
next one is awaited, for ten milliseconds at most: the loop is reading them from its sockets, and one batch of all costs
less than one of each turn.

    submit ──> queue ──pump──> policy.decide ──Dispatch(n)──> form ──> execute(batch, end) ──> entries resolved
                 ^                  │                                          │
                 │                  └─ WaitUntil(t): a timer pumps again       │
                 └────────────────────────── an instance is free: pump <──────┘

*Bounded.* A full queue refuses (`queue_full`). So does a queue whose backlog would take longer than `max_queue_wait_ms`
by the measured rate, what runs now included (`queue_wait`): a length alone is too short for bursts of a fast model and
too long for a slow one.

*Work-conserving.* While an instance is free, nothing waits but for those just coming (and for the manifest's delay). So
the batcher adds next to no latency to an idle server, and under load batches grow by themselves.

*Formed late.* Entries are taken out of the queue at the last moment. Those whose caller has gone, whose deadline has
passed or who waited longer than allowed are dropped then, before any work is spent on them, and their places filled
from behind.

*Deadlines are kept here.* An entry whose deadline passes fails at that moment, wherever it is; in a running batch it
then runs for nobody. One timer serves all entries: it stands at the earliest deadline known, and as most requests are
answered long before theirs, it is set once in a while and not once a request.

*Owned replies.* Each entry owns its reply. `execute` gets the entries, rejects the ones that turn out bad (a damaged
image) at once, and tells `end` a result for each of the others. If it tells an error, the entries of that batch fail,
and no other. One caller's fate never reaches its neighbours: a cancelled entry in a running batch only means that
nobody reads that row.

*Device first.* When an execution ends, the next batch leaves before the answers of the last one are written: that is
the event loop's work, and the instance need not wait for it. An inline lane runs batches one after the other for some
milliseconds before the loop reads from its sockets again, or it would serve a batch for each reading of all of them,
however many are waiting there.

*One ahead.* Where the lane takes it, one batch more than there are instances stands ready, and whichever thread ends
its own begins it without asking the event loop. Until then it is open: it grows as the queue does, its entries count
as waiting, and whoever leaves it makes room.

*Drained.* `drain` waits until the queue is empty and no execution runs. Nothing is refused by it: who may still submit
is decided further out (leases and admission).

The policy is pure and is tested by properties; this driver is small and is tested with a puppet engine and a clock in
the test's hand.
"""

import asyncio
import logging
import math
import time
from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, Protocol

from service.batching.batch import Batch
from service.batching.policy import Dispatch, Policy, QueueView, WaitUntil
from service.batching.request_queue import Entry, ItemT, RequestQueue, ResultT
from service.batching.spec import BatchingSpec
from service.errors import DeadlineExceeded, EngineFailed, FoveaError, OutOfMemory, Overloaded

logger = logging.getLogger(__name__)

# Weights of the newest execution in the moving average of its size: good news at once, bad news when it lasts. One
# stalled moment must refuse nobody; what then really waits too long is dropped when its batch forms.
_FASTER_WEIGHT = 0.5
_SLOWER_WEIGHT = 0.05
# Of the longest wait that a backlog may promise. The average believes good news at once and is a tenth short for it; a
# queue that is held exactly at the bound would drop a tenth of what it took, a second late.
_LONGEST_WAIT_SHARE = 0.85
_RETRY_AFTER_SECONDS = (1, 3)
_TURN_SECONDS = 0.010  # the event loop runs batches, or reads what comes, for no longer than this without the other

Replies = Sequence[tuple[Entry[ItemT, ResultT], ResultT]]
End = Callable[[Replies[ItemT, ResultT] | None, BaseException | None], None]
Execute = Callable[[Batch[ItemT, ResultT], End[ItemT, ResultT]], None]


class BatchObserver(Protocol):
    """What a batcher reports, for metrics. Called on the event loop."""

    def batch_executed(self, size: int, seconds: float) -> None: ...


class Batcher(Generic[ItemT, ResultT]):
    """Forms batches for one version of one model.

    `execute` is called with a batch, begins it, and calls `end` once on the event loop: with the result of each entry
    that it did not reject, or with why there is none. It may do so before it returns. `instances` is how many batches
    may be in execution at once, `ahead` how many more may stand ready for whichever of these ends first. Belongs to the
    running event loop.
    """

    def __init__(
        self,
        spec: BatchingSpec,
        policy: Policy,
        execute: Execute[ItemT, ResultT],
        observer: BatchObserver,
        *,
        instances: int,
        ahead: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._policy = policy
        self._execute = execute
        self._observer = observer
        self._longest_wait_seconds = _LONGEST_WAIT_SHARE * spec.max_queue_wait_ms / 1000.0
        self._instances = instances
        self._places = instances + ahead  # of batches that have left the queue
        self._clock = clock
        self._queue: RequestQueue[ItemT, ResultT] = RequestQueue(spec.max_queue_size)
        self._running: list[Batch[ItemT, ResultT]] = []  # and standing ready
        self._timer: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._expiry_at = math.inf
        self._pump_is_due = False
        self._is_pumping = False
        self._seconds_of: dict[int, float] = {}  # batch size -> seconds of an execution, a moving average
        self._slowest_seconds = 0.0  # of these
        self._sizes: list[int] = []  # its keys, in order
        self._quiet = asyncio.Event()
        self._quiet.set()

    @property
    def waiting(self) -> int:
        """Entries in the queue or in a batch that has not begun."""
        waiting = len(self._queue)
        for batch in self._running:
            if batch.is_open:
                waiting += len(batch.wanted)
        return waiting

    @property
    def backlog_seconds(self) -> float:
        """How long a new entry would wait, by what executions took lately; 0 before the first one.

        A backlog runs in large batches, so it is the largest batch measured up to that size that counts. What was
        measured is the way from the queue to the answers, whatever a batch waits for in it: a thread that is busy with
        another model, or with the batch that it stands behind.
        """
        return self._seconds_for(self.waiting)

    def _seconds_for(self, waiting: int) -> float:
        if not waiting or not self._seconds_of:
            return 0.0
        size = min(self._spec.max_batch_size, math.ceil(waiting / self._instances))
        measured = self._sizes[max(0, bisect_right(self._sizes, size) - 1)]
        return math.ceil(waiting / (size * self._places)) * self._seconds_of[measured]

    def submit(self, item: ItemT, deadline_at: float, share: float = 1.0) -> Entry[ItemT, ResultT]:
        """Queue `item`. The caller awaits the entry's future, and calls `forget` if it stops waiting.

        Raises Overloaded where the queue is full or too slow for `max_queue_wait_ms`; at that `share` of both bounds.
        """
        refusal = self._refusal(share)
        if refusal is not None and self._pump_is_due:
            self._pump()  # what arrived in this turn may be able to leave
            refusal = self._refusal(share)
        if refusal is not None:
            raise refusal
        entry: Entry[ItemT, ResultT] = Entry(item, self._clock(), deadline_at, asyncio.get_running_loop())
        self._queue.push(entry)
        self._quiet.clear()
        if deadline_at < self._expiry_at:
            self._expire_at(deadline_at)
        if not self._pump_is_due:
            self._pump_soon()
        return entry

    def _refusal(self, share: float) -> Overloaded | None:
        waiting = self.waiting
        if not waiting:
            return None
        if waiting >= share * self._spec.max_queue_size:
            return self._overloaded("queue_full", f"The model's queue is full ({waiting} entries).")
        if (waiting + 1) * self._slowest_seconds <= self._longest_wait_seconds * share:
            return None  # not even if everybody ran alone
        wait_seconds = self._turn_seconds + self._seconds_for(waiting)
        if wait_seconds > self._longest_wait_seconds * share:
            return self._overloaded("queue_wait", f"The wait would be {wait_seconds:.1f} s.")
        return None

    @property
    def _turn_seconds(self) -> float:
        """How long what runs now may still take before the queue moves, at most; 0 while there is a place.

        Without it one entry more would be queued than can be served in time, and told so only when its wait is over.
        """
        if len(self._running) < self._places:
            return 0.0
        soonest = min(self._seconds_of.get(len(batch.entries), 0.0) for batch in self._running)
        return soonest * self._instances / self._places

    def forget(self, entry: Entry[ItemT, ResultT]) -> None:
        """The caller no longer waits: a queued entry leaves the queue, a running one runs on unread."""
        entry.future.cancel()
        self._queue.discard(entry)
        self._settle()

    async def drain(self) -> None:
        """Return when nothing is queued and nothing runs. Then nothing of the event loop's refers to this any more."""
        await self._quiet.wait()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry, self._expiry_at = None, math.inf

    def _pump(self) -> None:
        """Let leave what may. Inline lanes run batch after batch in here, as long as the event loop can be spared."""
        self._pump_is_due = False
        if self._is_pumping:  # an execution ended while it was started: the loop below goes on
            return
        self._is_pumping = True
        try:
            if len(self._running) > self._instances:
                self._running[-1].grow(self._joining)
            turn_ends_at = self._clock() + _TURN_SECONDS if len(self._queue) else 0.0
            while (batch := self._next_batch()) is not None:
                self._start(batch)
                if self._clock() >= turn_ends_at:
                    self._pump_soon()
                    break
        finally:
            self._is_pumping = False
        self._settle()

    def _pump_soon(self) -> None:
        """Once the event loop has gone through what is ready."""
        self._pump_is_due = True
        asyncio.get_running_loop().call_soon(self._pump_when_all_came, 0)

    def _pump_when_all_came(self, came: int) -> None:
        """Unless the queue is longer than the turn before, when `came` were in it: then more may come in this one."""
        if not self._pump_is_due:  # somebody could not wait
            return
        waiting = len(self._queue)
        if came < waiting < self._spec.max_batch_size and self._clock() - self._queue.oldest_at < _TURN_SECONDS:
            asyncio.get_running_loop().call_soon(self._pump_when_all_came, waiting)
        else:
            self._pump()

    def _start(self, batch: Batch[ItemT, ResultT]) -> None:
        """Whatever goes wrong, the batch ends."""
        try:
            self._execute(batch, partial(self._ended, batch))
        except Exception as error:
            if batch in self._running:
                self._ended(batch, None, error)
            else:
                logger.exception("execution_failed", extra={"batch_size": len(batch.entries)})

    def _next_batch(self) -> Batch[ItemT, ResultT] | None:
        """The batch that should leave now, counted as in execution; None where none should."""
        while True:
            free = self._places - len(self._running)
            if not free or not len(self._queue):
                if self._timer is not None:
                    self._set_timer(None)
                return None
            now = self._clock()
            view = QueueView(len(self._queue), self._queue.oldest_at, free, self._instances)
            decision = self._policy.decide(view, now)
            if not isinstance(decision, Dispatch):
                self._set_timer(decision.at - now if isinstance(decision, WaitUntil) else None)
                return None
            if entries := self._form(decision.size, now):
                batch = Batch(entries, self._clock, is_open=len(self._running) >= self._instances)
                self._running.append(batch)
                return batch

    def _joining(self, wanted: Sequence[Entry[ItemT, ResultT]]) -> list[Entry[ItemT, ResultT]]:
        """Who of the queue joins an open batch of `wanted`: it becomes what would leave if it had not yet."""
        if not len(self._queue):
            return []
        now, oldest_at = self._clock(), (wanted[0].queued_at if wanted else self._queue.oldest_at)
        view = QueueView(len(wanted) + len(self._queue), oldest_at, 1, self._instances)
        decision = self._policy.decide(view, now)
        return self._form(decision.size - len(wanted), now) if isinstance(decision, Dispatch) else []

    def _form(self, size: int, now: float) -> list[Entry[ItemT, ResultT]]:
        """The oldest `size` entries that are still worth running; the others are failed here."""
        batch: list[Entry[ItemT, ResultT]] = []
        longest_wait = self._spec.max_queue_wait_ms / 1000.0
        while len(batch) < size and len(self._queue):
            entry = self._queue.pop()
            if entry.is_done:
                continue
            if now >= entry.deadline_at:
                entry.fail(DeadlineExceeded("The request's deadline passed while it was queued."))
            elif now - entry.queued_at > longest_wait:
                entry.fail(self._overloaded("queue_wait", f"Waited longer than {longest_wait:g} s in the queue."))
            else:
                batch.append(entry)
        return batch

    def _ended(
        self, batch: Batch[ItemT, ResultT], replies: Replies[ItemT, ResultT] | None, error: BaseException | None
    ) -> None:
        """An execution has ended: the next one leaves, then the answers of this one go out."""
        if batch.entries:  # all who stood ready may have left
            self._learn(len(batch.entries), self._clock() - batch.left_at)
        self._running.remove(batch)
        try:
            self._pump()
        finally:
            for entry, result in replies or ():
                entry.resolve(result)
            if replies is None or len(replies) < len(batch.entries):
                fault = _fault(error, len(batch.entries))
                for entry in batch.entries:
                    entry.fail(fault)  # whoever has no answer by now

    def _learn(self, size: int, seconds: float) -> None:
        if size not in self._seconds_of:
            insort(self._sizes, size)
        known = self._seconds_of.get(size, seconds)
        weight = _SLOWER_WEIGHT if seconds > known else _FASTER_WEIGHT
        self._seconds_of[size] = known + weight * (seconds - known)
        self._slowest_seconds = max(self._seconds_of.values())
        self._observer.batch_executed(size, seconds)

    def _set_timer(self, delay_seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if delay_seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, delay_seconds), self._pump)

    def _expire_at(self, deadline_at: float) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry_at = deadline_at
        delay_seconds = max(0.0, deadline_at - self._clock())
        self._expiry = asyncio.get_running_loop().call_later(delay_seconds, self._expire)

    def _expire(self) -> None:
        """Fail the entries whose deadline has passed, and look again when the next one is due."""
        now = self._clock()
        self._expiry, self._expiry_at = None, math.inf
        waiting = [entry for entry in self._queue if not entry.is_done]
        running = [entry for batch in self._running for entry in batch.wanted]
        for entry in waiting + running:
            if now >= entry.deadline_at:
                entry.fail(DeadlineExceeded("The request's deadline passed before the answer was there."))
                self._queue.discard(entry)
        if ahead := [entry.deadline_at for entry in waiting + running if not entry.is_done]:
            self._expire_at(min(ahead))
        self._settle()

    def _settle(self) -> None:
        if not len(self._queue) and not self._running:
            self._quiet.set()

    def _overloaded(self, reason: str, message: str) -> Overloaded:
        low, high = _RETRY_AFTER_SECONDS
        retry_after = min(high, max(low, math.ceil(self.backlog_seconds)))
        return Overloaded(message, reason=reason, retry_after_seconds=retry_after)


def _fault(error: BaseException | None, batch_size: int) -> FoveaError:
    """What the entries of an execution are told that ended without answering them."""
    if isinstance(error, MemoryError):
        return OutOfMemory()
    if isinstance(error, FoveaError):
        return error
    if error is not None:
        logger.error("execution_failed", extra={"batch_size": batch_size}, exc_info=error)
        return EngineFailed("The model failed on this batch.")
    return EngineFailed("The execution ended without an answer: this is a bug")
