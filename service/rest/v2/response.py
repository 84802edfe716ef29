"""An infer answer of the Open Inference Protocol: its JSON, and the raw tensors behind it.

As strict as the strictest client: data is flat, an output has `parameters` only where it is binary.
"""

from typing import Any, NamedTuple

import numpy as np
import orjson

from service.errors import InvalidTensor, NonFiniteOutput
from service.rest.v2.datatypes import NAME_OF, array_of_elements, bytes_of_array
from service.rest.v2.request import InferBody, WantedOutput
from service.tensors import Array, TensorResult

_MOST_CLASSIFIED = 1_000_000  # elements of the output; sorting them is the event loop's work


class InferAnswer(NamedTuple):
    """`header_length` is how much of `body` is JSON; None where all of it is."""

    body: bytes
    header_length: int | None


def render(result: TensorResult, asked: InferBody) -> InferAnswer:
    """The 200 of an infer request. Raises InvalidTensor, NonFiniteOutput."""
    wanted = asked.outputs or tuple(WantedOutput(spec.name, None, 0) for spec in result.signature.outputs)
    outputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for one in wanted:
        array = result.outputs[one.name]
        if one.classes:
            array = classified(result, one)
        output: dict[str, Any] = {
            "name": one.name,
            "datatype": NAME_OF[array.dtype.name],
            "shape": list(array.shape),
        }
        if asked.binary_outputs if one.binary is None else one.binary:
            data = bytes_of_array(array)
            output["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        else:
            output["data"] = _json_data(array, one.name)
        outputs.append(output)
    answer: dict[str, Any] = {"model_name": result.model, "model_version": str(result.version)}
    if asked.id:
        answer["id"] = asked.id
    answer["outputs"] = outputs
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    if not any(tail):
        return InferAnswer(head, None)
    return InferAnswer(b"".join([head, *tail]), len(head))


def _json_data(array: Array, name: str) -> Any:
    if array.dtype == object:
        elements = array.ravel().tolist()
        try:
            return [element.decode() if isinstance(element, bytes) else element for element in elements]
        except UnicodeDecodeError:
            raise InvalidTensor(f"Output {name!r} holds bytes that are no text; ask for it as binary data.") from None
    if array.dtype == np.float16:
        raise InvalidTensor(f"Output {name!r}: FP16 has no JSON form; ask for it as binary data.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise NonFiniteOutput(f"Output {name!r} holds a value that is not finite; ask for it as binary data.")
    return np.ascontiguousarray(array).reshape(-1)


def classified(result: TensorResult, one: WantedOutput) -> Array:
    """The extension "classification": the largest values as "value:index[:label]", best first, ties by index."""
    array = result.outputs[one.name]
    if array.dtype.kind not in "iuf" or array.dtype == np.float16:
        raise InvalidTensor(f"Output {one.name!r} is {NAME_OF[array.dtype.name]}, which cannot be classified.")
    if array.size > _MOST_CLASSIFIED:
        raise InvalidTensor(f"Output {one.name!r} has more than {_MOST_CLASSIFIED:,} values to classify.")
    rows = array.reshape(len(array) if result.rows else 1, -1)
    classes = min(one.classes, rows.shape[1])
    labels = result.labels if one.name == result.labelled and len(result.labels) == rows.shape[1] else ()
    descending = -rows.astype(np.float64) if rows.dtype.kind == "f" else -rows.astype(object)
    best = np.argsort(descending, axis=1, kind="stable")[:, :classes]
    form = "{:.6f}" if rows.dtype.kind == "f" else "{}"
    elements = [
        ":".join([form.format(row[index]), str(index), *labels[index : index + 1]]).encode()
        for row, indices in zip(rows, best.tolist(), strict=True)
        for index in indices
    ]
    return array_of_elements(elements, one.name, (len(rows), classes) if result.rows else (classes,))
