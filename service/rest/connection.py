"""One HTTP connection: uvicorn's httptools protocol, taught to end without losing a request.

uvicorn closes a connection that has no request under way, even one whose request is already in the kernel's buffer,
and closes its listener with clients still in the backlog. Both are requests that a client believes to have sent.
"""

import asyncio
import logging
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import Server

logger = logging.getLogger(__name__)

_FIRST_REQUEST_SECONDS = 1.0  # a client that has just connected sends its request within this, or has none


class Departure:
    """Tells whoever answers a request that its client has gone: `on_departure` is called then, once."""

    __slots__ = ("on_departure",)

    def __init__(self) -> None:
        self.on_departure: Callable[[], object] | None = None


class Connection(HttpToolsProtocol):
    """Closes at shutdown only when nothing is under way and nothing is about to be read.

    Every scope has a `Departure` under "fovea.departure": a call instead of a task that waits beside every request.
    """

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["fovea.departure"] = Departure()  # type: ignore[typeddict-unknown-key]

    def connection_lost(self, exc: Exception | None) -> None:
        cycle = self.cycle
        super().connection_lost(exc)
        if cycle is not None and not cycle.response_complete:
            departure: Departure = cycle.scope["fovea.departure"]  # type: ignore[typeddict-item]
            if departure.on_departure is not None:
                departure.on_departure()

    def shutdown(self) -> None:
        """No further requests: finish what runs, read what was sent, then close."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        elif self.cycle is None or _has_unread_data(self.transport):
            self.loop.call_later(_FIRST_REQUEST_SECONDS, self._close_if_idle)
        else:
            self.transport.close()

    def _close_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.keep_alive = False


class HttpServer(Server):
    """uvicorn without its signal handling, closing its listener without dropping the backlog."""

    def __init__(self, *args: object, listener: socket.socket, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]  # passed on
        self._listener = listener

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are `run`'s business."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, adopt what the kernel has accepted already, answer everything, close."""
        backlog = self._listener.dup()  # keeps the listening socket alive while uvloop closes its own handle
        backlog.setblocking(False)
        for server in self.servers:
            server.close()
        await asyncio.sleep(0)  # uvloop closes handles at the end of a turn
        waiting = _accept_all(backlog)
        for closing in (backlog, *(sockets or [])):
            closing.close()
        for connected in waiting:
            connected.setblocking(False)
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connected, ssl=self.config.ssl)
        if waiting:
            logger.info("backlog_adopted", extra={"connections": len(waiting)})
        await super().shutdown(sockets)

    def _protocol(self) -> Connection:
        return Connection(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def _accept_all(backlog: socket.socket) -> list[socket.socket]:
    """Every connection that is complete in the kernel's queue."""
    waiting = []
    while True:
        try:
            waiting.append(backlog.accept()[0])
        except OSError:
            return waiting


def _has_unread_data(transport: asyncio.Transport) -> bool:
    connected = transport.get_extra_info("socket")
    if connected is None or connected.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(connected.fileno(), select.POLLIN)
    return bool(poll.poll(0))
