"""JSON by jiter: as Python's own lists and dicts. For a Python that simdjson has no wheel for.

The face that json_tensors looks at; json_by_simdjson has the same, and needs half of the time or less.
"""

from itertools import chain
from typing import Any

import jiter
import numpy as np

from service.tensors import Array

ARRAY, OBJECT = list, dict  # what arrays and objects are instances of
_MOST_PIECES = 1_000_000  # arrays, objects and strings: of two bytes in the body each, but of 60 and more in memory
_TYPES: dict[str, set[type]] = {"f": {float, int}, "i": {int}, "u": {int}}  # numpy's kind of dtype -> what it takes


def parse(body: memoryview) -> Any:
    """What a body says. Raises UnicodeDecodeError, or ValueError with what is wrong."""
    text = bytes(body)
    if text.count(b"[") + text.count(b"{") + text.count(b'"') // 2 > _MOST_PIECES:
        raise ValueError(f"more than {_MOST_PIECES:,} arrays, objects and strings")
    try:
        return jiter.from_json(text, allow_inf_nan=False, cache_mode="keys", catch_duplicate_keys=True)
    except ValueError:
        text.decode()
        raise


def numbers(array: Any, kind: str) -> Array:
    """The numbers of an array, nested or not, in a flat one of 64 bits; `kind` is numpy's: f, i or u.

    Raises TypeError or ValueError where something else is in it.
    """
    flat = array
    while flat and isinstance(flat[0], list):
        flat = list(chain.from_iterable(flat))
    if not set(map(type, flat)) <= _TYPES[kind]:
        raise TypeError("something is no such number")
    try:
        return np.array(flat, f"<{kind}8")
    except OverflowError as error:
        raise ValueError(str(error)) from None
