"""Counts and durations of each version since the process began, as the Open Inference Protocol reports them.

They only grow: a version loaded again goes on where it was, as clients subtract two readings. Event loop only.
"""

import time
from typing import NamedTuple

from service.messages import Timings

_MOST_VERSIONS = 1000


class Execution(NamedTuple):
    """One engine call: its rows, and the seconds of filling its input, running it and finishing its answers."""

    size: int
    input_seconds: float
    infer_seconds: float
    output_seconds: float


class Duration:
    """How often, and how long in all. Added to with every request, read now and then: whole numbers are made there."""

    __slots__ = ("count", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        if seconds > 0:
            self.seconds += seconds

    @property
    def nanoseconds(self) -> int:
        return int(self.seconds * 1e9)


class BatchDurations:
    """Of the executions of one size."""

    __slots__ = ("infer", "input", "output")

    def __init__(self) -> None:
        self.input, self.infer, self.output = Duration(), Duration(), Duration()


class VersionStatistics:
    """One version. Of a request the row answered last counts, with the whole execution it was in.

    So the stages of a request add up to no more than the request.
    """

    def __init__(self) -> None:
        self.inferences = 0
        self.executions = 0
        self.last_inference_ms = 0
        self.success, self.fail, self.queue = Duration(), Duration(), Duration()
        self.input, self.infer, self.output = Duration(), Duration(), Duration()
        self.batches: dict[int, BatchDurations] = {}

    def executed(self, execution: Execution) -> None:
        self.inferences += execution.size
        self.executions += 1
        self.last_inference_ms = int(time.time() * 1000)
        batch = self.batches.get(execution.size)
        if batch is None:
            batch = self.batches[execution.size] = BatchDurations()
        batch.input.add(execution.input_seconds)
        batch.infer.add(execution.infer_seconds)
        batch.output.add(execution.output_seconds)

    def succeeded(self, seconds: float, timings: Timings, output_seconds: float) -> None:
        """A request was answered after `seconds`; `output_seconds` from the end of its last execution on."""
        self.success.add(seconds)
        self.queue.add(timings.queue_seconds)
        self.input.add(timings.decode_seconds)
        self.infer.add(timings.infer_seconds)
        self.output.add(output_seconds)

    def failed(self, seconds: float) -> None:
        self.fail.add(seconds)


class Statistics:
    """Of every version that was loaded, up to a number that only a machine loads by."""

    def __init__(self) -> None:
        self._versions: dict[tuple[str, int], VersionStatistics] = {}

    def of(self, model: str, version: int) -> VersionStatistics:
        """To be kept by the version for as long as it is loaded."""
        known = self._versions.pop((model, version), None) or VersionStatistics()
        self._versions[model, version] = known
        if len(self._versions) > _MOST_VERSIONS:
            del self._versions[next(iter(self._versions))]
        return known
