"""Deadlines and caps of connections: what a client may cost before there is a request to answer.

uvicorn has none. One look a second over all open connections does it, so that no timer is made for a request. Owns
how long and how much; `connection` knows what is going on in each connection.
"""

import logging
import resource
import time
from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import TYPE_CHECKING

import orjson

from service.config import LimitSettings
from service.metrics import Metrics

if TYPE_CHECKING:
    from service.rest.connection import Connection

logger = logging.getLogger("fovea.connection")

LOOK_SECONDS = 1.0  # a deadline is kept to within this
_BYTES_PER_SECOND = 256 * 1024  # of a body: a slow uplink does that
_DISCARDED_BYTES = 64 * 1024  # of a body beyond any limit, before the connection is closed under its sender
_OWN_FILES = 64  # descriptors kept for models, logs and libraries

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
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_connections = max(1, min(limits.connections, files - _OWN_FILES))
        self._metrics = metrics

    def body_seconds(self, nbytes: int) -> float:
        """How long a body may take of which `nbytes` have come."""
        return min(self._body_seconds + nbytes / _BYTES_PER_SECOND, self._longest_body_seconds)

    def look(self, connections: Collection["Connection"]) -> None:
        """Close whatever is over its time."""
        now = self.clock()
        for connection in list(connections):
            connection.keep_to_time(now)
        self._metrics.open_connections.set(len(connections))

    def has_room(self, connections: Collection["Connection"]) -> bool:
        """Whether one more connection fits, if need be in the place of one that is only waiting."""
        if len(connections) <= self._most_connections:
            return True
        now = self.clock()
        spare = next((one for one in connections if one.is_spare(now)), None)
        if spare is None:
            return False
        spare.end("connection_limit")
        return True

    def count(self, reason: str, client: tuple[str, int] | None, **fields: object) -> None:
        """One line and one count of a connection that was ended by a limit."""
        self._metrics.connections_closed.labels(reason).inc()
        logger.warning("connection_closed", extra={"reason": reason, "client": client and client[0], **fields})

    def refusal(self, reason: str, client: tuple[str, int] | None, request_id: str) -> bytes:
        """The whole answer to what is not taken, which says that the connection closes."""
        status, detail = REFUSALS[reason]
        self.count(reason, client, status=status, request_id=request_id)
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
