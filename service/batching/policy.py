"""When a batch leaves and how large it is. Pure: a view of the queue and the time in, a decision out.

    waiting  free instances  delay left   decision
    0        any             any          Idle
    > 0      0               any          Idle (a finished execution asks again)
    > 0      > 0             no           Dispatch(n)
    > 0      > 0             yes          WaitUntil(t), unless the largest batch is full

With no delay asked for it is work-conserving: nothing waits while an instance is free, so it is never worse than no
batching; while all are busy the queue grows, and leaves as one batch.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from service.batching.spec import BatchingSpec


class QueueView(NamedTuple):
    """What a policy may look at. `oldest_at` is when the longest-waiting entry arrived (meaningless at 0 waiting)."""

    waiting: int
    oldest_at: float
    free: int
    instances: int


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Run the `size` oldest entries now."""

    size: int


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Ask again at `at`, or when an entry arrives."""

    at: float


class Idle:
    """Nothing to do until an entry arrives or an execution ends."""


Decision = Dispatch | WaitUntil | Idle
_IDLE = Idle()


class Policy(Protocol):
    def __init__(self, spec: BatchingSpec) -> None: ...

    def decide(self, view: QueueView, now: float) -> Decision: ...


class FairShare:
    """Take the queue's fair share of one instance, so that the others have work as soon as they are free.

    Measured on two cores: batches of everything that waits leave the other core idle at the end of every batch.
    """

    def __init__(self, spec: BatchingSpec) -> None:
        self._largest = spec.max_batch_size
        self._delay_seconds = spec.max_queue_delay_ms / 1000.0
        self._preferred = sorted(size for size in spec.preferred_batch_sizes if size <= spec.max_batch_size)

    def decide(self, view: QueueView, now: float) -> Decision:
        if view.waiting == 0 or view.free == 0:
            return _IDLE
        leave_at = view.oldest_at + self._delay_seconds
        if now < leave_at and view.waiting < self._largest:
            return WaitUntil(leave_at)
        return Dispatch(self._size(view))

    def _size(self, view: QueueView) -> int:
        if self._delay_seconds > 0:  # waiting was asked for to fill batches: do not split them up again
            share = view.waiting
        else:
            share = math.ceil(view.waiting / view.instances)
        size = min(share, self._largest)
        fitting = [preferred for preferred in self._preferred if preferred <= size]
        return fitting[-1] if fitting else size


POLICIES: dict[str, type[Policy]] = {"fair_share": FairShare}
