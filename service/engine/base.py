"""What an engine is: a loaded graph that turns named input arrays into output arrays.

A second engine implements `Engine` in a module of its own and passes the engine suite.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy.typing as npt

Tensor = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph. `shape` includes the batch dimension; -1 where it varies.

    `rows` is the graph's name for an open first dimension, where it has one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    rows: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class ProviderInfo:
    """The execution provider really in use, and why it is not the preferred one where it is not."""

    name: str
    fallback_reason: str | None = None


class Engine(Protocol):
    """Thread-safe: several threads may `run` at once. `close` only after the last `run` has returned."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def provider(self) -> ProviderInfo: ...

    def run(self, feeds: Mapping[str, Tensor]) -> list[Tensor]:
        """One execution over all outputs, in graph order. Raises EngineFailed, or MemoryError.

        EngineRefusedInput where the engine can tell that it is the input's fault.
        """
        ...

    def shrink(self, feeds: Mapping[str, Tensor]) -> None:
        """One more execution, after which memory that only larger ones needed is given back."""
        ...

    def terminate(self) -> None:
        """Ask every `run` under way to end: it raises EngineFailed as soon as the engine looks. From any thread."""
        ...

    def close(self) -> None: ...
