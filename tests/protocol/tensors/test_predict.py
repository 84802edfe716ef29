"""`/v1/models/{model}:predict`: rows, objects, images, and what is refused."""

from typing import Any

import httpx2
import numpy as np
import pytest

from tests.support import bodies


def predict(client: httpx2.Client, model: str, instances: Any, status: int = 200) -> Any:
    answer = client.post(f"/v1/models/{model}:predict", json={"instances": instances})
    assert answer.status_code == status, answer.content
    assert answer.headers["content-type"] == "application/json"
    return answer.json()["predictions"] if status == 200 else answer.json()["error"]


def image(name: str) -> dict[str, str]:
    return {"b64": bodies.base64_text(bodies.plain_color(name))}


def test_arrays_for_the_one_input_give_arrays_of_the_one_output(client: httpx2.Client) -> None:
    planes = np.zeros((2, 3, 8, 8))
    planes[0, 2] = planes[1, 0] = 1
    assert predict(client, "colors", planes.tolist()) == [[0, 0, 4], [4, 0, 0]]


def test_objects_name_the_inputs(client: httpx2.Client) -> None:
    assert predict(client, "sum", [{"a": [1, 2], "b": [10, 20]}, {"b": [0, 0], "a": [3, 4]}]) == [[11, 22], [3, 4]]


def test_several_outputs_have_their_names(client: httpx2.Client) -> None:
    assert predict(client, "both", [[2, 4, 6, 8]]) == [{"double": [4, 8, 12, 16], "half": [1, 2, 3, 4]}]
    assert predict(client, "both", [{"x": [2, 4, 6, 8]}])[0]["half"] == [1, 2, 3, 4]


def test_single_numbers(client: httpx2.Client) -> None:
    assert predict(client, "look_up", [2, 0]) == [3, 1]
    assert predict(client, "look_up", [{"index": 1}]) == [2]


def test_strings(client: httpx2.Client) -> None:
    assert predict(client, "echo", [["a", "\u00fc"]]) == [["a", "\u00fc"]]


def test_float16(client: httpx2.Client) -> None:
    assert predict(client, "half", [{"a": [1, 2], "b": [0.5, 0.5]}]) == [[1.5, 2.5]]


def test_a_model_without_rows(client: httpx2.Client) -> None:
    whole = np.arange(6.0).reshape(3, 2).tolist()
    rows = [{"a": row, "b": row} for row in whole]
    assert predict(client, "fixed", rows) == (2 * np.asarray(whole)).tolist()


@pytest.mark.parametrize("named", [False, True])
def test_images_in_base64(client: httpx2.Client, named: bool) -> None:
    instances = [{"pixels": image(name)} if named else image(name) for name in ("blue", "red")]
    np.testing.assert_allclose(predict(client, "colors", instances), [[0, 0, 4], [4, 0, 0]], atol=1e-5)


def test_a_version_is_asked_by_number(client: httpx2.Client) -> None:
    for version, status in (("1", 200), ("2", 200), ("3", 404), ("01", 404), ("latest", 404)):
        path = f"/v1/models/colors/versions/{version}:predict"
        assert client.post(path, json={"instances": [image("red")]}).status_code == status


@pytest.mark.parametrize(
    ("model", "instances"),
    [
        ("colors", []),
        ("colors", None),
        ("colors", {"pixels": []}),
        ("colors", ["text"]),
        ("colors", [[1, 2, 3]]),
        ("colors", [{"b64": "!!"}]),
        ("colors", [{"b64": 7}]),
        ("colors", [{"b64": bodies.base64_text(b"no image, just some words")}]),
        ("colors", [image("red"), [1]]),
        ("colors", [image("red"), {"other": 1, "keys": 2}]),
        ("colors", [image("red")] * 17),
        ("both", [image("red")]),
        ("both", [[1, 2, 3, 4], [1, 2, 3]]),
        ("both", [[1, 2, 3, "4"]]),
        ("both", [[1, 2, 3, True]]),
        ("both", [[1, 2, 3, 1e39]]),
        ("both", [[0, 0, 0, 0]] * 65),
        ("both", [{"y": [1, 2, 3, 4]}]),
        ("both", [{"x": [1, 2, 3, 4]}, {"x": [1, 2, 3]}]),
        ("both", [{"x": [1, 2, 3, 4]}] * 65),
        ("both", [[]]),
        ("sum", [[1, 2]]),
        ("sum", [{"a": [1, 2]}]),
        ("sum", [{"a": [1, 2], "b": [1, 2], "c": [1, 2]}]),
        ("sum", [{"a": [1, 2], "b": [1, 2.5]}]),
        ("sum", [{"a": [1, 2], "b": {"b64": "AA=="}}]),
        ("look_up", [7]),
        ("look_up", [True]),
        ("look_up", [1.5]),
        ("inverse", [[0, 0]]),
        ("echo", [[1, 2]]),
    ],
)
def test_what_does_not_fit_is_400(client: httpx2.Client, model: str, instances: Any) -> None:
    assert predict(client, model, instances, 400)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"instances": [[1, NaN, 2, 3]]}', b'{"instances": [1], "instances": [2]}', b"\xff"],
)
def test_what_is_no_request_is_400(client: httpx2.Client, content: bytes) -> None:
    answer = client.post("/v1/models/both:predict", content=content)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_the_rest_of_the_table(client: httpx2.Client) -> None:
    ask = {"instances": [[1, 2, 3, 4]]}
    assert client.post("/v1/models/nothing:predict", json=ask).status_code == 404
    assert client.post("/v1/models/broken:predict", json=ask).status_code == 503
    assert client.get("/v1/models/both:predict").status_code == 405
    assert client.post("/v1/models/both:predict", json=ask, headers={"content-encoding": "gzip"}).status_code == 415
