"""The listener: real sockets, a real event loop as the service runs on, and a trivial application."""

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import pytest
import uvloop
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config

from service.config import LimitSettings
from service.metrics import Metrics
from service.rest.connection import Connection
from service.rest.guard import ConnectionGuard
from service.rest.http_server import HttpServer
from tests.support.tls import Identity, self_signed

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
async def serving(
    listener: socket.socket,
    metrics: Metrics | None = None,
    identity: Identity | None = None,
    clock: Callable[[], float] = time.monotonic,
    **limits: Any,
) -> AsyncIterator[HttpServer]:
    guard = ConnectionGuard(LimitSettings(**limits), 75.0, metrics or Metrics("test"), clock)
    config = Config(
        _app,
        http=partial(Connection, guard=guard),  # type: ignore[arg-type]
        lifespan="off",
        log_config=None,
        ws="none",
        ssl_certfile=identity and identity.certificate,
        ssl_keyfile=identity and identity.key,
    )
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

    monkeypatch.setattr("service.rest.http_server._REST_SECONDS", 0.01)
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


class TestTls:
    """Before the handshake there is no connection that anybody could look at."""

    @pytest.fixture(scope="class")
    @staticmethod
    def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
        return self_signed(tmp_path_factory.mktemp("tls"))

    async def answer(self, address: Any, identity: Identity) -> bytes:
        trusting = ssl.create_default_context(cafile=str(identity.certificate))
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(*address, ssl=trusting, server_hostname="localhost")
            writer.write(GET)
            answered = await reader.readuntil(b"fine")
            writer.close()
            return answered

    def test_who_shakes_no_hands_in_time_is_closed(self, identity: Identity) -> None:
        metrics = Metrics("test")

        async def scenario() -> bytes:
            async with serving(listener, metrics, identity, header_timeout_s=0.2):
                (silent,) = connected(listener, 1)
                with silent:
                    assert (await self.answer(listener.getsockname(), identity)).startswith(b"HTTP/1.1 200 ")
                    silent.setblocking(False)
                    async with asyncio.timeout(5):
                        return await asyncio.get_running_loop().sock_recv(silent, 100)

        with bound() as listener:
            assert uvloop.run(scenario()) == b""
        labels = {"reason": "handshake_failed"}
        assert metrics.registry.get_sample_value("fovea_connections_closed_total", labels) == 1

    def test_those_who_have_not_yet_shaken_hands_are_connections_too(self, identity: Identity) -> None:
        metrics = Metrics("test")

        async def scenario() -> list[bytes]:
            async with serving(listener, metrics, identity, connections=2):
                clients = connected(listener, 3)
                loop = asyncio.get_running_loop()
                for client in clients:
                    client.setblocking(False)
                async with asyncio.timeout(5):
                    refused = await loop.sock_recv(clients[2], 100)
                with pytest.raises(BlockingIOError):
                    clients[0].recv(100)
                for client in clients:
                    client.close()
                while server_is_busy():
                    await asyncio.sleep(0)
                return [refused, await self.answer(listener.getsockname(), identity)]

        def server_is_busy() -> bool:
            labels = {"reason": "handshake_failed"}
            return metrics.registry.get_sample_value("fovea_connections_closed_total", labels) != 2

        with bound() as listener:
            refused, answered = uvloop.run(scenario())
        assert refused == b""
        assert answered.startswith(b"HTTP/1.1 200 ")
        labels = {"reason": "connection_limit"}
        assert metrics.registry.get_sample_value("fovea_connections_closed_total", labels) == 1

    def test_who_has_not_shaken_hands_for_a_second_makes_room(self, identity: Identity) -> None:
        metrics = Metrics("test")
        now = 0.0

        async def scenario() -> tuple[bytes, bytes]:
            nonlocal now
            async with serving(listener, metrics, identity, lambda: now, connections=2) as server:
                oldest, other = connected(listener, 2)
                with oldest, other:
                    oldest.setblocking(False)
                    other.setblocking(False)
                    while len(server.arriving) < 2:
                        await asyncio.sleep(0)
                    now = 1.1
                    answered = await self.answer(listener.getsockname(), identity)
                    async with asyncio.timeout(5):
                        ended = await asyncio.get_running_loop().sock_recv(oldest, 100)
                    with pytest.raises(BlockingIOError):
                        other.recv(100)
                    return answered, ended

        with bound() as listener:
            answered, ended = uvloop.run(scenario())
        assert answered.startswith(b"HTTP/1.1 200 ")
        assert ended == b""
        labels = {"reason": "connection_limit"}
        assert metrics.registry.get_sample_value("fovea_connections_closed_total", labels) == 1
