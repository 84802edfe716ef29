"""uvicorn's server with a listener of our own: how connections come to be, and how the last of them end.

uvloop's listener takes one connection a turn of the event loop, and in a turn a busy loop runs a whole batch: of 128
clients that came at once under load the last was answered after half a second. uvicorn's closes with clients still in
the backlog, who believe to have sent a request. Knows nothing of what is said on a connection.
"""

import asyncio
import logging
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import Server

from service.rest.connection import FIRST_REQUEST_SECONDS, Connection
from service.rest.guard import LOOK_SECONDS, ConnectionGuard

logger = logging.getLogger(__name__)

_TAKEN_A_TURN = 64  # connections, of some 50 microseconds each
_REST_SECONDS = 0.5  # without a descriptor for one more connection


class HttpServer(Server):
    """See the module. Signals are not its business."""

    def __init__(self, config: Config, *, listener: socket.socket, guard: ConnectionGuard) -> None:
        super().__init__(config)
        self._listener = listener
        self._guard = guard
        # each makes a connection ours, with TLS by a handshake -> since when, and the client's address
        self.arriving: dict[asyncio.Task[Any], tuple[float, Any]] = {}
        self._tls: dict[str, Any] = {}  # how to shake hands

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are `run`'s business."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await self.lifespan.startup()
        if self.config.ssl is not None:
            begin, end = self._guard.head_seconds, self._guard.write_seconds
            self._tls = {"ssl": self.config.ssl, "ssl_handshake_timeout": begin, "ssl_shutdown_timeout": end}
        self.servers = []
        self._listener.listen(self.config.backlog)
        self._listener.setblocking(False)
        self._listen()
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, adopt what the kernel has accepted already, answer everything, close."""
        asyncio.get_running_loop().remove_reader(self._listener)
        adopted = 0
        while taken := self._take_some():
            adopted += taken
        self._listener.close()
        if adopted:
            logger.info("backlog_adopted", extra={"connections": adopted})
        if self.arriving:
            await asyncio.wait(self.arriving, timeout=FIRST_REQUEST_SECONDS)
        await super().shutdown(sockets)

    def _listen(self) -> None:
        if self._listener.fileno() >= 0:  # not closed meanwhile
            asyncio.get_running_loop().add_reader(self._listener, self._take_some)

    def _take_some(self) -> int:
        """Connections that are complete in the kernel's queue become ours; how many. A later turn takes the rest."""
        for taken in range(_TAKEN_A_TURN):
            try:
                connected, address = self._listener.accept()
            except BlockingIOError:
                return taken
            except ConnectionAbortedError:  # who has left meanwhile
                continue
            except OSError as error:
                self._rest(error)
                return taken
            if self._tls and not self._has_room_for_a_handshake():
                self._guard.note("connection_limit", address)  # which cannot be told before the handshake
                connected.close()
                continue
            connected.setblocking(False)
            loop = asyncio.get_running_loop()
            task = loop.create_task(loop.connect_accepted_socket(self._protocol, connected, **self._tls))
            self.arriving[task] = self._guard.clock(), address
            task.add_done_callback(self._arrived)
        return _TAKEN_A_TURN

    def _has_room_for_a_handshake(self) -> bool:
        """Whether one more may shake hands, if need be in the place of who has not for a second."""
        coming = len(self.arriving) + 1
        if self.arriving and self._guard.is_full(len(self._connections) + coming):
            task, (since, address) = next(iter(self.arriving.items()))
            if self._guard.clock() - since > FIRST_REQUEST_SECONDS:
                del self.arriving[task]
                task.cancel()
                self._guard.note("connection_limit", address)
                return True
        return self._guard.has_room(self._connections, coming)

    def _arrived(self, task: asyncio.Task[Any]) -> None:
        self.arriving.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        if not isinstance(error, OSError):
            logger.error("connection_failed", exc_info=error)
        elif self._tls:  # it left, was too slow, or speaks otherwise; a port scan does that all day
            self._guard.count("handshake_failed")

    def _rest(self, error: OSError) -> None:
        """Whoever comes next waits in the kernel: asking on for what there is no room for would be in vain."""
        self._guard.cannot_accept(error)
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        loop.call_later(_REST_SECONDS, self._listen)

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's, ten times a second."""
        if counter % int(10 * LOOK_SECONDS) == 0:
            self._guard.look(self._connections)
        return await super().on_tick(counter)

    @property
    def _connections(self) -> Collection[Connection]:
        return cast(Collection[Connection], self.server_state.connections)

    def _protocol(self) -> Connection:
        return Connection(
            guard=self._guard, config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
