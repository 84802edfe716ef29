"""Rows 38, 48 to 52, 59 to 75 of the tensor protocols. Everything wrong with the data is a 400."""

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.abuse.cases import INFER, MIB, Case
from tests.support import oip
from tests.support.oip import LENGTH, body, tensor
from tests.support.raw_http import RawAnswer

ROWS = np.ones((2, 4), np.float32)
GOOD = tensor("x", ROWS)
RAW = {"name": "x", "shape": [2, 4], "datatype": "FP32"}
STRINGS = {"name": "text", "shape": [1, 2], "datatype": "BYTES"}


def named(name: str, content: bytes, headers: dict[str, str] | None = None, expect: str = "400", **more: Any) -> Case:
    """`name` begins with the row."""
    row, _, rest = name.partition("-")
    given = tuple((headers or {}).items())
    return Case(int(row), f"{rest}-v2", content, expect, None, **{"path": INFER, "headers": given, **more})


def json_case(name: str, *inputs: Any, **keys: Any) -> Case:
    return named(name, body(*inputs, **keys))


def text(name: str, content: bytes) -> Case:
    return named(name, content)


def with_tail(name: str, tail: bytes, one: dict[str, Any], length: Any = None, **more: Any) -> Case:
    head = body(one)
    return named(name, head + tail, {LENGTH: str(len(head) if length is None else length)}, **more)


# fmt: off
SHAPES = (
    None, [], [0, 4], [-1, 4], [2, -1], [2.0, 4], ["2", 4], [True, 4], 8, [8], [2, 4, 1], [2, 2, 2], [2, 3], [65, 4],
    [2**4, 2**60 + 2], [2**32, 2**32], [2**63], [2**64, 1], [1] * 1000,
)
DATA = (
    [1] * 7, [1] * 9, [[1, 2, 3, 4], [1, 2, 3]], ["2"] + [1] * 7, [[1] * 8], [[[1, 2, 3, 4]], [[1, 2, 3, 4]]],
    {"0": 1}, "text", 7, None, [None] * 8, [True] * 8, [[]] * 8, [{}] * 8, [[1, 2], [3, 4], [5, 6], [7, 8]],
)
LENGTHS = ("-1", "+5", "abc", "1.5", "", "2147483648", "99999999999", "9" * 30, "0x10")
# fmt: on


def data() -> Iterator[Case]:
    yield text("48-empty", b"")
    for name, content in {
        "null": b"null", "list": b"[]", "string": b'"x"', "number": b"1", "spaces": b" " * 2**20,
        "latin": b'{"\xe9": 1}', "mark": b"\xef\xbb\xbf" + body(GOOD), "utf-16": body(GOOD).decode().encode("utf-16"),
    }.items():  # fmt: skip
        yield text(f"48-{name}", content)
    good = body(GOOD)
    for name, content in {
        "garbage": good + b"x", "twice": good[:-1] + b', "inputs": []}', "comment": b"/* */" + good,
        "quotes": good.replace(b'"', b"'"), "nan": good.replace(b"1.0", b"NaN", 1),
        "infinity": good.replace(b"1.0", b"-Infinity", 1), "truncated": good[:-5],
    }.items():  # fmt: skip
        yield text(f"49-{name}", content)
    for depth in (33, 1_000, 100_000):
        yield text(f"50-depth-{depth}", good.replace(b"[1.0", b"[" * depth + b"1.0" + b"]" * depth, 1))
        yield text(f"50-body-{depth}", b'{"inputs":' + b"[" * depth + b"]" * depth + b"}")
    for name, number in {"digits": b"9" * 5000, "exponent": b"1e999", "wide": b"1e39"}.items():
        yield text(f"51-{name}", good.replace(b"1.0", number, 1))
    yield text("52-surrogate", good.replace(b'"x"', b'"\\ud800"'))
    for name, key in {"nul": b"\\u0000x", "inputs-and-nul": b"inputs\\u0000"}.items():
        yield text(f"52-key-{name}", good.replace(b'"inputs"', b'"%s": 1, "inputs"' % key, 1))
        predict = b'{"%s": 1, "instances": [[1, 2, 3, 4]]}' % key
        yield named(f"52-key-{name}-v1", predict, path="/v1/models/both:predict")
    yield json_case("52-control", GOOD, id="a\0b")
    yield json_case("61-inputs-none")
    yield text("61-inputs-missing", b"{}")
    yield text("61-inputs-no-list", b'{"inputs": {}}')
    yield text("61-inputs-no-objects", b'{"inputs": [1]}')
    yield json_case("61-extra", GOOD, tensor("y", ROWS))
    yield json_case("61-wrong-name", tensor("nope", ROWS))
    yield json_case("61-no-name", {**GOOD, "name": None})
    yield json_case("61-empty-name", {**GOOD, "name": ""})
    yield json_case("61-twice", GOOD, GOOD)
    yield json_case("61-output-twice", GOOD, outputs=[{"name": "half"}, {"name": "half"}])
    yield json_case("61-output-unknown", GOOD, outputs=[{"name": "nope"}])
    yield json_case("61-outputs-no-list", GOOD, outputs={"name": "half"})
    for datatype in ("fp32", "FLOAT", "", None, 7, "FP64", "FP16", "BF16", "BYTES", "INT32"):
        yield json_case(f"62-{datatype}", {**GOOD, "datatype": datatype})
    for index, shape in enumerate(SHAPES):
        yield json_case(f"{64 if index > 13 else 63}-shape-{index}", {**GOOD, "shape": shape})
    for index, data in enumerate(DATA):
        yield json_case(f"65-{index}", {**GOOD, "data": data})
    content, _ = oip.binary({"x": ROWS})
    for value in (*LENGTHS, str(len(content) + 1)):
        yield named(f"67-length-{value}", content, {LENGTH: value})
    yield named("67-short", content, {LENGTH: "5"})
    yield named("67-none", content)
    yield named("67-body-long", content, {LENGTH: str(len(content))})
    for index, size in enumerate((31, 33, 0, -1, "32", True, 32.0, 2**63, 2**70, None)):
        yield with_tail(f"68-{index}", ROWS.tobytes(), {**RAW, "parameters": {"binary_data_size": size}})
    sized = {**RAW, "parameters": {"binary_data_size": 32}}
    yield with_tail("68-missing", ROWS.tobytes(), RAW)
    yield with_tail("68-both", ROWS.tobytes(), {**sized, "data": [1] * 8})
    yield with_tail("68-short", ROWS.tobytes()[:-1], sized)
    yield with_tail("68-long", ROWS.tobytes() + b"\0", sized)
    yield with_tail("68-other-shape", ROWS.tobytes(), {**sized, "shape": [1, 4]})
    yield with_tail("68-parameters", ROWS.tobytes(), {**RAW, "parameters": [32]})
    yield json_case("71-binary-text", GOOD, outputs=[{"name": "half", "parameters": {"binary_data": "yes"}}])
    yield json_case("71-default-text", GOOD, parameters={"binary_data_output": 1})
    for index, classes in enumerate((0, -1, 10**12, 1.5, "3", True)):
        yield json_case(f"71-{index}", GOOD, outputs=[{"name": "half", "parameters": {"classification": classes}}])
    for name, parameters in {
        "reserved": {"triton_x": 1}, "headers": {"headers": "x"}, "many": {str(n): n for n in range(10_000)},
        "nested": {"a": {"b": 1}}, "list": {"a": [1]}, "null": {"a": None}, "timeout": {"timeout": -1},
        "timeout-text": {"timeout": "5"}, "priority": {"priority": -1}, "sequence": {"sequence_start": 1},
        "sequence-id": {"sequence_id": 1.5}, "far": {"timeout": 2**64}, "no-object": [1],
    }.items():  # fmt: skip
        yield json_case(f"72-{name}", GOOD, parameters=parameters)
    for index, identity in enumerate(("x" * 2**20, "a\nb", 5, ["x"])):
        yield json_case(f"73-{index}", GOOD, id=identity)
    yield json_case("74-input", {**RAW, "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 32}})
    yield json_case("74-output", GOOD, outputs=[{"name": "half", "parameters": {"shared_memory_region": "r"}}])
    yield json_case("75-outputs", GOOD, outputs=[{"name": str(n)} for n in range(10_000)])


def more_data() -> Iterator[Case]:
    """Compression, numbers that are odd and right, elements, orders, and endpoints that are not there."""
    packed = gzip.compress(body(GOOD))

    def coded(name: str, content: bytes, coding: str, expect: str) -> Case:
        return named(f"38-{name}", content, {"Content-Encoding": coding}, expect)

    yield coded("gzip", packed, "gzip", "200")
    yield coded("deflate", zlib.compress(body(GOOD)), "deflate", "200")
    yield coded("gzip-bomb", gzip.compress(bytes(100 * MIB)), "gzip", "413")
    yield coded("deflate-bomb", zlib.compress(bytes(100 * MIB)), "deflate", "413")
    yield coded("truncated-gzip", packed[:-9], "gzip", "400")
    yield coded("no-gzip", body(GOOD), "gzip", "400")
    yield coded("double-gzip", gzip.compress(packed), "gzip", "400")
    yield coded("gzip-and-more", packed + b"x", "gzip", "400")
    for coding in ("br", "gzip, gzip", "compress", "gzip;q=1", "nonsense"):
        yield coded(f"coding-{coding}", packed, coding, "415")
    good = body(GOOD)
    for name, number in {"minus-nought": b"-0.0", "tiny": b"1e-400", "2-64": b"18446744073709551616"}.items():
        expect = "200 400" if name == "2-64" else "200"
        yield named(f"51-{name}", good.replace(b"1.0", number, 1), expect=expect)
    yield named("52-emoji-in-id", body(GOOD, id="\U0001f408"), expect="200", check=_comes_back_as_json)
    odd = np.array([[np.nan, np.inf, -np.inf, 1e-40], [3e38, -0.0, 1, 2]], np.float32)
    content, headers = oip.binary({"x": odd}, outputs=[{"name": "half"}])
    yield named("66-in-a-json-answer", content, headers, "400")
    content, headers = oip.binary({"x": odd}, outputs=[{"name": "half", "parameters": {"binary_data": True}}])
    yield named("66-in-a-binary-answer", content, headers, "200", check=_carries_nan)
    for name, tail in oip.BROKEN_STRINGS.items():
        sized = {**STRINGS, "parameters": {"binary_data_size": len(tail)}}
        yield with_tail(f"69-{name}", tail, sized, path="/v2/models/echo/infer")
    yield _swapped()
    for path in (
        "/v2/systemsharedmemory/status",
        "/v2/systemsharedmemory/region/r/register",
        "/v2/cudasharedmemory/status",
        "/v2/trace/setting",
        "/v2/models/both/trace/setting",
        "/v2/logging",
    ):
        for method in ("GET", "POST"):
            yield Case(74, f"{method.lower()}-{path}", b"", "404", None, path, method=method)


def versions() -> Iterator[Case]:
    """Rows 59 and 60 of the tensor protocols."""
    for version in ("7", "0", "01", "-1", "1.0", "latest", "1" + "0" * 30):
        for path in (f"/v2/models/both/versions/{version}/infer", f"/v1/models/both/versions/{version}:predict"):
            yield Case(59, f"{path}", b"{}", "400 404", None, path)
    for name in ("..", "%2e%2e%2f", "a%00", "x" * 256, "%20", "both%2f..%2fboth", "BOTH", "both%0a"):
        for path in (f"/v2/models/{name}/infer", f"/v1/models/{name}:predict", f"/v2/models/{name}/config"):
            method = "GET" if path.endswith("config") else "POST"
            yield Case(60, path, good_body(), "400 404", None, path, method=method)


def good_body() -> bytes:
    return body(GOOD)


def _swapped() -> Case:
    """Row 70: a JSON input before and a binary one behind, in the other order than the model has them."""
    first = tensor("b", np.array([[3, 4]], np.int64))
    rows = np.array([[1, 2]], np.int64)
    second = {"name": "a", "shape": [1, 2], "datatype": "INT64", "parameters": {"binary_data_size": rows.nbytes}}
    head = body(first, second)
    return named(
        "70-swapped",
        head + rows.tobytes(),
        {LENGTH: str(len(head))},
        "200",
        path="/v2/models/sum/infer",
        check=_adds_up,
    )


def _adds_up(answer: RawAnswer) -> None:
    assert [one["data"] for one in answer.json()["outputs"]] == [[4, 6]]


def _carries_nan(answer: RawAnswer) -> None:
    assert np.isnan(oip.outputs_of(answer)["half"]).any()


def _comes_back_as_json(answer: RawAnswer) -> None:
    assert json.loads(answer.content)["id"] == "\U0001f408"


CASES = [*data(), *more_data(), *versions()]
