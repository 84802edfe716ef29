"""That the lint has the protocol's own schema to hold answers to."""

import pytest

from tests.support import oip


def test_answers_are_held_to_the_protocols_own_schema() -> None:
    if not oip.SCHEMA.is_file():
        pytest.skip(f"{oip.SCHEMA.name} is not beside this checkout: answers are linted, and not held to the schema")
    with pytest.raises(oip.jsonschema.ValidationError):
        oip._validate("inference_response", {"model_name": "m", "outputs": [{"name": "y"}]})
    with pytest.raises(oip.jsonschema.ValidationError):
        oip._validate("metadata_server_response", {"name": "fovea"})


class Answer:
    """A 200 of /infer, as the test wants it."""

    status_code = 200

    def __init__(self, content: bytes, **headers: str) -> None:
        self.content = content
        self.headers = {"content-type": "application/json", **headers}


@pytest.mark.parametrize(
    "output",
    [
        '{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [[1, 2]]}',
        '{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1, 2], "parameters": {}}',
        '{"name": "y", "datatype": "FP32", "shape": [1, -2], "data": [1, 2]}',
        '{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1, NaN]}',
        '{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [1, 2]}',
        '{"name": "y", "datatype": "FP16", "shape": [1, 2], "data": [1, 2]}',
    ],
)
def test_the_lint_finds_what_the_cpp_client_stumbles_over(output: str) -> None:
    text = '{"model_name": "m", "model_version": "1", "outputs": [%s]}'
    sound = '{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}'
    oip.lint("POST", "/v2/models/m/infer", Answer((text % sound).encode()))
    with pytest.raises(AssertionError):
        oip.lint("POST", "/v2/models/m/infer", Answer((text % output).encode()))
