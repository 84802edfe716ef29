"""Deadlines and caps of connections: what a client may cost before there is a request to answer.

uvicorn has none. One look a second over all open connections does it, so that no timer is made for a request. Owns
how long and how much; `connection` knows what is going on in each connection.
"""

import logging
import resource
import time
from collections.abc import Callable, Collection
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING

import orjson

from service.config import LimitSettings
from service.metrics import Metrics

if TYPE_CHECKING:
    from service.rest.connection import Connection

logger = logging.getLogger("fovea.connection")

LOOK_SECONDS = 0.5  # a deadline is kept to within this
_BYTES_PER_SECOND = 256 * 1024  # of a body: a slow uplink does that
_DISCARDED_BYTES = 64 * 1024  # of a body beyond any limit, before the connection is closed under its sender
_OWN_FILES = 64  # descriptors kept for models, logs and libraries
_ASKED = 16  # of the connections that wait, for each that comes when there is no room: a system call each

# reason -> (status, what the client is told)
REFUSALS = {
    "malformed_http": (400, "This is not a request in HTTP/1.1 as RFC 9112 has it."),
    "header_deadline": (408, "The head of the request did not arrive in time."),
    "uri_too_long": (414, "The request target is too long."),
    "headers_too_large": (431, "The head of the request has too many fields or bytes."),
    "connection_limit": (503, "Too many connections; try again shortly."),
}


class Refused(Exception):
    """Raised inside the parser: the request is not taken. `reason` is a key of REFUSALS."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _descriptors(connections: int) -> int:
    """How many files the process may open, after asking for as many as so many connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OWN_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


class ConnectionGuard:
    """The limits of every connection of a process. `look` is called every LOOK_SECONDS, on the event loop."""

    def __init__(
        self,
        limits: LimitSettings,
        keep_alive_seconds: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self.keep_alive_seconds = keep_alive_seconds
        self.head_seconds = limits.header_timeout_s
        self.write_seconds = limits.write_timeout_s
        self.head_bytes = limits.header_bytes
        self.head_fields = limits.header_fields
        self.uri_bytes = limits.uri_bytes
        self.body_bytes = max(limits.body_bytes, limits.json_body_bytes, limits.tensor_body_bytes) + _DISCARDED_BYTES
        self._body_seconds = limits.body_grace_s
        self._longest_body_seconds = limits.body_timeout_s
        self._most_connections = max(1, min(limits.connections, _descriptors(limits.connections) - _OWN_FILES))
        self._metrics = metrics

    def body_seconds(self, nbytes: int) -> float:
        """How long a body may take of which `nbytes` have come."""
        return min(self._body_seconds + nbytes / _BYTES_PER_SECOND, self._longest_body_seconds)

    def look(self, connections: Collection["Connection"]) -> None:
        """Close whatever is over its time. What goes wrong with one connection ends no other, nor the server."""
        now = self.clock()
        for connection in list(connections):
            try:
                connection.keep_to_time(now)
            except Exception:
                logger.exception("connection_check_failed")
                connection.transport.abort()
        self._metrics.open_connections.set(len(connections))

    def is_full(self, connections: int) -> bool:
        """Whether so many are more than there may be."""
        return connections > self._most_connections

    def has_room(self, connections: Collection["Connection"], coming: int = 0) -> bool:
        """Whether all of `connections` and those `coming` fit, if need be in the place of one that is only waiting.

        Of those that wait a few are asked whether their clients have spoken: where we are that far behind, most have.
        """
        if not self.is_full(len(connections) + coming):
            return True
        now = self.clock()
        waiting = islice((one for one in connections if one.is_waiting(now)), _ASKED)
        spare = next((one for one in waiting if not one.is_spoken_to()), None)
        if spare is None:
            return False
        spare.end("connection_limit")
        return True

    def count(self, reason: str) -> None:
        """A request or a connection was ended by a limit."""
        self._metrics.connections_closed.labels(reason).inc()

    def note(self, reason: str, client: tuple[str, int] | None, **fields: object) -> None:
        """One line and one count of what has no request to be logged with."""
        self.count(reason)
        logger.warning("connection_closed", extra={"reason": reason, "client": client and client[0], **fields})

    def cannot_accept(self, error: OSError) -> None:
        """There is no descriptor, or no memory, for one more connection."""
        self._metrics.accepts_failed.inc()
        logger.error("accept_failed", extra={"reason": error.strerror or str(error)})

    def refusal(self, reason: str, client: tuple[str, int] | None, request_id: str) -> bytes:
        """The whole answer to what is not taken, which says that the connection closes."""
        status, detail = REFUSALS[reason]
        self.note(reason, client, status=status, request_id=request_id)
        title = HTTPStatus(status).phrase
        problem = {"type": f"urn:fovea:error:{reason}", "title": title, "status": status, "detail": detail}
        body = orjson.dumps(problem | {"code": reason, "request_id": request_id})
        head = [
            f"HTTP/1.1 {status} {title}",
            "content-type: application/problem+json",
            f"content-length: {len(body)}",
            f"x-request-id: {request_id}",
            "x-content-type-options: nosniff",
            "connection: close",
            *(["retry-after: 1"] if status == HTTPStatus.SERVICE_UNAVAILABLE else []),
        ]
        return "\r\n".join([*head, "", ""]).encode() + body
