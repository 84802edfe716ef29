"""Any bytes as an infer request of /v2 give tensors, images or a typed error; right ones come back whole."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.config import LimitSettings
from service.engine.base import TensorSpec
from service.errors import InvalidTensor, MalformedRequest, PayloadTooLarge
from service.rest.v2.request import parse
from service.tensors import Signature

LIMITS = LimitSettings()
FAULTS = (InvalidTensor, MalformedRequest, PayloadTooLarge)
SIGNATURE = Signature((TensorSpec("x", "float32", (-1, 4)),), (TensorSpec("y", "float32", (-1, 4)),), is_batched=True)
TEXTS = Signature((TensorSpec("x", "object", (-1, 2)),), (TensorSpec("y", "object", (-1, 2)),), is_batched=True)
IMAGES = Signature(SIGNATURE.inputs, SIGNATURE.outputs, is_batched=True, image_tensor="x")

quick = settings(deadline=None, max_examples=200)
odd = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 2**65), st.floats(), st.text(max_size=5), st.just([]), st.just({})
)
sizes = st.integers(0, 64) | st.sampled_from([2**31, 2**63, 2**64 + 1, -1])
datatypes = st.sampled_from(["FP32", "FP16", "FP64", "BF16", "INT8", "UINT64", "BOOL", "BYTES", "fp32", ""])
tensors = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "y", ""]) | odd,
        "shape": st.lists(sizes | odd, max_size=4) | odd,
        "datatype": datatypes | odd,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "shared_memory_region", "a"]), sizes | odd)
        | odd,
        "data": st.lists(odd | st.lists(odd, max_size=4), max_size=8) | odd,
    },
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(tensors, max_size=3) | odd},
    optional={
        "id": odd,
        "parameters": st.dictionaries(st.sampled_from(["timeout", "priority", "binary_data_output", "a"]), odd) | odd,
        "outputs": st.lists(
            st.fixed_dictionaries({"name": st.just("y") | odd}, optional={"parameters": odd}), max_size=2
        ),
    },
)


def read(body: bytes, header_length: int | None, signature: Signature) -> Any:
    """As far as a body can be read: None where it is refused, and any other failure is a bug."""
    try:
        return parse(memoryview(body), header_length, "image/png", LIMITS).read(signature)
    except FAULTS:
        return None


@quick
@given(st.binary(max_size=200), st.none() | st.integers(0, 250), st.sampled_from([SIGNATURE, TEXTS, IMAGES]))
@example(b'{"inputs\\u0000": 1, "inputs": []}', None, SIGNATURE)
@example(b"", 0, TEXTS)
def test_any_bytes_are_read_or_refused(body: bytes, header_length: int | None, signature: Signature) -> None:
    read(body, header_length, signature)


@quick
@given(requests, st.binary(max_size=80), st.integers(-3, 3), st.sampled_from([SIGNATURE, TEXTS, IMAGES]))
def test_requests_that_are_nearly_right_are_read_or_refused(
    request: dict[str, Any], tail: bytes, slip: int, signature: Signature
) -> None:
    head = json.dumps(request).encode()
    assume(len(head) + slip >= 0)
    read(head + tail, len(head) + slip, signature)


@quick
@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 8), st.just(4))), st.integers(0, 3))
def test_a_binary_tensor_comes_back_as_it_was(rows: np.ndarray[Any, np.dtype[np.float32]], pad: int) -> None:
    one = {"name": "x", "shape": list(rows.shape), "datatype": "FP32", "parameters": {"binary_data_size": rows.nbytes}}
    head = json.dumps({"inputs": [one]}).encode() + b" " * pad
    found = read(head + rows.tobytes(), len(head), SIGNATURE)
    assert found["x"].tobytes() == rows.tobytes()


@quick
@given(st.lists(st.binary(max_size=12), min_size=2, max_size=2), st.binary(max_size=6), st.integers(0, 40))
def test_elements_are_those_whose_lengths_add_up_and_no_others(elements: list[bytes], more: bytes, cut: int) -> None:
    whole = b"".join(len(one).to_bytes(4, "little") + one for one in elements)
    tail = (whole + more)[: len(whole) + len(more) - cut] if cut else whole + more
    one = {"name": "x", "shape": [1, 2], "datatype": "BYTES", "parameters": {"binary_data_size": len(tail)}}
    head = json.dumps({"inputs": [one]}).encode()
    found = read(head + tail, len(head), TEXTS)
    if found is not None:
        assert b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in found["x"].ravel()) == tail


@pytest.mark.parametrize("length", [2**62, 10**9])
def test_a_shape_beyond_all_memory_takes_none(length: int) -> None:
    one = {"name": "x", "shape": [length, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    head = json.dumps({"inputs": [one]}).encode()
    assert read(head + bytes(16), len(head), SIGNATURE) is None
