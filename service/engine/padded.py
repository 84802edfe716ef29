"""PaddedEngine: another engine, shown batches of a few sizes only.

A device's libraries choose an algorithm, and ONNX Runtime an arena, for each shape that they see: with every size from
1 to 32 the first minutes are slow and the memory grows. So a batch is filled up with zeros to the next size, and what
comes of them is cut off. On a CPU that would be work for nothing. Knows no provider.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from service.engine.base import Engine, ProviderInfo, Tensor, TensorSpec


def bucket_sizes(largest: int) -> list[int]:
    """1, 2, 4 ... and `largest`."""
    return sorted({*(1 << power for power in range(largest.bit_length())), largest})


class PaddedEngine:
    """`engine`, of whose inputs and of whose `with_rows` outputs the first dimension counts rows, for all the same.

    A batch larger than the largest of `sizes` runs as it is.
    """

    def __init__(self, engine: Engine, with_rows: Sequence[int], sizes: Sequence[int]) -> None:
        self._engine = engine
        self._with_rows = frozenset(with_rows)
        self._sizes = sorted(sizes)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._engine.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._engine.outputs

    @property
    def provider(self) -> ProviderInfo:
        return self._engine.provider

    def run(self, feeds: Mapping[str, Tensor]) -> list[Tensor]:
        rows = len(next(iter(feeds.values())))
        size = next((size for size in self._sizes if size >= rows), rows)
        if size == rows:
            return self._engine.run(feeds)
        outputs = self._engine.run({name: _filled_up(array, size) for name, array in feeds.items()})
        return [output[:rows] if place in self._with_rows else output for place, output in enumerate(outputs)]

    def shrink(self, feeds: Mapping[str, Tensor]) -> None:
        self._engine.shrink(feeds)

    def terminate(self) -> None:
        self._engine.terminate()

    def close(self) -> None:
        self._engine.close()


def _filled_up(array: Tensor, size: int) -> Tensor:
    filled = np.zeros((size, *array.shape[1:]), array.dtype)
    filled[: len(array)] = array
    return filled
