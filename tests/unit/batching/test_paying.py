"""Which batch size pays, from timings."""

import math

import pytest

from service.batching.paying import paying_batch_size


@pytest.mark.parametrize(
    ("milliseconds", "size"),
    [
        ({2: 14.0, 4: 28.0, 8: 62.0}, 2),  # a real network on a CPU: no better in fours, worse in eights
        ({2: 0.10, 4: 0.12, 8: 0.17}, 8),  # a small one: the execution itself is what costs
        ({2: 14.0, 4: 33.0, 8: 70.0}, 2),
        ({2: 20.0, 4: 36.0, 8: 70.0}, 4),  # nearly as good is good enough
        ({1: 3.0}, 1),
    ],
)
def test_the_smallest_size_that_is_as_good_as_the_best_is_taken(milliseconds: dict[int, float], size: int) -> None:
    assert paying_batch_size({size: value / 1000.0 for size, value in milliseconds.items()}, 0.0) == size


@pytest.mark.parametrize(
    ("milliseconds", "size"),
    [
        ({2: 0.2, 4: 0.35, 8: 0.65, 16: 1.1, 32: 2.0}, 8),  # sixteens would be a little cheaper, and too long
        ({2: 0.05, 4: 0.06, 8: 0.08, 16: 0.13, 32: 0.24}, 32),
        ({2: 0.6, 4: 1.1, 8: 2.1}, 4),  # eights are too long: no such model, so the smallest that is good
        ({2: 0.8, 4: 1.6, 8: 3.2, 16: 6.4}, 4),  # nor this one, whose twos are short enough to look like one
    ],
)
def test_a_model_that_may_run_on_the_event_loop_keeps_its_batches_short(
    milliseconds: dict[int, float], size: int
) -> None:
    seconds_of = {size: value / 1000.0 for size, value in milliseconds.items()}
    assert paying_batch_size(seconds_of, 0.001) == size


def test_where_longer_batches_cost_nobody_anything_the_largest_good_one_is_taken() -> None:
    assert paying_batch_size({2: 0.014, 4: 0.028, 8: 0.057, 16: 0.14}, math.inf) == 8
