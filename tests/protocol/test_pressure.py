"""Callers who leave, and more work than the server can do: what it costs others, and what they are told."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import ExitStack

import httpx2
import pytest

from tests.support import bodies, raw_http
from tests.support.answers import predictions_of, problem_of, results_of
from tests.support.raw_http import RawAnswer
from tests.support.scrape import Scrape
from tests.support.server_process import ServerProcess, poll

RED, GREEN, BLUE = (bodies.plain_color(name) for name in bodies.COLORS)


def request(model: str, *images: bytes) -> bytes:
    path = f"/api/v1/models/{model}/classify"
    return raw_http.request("POST", path, {"Content-Type": "application/json"}, bodies.json_body(images))


def wait_until_free(server: ServerProcess, model: str) -> None:
    """Until a slow model has nothing left to run of requests that nobody waits for."""
    poll(lambda: raw_http.exchange(server.port, request(model, RED)).status_code == 200, f"{model} is free")


async def all_at_once(port: int, requests: list[bytes]) -> list[RawAnswer]:
    async def one(data: bytes) -> RawAnswer:
        connection = await raw_http.Connection.open(port)
        try:
            return await connection.ask(data)
        finally:
            await connection.close()

    return await asyncio.gather(*map(one, requests))


@pytest.fixture
def slow_is_free(server: ServerProcess) -> None:
    wait_until_free(server, "slow")


@pytest.fixture
def crowded_is_free(server: ServerProcess) -> None:
    wait_until_free(server, "crowded")


@pytest.mark.usefixtures("slow_is_free")
class TestCallersWhoLeave:
    def test_request_of_a_caller_who_left_the_queue_never_runs_and_its_neighbours_are_answered(
        self, server: ServerProcess, scrape: Callable[[], Scrape]
    ) -> None:
        """The first holds the model for as long as six images take; the second leaves meanwhile; the third waits."""
        before = scrape()
        with ExitStack() as stack:

            def ask(*images: bytes) -> socket.socket:
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 20.0))
                connection.sendall(request("slow", *images))
                return connection

            def wait_for_requests(count: int) -> None:
                poll(lambda: scrape().total("fovea_inflight_requests") == count, f"{count} requests are under way")

            first = ask(*[RED] * 6)
            wait_for_requests(1)
            second = ask(GREEN, GREEN)
            wait_for_requests(2)
            third = ask(BLUE)
            wait_for_requests(3)
            second.close()
            poll(lambda: scrape().grown(before, "fovea_cancelled_total") == 1, "the loss of the second is counted")
            assert scrape().total("fovea_inflight_requests") == 2  # neither neighbour has its answer yet
            answers = [raw_http.read_answer(first), raw_http.read_answer(third)]
        assert [item["predictions"][0]["label"] for item in results_of(answers[0])] == ["red"] * 6
        assert predictions_of(answers[1])[0]["label"] == "blue"
        after = scrape()
        assert after.changes(before, "fovea_cancelled_total") == {(("model", "slow"), ("phase", "queue")): 1}
        assert after.grown(before, "fovea_batch_size_sum", model="slow") == 7
        assert after.grown(before, "fovea_images_total", model="slow") == 7
        assert after.grown(before, "fovea_requests_total", model="slow", outcome="cancelled") == 1
        assert after.grown(before, "fovea_requests_total", model="slow", outcome="ok") == 2

    def test_caller_who_leaves_a_running_request_is_counted_as_such(
        self, server: ServerProcess, scrape: Callable[[], Scrape]
    ) -> None:
        before = scrape()
        with socket.create_connection(("127.0.0.1", server.port), 20.0) as connection:
            connection.sendall(request("slow", RED))
            poll(lambda: scrape().total("fovea_inflight_requests") == 1, "it is under way")
        poll(lambda: scrape().grown(before, "fovea_cancelled_total") == 1, "it is counted")
        assert scrape().changes(before, "fovea_cancelled_total") == {(("model", "slow"), ("phase", "infer")): 1}

    def test_places_of_callers_who_left_the_queue_are_free_at_once(
        self, server: ServerProcess, scrape: Callable[[], Scrape]
    ) -> None:
        before = scrape()
        with ExitStack() as stack:
            first = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 20.0))
            first.sendall(request("slow", *[RED] * 6))
            poll(lambda: 0 < scrape().total("fovea_queue_entries", model="slow") <= 5, "the model is busy")
            others = [
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 20.0)) for _ in range(10)
            ]
            for connection in others:
                connection.sendall(request("slow", GREEN))
            poll(lambda: scrape().total("fovea_inflight_requests") == 11, "the others are queued")
            for connection in others:
                connection.close()
            poll(lambda: scrape().grown(before, "fovea_cancelled_total") == 10, "all are counted as gone")
            now = scrape()
            assert now.total("fovea_inflight_requests") == 1
            assert now.total("fovea_queue_entries", model="slow") <= 5  # what is left of the first one's six
            assert len(results_of(raw_http.read_answer(first))) == 6

    def test_places_of_requests_whose_deadline_passed_are_free_at_once(
        self, server: ServerProcess, scrape: Callable[[], Scrape]
    ) -> None:
        hasty = raw_http.request(
            "POST", "/api/v1/models/slow/classify?timeout_ms=30", {"Content-Type": bodies.PNG}, GREEN
        )
        with socket.create_connection(("127.0.0.1", server.port), 20.0) as first:
            first.sendall(request("slow", *[RED] * 6))
            poll(lambda: 0 < scrape().total("fovea_queue_entries", model="slow") <= 5, "the model is busy")
            for _ in range(6):
                problem_of(raw_http.exchange(server.port, hasty), 504, "deadline_exceeded")
            now = scrape()
            assert now.total("fovea_inflight_requests") == 1
            assert now.total("fovea_queue_entries", model="slow") <= 5
            assert len(results_of(raw_http.read_answer(first))) == 6

    def test_caller_who_leaves_while_sending_is_counted_as_such(
        self, server: ServerProcess, scrape: Callable[[], Scrape]
    ) -> None:
        before = scrape()
        head = raw_http.request(
            "POST", "/api/v1/models/colors/classify", {"Content-Type": bodies.PNG, "Content-Length": "1000"}, RED[:20]
        )
        with socket.create_connection(("127.0.0.1", server.port), 20.0) as connection:
            connection.sendall(head)
            poll(lambda: scrape().total("fovea_inflight_requests") == 1, "it is under way")
        poll(lambda: scrape().grown(before, "fovea_cancelled_total") == 1, "it is counted")
        assert scrape().changes(before, "fovea_cancelled_total") == {(("model", "colors"), ("phase", "receive")): 1}
        assert scrape().total("fovea_inflight_requests") == 0

    def test_callers_who_leave_are_no_errors_of_the_log(
        self, server: ServerProcess, scrape: Callable[[], Scrape]
    ) -> None:
        before = scrape()
        logged = len(server.lines)

        def seen() -> float:
            """Requests under way, and those that ended: a busy machine may answer one between two looks."""
            now = scrape()
            return now.total("fovea_inflight_requests") + now.grown(before, "fovea_requests_total")

        for sent in range(1, 11):
            with socket.create_connection(("127.0.0.1", server.port), 20.0) as connection:
                connection.sendall(request("slow", RED))
                poll(lambda sent=sent: seen() >= sent, "it is under way")
            poll(lambda: scrape().total("fovea_inflight_requests") == 0, "it is gone")
        poll(lambda: scrape().grown(before, "fovea_requests_total") == 10, "all are counted")
        assert scrape().grown(before, "fovea_cancelled_total") >= 5  # on a busy machine one may be answered first
        assert [line for line in server.lines[logged:] if line["level"] in ("error", "critical")] == []


@pytest.mark.usefixtures("crowded_is_free")
class TestOverload:
    async def test_full_queue_refuses_with_a_time_to_come_again(
        self, server: ServerProcess, scrape: Callable[[], Scrape]
    ) -> None:
        before = scrape()
        answers = await all_at_once(server.port, [request("crowded", GREEN)] * 24)
        good = [answer for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert len(good) >= 3  # one running, two queued
        assert len(refused) >= 12
        for answer in refused:
            problem_of(answer, 503, "overloaded")
        for answer in good:
            assert predictions_of(answer)[0]["label"] == "green"
        after = scrape()
        assert after.changes(before, "fovea_rejected_total") == {
            (("model", "crowded"), ("reason", "queue_full")): len(refused)
        }
        assert after.grown(before, "fovea_requests_total", model="crowded", outcome="ok") == len(good)
        assert after.grown(before, "fovea_requests_total", model="crowded", outcome="rejected") == len(refused)

    async def test_low_priority_is_shed_first(self, server: ServerProcess) -> None:
        """One runs, two may wait: of the second place a request of low priority has nothing."""
        low = request("crowded", GREEN).replace(b"\r\n", b"\r\nX-Priority: low\r\n", 1)
        answers = await all_at_once(server.port, [low] * 12 + [request("crowded", GREEN)] * 2)
        assert [answer.status_code for answer in answers[:12]].count(200) <= 2
        assert [answer.status_code for answer in answers[12:]].count(200) >= 1
        assert {answer.headers["retry-after"] for answer in answers if answer.status_code == 503} <= {"1", "2"}

    async def test_other_models_do_not_notice_a_full_queue(self, server: ServerProcess) -> None:
        crowd = [request("crowded", GREEN)] * 12
        answers = await all_at_once(server.port, [*crowd, request("colors", RED), *crowd])
        assert predictions_of(answers[12])[0]["label"] == "rouge"

    def test_request_that_does_not_fit_into_the_queue_is_refused_as_a_whole(
        self, client: httpx2.Client, server: ServerProcess, scrape: Callable[[], Scrape]
    ) -> None:
        before = scrape()
        problem_of(raw_http.exchange(server.port, request("crowded", *[GREEN] * 8)), 503, "overloaded")
        after = scrape()
        assert after.grown(before, "fovea_requests_total", model="crowded") == 1
        assert after.grown(before, "fovea_images_total", model="crowded") == 0
        poll(lambda: scrape().total("fovea_queue_entries", model="crowded") == 0, "what had entered is forgotten")

    async def test_server_is_as_good_as_before_once_the_crowd_is_gone(self, server: ServerProcess) -> None:
        await all_at_once(server.port, [request("crowded", GREEN)] * 24)
        (answer,) = await all_at_once(server.port, [request("crowded", BLUE)])
        assert predictions_of(answer)[0]["label"] == "blue"

    async def test_probes_are_answered_while_the_server_is_overloaded(self, server: ServerProcess) -> None:
        crowd = [request("crowded", GREEN)] * 12
        probes = [raw_http.request("GET", path) for path in ("/livez", "/readyz", "/metrics")]
        answers = await all_at_once(server.port, [*crowd, *probes])
        assert [answer.status_code for answer in answers[12:]] == [200, 200, 200]


@pytest.mark.parametrize("connections", [200])
async def test_idle_connections_cost_nobody_an_answer(server: ServerProcess, connections: int) -> None:
    idle = [await raw_http.Connection.open(server.port) for _ in range(connections)]
    try:
        (answer,) = await all_at_once(server.port, [request("colors", RED)])
        assert predictions_of(answer)[0]["label"] == "rouge"
    finally:
        for connection in idle:
            await connection.close()
