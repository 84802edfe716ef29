"""The Python client against a real server, and what the workbench asks through it."""

from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.client import AsyncFoveaClient, FoveaApiError, FoveaClient, RetryPolicy
from service.config import Settings
from service.errors import ConfigurationError
from service.workbench.asking import opened, reference
from tests.support import bodies
from tests.support.server_process import ServerProcess

RED, GREEN = bodies.plain_color("red"), bodies.plain_color("lime")


def test_synchronous_client_classifies_and_lists(server: ServerProcess) -> None:
    with FoveaClient(server.url) as fovea:
        answer = fovea.classify("colors", [RED, ("green.png", GREEN), b"no image"], version=1, top_k=1)
        first, second, third = answer.results
        assert (answer.version, first.predictions[0].label, second.name) == ("1", "red", "green.png")
        assert (third.error_code, third.predictions) == ("unsupported_media_type", ())
        assert fovea.is_ready()
        assert "colors" in {model["name"] for model in fovea.models()["models"]}
        assert fovea.model("colors")["labels"] == ["rouge", "vert", "bleu"]


async def test_asynchronous_client_does_the_same(server: ServerProcess) -> None:
    async with AsyncFoveaClient(server.url) as fovea:
        answer = await fovea.classify("colors", [RED], top_k=1)
        assert answer.results[0].predictions[0].label == "rouge"
        assert await fovea.is_ready()
        assert (await fovea.model("digits"))["num_labels"] == 10
        assert (await fovea.models())["models"]


@pytest.mark.parametrize("images", [b"one", "one.jpg"])
def test_one_image_without_its_list_is_told_so(images: Any) -> None:
    with FoveaClient("http://127.0.0.1:9") as fovea, pytest.raises(TypeError, match="give a list"):
        fovea.classify("digits", images)


def test_problem_is_an_error_with_its_code(server: ServerProcess) -> None:
    with FoveaClient(server.url) as fovea, pytest.raises(FoveaApiError) as caught:
        fovea.model("nothing")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert caught.value.request_id


def test_server_that_is_not_there_is_given_up_after_the_attempts(unused_tcp_port: int) -> None:
    retry = RetryPolicy(attempts=2)
    with FoveaClient(f"http://127.0.0.1:{unused_tcp_port}", retry=retry) as fovea, pytest.raises(httpx2.ConnectError):
        fovea.models()


@pytest.mark.parametrize("where", ["here", "there"])
async def test_model_that_takes_no_images_ends_the_work_at_once(
    server: ServerProcess, repository: Path, where: str
) -> None:
    settings = Settings.model_validate({"repository": {"path": repository}})
    async with opened(settings, reference("tensors"), server.url if where == "there" else None) as asker:
        with pytest.raises(ConfigurationError, match="takes tensors"):
            await asker.ask([("red.png", RED)], 1)


async def test_version_with_other_labels_than_the_server_lists_is_not_misread(server: ServerProcess) -> None:
    async with opened(Settings(), reference("colors"), server.url) as asker:
        (row,) = await asker.ask([("red.png", RED)], 1)
        assert row["predictions"][0]["label"] == "rouge"
    async with opened(Settings(), reference("colors/1"), server.url) as asker:
        with pytest.raises(ConfigurationError, match="leave out --url"):
            await asker.ask([("red.png", RED)], 1)
