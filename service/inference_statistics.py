"""Counts and durations of each version since the process began, as the Open Inference Protocol reports them.

They only grow: a version loaded again goes on where it was, as clients subtract two readings. Event loop only.
"""

import time
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakValueDictionary

from service.messages import Timings

_GONE_VERSIONS_KEPT = 16


class Execution(NamedTuple):
    """One engine call: its rows, and the seconds of filling its input, running it and finishing its answers."""

    size: int
    input_seconds: float
    infer_seconds: float
    output_seconds: float


@dataclass(frozen=True, slots=True)
class Duration:
    """How often, and how long in all."""

    count: int = 0
    seconds: float = 0.0

    @property
    def nanoseconds(self) -> int:
        return int(self.seconds * 1e9)


class Durations:
    """Of everything that was done equally often: whole requests, or the executions of one size.

    Moved by every request and read now and then, so it is sums here and a `Duration` where it is read.
    """

    __slots__ = ("_infer", "_input", "_output", "_queue", "_whole", "count")

    def __init__(self) -> None:
        self.count = 0
        self._whole = self._queue = self._input = self._infer = self._output = 0.0

    def add(self, whole: float, queue: float, filling: float, infer: float, output: float) -> None:
        """Seconds. What is after a sum of others may be less than nothing, by a float's last bit."""
        self.count += 1
        self._whole += whole
        self._queue += queue
        self._input += filling
        self._infer += infer
        if output > 0:
            self._output += output

    @property
    def whole(self) -> Duration:
        return Duration(self.count, self._whole)

    @property
    def queue(self) -> Duration:
        return Duration(self.count, self._queue)

    @property
    def input(self) -> Duration:
        return Duration(self.count, self._input)

    @property
    def infer(self) -> Duration:
        return Duration(self.count, self._infer)

    @property
    def output(self) -> Duration:
        return Duration(self.count, self._output)


class VersionStatistics:
    """One version. Of a request the row answered last counts, with the whole execution it was in.

    So the stages of a request add up to no more than the request.
    """

    def __init__(self) -> None:
        self.inferences = 0
        self.executions = 0
        self.last_inference_ms = 0
        self.requests = Durations()  # that were answered
        self.batches: dict[int, Durations] = {}  # by size
        self.fail = Duration()

    def executed(self, execution: Execution) -> None:
        self.inferences += execution.size
        self.executions += 1
        self.last_inference_ms = int(time.time() * 1000)
        batch = self.batches.get(execution.size)
        if batch is None:
            batch = self.batches[execution.size] = Durations()
        batch.add(0.0, 0.0, execution.input_seconds, execution.infer_seconds, execution.output_seconds)

    def succeeded(self, seconds: float, timings: Timings, output_seconds: float) -> None:
        """A request was answered after `seconds`; `output_seconds` from the end of its last execution on."""
        decode_seconds, queue_seconds, infer_seconds = timings
        self.requests.add(seconds, queue_seconds, decode_seconds, infer_seconds, output_seconds)

    def failed(self, seconds: float) -> None:
        self.fail = Duration(self.fail.count + 1, self.fail.seconds + max(0.0, seconds))


class Statistics:
    """Of the versions in service, each of which holds its own, and of the last few that went."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[tuple[str, int], VersionStatistics] = WeakValueDictionary()
        self._gone: deque[VersionStatistics] = deque(maxlen=_GONE_VERSIONS_KEPT)

    def of(self, model: str, version: int) -> VersionStatistics:
        """To be held by the version for as long as it is loaded."""
        return self._known.setdefault((model, version), VersionStatistics())

    def gone(self, statistics: VersionStatistics) -> None:
        """A version that held these was unloaded."""
        self._gone.append(statistics)
