"""Finding the batch size that pays, with an engine whose executions take what the test says."""

import math

import numpy as np
import pytest

from service.batching.paying import paying_batch_size
from service.batching.spec import BatchingSpec
from service.engine.base import ProviderInfo, Tensor, TensorSpec
from service.imaging.spec import InputSpec
from service.loading import LoadedParts, time_batches
from service.manifest import ModelSpec
from service.tasks import TASKS, TaskSpec
from tests.support.puppets import PuppetEngine


class Timed:
    """A loaded version whose executions take `milliseconds` of `clock` by size."""

    def __init__(self, milliseconds: dict[int, float]) -> None:
        self.now = 0.0
        self.milliseconds = milliseconds
        self.slower_from = math.inf
        image = TensorSpec("image", "float32", (-1, 3, 8, 8))
        self.engine = PuppetEngine([image], [TensorSpec("scores", "float32", (-1, 3))], self._run)
        task = TaskSpec(("red", "green", "blue"), "none")
        spec = ModelSpec("multiclass", task, InputSpec("image", (8, 8)), "scores", BatchingSpec())
        self.parts = LoadedParts(spec, self.engine, TASKS["multiclass"](task), None, "0" * 64, 1, math.inf)

    def _run(self, rows: Tensor) -> Tensor:
        self.now += self.milliseconds[len(rows)] / 1000.0 * (1.5 if self.now >= self.slower_from else 1.0)
        return np.zeros((len(rows), 3), np.float32)

    def time(self, *sizes: int) -> dict[int, float]:
        seconds = time_batches(self.parts, sizes, lambda: self.now)
        return {size: round(value * 1000.0, 6) for size, value in seconds.items()}


@pytest.mark.parametrize(
    ("milliseconds", "tried"),
    [
        ({2: 10.0, 4: 22.5, 8: 40.0}, [2, 4]),  # a real network on a CPU: larger batches cost memory and gain nothing
        ({2: 0.2, 4: 0.3, 8: 0.5}, [2, 4, 8]),
        ({2: 130.0, 4: 240.0, 8: 470.0}, [2, 4]),  # the time is up
    ],
)
def test_larger_batches_are_tried_while_they_pay(milliseconds: dict[int, float], tried: list[int]) -> None:
    timed = Timed(milliseconds)
    assert timed.time(2, 4, 8) == {size: milliseconds[size] for size in tried}
    assert sorted(set(timed.engine.sizes)) == tried


@pytest.mark.parametrize(("provider", "tried"), [("cpu", [2, 4, 8, 16]), ("cuda", [2, 4, 8, 16, 32])])
def test_only_what_the_event_loop_may_run_is_kept_short(provider: str, tried: list[int]) -> None:
    timed = Timed({2: 1.0, 4: 1.2, 8: 1.6, 16: 2.8, 32: 5.4})
    timed.engine.provider = ProviderInfo(provider)
    assert list(timed.time(2, 4, 8, 16, 32)) == tried


@pytest.mark.parametrize("slower_from", [0.0, 0.0006, 0.0012, 0.003, 0.005])
def test_a_machine_that_becomes_slower_meanwhile_does_not_decide(slower_from: float) -> None:
    timed = Timed({2: 0.2, 4: 0.36, 8: 0.64, 16: 1.7})
    timed.slower_from = slower_from
    seconds = timed.time(2, 4, 8, 16)
    assert sorted(seconds) == [2, 4, 8, 16]
    assert paying_batch_size(seconds, 0.0) == 8


def test_a_size_that_is_the_only_one_is_timed_however_long_it_takes() -> None:
    assert Timed({4: 5000.0}).time(4) == {4: 5000.0}
