"""What strangers send to /v2: the rows of the abuse matrix that concern it (their number stands in the id), and a fuzz.

Whatever came, it is a 4xx with an error that gives nothing away; and after it the server lives and gives the golden
answer.
"""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import numpy as np
import pytest

from tests.support import bodies, oip, raw_http
from tests.support.answers import assert_gives_nothing_away
from tests.support.oip import LENGTH, body, tensor
from tests.support.server_process import ServerProcess

ROWS = np.ones((2, 4), np.float32)
GOOD = tensor("x", ROWS)
RAW = {"name": "x", "shape": [2, 4], "datatype": "FP32"}
Case = tuple[str, bytes, dict[str, str]]


def json_case(name: str, *inputs: Any, **keys: Any) -> Case:
    return name, body(*inputs, **keys), {}


def text(name: str, content: bytes) -> Case:
    return name, content, {}


def with_tail(name: str, tail: bytes, one: dict[str, Any], length: Any = None) -> Case:
    head = body(one)
    return name, head + tail, {LENGTH: str(len(head) if length is None else length)}


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


def cases() -> Iterator[Case]:
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
        yield json_case(f"63-64-{index}", {**GOOD, "shape": shape})
    for index, data in enumerate(DATA):
        yield json_case(f"65-{index}", {**GOOD, "data": data})
    content, _ = oip.binary({"x": ROWS})
    for value in (*LENGTHS, str(len(content) + 1)):
        yield f"67-{value}", content, {LENGTH: value}
    yield "67-short", content, {LENGTH: "5"}
    yield "67-none", content, {}
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


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case[0])
def test_bad_request_is_400_and_the_server_goes_on(
    client: httpx2.Client, golden: Callable[[], None], case: Case
) -> None:
    _, content, headers = case
    answer = client.post("/v2/models/both/infer", content=content, headers=headers)
    assert answer.status_code == 400, answer.content
    assert_gives_nothing_away(answer)
    golden()


STRINGS = {"name": "text", "shape": [1, 2], "datatype": "BYTES"}


def test_nan_in_json_is_refused_with_the_way_out(client: httpx2.Client) -> None:
    content = body(GOOD).replace(b"1.0", b"NaN", 1)
    assert "binary tensors" in client.post("/v2/models/both/infer", content=content).json()["error"]


ELEMENTS = {
    "past-the-end": b"\x05\0\0\0abc",
    "no-data": b"\xff\xff\xff\xff",
    "half-a-length": b"\1\0",
    "one-of-two": b"\1\0\0\0a",
    "three-of-two": oip.bytes_tensor([b"a", b"b", b"c"]),
    "none": b"",
    "no-text": oip.bytes_tensor([b"\xff", b"b"]),
}


@pytest.mark.parametrize("tail", list(ELEMENTS.values()), ids=list(ELEMENTS))
def test_elements_that_do_not_fit_their_bytes_are_400(
    client: httpx2.Client, golden: Callable[[], None], tail: bytes
) -> None:
    """Row 69."""
    head = body({**STRINGS, "parameters": {"binary_data_size": len(tail)}})
    answer = client.post("/v2/models/echo/infer", content=head + tail, headers={LENGTH: str(len(head))})
    assert answer.status_code == 400
    golden()


@pytest.mark.parametrize("data", [["a"], ["a", 1], ["a", None], ["a", ["b", "c"]], [{"b64": "!"}, "a"], "ab"])
def test_strings_that_do_not_fit_are_400(client: httpx2.Client, golden: Callable[[], None], data: Any) -> None:
    assert client.post("/v2/models/echo/infer", content=body({**STRINGS, "data": data})).status_code == 400
    golden()


@pytest.mark.parametrize(
    ("datatype", "data"), [("UINT8", [-1]), ("UINT8", [300]), ("BOOL", [1]), ("BOOL", ["true"]), ("INT8", [1.5])]
)
def test_numbers_out_of_range_are_400(client: httpx2.Client, datatype: str, data: list[Any]) -> None:
    one = {"name": "x", "shape": [1], "datatype": datatype, "data": data}
    answer = client.post("/v2/models/both/infer", content=body(one))
    assert answer.status_code == 400
    assert "data holds" in answer.json()["error"]


def test_a_tensor_that_only_the_graph_can_judge_is_400(client: httpx2.Client, golden: Callable[[], None]) -> None:
    answer = client.post("/v2/models/look_up/infer", content=body(tensor("index", np.array([99]))))
    assert answer.status_code == 400
    unlike = body(tensor("a", np.ones((1, 3), np.float32)), tensor("b", np.ones((1, 5), np.float32)))
    assert client.post("/v2/models/open/infer", content=unlike).status_code == 400
    golden()


def test_a_header_given_twice_is_400(server: ServerProcess) -> None:
    content, headers = oip.binary({"x": ROWS})
    asked = raw_http.request("POST", "/v2/models/both/infer", [*headers.items(), *headers.items()], content)
    assert raw_http.exchange(server.port, asked).status_code == 400


def test_too_many_bytes_are_413_before_they_are_read(server: ServerProcess) -> None:
    headers = {"Content-Length": str(33 * 2**20)}
    answer = raw_http.exchange(server.port, raw_http.request("POST", "/v2/models/both/infer", headers))
    assert answer.status_code == 413
    assert answer.json()["error"]


@pytest.mark.parametrize("path", ["/v2/models/both/infer", "/v1/models/both:predict"])
def test_too_much_json_is_413_where_as_many_binary_bytes_are_not(client: httpx2.Client, path: str) -> None:
    assert client.post(path, content=b" " * (28 * 2**20 + 1)).status_code == 413


class TestFuzz:
    """Bodies that are nearly right: bytes changed, cut, doubled; values of JSON replaced."""

    ODD = (None, True, -1, 0, 1.5, 2**64, 1e308, "", "x", [], {}, [[]], [None], {"b64": "AAAA"}, "FP32", "BYTES")
    SEEDS = tuple(range(12))
    EACH = 60

    def good(self, pick: random.Random) -> tuple[str, bytes, dict[str, str]]:
        binary, headers = oip.binary({"x": ROWS}, outputs=[{"name": "half", "parameters": {"classification": 1}}])
        picture = bodies.base64_text(bodies.plain_color("red"))
        image = {"name": "pixels", "shape": [1], "datatype": "BYTES", "data": [picture]}
        words = json.dumps({"instances": [{"a": [1, 2], "b": [3, 4]}]}).encode()
        return pick.choice(
            [
                ("/v2/models/both/infer", binary, headers),
                ("/v2/models/both/infer", body(GOOD, id="7", outputs=[{"name": "double"}]), {}),
                ("/v2/models/colors/infer", body(image, parameters={"timeout": 10**6}), {}),
                ("/v1/models/sum:predict", words, {}),
                ("/v2/models/both/infer", ROWS[:1].tobytes(), {LENGTH: "0"}),
            ]
        )

    def bent(self, content: bytes, pick: random.Random) -> bytes:
        if content[:1] == b"{" and content[-1:] == b"}" and pick.random() < 0.6:
            value = json.loads(content)
            self.bend(value, pick)
            return json.dumps(value).encode()
        data = bytearray(content)
        for _ in range(pick.randint(1, 4)):
            place = pick.randrange(len(data) or 1)
            match pick.randrange(4):
                case 0:
                    data[place : place + 1] = bytes([pick.randrange(256)])
                case 1:
                    del data[place : place + pick.randint(1, 20)]
                case 2:
                    data[place:place] = data[place : place + pick.randint(1, 20)]
                case 3:
                    data[place:place] = pick.choice([b"[", b"]", b"{", b"}", b'"', b",", b"-", b"e9", b"\xff", b"\0"])
        return bytes(data)

    def bend(self, value: Any, pick: random.Random) -> None:
        """Replace, drop or add one thing somewhere in a JSON value."""
        while isinstance(value, dict | list) and value:
            key = pick.choice(list(value) if isinstance(value, dict) else range(len(value)))
            if not isinstance(value[key], dict | list) or pick.random() < 0.3:
                if pick.random() < 0.2:
                    del value[key]
                else:
                    value[key] = pick.choice(self.ODD)
                return
            value = value[key]

    @pytest.mark.parametrize("seed", SEEDS)
    def test_nearly_right_bodies_are_answered_or_4xx(
        self, client: httpx2.Client, golden: Callable[[], None], seed: int
    ) -> None:
        pick = random.Random(seed)
        for _ in range(self.EACH):
            path, content, headers = self.good(pick)
            content = self.bent(content, pick)
            answer = client.post(path, content=content, headers=headers)
            assert answer.status_code == 200 or 400 <= answer.status_code < 500, (path, content, answer.content)
            if answer.status_code != 200:
                assert_gives_nothing_away(answer)
        golden()
