"""JSON by simdjson: a document stays as it is, and its numbers go into an array at once, without an object for each.

The face that json_tensors looks at; json_by_jiter has the same.
"""

from typing import Any, Literal

import numpy as np
from simdjson import Array, Object, Parser

from service.tensors import Array as Tensor

ARRAY, OBJECT = Array, Object  # what arrays and objects are instances of; both read as Python's own do
# numpy's kind of dtype -> the kind of simdjson's buffer, and its dtype
_BUFFERS: dict[str, tuple[Literal["d", "i", "u"], str]] = {"f": ("d", "<f8"), "i": ("i", "<i8"), "u": ("u", "<u8")}


def parse(body: memoryview) -> Any:
    """What a body says. Raises UnicodeDecodeError, or ValueError with what is wrong."""
    try:
        return Parser().parse(body)
    except UnicodeDecodeError:
        raise
    except (ValueError, RuntimeError) as error:  # "NAME_OF_FAULT: what it is"
        raise ValueError(str(error).partition(": ")[2]) from None


def numbers(array: Any, kind: str) -> Tensor:
    """The numbers of an array, nested or not, in a flat one of 64 bits; `kind` is numpy's: f, i or u.

    Raises TypeError or ValueError where something else is in it.
    """
    buffer, dtype = _BUFFERS[kind]
    return np.frombuffer(array.as_buffer(of_type=buffer), dtype)
