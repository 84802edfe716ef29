"""`/v2/models/{model}/infer`, byte by byte: both forms, the outputs asked for, compression, images, the raw form."""

import gzip
import json
import time
import zlib
from typing import Any

import httpx2
import numpy as np
import pytest

from tests.support import bodies, oip, raw_http
from tests.support.oip import LENGTH, body, outputs_of, tensor
from tests.support.server_process import ServerProcess

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4) - 3
BOTH = "/v2/models/both/infer"
SUM = "/v2/models/sum/infer"
COLORS = "/v2/models/colors/infer"


def infer(client: httpx2.Client, path: str, content: bytes, headers: Any = ()) -> httpx2.Response:
    return client.post(path, content=content, headers=dict(headers))


def binary_image(color: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    plane = [{"red": 0, "green": 1, "blue": 2}[color] == channel for channel in range(3)]
    return np.broadcast_to(np.asarray(plane, np.float32)[None, :, None, None], (1, 3, 8, 8)).copy()


class TestForms:
    @pytest.mark.parametrize("nested", [False, True])
    def test_json_flat_or_nested(self, client: httpx2.Client, nested: bool) -> None:
        one = tensor("x", ROWS) | ({"data": ROWS.tolist()} if nested else {})
        answer = infer(client, BOTH, body(one))
        found = outputs_of(answer)
        assert list(found) == ["double", "half"]
        np.testing.assert_array_equal(found["double"], ROWS * 2)
        np.testing.assert_array_equal(found["half"], ROWS / 2)
        assert answer.json().keys() == {"model_name", "model_version", "outputs"}

    @pytest.mark.parametrize("pad", range(5))
    def test_binary_wherever_the_tensors_begin(self, client: httpx2.Client, pad: int) -> None:
        content, headers = oip.binary({"x": ROWS}, pad)
        np.testing.assert_array_equal(outputs_of(infer(client, BOTH, content, headers))["double"], ROWS * 2)

    @pytest.mark.parametrize("order", [["a", "b"], ["b", "a"]])
    def test_several_binary_inputs_in_any_order(self, client: httpx2.Client, order: list[str]) -> None:
        values = {"a": np.array([[1, 2]]), "b": np.array([[10, 2**60]])}
        content, headers = oip.binary({name: values[name] for name in order})
        found = outputs_of(infer(client, SUM, content, headers))
        assert found["sum"].tolist() == [[11, 2**60 + 2]]

    @pytest.mark.parametrize("first", ["a", "b"])
    def test_binary_and_json_inputs_mixed(self, client: httpx2.Client, first: str) -> None:
        raw = np.array([[5, 6]])
        in_json = tensor("b", np.array([[1, 1]]))
        in_binary = {"name": "a", "shape": [1, 2], "datatype": "INT64", "parameters": {"binary_data_size": 16}}
        head = body(*([in_binary, in_json] if first == "a" else [in_json, in_binary]))
        answer = infer(client, SUM, head + raw.tobytes(), {LENGTH: str(len(head))})
        assert outputs_of(answer)["sum"].tolist() == [[6, 7]]

    def test_a_header_as_long_as_the_body_is_json(self, client: httpx2.Client) -> None:
        content = body(tensor("x", ROWS))
        assert infer(client, BOTH, content, {LENGTH: str(len(content))}).status_code == 200

    @pytest.mark.parametrize("media_type", [None, "application/octet-stream", "text/plain", "image/jpeg"])
    def test_the_content_type_is_not_looked_at(self, server: ServerProcess, media_type: str | None) -> None:
        headers = {} if media_type is None else {"Content-Type": media_type}
        asked = raw_http.request("POST", BOTH, headers, body(tensor("x", ROWS)))
        assert raw_http.exchange(server.port, asked).status_code == 200

    def test_a_body_in_chunks(self, server: ServerProcess) -> None:
        content, headers = oip.binary({"x": ROWS})
        pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in content) + b"0\r\n\r\n"
        asked = raw_http.request("POST", BOTH, {**headers, "Transfer-Encoding": "chunked"}, pieces)
        answer = raw_http.exchange(server.port, asked)
        np.testing.assert_array_equal(outputs_of(answer)["double"], ROWS * 2)

    def test_large_numbers_and_whole_ones_are_exact(self, client: httpx2.Client) -> None:
        big = np.array([[2**62 + 1, -(2**62) - 1]])
        answer = infer(client, SUM, body(tensor("a", big), tensor("b", np.zeros_like(big))))
        assert outputs_of(answer)["sum"].tolist() == big.tolist()

    def test_keys_that_are_not_ours_are_ignored(self, client: httpx2.Client) -> None:
        answer = infer(client, BOTH, body(tensor("x", ROWS), model_name="both", extra={"deep": [[1]]}))
        assert answer.status_code == 200

    def test_a_version_is_asked_by_number(self, client: httpx2.Client) -> None:
        content, headers = oip.binary({"pixels": binary_image("red")})
        for version in ("1", "2"):
            answer = infer(client, f"/v2/models/colors/versions/{version}/infer", content, headers)
            assert answer.json()["model_version"] == version

    @pytest.mark.parametrize(("model", "shape"), [("fixed", (3, 2)), ("open", (4, 7))])
    def test_models_without_rows_and_with_open_shapes(
        self, client: httpx2.Client, model: str, shape: tuple[int, ...]
    ) -> None:
        values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        content, headers = oip.binary({"a": values, "b": values})
        answer = infer(client, f"/v2/models/{model}/infer", content, headers)
        np.testing.assert_array_equal(outputs_of(answer)["sum"], values * 2)

    def test_strings_in_both_forms(self, client: httpx2.Client) -> None:
        words = ["one", "\u00fc\u4e8c"]
        given = {"name": "text", "shape": [1, 2], "datatype": "BYTES"}
        raw = oip.bytes_tensor([word.encode() for word in words])
        head = body({**given, "parameters": {"binary_data_size": len(raw)}}, parameters={"binary_data_output": True})
        answer = infer(client, "/v2/models/echo/infer", head + raw, {LENGTH: str(len(head))})
        assert outputs_of(answer)["same"].tolist() == [[word.encode() for word in words]]
        answer = infer(client, "/v2/models/echo/infer", body({**given, "data": words}))
        assert outputs_of(answer)["same"].tolist() == [words]


class TestOutputs:
    def test_those_that_are_asked_for_in_their_order(self, client: httpx2.Client) -> None:
        asked = [{"name": "half"}, {"name": "double"}]
        answer = infer(client, BOTH, body(tensor("x", ROWS), outputs=asked))
        assert [one["name"] for one in answer.json()["outputs"]] == ["half", "double"]
        answer = infer(client, BOTH, body(tensor("x", ROWS), outputs=asked[:1]))
        assert list(outputs_of(answer)) == ["half"]

    def test_none_asked_for_is_all(self, client: httpx2.Client) -> None:
        assert list(outputs_of(infer(client, BOTH, body(tensor("x", ROWS), outputs=[])))) == ["double", "half"]

    @pytest.mark.parametrize("own", [None, True, False])
    @pytest.mark.parametrize("default", [None, True, False])
    def test_an_outputs_own_form_wins_over_the_requests(
        self, client: httpx2.Client, own: bool | None, default: bool | None
    ) -> None:
        parameters = {} if default is None else {"binary_data_output": default}
        one = {"name": "double"} if own is None else {"name": "double", "parameters": {"binary_data": own}}
        answer = infer(client, BOTH, body(tensor("x", ROWS), outputs=[one], parameters=parameters))
        assert (LENGTH in answer.headers) == (bool(default) if own is None else own)
        np.testing.assert_array_equal(outputs_of(answer)["double"], ROWS * 2)

    def test_forms_may_be_mixed_where_asked(self, client: httpx2.Client) -> None:
        asked = [{"name": "half", "parameters": {"binary_data": True}}, {"name": "double"}]
        found = outputs_of(infer(client, BOTH, body(tensor("x", ROWS), outputs=asked)))
        np.testing.assert_array_equal(found["half"], ROWS / 2)
        np.testing.assert_array_equal(found["double"], ROWS * 2)

    @pytest.mark.parametrize(("given", "echoed"), [("42", "42"), ("", None), (None, None)])
    def test_an_id_is_echoed(self, client: httpx2.Client, given: str | None, echoed: str | None) -> None:
        keys = {} if given is None else {"id": given}
        assert infer(client, BOTH, body(tensor("x", ROWS), **keys)).json().get("id") == echoed

    def test_float16_has_no_json_form(self, client: httpx2.Client) -> None:
        half = np.ones((1, 2), np.float16)
        content, headers = oip.binary({"a": half, "b": half})
        assert "FP16" in infer(client, "/v2/models/half/infer", content, headers).json()["error"]
        content, headers = oip.binary({"a": half, "b": half}, parameters={"binary_data_output": True})
        answer = infer(client, "/v2/models/half/infer", content, headers)
        assert outputs_of(answer)["sum"].tolist() == [[2, 2]]

    def test_infinity_has_a_binary_form_only(self, client: httpx2.Client) -> None:
        zero = tensor("x", np.zeros((1, 2), np.float32))
        answer = infer(client, "/v2/models/inverse/infer", body(zero))
        assert answer.status_code == 400
        assert "not finite" in answer.json()["error"]
        answer = infer(client, "/v2/models/inverse/infer", body(zero, parameters={"binary_data_output": True}))
        assert np.isinf(outputs_of(answer)["y"]).all()


class TestClassification:
    def ask(self, client: httpx2.Client, model: str, one: dict[str, Any], name: str, **parameters: Any) -> Any:
        answer = infer(
            client, f"/v2/models/{model}/infer", body(one, outputs=[{"name": name, "parameters": parameters}])
        )
        output = answer.json()["outputs"][0]
        return output["datatype"], output["shape"], output.get("data")

    def test_best_first_with_index_and_label(self, client: httpx2.Client) -> None:
        found = self.ask(client, "colors", tensor("pixels", binary_image("green")), "logits", classification=2)
        assert found == ("BYTES", [1, 2], ["4.000000:1:green", "0.000000:0:red"])

    def test_more_classes_than_there_are_is_all(self, client: httpx2.Client) -> None:
        found = self.ask(client, "colors", tensor("pixels", binary_image("blue")), "logits", classification=1000)
        assert found[1] == [1, 3]
        assert found[2][0] == "4.000000:2:blue"

    def test_a_model_without_labels_has_none(self, client: httpx2.Client) -> None:
        found = self.ask(client, "both", tensor("x", ROWS), "double", classification=1)
        assert found == ("BYTES", [2, 1], ["0.000000:3", "8.000000:3"])

    def test_ties_go_to_the_lower_index(self, client: httpx2.Client) -> None:
        values = np.tile(np.float32([0, 1]), 32).reshape(1, 64)
        inputs = (tensor("a", values), tensor("b", values))
        asked = [{"name": "sum", "parameters": {"classification": 64}}]
        found = infer(client, "/v2/models/open/infer", body(*inputs, outputs=asked)).json()["outputs"][0]["data"]
        assert [int(each.split(":")[1]) for each in found] == [*range(1, 64, 2), *range(0, 64, 2)]

    def test_whole_numbers_have_no_decimals(self, client: httpx2.Client) -> None:
        one, other = (tensor(name, np.array([[7, -(2**63) + 10]])) for name in ("a", "b"))
        other["data"] = [0, 0]
        asked = [{"name": "sum", "parameters": {"classification": 2}}]
        answer = infer(client, SUM, body(one, other, outputs=asked))
        assert answer.json()["outputs"][0]["data"] == ["7:0", f"{-(2**63) + 10}:1"]

    def test_without_rows_it_is_one_list(self, client: httpx2.Client) -> None:
        values = np.arange(6, dtype=np.float32).reshape(3, 2)
        asked = [{"name": "sum", "parameters": {"classification": 2}}]
        answer = infer(client, "/v2/models/fixed/infer", body(tensor("a", values), tensor("b", values), outputs=asked))
        assert answer.json()["outputs"][0]["shape"] == [2]

    def test_in_binary_form(self, client: httpx2.Client) -> None:
        asked = [{"name": "logits", "parameters": {"classification": 1, "binary_data": True}}]
        answer = infer(client, COLORS, body(tensor("pixels", binary_image("red")), outputs=asked))
        assert outputs_of(answer)["logits"].tolist() == [[b"4.000000:0:red"]]


class TestCompression:
    @pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity", "GZIP"])
    def test_compressed_requests(self, client: httpx2.Client, encoding: str) -> None:
        content, headers = oip.binary({"x": ROWS})  # the header speaks of the inflated body
        packed = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding.lower(), bytes)(content)
        answer = infer(client, BOTH, packed, {**headers, "content-encoding": encoding})
        np.testing.assert_array_equal(outputs_of(answer)["double"], ROWS * 2)

    def test_a_large_compressed_request(self, client: httpx2.Client) -> None:
        rows = np.random.default_rng(1).random((64, 4096), np.float32)
        content, headers = oip.binary({"a": rows, "b": rows}, parameters={"binary_data_output": True})
        answer = infer(
            client, "/v2/models/open/infer", gzip.compress(content, 1), {**headers, "content-encoding": "gzip"}
        )
        np.testing.assert_array_equal(outputs_of(answer)["sum"], rows * 2)

    @pytest.mark.parametrize(
        ("accepted", "encoding"),
        [
            ("gzip", "gzip"),
            ("deflate", "deflate"),
            ("gzip, deflate", "gzip"),
            ("gzip;q=0.2, deflate;q=0.9", "deflate"),
            ("gzip;q=0, identity", None),
            ("br", None),
            ("*", "gzip"),
            ("identity, gzip;q=0.5", None),
            ("gzip;q=x", None),
            ("", None),
        ],
    )
    @pytest.mark.parametrize("is_binary", [False, True])
    def test_answers_are_compressed_as_asked(
        self, server: ServerProcess, accepted: str, encoding: str | None, is_binary: bool
    ) -> None:
        content = body(tensor("x", ROWS), parameters={"binary_data_output": is_binary})
        asked = raw_http.request("POST", BOTH, {"Accept-Encoding": accepted}, content)
        answer = raw_http.exchange(server.port, asked)
        assert answer.headers.get("content-encoding") == encoding
        unpack = {None: bytes, "gzip": gzip.decompress, "deflate": zlib.decompress}[encoding]
        plain = raw_http.RawAnswer(answer.status_code, answer.headers, unpack(answer.content))
        oip.lint("POST", BOTH, plain)
        np.testing.assert_array_equal(outputs_of(plain)["half"], ROWS / 2)

    @pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "x-gzip", "deflate, gzip"])
    def test_other_encodings_are_415_with_what_is_taken(self, client: httpx2.Client, encoding: str) -> None:
        answer = infer(client, BOTH, body(tensor("x", ROWS)), {"content-encoding": encoding})
        assert answer.status_code == 415
        assert answer.headers["accept-encoding"] == "gzip, deflate"

    @pytest.mark.parametrize(
        ("packed", "status"),
        [
            (gzip.compress(bytes(64 * 2**20)), 413),
            (gzip.compress(b"x" * 1000)[:-4], 400),
            (b"not gzip at all", 400),
            (gzip.compress(gzip.compress(b"{}")), 400),
            (gzip.compress(b"{}") + b"more", 400),
            (gzip.compress(b""), 400),
        ],
        ids=["bomb", "truncated", "other", "twice", "tail", "empty"],
    )
    def test_what_does_not_inflate_is_refused_soon(self, client: httpx2.Client, packed: bytes, status: int) -> None:
        started_at = time.monotonic()
        assert infer(client, BOTH, packed, {"content-encoding": "gzip"}).status_code == status
        assert time.monotonic() - started_at < 2.0


class TestImages:
    def of(self, *pictures: bytes, **keys: Any) -> bytes:
        data = [bodies.base64_text(picture) for picture in pictures]
        return body({"name": "pixels", "shape": [len(pictures)], "datatype": "BYTES", "data": data}, **keys)

    def test_base64_in_json(self, client: httpx2.Client) -> None:
        answer = infer(client, COLORS, self.of(bodies.plain_color("red"), bodies.plain_color("blue")))
        expected = np.array([[4, 0, 0], [0, 0, 4]])
        np.testing.assert_allclose(outputs_of(answer)["logits"], expected, atol=1e-5)

    def test_base64_in_an_object(self, client: httpx2.Client) -> None:
        data = [{"b64": bodies.base64_text(bodies.plain_color("green"))}]
        content = json.dumps({"inputs": [{"name": "pixels", "shape": [1], "datatype": "BYTES", "data": data}]})
        # "green" is half as bright as it could be
        assert outputs_of(infer(client, COLORS, content.encode()))["logits"].argmax() == 1

    def test_bytes_in_binary(self, client: httpx2.Client) -> None:
        raw = oip.bytes_tensor([bodies.plain_color("blue"), bodies.plain_color("red")])
        one = {"name": "pixels", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
        head = body(one, outputs=[{"name": "logits", "parameters": {"classification": 1}}])
        answer = infer(client, COLORS, head + raw, {LENGTH: str(len(head))})
        assert answer.json()["outputs"][0]["data"] == ["4.000000:2:blue", "4.000000:0:red"]

    def test_the_raw_form_with_an_image_type(self, client: httpx2.Client) -> None:
        headers = {LENGTH: "0", "content-type": "image/png"}
        answer = infer(client, COLORS, bodies.plain_color("blue"), headers)
        np.testing.assert_allclose(outputs_of(answer)["logits"], [[0, 0, 4]], atol=1e-5)
        assert LENGTH in answer.headers

    def test_the_same_as_the_native_api_says(self, client: httpx2.Client) -> None:
        picture = bodies.drawn_digit(7)
        content = json.dumps(
            {
                "inputs": [
                    {
                        "name": client.get("/v2/models/digits").json()["inputs"][0]["name"],
                        "shape": [1],
                        "datatype": "BYTES",
                        "data": [bodies.base64_text(picture)],
                    }
                ]
            }
        )
        (output,) = outputs_of(infer(client, "/v2/models/digits/infer", content.encode())).values()
        assert output.argmax() == 7

    @pytest.mark.parametrize(
        ("pictures", "reason"),
        [
            ([b"just some text that is no image"], "image"),
            ([bodies.plain_color("red"), bodies.encoded(bodies.noise(8, 8), "GIF")], "gif"),
            ([], "0 images"),
            ([bodies.plain_color("red")] * 17, "17 images"),
        ],
    )
    def test_what_is_no_image_is_400(self, client: httpx2.Client, pictures: list[bytes], reason: str) -> None:
        answer = infer(client, COLORS, self.of(*pictures))
        assert answer.status_code == 400
        assert reason in answer.json()["error"].lower()

    def test_a_model_of_tensors_takes_no_images(self, client: httpx2.Client) -> None:
        content = self.of(bodies.plain_color("red")).replace(b"pixels", b"x")
        assert infer(client, BOTH, content).status_code == 400
        headers = {LENGTH: "0", "content-type": "image/png"}
        assert infer(client, BOTH, bodies.plain_color("red"), headers).status_code == 400


class TestRawForm:
    def ask(self, client: httpx2.Client, model: str, data: bytes) -> httpx2.Response:
        return infer(client, f"/v2/models/{model}/infer", data, {LENGTH: "0"})

    def test_the_body_is_one_row_and_the_outputs_are_binary(self, client: httpx2.Client) -> None:
        answer = self.ask(client, "both", ROWS[:1].tobytes())
        assert LENGTH in answer.headers
        np.testing.assert_array_equal(outputs_of(answer)["double"], ROWS[:1] * 2)

    def test_one_open_dimension_is_found(self, client: httpx2.Client) -> None:
        found = outputs_of(self.ask(client, "look_up", np.array([2]).tobytes()))
        assert found["value"].tolist() == [3]

    @pytest.mark.parametrize(
        ("model", "data"), [("both", bytes(15)), ("both", bytes(32)), ("sum", bytes(16)), ("colors", bytes(768))]
    )
    def test_what_cannot_be_told_is_400(self, client: httpx2.Client, model: str, data: bytes) -> None:
        assert self.ask(client, model, data).status_code == 400


class TestDeadline:
    def test_a_timeout_in_microseconds_shortens_the_deadline(self, client: httpx2.Client) -> None:
        content, headers = oip.binary({"input": np.zeros((32, 3, 224, 224), np.float32)}, parameters={"timeout": 1000})
        answer = infer(client, "/v2/models/imagenet/infer", content, headers)
        assert answer.status_code == 504

    @pytest.mark.parametrize("timeout", [0, 10**12])
    def test_it_does_not_lengthen_it(self, client: httpx2.Client, timeout: int) -> None:
        assert infer(client, BOTH, body(tensor("x", ROWS), parameters={"timeout": timeout})).status_code == 200


def test_requests_are_counted_under_the_protocol(client: httpx2.Client) -> None:
    def count() -> float:
        lines = client.get("/metrics").text.splitlines()
        wanted = 'fovea_requests_total{model="both",outcome="ok",protocol="v2",version="1"}'
        return sum(float(line.split()[-1]) for line in lines if line.startswith(wanted))

    before = count()
    infer(client, BOTH, body(tensor("x", ROWS)))
    assert count() == before + 1


def test_the_log_line_has_model_version_and_rows(server: ServerProcess, client: httpx2.Client) -> None:
    infer(client, BOTH, body(tensor("x", ROWS)), {"x-request-id": "rows-of-two"})
    line = server.wait_for_event("request", request_id="rows-of-two")
    assert (line["model"], line["version"], line["rows"], line["status"]) == ("both", 1, 2, 200)
