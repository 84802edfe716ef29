"""A model's tensors and a request's: what fits a model, and how a request becomes the rows that batches are made of.

Names, dtypes (numpy's names; "object" for strings) and shapes only: knows no protocol and no engine in action.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy.typing as npt

from service.engine.base import TensorSpec
from service.errors import InvalidTensor
from service.messages import ImagePayload, ModelRef, Timings

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """What a version takes and gives, in the graph's order.

    `is_batched`: the first dimension of every tensor counts rows, so that rows of several requests may run together;
    otherwise a request runs alone, as it is. `image_tensor` is the input that encoded images can feed too.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    is_batched: bool
    image_tensor: str | None = None

    @property
    def is_fixed(self) -> bool:
        """Whether every row has one and the same shape."""
        return self.is_batched and not any(-1 in spec.shape[1:] for spec in self.inputs)

    def shown(self, spec: TensorSpec) -> tuple[int, ...]:
        """A tensor's shape as clients are told: -1 where it varies, and for the rows of a request."""
        return (-1, *spec.shape[1:]) if self.is_batched else spec.shape


class TensorItem(NamedTuple):
    """Row `row` of a request's tensors, in the graph's order; all of them where `row` is None.

    `shapes` are the shapes of one row: items can be stacked where they are equal.
    """

    tensors: tuple[Array, ...]
    row: int | None
    shapes: Shapes


@dataclass(frozen=True, slots=True)
class TensorRequest:
    """Tensors, or encoded images, whose raw outputs are wanted.

    `read` makes them of the request's body once it is known which version answers, as some protocols name neither
    dtype nor input. It raises InvalidTensor. `deadline_at` is absolute.
    """

    ref: ModelRef
    read: Callable[[Signature], Tensors | tuple[ImagePayload, ...]]
    deadline_at: float


@dataclass(frozen=True, slots=True)
class TensorResult:
    """The graph's own outputs by name, no activation added; `rows` is 0 where the model has no rows.

    `labels`, where there are any, name the places of the output `labelled`.
    """

    model: str
    version: int
    signature: Signature
    outputs: dict[str, Array]
    rows: int
    timings: Timings
    labels: tuple[str, ...]
    labelled: str


def signature_of(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], image_tensor: str | None = None
) -> Signature:
    """By Triton's rule: rows can be told apart where the first dimension of every input and output is open.

    Where the graph names these dimensions they must have one name. A graph fed with images has rows by definition;
    of its outputs those are shown that have them too.
    """
    if image_tensor is not None:
        with_rows = tuple(spec for spec in outputs if spec.shape and spec.shape[0] in (-1, inputs[0].shape[0]))
        return Signature(tuple(inputs), with_rows, True, image_tensor)
    tensors = (*inputs, *outputs)
    is_open = all(spec.shape and spec.shape[0] == -1 for spec in tensors)
    has_one_name = len({spec.rows for spec in tensors if spec.rows}) <= 1
    return Signature(tuple(inputs), tuple(outputs), is_open and has_one_name)


def items_of(signature: Signature, tensors: Tensors, max_rows: int) -> list[TensorItem]:
    """The rows of a request, checked against the model. Raises InvalidTensor."""
    known = {spec.name for spec in signature.inputs}
    for name in tensors:
        if name not in known:
            raise InvalidTensor(f"There is no input {name[:128]!r}; the model has {_listed(known)}.")
    arrays = []
    for spec in signature.inputs:
        if spec.name not in tensors:
            raise InvalidTensor(f"Input {spec.name!r} is missing.")
        array = tensors[spec.name]
        _check(signature, spec, array)
        arrays.append(array)
    feeds = tuple(arrays)
    if not signature.is_batched:
        return [TensorItem(feeds, None, tuple(array.shape for array in feeds))]
    rows = len(feeds[0])
    if any(len(array) != rows for array in feeds):
        raise InvalidTensor(f"The inputs have different numbers of rows: {[len(array) for array in feeds]}.")
    if not 1 <= rows <= max_rows:
        raise InvalidTensor(f"{rows} rows; a request has 1 to {max_rows}.")
    shapes = tuple(array.shape[1:] for array in feeds)
    return [TensorItem(feeds, row, shapes) for row in range(rows)]


def _check(signature: Signature, spec: TensorSpec, array: Array) -> None:
    if array.dtype.name != spec.dtype:
        raise InvalidTensor(f"Input {spec.name!r} is {array.dtype.name}; the model takes {spec.dtype}.")
    wanted = signature.shown(spec)
    fits = len(array.shape) == len(wanted) and all(
        one in (-1, other) for one, other in zip(wanted, array.shape, strict=True)
    )
    if not fits:
        raise InvalidTensor(f"Input {spec.name!r} has shape {list(array.shape)[:16]}; the model takes {list(wanted)}.")


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)[:16]) or "none"
