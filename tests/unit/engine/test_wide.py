"""One graph in two sessions: which of them runs what."""

from collections.abc import Mapping

import numpy as np
import pytest

from service.engine.base import ProviderInfo, Tensor, TensorSpec
from service.engine.wide import WideEngine


class Noting:
    """An engine that notes what it was asked."""

    inputs = (TensorSpec("x", "float32", (-1, 2)),)
    outputs = (TensorSpec("y", "float32", (-1, 2)),)
    provider = ProviderInfo("cpu")

    def __init__(self) -> None:
        self.asked: list[str] = []

    def run(self, feeds: Mapping[str, Tensor]) -> list[Tensor]:
        self.asked.append("run")
        return [feeds["x"]]

    def shrink(self, feeds: Mapping[str, Tensor]) -> None:
        self.asked.append("shrink")

    def terminate(self) -> None:
        self.asked.append("terminate")

    def close(self) -> None:
        self.asked.append("close")


@pytest.mark.parametrize(("rows", "is_alone", "is_wide"), [(1, True, True), (1, False, False), (2, True, False)])
def test_only_a_single_row_that_is_alone_runs_wide(rows: int, is_alone: bool, is_wide: bool) -> None:
    narrow, wide = Noting(), Noting()
    WideEngine(narrow, wide, lambda: is_alone).run({"x": np.zeros((rows, 2), np.float32)})
    assert (wide if is_wide else narrow).asked == ["run"]
    assert (narrow if is_wide else wide).asked == []


def test_whatever_else_is_asked_concerns_both() -> None:
    narrow, wide = Noting(), Noting()
    engine = WideEngine(narrow, wide, lambda: True)
    engine.shrink({"x": np.zeros((1, 2), np.float32)})
    engine.terminate()
    engine.close()
    assert narrow.asked == wide.asked == ["shrink", "terminate", "close"]
