"""The Open Inference Protocol as its strictest client reads it: a lint for every answer, and bodies for requests.

The C++ client wants flat data, `parameters` of an output only where it is binary, unsigned integers, and valid JSON
on every error; the Python client `{"error": text}` and 200; the KServe client a content type of nothing but
`application/json`.
"""

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import numpy.typing as npt
import yaml

SCHEMA = Path(__file__).resolve().parents[3] / "shared" / "schemas" / "open_inference_rest.yaml"
SIZES = {"BOOL": 1, "UINT8": 1, "INT8": 1, "FP16": 2, "INT32": 4, "FP32": 4, "INT64": 8, "FP64": 8, "UINT16": 2}
NAMES = {"float32": "FP32", "float16": "FP16", "int64": "INT64", "float64": "FP64", "uint8": "UINT8", "bool": "BOOL"}
LENGTH = "inference-header-content-length"

Json = dict[str, Any]


# Requests


def tensor(name: str, values: npt.ArrayLike, **changes: Any) -> Json:
    """An input in JSON form."""
    array = np.asarray(values)
    data = array.ravel().tolist()
    return {"name": name, "shape": list(array.shape), "datatype": NAMES[array.dtype.name], "data": data, **changes}


def body(*inputs: Json, **keys: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **keys}).encode()


def binary(tensors: Mapping[str, npt.NDArray[Any]], pad: int = 0, **keys: Any) -> tuple[bytes, dict[str, str]]:
    """A request of binary tensors: the body, and the header that says where they begin. `pad` lengthens the JSON."""
    inputs = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": NAMES[array.dtype.name],
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in tensors.items()
    ]
    head = json.dumps({"inputs": inputs, **keys}).encode() + b" " * pad
    return head + b"".join(array.tobytes() for array in tensors.values()), {LENGTH: str(len(head))}


def outputs_of(answer: Any) -> dict[str, npt.NDArray[Any]]:
    """The outputs of a 200, of either form, by name."""
    assert answer.status_code == 200, answer.content
    head, tail = split(answer)
    numpy_of = {datatype: name for name, datatype in NAMES.items()}
    found: dict[str, npt.NDArray[Any]] = {}
    for output in head["outputs"]:
        datatype, shape = output["datatype"], output["shape"]
        if "data" in output:
            kind = object if datatype == "BYTES" else numpy_of[datatype]
            found[output["name"]] = np.array(output["data"], kind).reshape(shape)
            continue
        size = output["parameters"]["binary_data_size"]
        raw, tail = tail[:size], tail[size:]
        values = elements(raw) if datatype == "BYTES" else np.frombuffer(raw, numpy_of[datatype])
        found[output["name"]] = np.asarray(values).reshape(shape)
    return found


def elements(data: bytes) -> list[bytes]:
    """The elements of a BYTES tensor."""
    found = []
    while data:
        end = 4 + int.from_bytes(data[:4], "little")
        found.append(data[4:end])
        data = data[end:]
    return found


def bytes_tensor(items: Sequence[bytes]) -> bytes:
    return b"".join(len(item).to_bytes(4, "little") + item for item in items)


# Two strings, spoiled
BROKEN_STRINGS = {
    "past-the-end": b"\x05\0\0\0abc",
    "no-data": b"\xff\xff\xff\xff",
    "half-a-length": b"\1\0",
    "one-of-two": b"\1\0\0\0a",
    "three-of-two": bytes_tensor([b"a", b"b", b"c"]),
    "none": b"",
    "no-text": bytes_tensor([b"\xff", b"b"]),
}


def split(answer: Any) -> tuple[Json, bytes]:
    """JSON and raw tensors of an answer."""
    content: bytes = answer.content
    length = int(answer.headers[LENGTH]) if LENGTH in answer.headers else len(content)
    head: Json = json.loads(content[:length], parse_constant=_no_constant)
    return head, content[length:]


# The lint


def lint(method: str, path: str, answer: Any) -> None:
    """Fails on whatever a client could stumble over. `answer` has its content uncompressed."""
    status = answer.status_code
    assert status == 200 or 400 <= status < 600, f"{path}: {status}: clients take nothing but 200"
    assert status not in (422, 499), f"{path}: {status}"
    assert "location" not in answer.headers, f"{path}: no client follows a redirect"
    if status != 200:
        assert answer.headers["content-type"] == "application/json", path
        if method != "HEAD":
            error = json.loads(answer.content)
            assert isinstance(error["error"], str), error
            assert error["error"], path
            _validate("inference_error_response", error)
        return
    if re.fullmatch(r"/v2/repository/models/[^/]+/(un)?load", path):
        assert answer.content == b""
        return
    head, tail = split(answer)
    assert not any(isinstance(value, float) and not math.isfinite(value) for value in _leaves(head))
    if path.endswith("/infer"):
        _lint_infer(answer, head, tail)
    elif path.endswith("/stats"):
        _lint_statistics(head)
    elif path in ("/v2", "/v2/"):
        _validate("metadata_server_response", head)
    elif re.fullmatch(r"/v2/models/[^/]+(/versions/[0-9]+)?", path) and path != "/v2/models":
        _validate("metadata_model_response", head)
        for one in (*head["inputs"], *head["outputs"]):
            assert one.keys() == {"name", "datatype", "shape"}
            assert all(isinstance(size, int) and size >= -1 for size in one["shape"])


def _lint_infer(answer: Any, head: Json, tail: bytes) -> None:
    assert isinstance(head["model_name"], str)
    assert isinstance(head["model_version"], str)
    assert head.get("id", "x"), "an empty id is left out"
    binary_bytes = 0
    for output in head["outputs"]:
        name = output["name"]
        assert all(isinstance(size, int) and size >= 0 for size in output["shape"]), output["shape"]
        count = math.prod(output["shape"])
        if "parameters" in output:
            assert output.keys() == {"name", "datatype", "shape", "parameters"}, name
            assert output["parameters"].keys() == {"binary_data_size"}, name
            size = output["parameters"]["binary_data_size"]
            assert isinstance(size, int)
            if output["datatype"] != "BYTES":
                assert size == count * SIZES[output["datatype"]], name
            binary_bytes += size
        else:
            assert output.keys() == {"name", "datatype", "shape", "data"}, name
            assert not any(isinstance(value, list | dict) for value in output["data"]), f"{name}: data must be flat"
            assert len(output["data"]) == count, name
            assert output["datatype"] not in ("FP16", "BF16"), name
    assert len(tail) == binary_bytes
    is_binary = LENGTH in answer.headers
    assert is_binary == (binary_bytes > 0)
    assert answer.headers["content-type"] == ("application/octet-stream" if is_binary else "application/json")
    in_json = {**head, "outputs": [{"data": [], **output} for output in head["outputs"]]}
    _validate("inference_response", in_json)


def _lint_statistics(head: Json) -> None:
    for one in head["model_stats"]:
        int(one["version"])  # perf_analyzer reads it as a number
        assert one["inference_stats"].keys() >= {
            "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
        }  # fmt: skip
        for value in _leaves({**one, "name": "", "version": ""}):
            assert value == "" or (isinstance(value, int) and value >= 0), one


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for child in value.values() for leaf in _leaves(child)]
    if isinstance(value, list):
        return [leaf for child in value for leaf in _leaves(child)]
    return [value]


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@functools.cache
def _schemas() -> Json | None:
    return yaml.safe_load(SCHEMA.read_text()) if SCHEMA.is_file() else None


def _validate(name: str, value: Any) -> None:
    """Against the protocol's own schema, where it is there; test_schema.py says so where it is not."""
    document = _schemas()
    if document is not None:
        schema = {**document, "$ref": f"#/components/schemas/{name}"}
        jsonschema.Draft4Validator(schema).validate(value)
