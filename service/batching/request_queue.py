"""A bounded first-in-first-out queue of entries.

An entry is one image (or row) of one request. It ends exactly once: answered, failed, or cancelled by its caller.
The queue and its entries belong to the event loop; only `Entry.reject` may be called from other threads.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Entry(Generic[ItemT, ResultT]):
    """One unit of work and the reply it carries: `await entry.future` gives the result or raises the fault.

    `answer` is the result once there is one.
    """

    __slots__ = ("answer", "deadline_at", "dispatched_at", "future", "item", "loop", "queued_at")

    def __init__(self, item: ItemT, queued_at: float, deadline_at: float, loop: asyncio.AbstractEventLoop) -> None:
        self.item = item
        self.queued_at = queued_at
        self.deadline_at = deadline_at
        self.dispatched_at: float | None = None
        self.answer: ResultT | None = None
        self.future: asyncio.Future[ResultT] = loop.create_future()
        self.loop = loop

    @property
    def is_done(self) -> bool:
        return self.future.done()

    @property
    def is_answered(self) -> bool:
        """Done, and not by its caller's leaving (awaiting a future and being cancelled cancels the future too)."""
        return self.future.done() and not self.future.cancelled()

    def resolve(self, result: ResultT) -> None:
        if not self.future.done():
            self.answer = result
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # the caller may be gone: an error nobody reads is not worth a warning

    def reject(self, error: BaseException) -> None:
        """Fail from wherever the batch runs, at once, while the rest of it goes on."""
        if _runs_here(self.loop):
            self.fail(error)
        else:
            self.loop.call_soon_threadsafe(self.fail, error)


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:  # none in this thread
        return False


class RequestQueue(Generic[ItemT, ResultT]):
    """Entries in order of arrival. A cancelled one gives its place back at once."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[Entry[ItemT, ResultT], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry[ItemT, ResultT]]:
        return iter(self._entries)

    @property
    def is_full(self) -> bool:
        return len(self._entries) >= self._capacity

    @property
    def oldest_at(self) -> float:
        """When the head of the queue arrived; 0 where the queue is empty."""
        return next(iter(self._entries)).queued_at if self._entries else 0.0

    def push(self, entry: Entry[ItemT, ResultT]) -> None:
        """Append. The caller has checked `is_full`."""
        self._entries[entry] = None

    def discard(self, entry: Entry[ItemT, ResultT]) -> bool:
        """Take one entry out of its place; False where it is no longer queued."""
        if entry not in self._entries:
            return False
        del self._entries[entry]
        return True

    def pop(self) -> Entry[ItemT, ResultT]:
        """The oldest entry. Raises KeyError on an empty queue."""
        return self._entries.popitem(last=False)[0]
