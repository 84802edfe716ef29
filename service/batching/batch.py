"""A batch on its way from the queue to an execution, which may begin it in another thread.

Owns who is in it, and the one moment after which that no longer changes. Knows no queue and no policy.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Generic

from service.batching.request_queue import Entry, ItemT, ResultT


class Batch(Generic[ItemT, ResultT]):
    """Entries that run together. Open, it stands ready for a thread and may still grow, until `begin`.

    It belongs to the event loop, but for `begin`, which whoever runs it calls first, from any thread. `left_at` is when
    it left the queue.
    """

    __slots__ = ("_clock", "_lock", "entries", "is_open", "left_at")

    def __init__(
        self, entries: list[Entry[ItemT, ResultT]], clock: Callable[[], float], *, is_open: bool = False
    ) -> None:
        self.entries = entries
        self.is_open = is_open
        self.left_at = clock()
        self._clock = clock
        self._lock = threading.Lock() if is_open else None

    @property
    def wanted(self) -> list[Entry[ItemT, ResultT]]:
        """The entries that somebody still waits for."""
        return [entry for entry in self.entries if not entry.is_done]

    def begin(self) -> list[Entry[ItemT, ResultT]]:
        """Who is to be run. From here on nobody joins."""
        if self._lock is not None:
            with self._lock:
                self.is_open = False
                self.entries = self.wanted
        now = self._clock()
        for entry in self.entries:
            entry.dispatched_at = now
        return self.entries

    def grow(self, joining: Callable[[Sequence[Entry[ItemT, ResultT]]], list[Entry[ItemT, ResultT]]]) -> None:
        """While it is open, those join whom `joining` names to those still wanted, and those no longer wanted leave."""
        if self._lock is None:
            return
        with self._lock:
            if self.is_open:
                wanted = self.wanted
                self.entries = wanted + joining(wanted)
