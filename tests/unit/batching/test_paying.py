"""Which batch size pays, from timings."""

import pytest

from service.batching.paying import paying_batch_size


@pytest.mark.parametrize(
    ("milliseconds", "size"),
    [
        ({2: 14.0, 4: 28.0, 8: 62.0}, 4),  # a real network on a CPU: as good in fours, worse in eights
        ({2: 0.10, 4: 0.12, 8: 0.17}, 8),  # a small one: the execution itself is what costs
        ({2: 14.0, 4: 33.0, 8: 70.0}, 2),
        ({2: 20.0, 4: 20.0 * 2 * 1.04}, 4),  # nearly as good is good enough
        ({1: 3.0}, 1),
    ],
)
def test_the_largest_size_that_is_as_good_as_the_best_is_taken(milliseconds: dict[int, float], size: int) -> None:
    assert paying_batch_size({size: value / 1000.0 for size, value in milliseconds.items()}) == size
