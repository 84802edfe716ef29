"""Bounded work in flight: how many requests, and how many bytes of body they hold.

The first of the two bounded places a request meets (the other is its model's queue). Lives on the event loop;
not thread-safe. Knows no model.
"""

from collections.abc import Callable
from types import TracebackType

from service.errors import Draining, Overloaded

LOW_PRIORITY = 0.5  # of every bound: the other half is kept for requests that are not to be shed first


class Slot:
    """One request's share of the bounds, held for the length of a `with` block. `grow` is called as bytes arrive.

    Entering raises Draining or Overloaded. A class, as a generator would cost a request four times as much.
    """

    __slots__ = ("_admission", "held_bytes", "share")

    def __init__(self, admission: "Admission", share: float) -> None:
        self._admission = admission
        self.share = share
        self.held_bytes = 0

    def __enter__(self) -> "Slot":
        self._admission.take_place(self.share)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._admission.requests -= 1
        self._admission.bytes -= self.held_bytes
        if not self._admission.requests:
            self._admission.on_idle()

    def grow(self, nbytes: int) -> None:
        """Account for `nbytes` more. Raises Overloaded where the whole server would hold too much."""
        self._admission.take_bytes(nbytes, self.share)
        self.held_bytes += nbytes


class Admission:
    """Counts requests and body bytes in flight and refuses what goes over."""

    def __init__(self, *, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._closed = False
        self.requests = 0
        self.bytes = 0
        self.on_idle: Callable[[], None] = lambda: None  # when the last request in flight has ended

    def close(self) -> None:
        """Refuse everything from now on."""
        self._closed = True

    def slot(self, share: float = 1.0) -> Slot:
        """A place for one request, to be entered; it may use this `share` of each bound."""
        return Slot(self, share)

    def take_place(self, share: float) -> None:
        if self._closed:
            raise Draining
        if self.requests >= self._max_requests * share:
            raise Overloaded(
                "Too many requests in flight; try again shortly.", reason="inflight_requests", retry_after_seconds=1
            )
        self.requests += 1

    def take_bytes(self, nbytes: int, share: float) -> None:
        if self.bytes + nbytes > self._max_bytes * share:
            raise Overloaded(
                "Too many bytes of images in flight; try again shortly.", reason="inflight_bytes", retry_after_seconds=2
            )
        self.bytes += nbytes
