"""The end of the process: what a signal starts, that no accepted request is lost by it, and how it exits.

A request counts as lost where the connection was made and no complete answer came back. A refused connection is no
loss: the client knows that nothing was accepted.
"""

import asyncio
import http.client
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import bodies, raw_http
from tests.support.answers import predictions_of, results_of
from tests.support.raw_http import Connection, IncompleteAnswer, RawAnswer
from tests.support.server_process import MODEL_REPO, ServerProcess, poll

CLIENTS = 32
RED = bodies.plain_color("red")
_ONE_AT_A_TIME = "[batching]\nmax_batch_size = {batch}\nmax_queue_wait_ms = 20000\n[execution]\ninstances = 1\n"


@pytest.fixture(scope="module")
def slow_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of which one image takes more than 100 ms; `heavy` takes about a second to load, too."""
    root = tmp_path_factory.mktemp("slow")
    graph = bodies.slow_model()
    for name, batch in (("slow", 1), ("heavy", 3)):
        manifest = bodies.COLOR_MANIFEST + _ONE_AT_A_TIME.format(batch=batch)
        bodies.write_model(root / name / name, graph, manifest=manifest, labels=bodies.COLORS)
    return root


@pytest.fixture
def slow(slow_repository: Path) -> Iterator[ServerProcess]:
    """Its requests may take as long as a busy machine makes them."""
    arguments = ("--server.drain-delay-s", "0", "--limits.timeout-ms", "20000")
    with ServerProcess(slow_repository / "slow", *arguments) as server:
        yield server.wait_until_ready()


class Ledger:
    """What the clients of one test saw."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.lost: list[str] = []
        self.told_to_close = 0
        self.first_refusal_at: float | None = None

    @property
    def answered(self) -> int:
        return self.statuses.total()


async def ask_until_refused(port: int, data: bytes, ledger: Ledger) -> None:
    """A client that keeps its connection, makes a new one where it is told to, and stops when nobody listens."""
    while True:
        try:
            connection = await Connection.open(port)
        except OSError:
            ledger.first_refusal_at = ledger.first_refusal_at or time.monotonic()
            return
        try:
            closes = False
            while not closes:
                try:
                    answer = await connection.ask(data)
                except (OSError, IncompleteAnswer) as error:
                    ledger.lost.append(repr(error))
                    break
                ledger.statuses[answer.status_code] += 1
                closes = answer.closes
                ledger.told_to_close += closes
        finally:
            await connection.close()


async def first_refusal_of_readiness(port: int) -> RawAnswer:
    """Ask /readyz, each time on a connection of its own, until it is 503."""
    while True:
        connection = await Connection.open(port)
        try:
            answer = await connection.ask(get("/readyz"))
        finally:
            await connection.close()
        if answer.status_code == 503:
            return answer


async def until(condition: Any, what: str, timeout_seconds: float = 20.0) -> None:
    give_up_at = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < give_up_at, f"{what}: not within {timeout_seconds:g} s"
        await asyncio.sleep(0.005)


def classify(model: str, *images: bytes) -> bytes:
    path, headers = f"/api/v1/models/{model}/classify", {"Content-Type": "application/json"}
    return raw_http.request("POST", path, headers, bodies.json_body(images))


def get(path: str) -> bytes:
    return raw_http.request("GET", path)


class TestSigtermUnderLoad:
    @pytest.mark.parametrize(
        ("model", "picture", "media_type"),
        [("digits", bodies.drawn_digit(7), bodies.PNG), ("imagenet", bodies.different_crops(1)[0], bodies.JPEG)],
        ids=["digits", "imagenet"],
    )
    async def test_no_accepted_request_is_lost(
        self, patient_repository: Path, model: str, picture: bytes, media_type: str
    ) -> None:
        delay_seconds = 1.0
        request = raw_http.request("POST", f"/api/v1/models/{model}/classify", {"Content-Type": media_type}, picture)
        ledger = Ledger()
        settings = ("--server.drain-delay-s", str(delay_seconds), "--limits.timeout-ms", "60000")
        with ServerProcess(patient_repository, *settings) as server:
            await asyncio.to_thread(server.wait_until_ready)
            clients = [asyncio.create_task(ask_until_refused(server.port, request, ledger)) for _ in range(CLIENTS)]
            await until(lambda: ledger.answered >= 3 * CLIENTS, "the load is there")
            assert ledger.told_to_close == 0

            signalled_at = time.monotonic()
            server.signal(signal.SIGTERM)
            readiness = await first_refusal_of_readiness(server.port)
            assert time.monotonic() - signalled_at < 0.5
            assert readiness.closes
            assert "draining" in readiness.json()["reason"]
            answered_before = ledger.answered
            await until(lambda: ledger.answered >= answered_before + CLIENTS, "requests are answered as before")
            assert ledger.first_refusal_at is None

            await asyncio.wait_for(asyncio.gather(*clients), 20.0)
            code = await asyncio.to_thread(server.wait)
        assert ledger.lost == []
        assert set(ledger.statuses) == {200}
        assert ledger.told_to_close >= CLIENTS
        assert ledger.first_refusal_at is not None
        assert ledger.first_refusal_at - signalled_at >= delay_seconds
        assert code == 0
        assert server.wait_for_event("drain_ended")["lost"] == 0


class TestDrain:
    def test_new_connections_are_answered_and_closed_while_load_balancers_take_note(self) -> None:
        """And a repeat of the signal within a second is the same signal: it changes nothing."""
        with ServerProcess(MODEL_REPO, "--server.drain-delay-s", "1") as server:
            server.wait_until_ready()
            started_at = time.monotonic()
            server.signal(signal.SIGTERM)
            server.wait_for_event("drain_started")
            for repeated in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
                image = raw_http.exchange(server.port, classify("digits", bodies.drawn_digit(3)))
                assert predictions_of(image)[0]["label"] == "3"
                probes = [raw_http.exchange(server.port, get(path)) for path in ("/livez", "/readyz", "/metrics")]
                assert [probe.status_code for probe in probes] == [200, 503, 200]
                assert all(answer.closes for answer in (image, *probes))
                server.signal(repeated)
            assert server.wait() == 0
            assert time.monotonic() - started_at >= 1.0
            assert len([line for line in server.lines if line["event"] == "drain_started"]) == 1
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", server.port), 1.0)

    def test_request_under_way_is_answered_however_long_it_takes_within_the_grace_time(
        self, slow: ServerProcess
    ) -> None:
        """Longer than a second: the signal must not come round again as a second one."""
        with socket.create_connection(("127.0.0.1", slow.port), 20.0) as connection:
            connection.sendall(classify("slow", *[RED] * 14))
            poll(lambda: b"fovea_inflight_requests 1.0" in slow.get("/metrics")[1], "it is under way")
            started_at = time.monotonic()
            slow.signal(signal.SIGTERM)
            answer = raw_http.read_answer(connection)
            assert time.monotonic() - started_at > 1.1
        assert len(results_of(answer)) == 14
        assert answer.closes
        assert slow.wait() == 0

    def test_upload_under_way_is_received_and_answered(self, slow: ServerProcess) -> None:
        request = classify("slow", RED)
        with socket.create_connection(("127.0.0.1", slow.port), 20.0) as connection:
            connection.sendall(request[:-10])
            poll(lambda: b"fovea_inflight_requests 1.0" in slow.get("/metrics")[1], "it is under way")
            slow.signal(signal.SIGTERM)
            poll(lambda: slow.status_of("/livez") == 0, "the listener is closed")
            connection.sendall(request[-10:])
            assert predictions_of(raw_http.read_answer(connection))[0]["label"] == "red"
        assert slow.wait() == 0

    def test_connection_that_was_made_before_the_end_may_still_ask(self, slow: ServerProcess) -> None:
        with socket.create_connection(("127.0.0.1", slow.port), 20.0) as connection:
            poll(lambda: slow.status_of("/livez") == 200, "the server has seen the connection")
            slow.signal(signal.SIGTERM)
            slow.wait_for_event("drain_started")
            connection.sendall(classify("slow", RED))
            assert predictions_of(raw_http.read_answer(connection))[0]["label"] == "red"
        assert slow.wait() == 0

    def test_connections_without_a_request_hold_nothing_up(self, slow: ServerProcess) -> None:
        silent = [socket.create_connection(("127.0.0.1", slow.port), 20.0) for _ in range(5)]
        kept = http.client.HTTPConnection("127.0.0.1", slow.port, timeout=20.0)
        kept.request("GET", "/livez")
        assert kept.getresponse().read()
        started_at = time.monotonic()
        assert slow.stop() == 0
        assert time.monotonic() - started_at < 5.0
        kept.close()
        for connection in silent:
            connection.close()

    def test_requests_that_outlast_the_grace_time_are_given_up(self, slow_repository: Path) -> None:
        settings = ("--server.drain-delay-s", "0", "--server.grace-s", "1")
        with ServerProcess(slow_repository / "slow", *settings) as server:
            server.wait_until_ready()
            with socket.create_connection(("127.0.0.1", server.port), 20.0) as connection:
                connection.sendall(classify("slow", *[RED] * 16))
                connection.sendall(classify("slow", *[RED] * 16))
                poll(lambda: b"fovea_inflight_requests 1.0" in server.get("/metrics")[1], "it is under way")
                started_at = time.monotonic()
                assert server.stop() == 0
                assert time.monotonic() - started_at < 6.0
            assert server.stderr == ""

    def test_signal_while_models_load_ends_the_process_cleanly(self, slow_repository: Path) -> None:
        with ServerProcess(slow_repository / "heavy", "--server.drain-delay-s", "0") as server:
            server.wait_for_event("model_state_change", new="LOADING")
            assert server.stop() == 0
            assert server.stderr == ""
            assert not [line for line in server.lines if line["level"] in ("error", "critical")]


class TestSignals:
    def test_second_signal_more_than_a_second_later_ends_the_process_at_once(self) -> None:
        with ServerProcess(MODEL_REPO, "--server.drain-delay-s", "30") as server:
            server.wait_until_ready()
            server.signal(signal.SIGTERM)
            server.wait_for_event("drain_started")
            time.sleep(1.1)  # what the contract says of time cannot be tested without it
            assert server.is_running
            again_at = time.monotonic()
            assert server.stop(10.0) != 0
            assert time.monotonic() - again_at < 2.0

    def test_interrupt_from_the_keyboard_does_not_wait_for_load_balancers(self) -> None:
        with ServerProcess(MODEL_REPO, "--server.drain-delay-s", "30") as server:
            server.wait_until_ready()
            started_at = time.monotonic()
            server.signal(signal.SIGINT)
            assert server.wait() == 0
            assert time.monotonic() - started_at < 10.0
