"""What is known of one HTTP request beside its body: its id, its trace, and what its log line will say."""

import random
import re
import time
from typing import Any, cast

from starlette.types import Scope

from service.admission import LOW_PRIORITY
from service.pipeline import Ticket

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_ids = random.Random()  # noqa: S311  # from the kernel's chance; an id tells requests apart and is no secret
_TRACEPARENT = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_KNOWN = frozenset({b"x-request-id", b"traceparent", b"tracestate", b"x-fovea-key", b"x-priority"})


class RequestContext:
    """Made by the middleware. Handlers `note` what the log line should hold; `route` and `ticket` are for the trace.

    `share` is how much of each bound the request may use: less where its caller says `X-Priority: low`. Requests with
    the same `key` stay with one version while a canary runs.
    """

    __slots__ = ("fields", "key", "request_id", "route", "share", "started_at", "ticket", "traceparent", "tracestate")

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.started_at = time.monotonic()
        self.request_id = ""
        self.traceparent: str | None = None
        self.tracestate: str | None = None
        self.key: str | None = None
        self.route: str | None = None
        self.ticket: Ticket | None = None
        self.share = 1.0
        self.fields: dict[str, Any] = {}
        for name, value in headers:
            if name not in _KNOWN:
                continue
            if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
                self.request_id = value.decode("ascii")
            elif name == b"traceparent" and _TRACEPARENT.fullmatch(value):
                self.traceparent = value.decode("ascii")
            elif name == b"x-fovea-key":
                self.key = value.decode("latin-1")
            elif name == b"tracestate":
                self.tracestate = value.decode("latin-1")
            elif name == b"x-priority" and value.lower() == b"low":
                self.share = LOW_PRIORITY
        self.request_id = self.request_id or f"{_ids.getrandbits(128):032x}"

    def note(self, **fields: Any) -> None:
        self.fields.update(fields)


def published(scope: Scope, root_path: str) -> Scope:
    """`scope` as ASGI has it under a prefix: `path` begins with it, whether the proxy took it off or passed it on.

    A copy: the connection keeps its own until the next request, and nothing that is noted of this one with it.
    """
    path: str = scope["path"]
    if path != root_path and not path.startswith(f"{root_path}/"):
        path = root_path + path
    return {**scope, "root_path": root_path, "path": path}


def route_path(scope: Scope) -> str:
    """The path as our routes name it: without the prefix under which a proxy publishes the service."""
    path: str = scope["path"]
    root_path: str = scope["root_path"]
    return path.removeprefix(root_path) if root_path else path


def header_values(scope: Scope, name: bytes) -> list[bytes]:
    """What was given under `name` (in lower case), as it came. Starlette's `Headers` takes ten times as long."""
    return [value for given, value in scope["headers"] if given == name]


def context_of(scope: Scope) -> RequestContext:
    return cast(RequestContext, scope["fovea"])
