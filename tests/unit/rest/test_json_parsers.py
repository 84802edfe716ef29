"""Both parsers of JSON behind their one face, as json_tensors uses them, and held against each other."""

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import FoveaError, InvalidTensor, MalformedRequest
from service.rest import json_tensors

# tests run on Pythons that have no wheel of simdjson
PARSERS = [f"service.rest.json_by_{name}" for name in ("jiter", "simdjson")]
NUMBERS = st.one_of(st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False), st.booleans())
DTYPES = ["float32", "float64", "int8", "int32", "int64", "uint8", "uint64"]


@contextmanager
def using(module: ModuleType) -> Iterator[None]:
    with patch.object(json_tensors, "parser", module):
        yield


@pytest.fixture(params=PARSERS, ids=lambda name: name.rpartition("_")[2])
def parser(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    pytest.importorskip(request.param.rpartition("_")[2], reason="no wheel for this Python")
    module = importlib.import_module(request.param)
    with using(module):
        yield module


def parsed(text: bytes) -> Any:
    return json_tensors.parse(memoryview(text))


def array(text: bytes, dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return json_tensors.array_of(parsed(b'{"data": %s}' % text)["data"], "x", dtype, shape)


@pytest.mark.parametrize(
    ("text", "dtype", "shape", "wanted"),
    [
        (b"[1, 2.5, -3e2]", "float32", (3,), [1, 2.5, -300]),
        (b"[[1, 2], [3, 4]]", "float64", (2, 2), [[1, 2], [3, 4]]),
        (b"[1, 2, 3, 4]", "int32", (2, 2), [[1, 2], [3, 4]]),
        (b"[[[18446744073709551615]]]", "uint64", (1, 1, 1), [[[2**64 - 1]]]),
        (b"[[true], [false]]", "bool", (2, 1), [[True], [False]]),
        (b"[]", "float32", (0,), []),
    ],
)
def test_numbers_become_an_array(
    parser: ModuleType, text: bytes, dtype: str, shape: tuple[int, ...], wanted: list[Any]
) -> None:
    found = array(text, dtype, shape)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.array(wanted, dtype).reshape(shape))


@pytest.mark.parametrize(
    ("text", "dtype", "shape"),
    [
        (b"[1, true]", "float32", (2,)),
        (b"[1, null]", "float32", (2,)),
        (b'[1, "2"]', "float32", (2,)),
        (b"[{}]", "float32", (1,)),
        (b"[[1], {}]", "float32", (2, 1)),
        (b"[[1, 2], [3]]", "float32", (2, 2)),
        (b"[[1, 2], 3]", "float32", (2, 2)),
        (b"[1.0]", "int32", (1,)),
        (b"[-1]", "uint64", (1,)),
        (b"[300]", "uint8", (1,)),
        (b"[18446744073709551615]", "int64", (1,)),
        (b"[1e300]", "float32", (1,)),
        (b"[1, 2]", "bool", (2,)),
        (b"[1, 2, 3]", "float32", (2,)),
        (b"{}", "float32", (1,)),
    ],
)
def test_what_is_no_such_tensor_is_refused(parser: ModuleType, text: bytes, dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidTensor, match="Input 'x'"):
        array(text, dtype, shape)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "cannot be read"),
        (b'{"a": 1', "cannot be read"),
        (b'{"a": 1} x', "cannot be read"),
        (b'{"a": NaN}', "NaN or Infinity"),
        (b'{"a": 01}', "cannot be read"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "cannot be read"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "byte order mark"),
        (b"[1]", "not an object"),
    ],
)
def test_broken_json_is_refused(parser: ModuleType, text: bytes, said: str) -> None:
    with pytest.raises(MalformedRequest, match=said):
        parsed(text)


@pytest.mark.parametrize("piece", [b"[]", b"{}", b'"a"'])
def test_lists_are_not_made_of_millions_of_pieces(piece: bytes) -> None:
    """Two bytes in the body would become seventy: a body of 28 MiB a gigabyte, and seconds of the event loop."""
    with (
        using(importlib.import_module(PARSERS[0])),
        pytest.raises(MalformedRequest, match="more than 1,000,000"),
    ):
        parsed(b'{"a": [%s]}' % b",".join([piece] * 1_000_001))


@pytest.mark.parametrize("text", [b"18446744073709551616", b"1e999", b"-1", b"0.5", b"true"])
def test_a_single_number_out_of_range_is_refused(parser: ModuleType, text: bytes) -> None:
    with pytest.raises((InvalidTensor, MalformedRequest)):
        json_tensors.one(parsed(b'{"x": %s}' % text)["x"], "x", "uint8")


@pytest.mark.parametrize("text", [b'{"a": 1, "a": 2}', b'{"a\\u0000": 1}'])
def test_keys_given_twice_or_with_a_nul_are_refused(parser: ModuleType, text: bytes) -> None:
    with pytest.raises(MalformedRequest):
        json_tensors.members(parsed(text), "The request")


def test_what_is_no_number_is_read_as_it_is(parser: ModuleType) -> None:
    found = json_tensors.members(parsed(b'{"a": "\\u00e9", "b": [1, [true, null]], "c": {"b64": "AA=="}}'), "It")
    assert found["a"] == "é"
    assert json_tensors.shape_of(found["b"]) == (2,)
    assert list(json_tensors.scalars(found["b"], "b")) == [1, True, None]
    assert json_tensors.base64_member(found["c"]) == "AA=="
    assert json_tensors.base64_member(found["b"]) is None


@given(st.lists(NUMBERS) | st.lists(st.lists(NUMBERS, max_size=3), max_size=3), st.sampled_from(DTYPES), st.data())
def test_both_say_the_same(given_array: list[Any], dtype: str, data: st.DataObject) -> None:
    pytest.importorskip("simdjson", reason="no wheel for this Python")
    text = json.dumps(given_array).encode()
    shape = data.draw(st.sampled_from([(len(given_array),), np.array(given_array, object).shape]))

    def outcome(name: str) -> Any:
        with using(importlib.import_module(name)):
            try:
                found = array(text, dtype, shape)
            except FoveaError as error:
                return type(error)
        return found.dtype, found.shape, found.tobytes()

    one, other = map(outcome, PARSERS)
    assert one == other
