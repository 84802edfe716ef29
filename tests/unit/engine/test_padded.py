"""Batches of a few sizes only: what the engine behind sees, and what is cut off again."""

from collections.abc import Mapping

import numpy as np
import pytest

from service.engine.base import ProviderInfo, Tensor, TensorSpec
from service.engine.padded import PaddedEngine, bucket_sizes


class Doubling:
    """An engine that notes what it was fed; its second output counts no rows."""

    inputs = (TensorSpec("x", "float32", (-1, 2)),)
    outputs = (TensorSpec("y", "float32", (-1, 2)), TensorSpec("total", "float32", (1,)))
    provider = ProviderInfo("cuda")

    def __init__(self) -> None:
        self.fed: list[Tensor] = []

    def run(self, feeds: Mapping[str, Tensor]) -> list[Tensor]:
        self.fed.append(feeds["x"])
        return [feeds["x"] * 2, np.ones(1, np.float32)]

    def shrink(self, feeds: Mapping[str, Tensor]) -> None: ...

    def terminate(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, [1]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12]), (32, [1, 2, 4, 8, 16, 32])]
)
def test_sizes_double_up_to_the_largest(largest: int, sizes: list[int]) -> None:
    assert bucket_sizes(largest) == sizes


@pytest.mark.parametrize(("rows", "seen"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 9)])
def test_the_engine_sees_the_next_size_and_the_caller_its_own_rows(rows: int, seen: int) -> None:
    behind = Doubling()
    x = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    y, total = PaddedEngine(behind, [0], bucket_sizes(8)).run({"x": x})
    assert behind.fed[0].shape == (seen, 2)
    assert behind.fed[0].dtype == np.float32
    assert not behind.fed[0][rows:].any()
    np.testing.assert_array_equal(y, x * 2)
    assert total.shape == (1,), "counts no rows: nothing is cut off"


def test_a_batch_of_one_of_the_sizes_is_not_copied() -> None:
    behind = Doubling()
    x = np.ones((4, 2), np.float32)
    PaddedEngine(behind, [0], bucket_sizes(8)).run({"x": x})
    assert behind.fed[0] is x
