"""A monotonic clock in the test's hand, with the timers of an event loop on it. Nothing moves unless told to."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest


class Timer:
    """What `call_later` returns: as much of asyncio.TimerHandle as our code uses."""

    def __init__(self, due_at: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.due_at = due_at
        self.is_cancelled = False
        self._callback = callback
        self._args = args

    def cancel(self) -> None:
        self.is_cancelled = True

    def fire(self) -> None:
        self._callback(*self._args)


class FakeClock:
    """Call it for the time in seconds; `advance` moves it and fires the timers that come due, each at its moment."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self._timers: list[Timer] = []

    def __call__(self) -> float:
        return self.now

    @property
    def timers(self) -> list[float]:
        """When the timers that are still set are due, soonest first."""
        return sorted(timer.due_at for timer in self._timers if not timer.is_cancelled)

    def take_timers_of(self, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        """From now on `loop.call_later` sets its timers on this clock. (`asyncio.timeout` uses `call_at`.)"""
        monkeypatch.setattr(loop, "call_later", self.call_later)

    def call_later(
        self, delay_seconds: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Timer:
        timer = Timer(self.now + delay_seconds, callback, args)
        self._timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        end_at = self.now + seconds
        while True:
            self._timers = [timer for timer in self._timers if not timer.is_cancelled]
            due = min(self._timers, key=lambda timer: timer.due_at, default=None)
            if due is None or due.due_at > end_at:
                break
            self._timers.remove(due)
            self.now = max(self.now, due.due_at)
            due.fire()
        self.now = end_at
