"""KServe's own client as it is, in both its protocols."""

import base64
import warnings

import numpy as np
import pytest

from tests.support import bodies
from tests.support.server_process import ServerProcess

with warnings.catch_warnings():  # what this package does at its import is its own to mend
    warnings.simplefilter("ignore")
    kserve = pytest.importorskip("kserve", reason="kserve allows no Python from 3.14 on")

pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


async def test_v2(server: ServerProcess) -> None:
    client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2"))
    try:
        assert await client.is_server_live(server.url)
        assert await client.is_server_ready(server.url)
        assert await client.is_model_ready(server.url, "both")
        assert not await client.is_model_ready(server.url, "broken")
        for binary in (False, True):
            one = kserve.InferInput("x", list(ROWS.shape), "FP32")
            one.set_data_from_numpy(ROWS, binary_data=binary)
            wanted = [kserve.protocol.infer_type.RequestedOutput("double", parameters={"binary_data": binary})]
            request = kserve.InferRequest("both", [one], request_id="9", request_outputs=wanted)
            answer = await client.infer(server.url, request, model_name="both")
            assert (answer.model_name, answer.id) == ("both", "9")
            np.testing.assert_array_equal(answer.outputs[0].as_numpy(), ROWS * 2)
        bad = kserve.InferRequest("both", [kserve.InferInput("y", [1], "FP32", [1.0])])
        with pytest.raises(Exception, match="no input 'y'"):
            await client.infer(server.url, bad, model_name="both")
    finally:
        await client.close()


async def test_v1(server: ServerProcess) -> None:
    client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v1"))
    try:
        assert await client.is_server_live(server.url)
        assert await client.is_model_ready(server.url, "both")
        assert not await client.is_model_ready(server.url, "broken")
        answer = await client.infer(server.url, {"instances": [[2, 4, 6, 8]]}, model_name="both")
        assert answer["predictions"] == [{"double": [4, 8, 12, 16], "half": [1, 2, 3, 4]}]
        picture = base64.b64encode(bodies.plain_color("red")).decode()
        answer = await client.infer(server.url, {"instances": [{"b64": picture}]}, model_name="colors")
        assert np.argmax(answer["predictions"][0]) == 0
    finally:
        await client.close()
