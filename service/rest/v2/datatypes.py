"""The protocol's datatypes, and tensors to and from bytes: little-endian, row-major, no padding.

A BYTES tensor is elements, each a 4-byte length and its bytes; inside it is an array of objects.
"""

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from service.errors import InvalidTensor
from service.tensors import Array

NUMPY_OF = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}
NAME_OF = {name: datatype for datatype, name in NUMPY_OF.items()} | {"bfloat16": "BF16"}
_LENGTH = struct.Struct("<I")


def config_type(dtype: str) -> str:
    """A numpy dtype as a model configuration names it."""
    datatype = NAME_OF.get(dtype, "INVALID")
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def array_of_bytes(data: memoryview, name: str, datatype: str, shape: tuple[int, ...]) -> Array:
    """A view of a tensor's bytes. Raises InvalidTensor where their number does not fit. Not for BYTES."""
    dtype = np.dtype(NUMPY_OF[datatype])
    wanted = math.prod(shape) * dtype.itemsize
    if len(data) != wanted:
        raise InvalidTensor(f"Input {name!r}: {len(data):,} bytes; its shape and datatype make {wanted:,}.")
    return np.frombuffer(data, dtype).reshape(shape)


def elements_of(data: memoryview, name: str) -> list[bytes]:
    """The elements of a BYTES tensor. Raises InvalidTensor."""
    elements: list[bytes] = []
    place = 0
    while place < len(data):
        start = place + _LENGTH.size
        place = start + _LENGTH.unpack_from(data, place)[0] if start <= len(data) else start
        if place > len(data):
            raise InvalidTensor(f"Input {name!r}: element {len(elements)} ends after its {len(data):,} bytes.")
        elements.append(bytes(data[start:place]))
    return elements


def array_of_elements(elements: Sequence[Any], name: str, shape: tuple[int, ...]) -> Array:
    """Elements of a BYTES tensor as an array of objects. Raises InvalidTensor."""
    if len(elements) != math.prod(shape):
        raise InvalidTensor(f"Input {name!r}: {len(elements)} elements; its shape makes {math.prod(shape):,}.")
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)


def bytes_of_array(array: Array) -> bytes:
    """An output as the binary form has it."""
    if array.dtype != object:
        return np.ascontiguousarray(array).tobytes()
    elements = [element if isinstance(element, bytes) else str(element).encode() for element in array.ravel()]
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))
