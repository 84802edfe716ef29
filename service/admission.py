"""Bounded work in flight: how many requests, and how many bytes of body they hold.

The first of the two bounded places a request meets (the other is its model's queue). Lives on the event loop;
not thread-safe. Knows no model.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import Draining, Overloaded


class Slot:
    """One admitted request's share of the bounds. `grow` is called as body bytes arrive."""

    __slots__ = ("_admission", "held_bytes")

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self.held_bytes = 0

    def grow(self, nbytes: int) -> None:
        """Account for `nbytes` more. Raises Overloaded where the whole server would hold too much."""
        self._admission.take_bytes(nbytes)
        self.held_bytes += nbytes


class Admission:
    """Counts requests and body bytes in flight and refuses what goes over."""

    def __init__(self, *, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._closed = False
        self.requests = 0
        self.bytes = 0

    def close(self) -> None:
        """Refuse everything from now on."""
        self._closed = True

    @contextmanager
    def slot(self) -> Iterator[Slot]:
        """Hold a place for one request. Raises Draining or Overloaded."""
        if self._closed:
            raise Draining
        if self.requests >= self._max_requests:
            raise Overloaded(
                "Too many requests in flight; try again shortly.", reason="inflight_requests", retry_after_seconds=1
            )
        slot = Slot(self)
        self.requests += 1
        try:
            yield slot
        finally:
            self.requests -= 1
            self.bytes -= slot.held_bytes

    def take_bytes(self, nbytes: int) -> None:
        if self.bytes + nbytes > self._max_bytes:
            raise Overloaded(
                "Too many bytes of images in flight; try again shortly.", reason="inflight_bytes", retry_after_seconds=2
            )
        self.bytes += nbytes
