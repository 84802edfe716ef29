"""What the tensor protocols share on the way in: the plain ASGI route, and a body read into one aligned buffer.

A FastAPI route would spend more on a request than its parsing does; see also classify.py.
"""

import asyncio
import re
from abc import ABC, abstractmethod

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.config import LimitSettings
from service.errors import BodyTimeout, ClientDisconnected, EmptyBody, MalformedRequest, ModelNotFound, PayloadTooLarge
from service.messages import ModelRef
from service.pipeline import Ticket
from service.rest import compression, errors
from service.rest.context import context_of, route_path
from service.server import InferenceServer
from service.tensors import TensorResult

_LINE_BYTES = 64  # tensors begin where a cache line does
_INLINE_BYTES = 64 * 1024  # longer bodies are inflated beside the event loop
_MOST_DIGITS = 18  # of a number in a header
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


class TensorRoute(ABC):
    """Answers POST to `path`, whose groups are model and version; passes everything else on to `app`."""

    def __init__(self, app: ASGIApp, server: InferenceServer, path: re.Pattern[str]) -> None:
        self._app = app
        self._path = path
        self._pipeline = server.pipeline
        self._limits = server.settings.limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        place = self._path.fullmatch(route_path(scope)) if scope["type"] == "http" else None
        if place is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        if scope["method"] != "POST":
            response = errors.method_not_allowed(request, "POST")
        else:
            try:
                response = await self.answer(request, *place.groups())
            except Exception as error:  # noqa: BLE001  # whatever it was, the client gets an answer
                response = errors.response_to(request, error)
        await response(scope, receive, send)

    @abstractmethod
    async def answer(self, request: Request, model: str, version: str | None) -> Response:
        """The 200 of one request; raises what the error tables know."""


def model_ref(model: str, version: str | None) -> ModelRef:
    """Raises ModelNotFound on what no version can be called."""
    if version is not None and not _VERSION.fullmatch(version):
        raise ModelNotFound(f"Model {model!r} has no version {version[:32]!r}.")
    return ModelRef(model, None if version is None else int(version))


def note(request: Request, result: TensorResult) -> None:
    """What the log line of an answered request holds."""
    timings = result.timings
    context_of(request.scope).note(
        version=result.version,
        rows=result.rows,
        decode_ms=round(timings.decode_seconds * 1000, 3),
        queue_ms=round(timings.queue_seconds * 1000, 3),
        infer_ms=round(timings.infer_seconds * 1000, 3),
    )


async def read(request: Request, ticket: Ticket, limits: LimitSettings, lead: int, encoding: str | None) -> memoryview:
    """The body, inflated where `encoding` says so; what follows its first `lead` bytes is aligned.

    Each byte is copied once, from where the server received it to where the engine may read it. Raises
    PayloadTooLarge, EmptyBody, BodyTimeout, Overloaded, MalformedRequest, ClientDisconnected.
    """
    limit = limits.tensor_body_bytes
    declared = request.headers.get("content-length", "")
    expected = int(declared) if declared.isdecimal() and len(declared) <= _MOST_DIGITS else None
    if declared.isdecimal() and (expected is None or expected > limit):
        raise PayloadTooLarge(f"The body has more than {limit:,} bytes.")
    buffer = _aligned(expected or 0, lead)
    size = 0
    rest: list[bytes] = []
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            async for chunk in request.stream():
                if size + len(chunk) > limit:
                    raise PayloadTooLarge(f"The body has more than {limit:,} bytes.")
                ticket.grow(len(chunk))
                if expected is None:
                    rest.append(chunk)
                else:
                    buffer[size : size + len(chunk)] = chunk
                size += len(chunk)
    except TimeoutError:
        raise BodyTimeout(f"The body did not arrive within {limits.body_timeout_s:g} s.") from None
    except ClientDisconnect:
        raise ClientDisconnected("The client left while sending.") from None
    if size == 0:
        raise EmptyBody("The body is empty.")
    body = buffer[:size] if expected is not None else _realigned(b"".join(rest), lead)
    if encoding is not None:
        body = _realigned(await _inflated(body, encoding, limit, ticket), lead)
    ticket.body_received()
    return body


async def _inflated(body: memoryview, encoding: str, limit: int, ticket: Ticket) -> bytes:
    if len(body) > _INLINE_BYTES:
        plain = await asyncio.to_thread(compression.inflated, body, encoding, limit)
    else:
        plain = compression.inflated(body, encoding, limit)
    ticket.grow(len(plain))
    if not plain:
        raise MalformedRequest("The body is empty when inflated.")
    return plain


def _aligned(size: int, lead: int) -> memoryview:
    """A buffer whose byte `lead` lies on a cache line. Untouched memory costs nothing yet."""
    room = np.empty(size + _LINE_BYTES, np.uint8)
    start = -(room.ctypes.data + lead) % _LINE_BYTES
    return room[start : start + size].data


def _realigned(body: bytes, lead: int) -> memoryview:
    if lead >= len(body):
        return memoryview(body)
    moved = _aligned(len(body), lead)
    moved[:] = body
    return moved
