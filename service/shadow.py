"""Shadows: a version that answers nobody runs what the stable one just ran, and the two are compared.

A stable version with a shadow shows each of its executions to a `Shadow` (its `tap`), which keeps a few of them. One is
run when no request is in flight, on a thread with the kernel's idle priority, which loses its CPU the moment somebody
wants one: so no answer waits for it. What comes while a few are waiting is left out. As that thread may lose its CPU
with Python's lock in its hands, for which everybody then waits, it does nothing but run the model, where the lock is
let go; the event loop says when, and counts.

Where both versions want their pixels the same way the shadow runs the very tensors that the stable one ran. Otherwise
it decodes the images again. Kept of an image are two labels, two scores and the id of its request.
"""

import asyncio
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, NamedTuple

from service.admission import Admission
from service.errors import FoveaError, ModelNotFound, ModelNotReady
from service.messages import ModelRef
from service.metrics import Metrics
from service.model import ImageItem, Item, LoadedModel
from service.repository.manager import ModelRepository
from service.tensors import Array, Tensors

logger = logging.getLogger(__name__)

_MOST_WAITING = 4  # executions: for a large network 20 MB of tensors
_EXAMPLES = 20


class Best(NamedTuple):
    """The best prediction of one image."""

    label: str
    score: float


class Disagreement(NamedTuple):
    """An image that the two versions call differently."""

    request_id: str | None
    stable: Best
    shadow: Best


@dataclass(slots=True)
class Comparison:
    """What has been seen so far. Event loop only, but for `left_out`, which execution threads add to."""

    rows: int = 0
    agreed: int = 0
    failed: int = 0
    left_out: int = 0
    score_difference: float = 0.0
    stable_seconds: float = 0.0
    shadow_seconds: float = 0.0
    examples: deque[Disagreement] = field(default_factory=lambda: deque(maxlen=_EXAMPLES))


class _Execution(NamedTuple):
    feeds: Tensors
    raw: Array
    items: Sequence[Item]
    cpu_seconds: float


class Shadow:
    """One version shadowing another of the same model. `stop` returns at once; `stopped` says when its thread ended."""

    def __init__(
        self, stable: LoadedModel, shadow: LoadedModel, percent: float, metrics: Metrics, admission: Admission
    ) -> None:
        self.stable = stable
        self.shadow = shadow
        self.percent = percent
        self.comparison = Comparison()
        self.stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._metrics = metrics.shadow_of(shadow.name, shadow.version)
        self._admission = admission
        self._waiting: deque[_Execution] = deque()
        self._is_running = False
        self._to_run: SimpleQueue[_Execution | None] = SimpleQueue()  # without a lock that an idle thread could sit on
        self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
        self._thread.start()
        stable.tap = self

    def offer(self, feeds: Tensors, raw: Array, items: Sequence[Item], cpu_seconds: float) -> None:
        """An execution of the stable version, where it ran."""
        if random.random() * 100.0 >= self.percent:  # noqa: S311  # which ones are compared is no secret
            return
        if len(self._waiting) >= _MOST_WAITING:
            self.comparison.left_out += len(items)
            self._metrics.rows("left_out", len(items))
        else:
            self._waiting.append(_Execution(feeds, raw, items, cpu_seconds))
            self._tell(self.begin)

    def stop(self) -> None:
        """Take nothing more, and end after the execution under way."""
        if self.stable.tap is self:
            self.stable.tap = None
        self._waiting.clear()
        self._to_run.put(None)

    def begin(self) -> None:
        """Run the next execution, where one waits and nobody is served. Event loop only."""
        if self._waiting and not self._is_running and not self._admission.requests:
            self._is_running = True
            self._to_run.put(self._waiting.popleft())

    def _work(self) -> None:
        _give_way()
        try:
            while (execution := self._to_run.get()) is not None:
                self._run(execution)
        finally:
            self._tell(_done, self.stopped)

    def _tell(self, callback: Callable[..., None], *arguments: Any) -> None:
        loop = self.stopped.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(callback, *arguments)

    def _run(self, execution: _Execution) -> None:
        try:
            began_at = time.thread_time()
            raw = self.shadow.run_again(execution.feeds, execution.items, self.stable)
            self._tell(self._ended, execution, raw, time.thread_time() - began_at)
        except Exception as error:  # noqa: BLE001  # whatever it is, it concerns no caller
            self._tell(self._ended, execution, error)

    def _ended(self, execution: _Execution, outcome: Array | Exception, seconds: float = 0.0) -> None:
        """Count what became of an execution, and begin the next, whatever came of this one."""
        if isinstance(outcome, Exception):
            self._failed(execution, outcome)
        else:
            try:
                ours, theirs = self.stable.scores(execution.raw), self.shadow.scores(outcome)
                self._count(execution, ours, theirs, seconds)
            except Exception as error:  # noqa: BLE001  # as above
                self._failed(execution, error)
        self._is_running = False
        self.begin()

    def _failed(self, execution: _Execution, error: Exception) -> None:
        rows = len(execution.items)
        self.comparison.failed += rows
        self._metrics.rows("failed", rows)
        reason = str(error) if isinstance(error, FoveaError) else type(error).__name__
        logger.warning("shadow_failed", extra={"model": self.shadow.name, "reason": reason[:300]})

    def _count(self, execution: _Execution, ours: Array, theirs: Array, seconds: float) -> None:
        place_of = {label: place for place, label in enumerate(self.shadow.labels)}
        seen = self.comparison
        agreed = 0
        for item, mine, other in zip(execution.items, ours, theirs, strict=True):
            best, other_best = int(mine.argmax()), int(other.argmax())
            label, other_label = self.stable.labels[best], self.shadow.labels[other_best]
            place = place_of.get(label)
            difference = abs(float(mine[best]) - (float(other[place]) if place is not None else 0.0))
            seen.score_difference += difference
            self._metrics.score_difference(difference)
            agreed += label == other_label
            if label != other_label:
                request_id = item.request_id if isinstance(item, ImageItem) else None
                both = Best(label, float(mine[best])), Best(other_label, float(other[other_best]))
                seen.examples.append(Disagreement(request_id, *both))
        seen.agreed += agreed
        seen.rows += len(execution.items)
        seen.stable_seconds += execution.cpu_seconds
        seen.shadow_seconds += seconds
        self._metrics.rows("agreed", agreed)
        self._metrics.rows("disagreed", len(execution.items) - agreed)
        self._metrics.executed(execution.cpu_seconds, seconds)


class Shadows:
    """Every shadow of a server: keeps them as the repository's roles say. Event loop only."""

    def __init__(self, metrics: Metrics, admission: Admission) -> None:
        self._metrics = metrics
        self._admission = admission
        self._shadows: dict[str, Shadow] = {}
        admission.on_idle = self._begin

    def follow(self, repository: ModelRepository[LoadedModel], name: str) -> None:
        """Start, change or end the shadow of a model. The shadow holds a lease on its version until it has stopped."""
        roles = repository.rollout(name)
        held = ExitStack()
        stable = shadow = None
        if roles.shadow is not None and roles.stable is not None:
            try:
                _, stable = held.enter_context(repository.lease(ModelRef(name, roles.stable)))
                _, shadow = held.enter_context(repository.lease(ModelRef(name, roles.shadow.version)))
            except (ModelNotReady, ModelNotFound):  # out of service for the moment
                stable = shadow = None
        known = self._shadows.get(name)
        if known is not None and (known.stable, known.shadow) == (stable, shadow) and roles.shadow is not None:
            known.percent = roles.shadow.percent
            held.close()
            return
        if known is not None:
            known.stop()
            del self._shadows[name]
        if stable is None or shadow is None or roles.shadow is None:
            held.close()
            return
        started = self._shadows[name] = Shadow(stable, shadow, roles.shadow.percent, self._metrics, self._admission)
        started.stopped.add_done_callback(lambda _: held.close())

    def _begin(self) -> None:
        for shadow in self._shadows.values():
            shadow.begin()

    def comparison(self, name: str) -> Comparison | None:
        """What a model's shadow has seen; None where there is none."""
        shadow = self._shadows.get(name)
        return None if shadow is None else shadow.comparison


def _done(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _give_way() -> None:
    """Idle priority for this thread, or the lowest there is. Where neither may be set it runs as all others do."""
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):  # not Linux, or a sandbox that forbids it
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        except (AttributeError, OSError):
            logger.warning("shadow_without_priority")
