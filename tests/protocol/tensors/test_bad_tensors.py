"""Tensors that only their model can judge, and a fuzz of bodies that are nearly right.

Whatever came, it is a 4xx with an error that gives nothing away; and after it the server lives and gives the golden
answer.
"""

import json
import random
from collections.abc import Callable
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
STRINGS = {"name": "text", "shape": [1, 2], "datatype": "BYTES"}


def test_nan_in_json_is_refused_with_the_way_out(client: httpx2.Client) -> None:
    content = body(GOOD).replace(b"1.0", b"NaN", 1)
    assert "binary tensors" in client.post("/v2/models/both/infer", content=content).json()["error"]


@pytest.mark.parametrize("tail", list(oip.BROKEN_STRINGS.values()), ids=list(oip.BROKEN_STRINGS))
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


@pytest.mark.parametrize("shape", [[0, 2**63], [2**63 - 1, 0], [0, 2**32, 2**32]], ids=str)
@pytest.mark.parametrize("form", [{"data": []}, {"parameters": {"binary_data_size": 0}}], ids=["json", "binary"])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_shapes_that_no_array_can_have_are_400(
    client: httpx2.Client, golden: Callable[[], None], shape: list[int], form: dict[str, Any], datatype: str
) -> None:
    content = body({"name": "x", "shape": shape, "datatype": datatype, **form})
    answer = client.post("/v2/models/both/infer", content=content, headers={LENGTH: str(len(content))})
    assert answer.status_code == 400
    assert "shape" in answer.json()["error"]
    golden()


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
