"""JSON bodies that hold tensors, strict and bounded.

Where simdjson has a wheel for this Python, numbers go from the document into an array at once, and only what stands
around them becomes Python values; elsewhere jiter reads the same through lists of numbers.
"""

import binascii
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import orjson

from service.errors import InvalidTensor, MalformedRequest
from service.tensors import Array

try:
    from service.rest import json_by_simdjson as parser
except ModuleNotFoundError:
    from service.rest import json_by_jiter as parser  # type: ignore[no-redef]

MAX_MEMBERS = 64  # of one object; the protocols know fewer than ten
MAX_RANK = 32  # numpy's own bound was 32 for decades; no network comes near
_NOT_NUMBERS = (b"NaN", b"Inf")
_UTF8_MARK = b"\xef\xbb\xbf"


def is_array(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether `value`, from a document, is an array of it."""
    return isinstance(value, parser.ARRAY)


def is_object(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether `value`, from a document, is an object of it."""
    return isinstance(value, parser.OBJECT)


def parse(body: memoryview) -> Any:
    """The object that a body is. Raises MalformedRequest. Its arrays and objects stay the parser's."""
    if body[:3] == _UTF8_MARK:
        raise MalformedRequest("The JSON begins with a byte order mark.")
    try:
        document = parser.parse(body)
    except UnicodeDecodeError:
        raise MalformedRequest("The JSON is not UTF-8.") from None
    except ValueError as error:
        reason = str(error) or "it is broken"
        if any(word in bytes(body) for word in _NOT_NUMBERS):  # perf_analyzer's random floats, for one
            reason += " It may be NaN or Infinity, which JSON has not: send binary tensors"
        raise MalformedRequest(f"The JSON cannot be read: {reason.rstrip('.')}.") from None
    if not is_object(document):
        raise MalformedRequest("The JSON is not an object.")
    return document


def members(found: Any, what: str) -> dict[str, Any]:
    """An object's members. Raises MalformedRequest where it is none, is large, or has a key twice or with a NUL."""
    if not is_object(found):
        raise MalformedRequest(f"{what} is not an object.")
    if len(found) > MAX_MEMBERS:
        raise MalformedRequest(f"{what} has more than {MAX_MEMBERS} members.")
    names = list(found.keys())
    if len(set(names)) != len(names):
        raise MalformedRequest(f"{what} has a key twice.")
    if any("\0" in name for name in names):  # simdjson would look for what stands before it
        raise MalformedRequest(f"{what} has a key with a NUL in it.")
    return {name: found[name] for name in names}


def array_of(data: Any, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
    """Numbers or booleans, flat or nested as `shape`, as an array of it. Raises InvalidTensor."""
    if not is_array(data):
        raise InvalidTensor(f"Input {name!r}: data is not an array.")
    if len(data) and is_array(data[0]):
        _check_nesting(data, shape, name)
    flat = _flat(data, name, np.dtype(dtype))
    if flat.size != math.prod(shape):
        raise InvalidTensor(f"Input {name!r}: {flat.size:,} values; its shape makes {math.prod(shape):,}.")
    return flat.reshape(shape)


def one(value: bool | int | float, name: str, dtype: str) -> Array:
    """A single number as an array without dimensions. Raises InvalidTensor."""
    try:
        text = orjson.dumps([value])
    except orjson.JSONEncodeError:  # of more than 64 bits
        raise InvalidTensor(f"Input {name!r}: data holds a number that is out of range for {dtype}.") from None
    return array_of(parser.parse(memoryview(text)), name, dtype, (1,)).reshape(())


def shape_of(data: Any) -> tuple[int, ...]:
    """How a nested array is nested, by the first element of each level."""
    shape: list[int] = []
    level = data
    while is_array(level):
        shape.append(len(level))
        if not shape[-1] or len(shape) > MAX_RANK:
            break
        level = level[0]
    return tuple(shape)


def scalars(data: Any, name: str) -> Iterator[Any]:
    """What stands in an array and in the arrays in it, in order. Raises InvalidTensor on too deep a nesting."""
    if not is_array(data):
        raise InvalidTensor(f"Input {name!r}: data is not an array.")
    pending = [iter(data)]
    while pending:
        for value in pending[-1]:
            if is_array(value):
                if len(pending) > MAX_RANK:
                    raise InvalidTensor(f"Input {name!r}: data is nested deeper than {MAX_RANK} levels.")
                pending.append(iter(value))
                break
            yield value
        else:
            pending.pop()


def from_base64(text: Any, what: str) -> bytes:
    """RFC 4648, strictly. Raises MalformedRequest."""
    if not isinstance(text, str) or text.endswith("==="):
        raise MalformedRequest(f"{what} is not base64 (RFC 4648).")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedRequest(f"{what} is not base64 (RFC 4648): {error}.") from None


def base64_member(value: Any) -> Any:
    """What stands under the one key of `{"b64": ...}`; None where `value` is something else."""
    return value["b64"] if is_object(value) and list(value.keys()) == ["b64"] else None


def _check_nesting(data: Any, shape: tuple[int, ...], name: str) -> None:
    level = [data]
    for place, size in enumerate(shape):
        if any(len(array) != size for array in level):
            break
        if place == len(shape) - 1:
            if level and size and is_array(level[0][0]):
                break
            return
        children: list[Any] = [child for array in level for child in array]
        if not all(is_array(child) for child in children):
            break
        level = children
    raise InvalidTensor(f"Input {name!r}: data is not nested as its shape says; send it so, or flat.")


def _flat(data: Any, name: str, dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "b":
        values = list(scalars(data, name))
        if not all(isinstance(value, bool) for value in values):
            raise InvalidTensor(f"Input {name!r}: data holds something other than true and false.")
        return np.array(values, dtype)
    try:
        numbers = parser.numbers(data, dtype.kind)
    except (TypeError, ValueError):
        raise InvalidTensor(f"Input {name!r}: data holds something that is no {dtype.name}.") from None
    if dtype.kind != "f" and numbers.size:
        bounds = np.iinfo(dtype)
        if numbers.min() < bounds.min or numbers.max() > bounds.max:
            raise InvalidTensor(f"Input {name!r}: data holds a number that is out of range for {dtype.name}.")
    with np.errstate(over="ignore"):
        narrow = numbers.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(narrow).all():
        raise InvalidTensor(f"Input {name!r}: data holds a number that is out of range for {dtype.name}.")
    return narrow
