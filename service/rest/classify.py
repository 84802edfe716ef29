"""`POST /api/v1/models/{model}[/versions/{version}]/classify`: images in, ranked labels out.

The data plane: a plain ASGI route in front of FastAPI, which spends more on such a request than everything else on the
event loop together. FastAPI keeps what is asked rarely, and the documentation; this route documents itself for it.
"""

import asyncio
import re
from collections.abc import Coroutine
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ClientDisconnected, InvalidParameter, ModelNotFound, UnsupportedMediaType
from service.imaging import formats
from service.messages import ImagePayload, InferenceRequest, InferenceResult, ModelRef
from service.pipeline import Ticket
from service.rest import errors, uploads
from service.rest.connection import Departure
from service.rest.context import context_of, route_path
from service.rest.schemas import DEFAULT_TOP_K, ClassifyBody, ClassifyOut, ClassifyQuery, classify_answer
from service.server import InferenceServer

ResultT = TypeVar("ResultT")

_PATH = re.compile(r"/api/v1/models/([^/]+)(?:/versions/([^/]+))?/classify")
_ROUTE = "/api/v1/models/{model}/classify"
_ROUTE_OF_VERSION = "/api/v1/models/{model}/versions/{version}/classify"
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


class _Options(NamedTuple):
    top_k: int | None = None
    threshold: float | None = None
    timeout_ms: int | None = None


class ClassifyRoute:
    """Answers classify requests; passes everything else on to `app`."""

    def __init__(self, app: ASGIApp, server: InferenceServer) -> None:
        self._app = app
        self._pipeline = server.pipeline
        self._limits = server.settings.limits
        self._media_types = formats.media_types(self._limits.image_formats)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        place = _PATH.fullmatch(route_path(scope)) if scope["type"] == "http" else None
        if place is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        if scope["method"] != "POST":
            response = errors.method_not_allowed(request, "POST")
        else:
            try:
                response = await self._answer(request, *place.groups())
            except Exception as error:  # noqa: BLE001  # whatever it was, the client gets an answer
                response = errors.response_to(request, error)
        await response(scope, receive, send)

    async def _answer(self, request: Request, model: str, version: str | None) -> Response:
        context = context_of(request.scope)
        context.note(model=model)
        context.route = _ROUTE if version is None else _ROUTE_OF_VERSION
        ref = ModelRef(model, None if version is None else _version(model, version))
        options = _options(request.scope["query_string"])
        with self._pipeline.admit("native", ref) as context.ticket:
            ticket = context.ticket
            wanted = await self._read(request, ref, options, ticket)
            result = await unless_gone(request.scope["fovea.departure"], self._pipeline.classify(wanted, ticket))
            answer = classify_answer(result, wanted, ticket, context.request_id)
        _note(request, result)
        return Response(answer, media_type="application/json")

    async def _read(self, request: Request, ref: ModelRef, options: _Options, ticket: Ticket) -> InferenceRequest:
        """Body and parameters, checked as far as they can be without the model."""
        limits = self._limits
        kind = uploads.content_type(request)
        if kind.media_type in self._media_types:
            body = await uploads.read_body(request, ticket, limits.body_bytes, limits.body_timeout_s)
            images: tuple[ImagePayload, ...] = (ImagePayload(body, None, kind.media_type),)
        elif kind.media_type == "multipart/form-data":
            body = await uploads.read_body(request, ticket, limits.body_bytes, limits.body_timeout_s)
            images = uploads.images_of_multipart(body, kind.parameters.get("boundary"), limits)
        elif kind.media_type == "application/json":
            body = await uploads.read_body(request, ticket, limits.json_body_bytes, limits.body_timeout_s)
            parsed = uploads.parse_classify_body(body, limits)
            options = _merged(options, parsed)
            images = uploads.images_of_json(parsed, limits)
        else:
            known = ", ".join([*sorted(self._media_types), "multipart/form-data", "application/json"])
            raise UnsupportedMediaType(f"Content-Type {kind.media_type[:64]!r} is not taken; send {known}.")
        timeout_ms = min(options.timeout_ms or limits.timeout_ms, limits.timeout_ms)
        deadline_at = ticket.started_at + timeout_ms / 1000.0
        return InferenceRequest(ref, images, deadline_at, options.top_k or DEFAULT_TOP_K, options.threshold)


async def unless_gone(departure: Departure, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Await `work`; give it up as soon as the client has gone. Raises ClientDisconnected."""
    task = asyncio.current_task()
    assert task is not None
    gone = False

    def give_up() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    departure.on_departure = give_up
    try:
        return await work
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientDisconnected("The client left before the answer.") from None
        raise
    finally:
        departure.on_departure = None


def _merged(query: _Options, body: ClassifyBody) -> _Options:
    """The options, each from the query or from the body. Raises InvalidParameter where both say one."""
    twice = [name for name in _Options._fields if getattr(query, name) is not None and getattr(body, name) is not None]
    if twice:
        raise InvalidParameter(f"{twice[0]} is in the query and in the body; give it once.")
    return _Options(
        top_k=body.top_k if query.top_k is None else query.top_k,
        threshold=body.threshold if query.threshold is None else query.threshold,
        timeout_ms=body.timeout_ms if query.timeout_ms is None else query.timeout_ms,
    )


def _options(query: bytes) -> _Options:
    """What the query says; of a parameter given twice the last. Raises InvalidParameter."""
    if not query:
        return _Options()
    try:
        given = ClassifyQuery.model_validate(dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)))
    except ValidationError as error:
        raise errors.invalid_parameter(error.errors(include_url=False, include_input=False)) from None
    return _Options(given.top_k, given.threshold, given.timeout_ms)


def _version(model: str, text: str) -> int:
    if not _VERSION.fullmatch(text):
        raise ModelNotFound(f"Model {model!r} has no version {text[:32]!r}; versions are positive integers.")
    return int(text)


def _note(request: Request, result: InferenceResult) -> None:
    timings = result.timings
    context_of(request.scope).note(
        version=result.version,
        images=len(result.items),
        decode_ms=round(timings.decode_seconds * 1000, 3),
        queue_ms=round(timings.queue_seconds * 1000, 3),
        infer_ms=round(timings.infer_seconds * 1000, 3),
    )


# Documentation


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "description": "One encoded image; or parts named `image`; or images in base64.",
    "content": {
        "image/jpeg": _BINARY,
        "image/png": _BINARY,
        "image/webp": _BINARY,
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
        "application/json": {"schema": {"$ref": "#/components/schemas/ClassifyBody"}},
    },
}
_ANSWER = {
    "description": "The ranked labels of every image",
    "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{ClassifyOut.__name__}"}}},
}


def openapi_paths() -> dict[str, Any]:
    """The route's entries for `paths` of the OpenAPI document."""
    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    version = {
        "name": "version",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": "[1-9][0-9]*"},
    }
    query = [
        {"name": name, "in": "query", "required": False, "description": schema.pop("description"), "schema": schema}
        for name, schema in ClassifyQuery.model_json_schema()["properties"].items()
    ]
    return {
        _ROUTE: _operation(
            "classify", "Classify images", "Ranked labels, by the model's default version.", [model, *query]
        ),
        _ROUTE_OF_VERSION: _operation(
            "classify_version",
            "Classify images with one version",
            "Ranked labels, by one version of the model.",
            [model, version, *query],
        ),
    }


def _operation(name: str, summary: str, description: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "post": {
            "tags": ["classify"],
            "summary": summary,
            "description": description,
            "operationId": name,
            "parameters": parameters,
            "requestBody": _REQUEST_BODY,
            "responses": {"200": _ANSWER} | {str(status): problem for status, problem in errors.PROBLEMS.items()},
        }
    }
