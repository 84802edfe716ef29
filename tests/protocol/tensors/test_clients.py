"""The clients of the field as they are: tritonclient.http, plain and on asyncio."""

import asyncio
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.protocol.tensors.conftest import ADMIN
from tests.support import bodies
from tests.support.server_process import ServerProcess

with warnings.catch_warnings():  # what these packages do at their import is theirs to mend
    warnings.simplefilter("ignore")
    import tritonclient.http as triton
    import tritonclient.http.aio as triton_aio
    from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
CODINGS = [None, "gzip", "deflate"]


def given(rows: np.ndarray[Any, Any] = ROWS, *, binary: bool, module: Any = triton) -> list[Any]:
    one = module.InferInput("x", list(rows.shape), "FP32")
    one.set_data_from_numpy(rows, binary_data=binary)
    return [one]


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


class TestTriton:
    def test_health(self, client: triton.InferenceServerClient) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("both")
        assert client.is_model_ready("colors", "1")
        assert not client.is_model_ready("broken")
        assert not client.is_model_ready("nothing")

    def test_listings(self, client: triton.InferenceServerClient) -> None:
        assert "statistics" in client.get_server_metadata()["extensions"]
        assert client.get_model_metadata("colors", "1")["name"] == "colors"
        assert client.get_model_config("colors")["input"][0]["name"] == "pixels"
        assert client.get_inference_statistics("both")["model_stats"][0]["name"] == "both"
        assert len(client.get_inference_statistics()["model_stats"]) > 3
        assert {"name": "both", "version": "1", "state": "READY"} in client.get_model_repository_index()

    def test_load_and_unload(self, client: triton.InferenceServerClient) -> None:
        client.unload_model("half", headers=ADMIN)
        assert not client.is_model_ready("half")
        client.load_model("half", headers=ADMIN)
        assert client.is_model_ready("half")
        with pytest.raises(InferenceServerException, match="admin token"):
            client.unload_model("half")
        with pytest.raises(InferenceServerException, match="not supported"):
            client.load_model("half", headers=ADMIN, config="{}")

    @pytest.mark.parametrize("request_coding", CODINGS)
    @pytest.mark.parametrize("response_coding", CODINGS)
    @pytest.mark.parametrize("binary", [True, False])
    def test_infer(
        self, client: triton.InferenceServerClient, binary: bool, request_coding: Any, response_coding: Any
    ) -> None:
        result = client.infer(
            "both",
            given(binary=binary),
            outputs=[triton.InferRequestedOutput("double", binary_data=binary)],
            request_id="7",
            request_compression_algorithm=request_coding,
            response_compression_algorithm=response_coding,
        )
        np.testing.assert_array_equal(result.as_numpy("double"), ROWS * 2)
        assert result.as_numpy("half") is None
        assert result.get_response()["id"] == "7"

    def test_infer_without_naming_outputs(self, client: triton.InferenceServerClient) -> None:
        result = client.infer("both", given(binary=True))
        np.testing.assert_array_equal(result.as_numpy("half"), ROWS / 2)

    def test_mixed_inputs(self, client: triton.InferenceServerClient) -> None:
        inputs = [triton.InferInput(name, [1, 2], "INT64") for name in ("a", "b")]
        inputs[0].set_data_from_numpy(np.array([[1, 2]]), binary_data=False)
        inputs[1].set_data_from_numpy(np.array([[10, 20]]), binary_data=True)
        assert client.infer("sum", inputs).as_numpy("sum").tolist() == [[11, 22]]

    def test_half_and_strings(self, client: triton.InferenceServerClient) -> None:
        half = [triton.InferInput(name, [1, 2], "FP16") for name in ("a", "b")]
        for one in half:
            one.set_data_from_numpy(np.ones((1, 2), np.float16))
        assert client.infer("half", half).as_numpy("sum").tolist() == [[2, 2]]
        for binary in (True, False):
            words = triton.InferInput("text", [1, 2], "BYTES")
            words.set_data_from_numpy(np.array([["a", "\u00fc"]], object), binary_data=binary)
            wanted = [triton.InferRequestedOutput("same", binary_data=binary)]
            (row,) = client.infer("echo", [words], outputs=wanted).as_numpy("same").tolist()
            assert [each if isinstance(each, str) else each.decode() for each in row] == ["a", "\u00fc"]

    @pytest.mark.parametrize("binary", [True, False])
    def test_class_count(self, client: triton.InferenceServerClient, binary: bool) -> None:
        pixels = triton.InferInput("pixels", [1, 3, 8, 8], "FP32")
        planes = np.zeros((1, 3, 8, 8), np.float32)
        planes[:, 1] = 1
        pixels.set_data_from_numpy(planes)
        wanted = [triton.InferRequestedOutput("logits", class_count=2, binary_data=binary)]
        (row,) = client.infer("colors", [pixels], outputs=wanted).as_numpy("logits").tolist()
        found = [each if isinstance(each, str) else each.decode() for each in row]
        assert found == ["4.000000:1:green", "0.000000:0:red"]

    def test_images_as_bytes(self, client: triton.InferenceServerClient) -> None:
        pictures = np.array([bodies.plain_color("blue"), bodies.plain_color("red")], object)
        pixels = triton.InferInput("pixels", [2], "BYTES")
        pixels.set_data_from_numpy(pictures)
        assert client.infer("colors", [pixels]).as_numpy("logits").argmax(1).tolist() == [2, 0]

    def test_async_infer(self, client: triton.InferenceServerClient) -> None:
        waiting = [client.async_infer("both", given(ROWS * n, binary=True)) for n in range(4)]
        for n, one in enumerate(waiting):
            np.testing.assert_array_equal(one.get_result().as_numpy("double"), ROWS * 2 * n)

    def test_errors_have_their_text(self, client: triton.InferenceServerClient) -> None:
        with pytest.raises(InferenceServerException, match="Request for unknown model"):
            client.infer("nothing", given(binary=True))
        with pytest.raises(InferenceServerException, match=r"\[-1, 4\]"):
            client.infer("both", given(np.ones((1, 3), np.float32), binary=True))
        with pytest.raises(InferenceServerException, match="Request for unknown model"):
            client.get_model_metadata("nothing")

    def test_generated_and_parsed_bodies(self, client: triton.InferenceServerClient, server: ServerProcess) -> None:
        import httpx2

        content, length = triton.InferenceServerClient.generate_request_body(given(binary=True))
        headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
        answer = httpx2.post(f"{server.url}/v2/models/both/infer", content=content, headers=headers)
        header_length = answer.headers.get("inference-header-content-length")
        result = triton.InferenceServerClient.parse_response_body(
            answer.content, header_length=None if header_length is None else int(header_length)
        )
        np.testing.assert_array_equal(result.as_numpy("half"), ROWS / 2)


class TestTritonOnAsyncio:
    async def test_everything_it_calls(self, server: ServerProcess) -> None:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("both")
            assert (await client.get_server_metadata())["name"] == "fovea"
            assert (await client.get_model_metadata("both"))["inputs"][0]["shape"] == [-1, 4]
            assert (await client.get_model_config("both"))["max_batch_size"] >= 32
            assert (await client.get_inference_statistics("both"))["model_stats"]
            assert await client.get_model_repository_index()
            await client.unload_model("fixed", headers=ADMIN)
            assert not await client.is_model_ready("fixed")
            await client.load_model("fixed", headers=ADMIN)
            assert await client.is_model_ready("fixed")
            with pytest.raises(InferenceServerException, match="Request for unknown model"):
                await client.infer("nothing", given(binary=False, module=triton_aio))

    @pytest.mark.parametrize("coding", CODINGS)
    @pytest.mark.parametrize("binary", [True, False])
    async def test_infer(self, server: ServerProcess, binary: bool, coding: Any) -> None:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            results = await asyncio.gather(
                *(
                    client.infer(
                        "both",
                        given(ROWS * n, binary=binary, module=triton_aio),
                        outputs=[triton_aio.InferRequestedOutput("double", binary_data=binary)],
                        request_compression_algorithm=coding,
                        response_compression_algorithm=coding,
                    )
                    for n in range(8)
                )
            )
        for n, result in enumerate(results):
            np.testing.assert_array_equal(result.as_numpy("double"), ROWS * 2 * n)
