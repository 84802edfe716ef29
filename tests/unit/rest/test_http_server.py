"""The listener: real sockets, a real event loop as the service runs on, and a trivial application."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import pytest
import uvloop
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config

from service.config import LimitSettings
from service.metrics import Metrics
from service.rest.connection import Connection, HttpServer
from service.rest.guard import ConnectionGuard

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"fine"})


@contextmanager
def bound() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener


@asynccontextmanager
async def serving(listener: socket.socket, metrics: Metrics | None = None) -> AsyncIterator[HttpServer]:
    guard = ConnectionGuard(LimitSettings(), 75.0, metrics or Metrics("test"))
    http_class = partial(Connection, guard=guard)
    config = Config(_app, http=http_class, lifespan="off", log_config=None, ws="none")  # type: ignore[arg-type]
    server = HttpServer(config, listener=listener, guard=guard)
    running = asyncio.create_task(server.serve([listener]))
    while not server.started:
        await asyncio.sleep(0)
    try:
        yield server
    finally:
        server.should_exit = True
        await running


def connected(listener: socket.socket, count: int) -> list[socket.socket]:
    """Clients that the kernel has taken; the event loop does not turn meanwhile."""
    return [socket.create_connection(listener.getsockname()) for _ in range(count)]


async def turns_until(server: HttpServer, connections: int) -> int:
    turns = 0
    while len(server.server_state.connections) < connections and turns < 1000:
        await asyncio.sleep(0)
        turns += 1
    return turns


async def answer(client: socket.socket) -> bytes:
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, GET)
    async with asyncio.timeout(5):
        return await loop.sock_recv(client, 1000)


def test_clients_that_come_at_once_are_taken_in_a_few_turns_of_the_loop() -> None:
    """In each of which a busy server runs a batch."""

    async def scenario() -> int:
        async with serving(listener) as server:
            clients = connected(listener, 60)
            turns = await turns_until(server, 60)
            for client in clients:
                client.close()
            return turns

    with bound() as listener:
        assert uvloop.run(scenario()) < 10


def test_clients_beyond_those_of_one_turn_are_taken_in_the_next() -> None:
    async def scenario() -> list[bytes]:
        async with serving(listener) as server:
            clients = connected(listener, 200)
            await turns_until(server, 200)
            answers = [await answer(client) for client in clients]
            for client in clients:
                client.close()
            return answers

    with bound() as listener:
        assert all(one.startswith(b"HTTP/1.1 200 ") for one in uvloop.run(scenario()))


def test_a_connection_waits_for_no_second_packet() -> None:
    async def scenario() -> int:
        async with serving(listener) as server:
            (client,) = connected(listener, 1)
            await turns_until(server, 1)
            (connection,) = server.server_state.connections
            taken = connection.transport.get_extra_info("socket")  # type: ignore[union-attr]
            client.close()
            return int(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    with bound() as listener:
        assert uvloop.run(scenario()) == 1


def test_without_descriptors_the_listener_rests_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of asking again at every turn."""

    class Listener(socket.socket):
        refusals = 3
        asked = 0

        def accept(self) -> tuple[socket.socket, object]:
            self.asked += 1
            if self.refusals:
                self.refusals -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    monkeypatch.setattr("service.rest.connection._REST_SECONDS", 0.01)
    metrics = Metrics("test")

    async def scenario() -> bytes:
        async with serving(listener, metrics):
            (client,) = connected(listener, 1)
            answered = await answer(client)
            client.close()
            return answered

    with Listener() as listener:
        listener.bind(("127.0.0.1", 0))
        assert uvloop.run(scenario()).endswith(b"fine")
        assert listener.asked < 10
        assert metrics.registry.get_sample_value("fovea_accepts_failed_total") == 3


def test_what_the_kernel_has_taken_at_the_end_is_answered() -> None:
    async def scenario() -> bytes:
        async with serving(listener) as server:
            server.should_exit = True
            (client,) = connected(listener, 1)
            client.send(GET)
        client.setblocking(False)
        with client:
            async with asyncio.timeout(5):
                return await asyncio.get_running_loop().sock_recv(client, 1000)

    with bound() as listener:
        assert uvloop.run(scenario()).endswith(b"fine")
