"""The data plane: plain ASGI routes in front of FastAPI, which spends more on such a request than everything else here.

Owns what all of them do: whose path it is, admission, a departed client, errors. FastAPI keeps what is asked rarely,
and the documentation; each route documents itself for it. Knows no protocol's bodies.
"""

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, ClassVar, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ClientDisconnected, ModelNotFound
from service.messages import ModelRef
from service.pipeline import Ticket
from service.rest import errors
from service.rest.connection import Departure
from service.rest.context import RequestContext, context_of, route_path
from service.server import InferenceServer

ResultT = TypeVar("ResultT")

_VERSION = re.compile(r"[1-9][0-9]{0,17}")


class DataRoute(ABC):
    """Answers POST to `path`, whose groups are model and version; passes everything else on to `app`.

    `route` and `route_of_version` are the path as the documentation and traces name it.
    """

    protocol: ClassVar[str]
    path: ClassVar[re.Pattern[str]]
    route: ClassVar[str]
    route_of_version: ClassVar[str]

    def __init__(self, app: ASGIApp, server: InferenceServer) -> None:
        self._app = app
        self._pipeline = server.pipeline
        self._limits = server.settings.limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        place = self.path.fullmatch(route_path(scope)) if scope["type"] == "http" else None
        if place is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        if scope["method"] != "POST":
            response = errors.method_not_allowed(request, "POST")
        else:
            try:
                response = await self._admitted(request, *place.groups())
            except Exception as error:  # noqa: BLE001  # whatever it was, the client gets an answer
                response = errors.response_to(request, error)
                _release(error)
        await response(scope, receive, send)

    async def _admitted(self, request: Request, model: str, version: str | None) -> Response:
        context = context_of(request.scope)
        context.fields["model"] = model
        context.route = self.route if version is None else self.route_of_version
        ref = model_ref(model, version, context.key)
        with self._pipeline.admit(self.protocol, ref, context.share) as context.ticket:
            return await self.answer(request, ref, context.ticket)

    @abstractmethod
    async def answer(self, request: Request, ref: ModelRef, ticket: Ticket) -> Response:
        """The 200 of one request; raises what the error tables know."""


class JsonBytes(Response):
    """A 200 of JSON that is ready to be sent. Starlette's own way to the same two headers costs four times as much."""

    def __init__(self, body: bytes) -> None:
        self.status_code = 200
        self.background = None
        self.body = body
        self.raw_headers = [
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})


def _release(error: BaseException | None) -> None:
    """Let go of the frames that an answered failure came through: what they hold, holds the error.

    That is a cycle around the request's bytes, and the collector comes by once in a hundred thousand objects.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


def model_ref(model: str, version: str | None, key: str | None = None) -> ModelRef:
    """Raises ModelNotFound on what no version can be called."""
    if version is not None and not _VERSION.fullmatch(version):
        raise ModelNotFound(f"Model {model!r} has no version {version[:32]!r}; versions are positive integers.")
    return ModelRef(model, None if version is None else int(version), key)


async def unless_gone(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Await `work`; give it up as soon as the client has gone. Raises ClientDisconnected."""
    departure: Departure = request.scope["fovea.departure"]
    task = departure.waiting = asyncio.current_task()
    assert task is not None
    try:
        return await work
    except asyncio.CancelledError:
        if departure.has_gone and task.uncancel() == 0:
            raise ClientDisconnected("The client left before the answer.") from None
        raise
    finally:
        departure.waiting = None


def note_result(
    context: RequestContext, version: int, stages_ms: tuple[float, float, float], of: str, count: int
) -> None:
    """What the log line of an answered request holds; `count` of images or rows."""
    decode_ms, queue_ms, infer_ms = stages_ms
    context.fields |= {
        "version": version,
        of: count,
        "decode_ms": decode_ms,
        "queue_ms": queue_ms,
        "infer_ms": infer_ms,
    }
