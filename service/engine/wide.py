"""WideEngine: one graph in two sessions, narrow for busy times and wide for a row that is alone.

On a CPU runs side by side on one thread each do the most work, but a request that is alone is answered sooner when all
CPUs share it. No session can be both. Knows no lane: it is told what alone means.
"""

from collections.abc import Callable, Mapping

from service.engine.base import Engine, ProviderInfo, Tensor, TensorSpec


class WideEngine:
    """`narrow`, but for a single row while `is_alone`, which runs in `wide`. Both hold the same graph."""

    def __init__(self, narrow: Engine, wide: Engine, is_alone: Callable[[], bool]) -> None:
        self._narrow = narrow
        self._wide = wide
        self._is_alone = is_alone

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._narrow.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._narrow.outputs

    @property
    def provider(self) -> ProviderInfo:
        return self._narrow.provider

    def run(self, feeds: Mapping[str, Tensor]) -> list[Tensor]:
        is_one = len(next(iter(feeds.values()))) == 1
        return (self._wide if is_one and self._is_alone() else self._narrow).run(feeds)

    def shrink(self, feeds: Mapping[str, Tensor]) -> None:
        for engine in (self._narrow, self._wide):
            engine.shrink(feeds)

    def terminate(self) -> None:
        for engine in (self._narrow, self._wide):
            engine.terminate()

    def close(self) -> None:
        for engine in (self._narrow, self._wide):
            engine.close()
