"""Many clients at once against the committed models: whatever shares a batch, everyone gets his own answer."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import bodies, raw_http
from tests.support.answers import assert_same_predictions, predictions_of
from tests.support.raw_http import Connection
from tests.support.scrape import Scrape
from tests.support.server_process import ServerProcess

CLIENTS = 64


@pytest.fixture(scope="module")
def server(patient_repository: Path) -> Iterator[ServerProcess]:
    settings = ("--server.drain-delay-s", "0", "--limits.timeout-ms", "60000")
    with ServerProcess(patient_repository, *settings) as process:
        yield process.wait_until_ready()
        assert process.stop() == 0


async def in_turn(port: int, requests: list[bytes]) -> list[list[dict[str, Any]]]:
    """Each request alone, one after the other."""
    connection = await Connection.open(port)
    try:
        return [predictions_of(await connection.ask(data)) for data in requests]
    finally:
        await connection.close()


async def at_once(port: int, requests: list[bytes], each: int) -> list[list[list[dict[str, Any]]]]:
    """A client for each request, all at the same time; client `i` asks its own request `each` times."""
    everyone_is_here = asyncio.Barrier(len(requests))

    async def client(data: bytes) -> list[list[dict[str, Any]]]:
        connection = await Connection.open(port)
        try:
            await everyone_is_here.wait()
            return [predictions_of(await connection.ask(data)) for _ in range(each)]
        finally:
            await connection.close()

    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(client(data)) for data in requests]
    return [task.result() for task in clients]


@pytest.mark.parametrize(("model", "total"), [("digits", 2000), ("fashion", 2000), ("imagenet", 200)])
async def test_every_one_of_64_clients_gets_the_answer_of_its_own_image(
    server: ServerProcess, model: str, total: int
) -> None:
    pictures = bodies.different_crops(CLIENTS) if model == "imagenet" else bodies.different_digits(CLIENTS)
    headers = {"Content-Type": bodies.JPEG if model == "imagenet" else bodies.PNG}
    requests = [
        raw_http.request("POST", f"/api/v1/models/{model}/classify?top_k=3", headers, data) for data in pictures
    ]
    alone = await in_turn(server.port, requests)
    assert len({str(predictions) for predictions in alone}) > CLIENTS * 0.9  # they can be told apart
    before = Scrape.parse(server.get("/metrics")[1].decode())

    together = await at_once(server.port, requests, -(-total // CLIENTS))

    after = Scrape.parse(server.get("/metrics")[1].decode())
    for answers, wanted in zip(together, alone, strict=True):
        for predictions in answers:
            assert_same_predictions(predictions, wanted, tolerance=1e-4)
    images = after.grown(before, "fovea_batch_size_sum", model=model)
    executions = after.grown(before, "fovea_batch_size_count", model=model)
    assert images == sum(map(len, together)) >= total
    assert images / executions > 1.5
    assert after.grown(before, "fovea_requests_total", model=model, outcome="ok") == images
    assert after.total("fovea_inflight_requests") == after.total("fovea_queue_entries") == 0


async def test_burst_of_newcomers_that_is_worked_off_in_time_is_not_refused(server: ServerProcess) -> None:
    """200 small images take a fraction of `max_queue_wait_ms`, and fit into the queue.

    A few refusals are let pass, for the sake of machines that are busy with something else.
    """
    path = "/api/v1/models/digits/classify?top_k=1"
    requests = [
        raw_http.request("POST", path, {"Content-Type": bodies.PNG}, data) for data in bodies.different_digits(200)
    ]

    async def newcomer(data: bytes) -> list[str]:
        connection = await Connection.open(server.port)
        try:
            answers = [await connection.ask(data) for _ in range(10)]
        finally:
            await connection.close()
        return [answer.json()["detail"] for answer in answers if answer.status_code != 200]

    async with asyncio.TaskGroup() as group:
        newcomers = [group.create_task(newcomer(data)) for data in requests]
    refused = [detail for task in newcomers for detail in task.result()]
    assert len(refused) <= 20, f"{len(refused)} of 2,000: {refused[:3]} ..."


async def test_models_under_load_at_the_same_time_do_not_mix_their_answers(server: ServerProcess) -> None:
    pictures = bodies.different_digits(24)
    requests = [
        raw_http.request(
            "POST", f"/api/v1/models/{model}/classify?top_k=2", {"Content-Type": bodies.PNG}, pictures[index]
        )
        for index, model in enumerate(["digits", "fashion", "imagenet"] * 8)
    ]
    alone = await in_turn(server.port, requests)
    for answers, wanted in zip(await at_once(server.port, requests, 10), alone, strict=True):
        for predictions in answers:
            assert_same_predictions(predictions, wanted, tolerance=1e-4)
