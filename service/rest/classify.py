"""`POST /api/v1/models/{model}[/versions/{version}]/classify`: images in, ranked labels out."""

import re
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from service.errors import InvalidParameter, UnsupportedMediaType
from service.imaging import formats
from service.messages import ImagePayload, InferenceRequest, ModelRef
from service.pipeline import Ticket
from service.rest import errors, uploads
from service.rest.context import context_of
from service.rest.data_plane import DataRoute, JsonBytes, note_result, unless_gone
from service.rest.schemas import DEFAULT_TOP_K, ClassifyBody, ClassifyOut, ClassifyQuery, classify_answer
from service.server import InferenceServer


class _Options(NamedTuple):
    top_k: int | None = None
    threshold: float | None = None
    timeout_ms: int | None = None


class ClassifyRoute(DataRoute):
    """See the module."""

    protocol = "native"
    path = re.compile(r"/api/v1/models/([^/]+)(?:/versions/([^/]+))?/classify")
    route = "/api/v1/models/{model}/classify"
    route_of_version = "/api/v1/models/{model}/versions/{version}/classify"

    def __init__(self, app: ASGIApp, server: InferenceServer) -> None:
        super().__init__(app, server)
        self._media_types = formats.media_types(self._limits.image_formats)

    async def answer(self, request: Request, ref: ModelRef, ticket: Ticket) -> Response:
        wanted = await self._read(request, ref, _options(request.scope["query_string"]), ticket)
        result = await unless_gone(request, self._pipeline.classify(wanted, ticket))
        context, stages_ms = context_of(request.scope), result.timings.milliseconds
        answer = classify_answer(result, wanted, stages_ms, ticket, context.request_id)
        note_result(context, result.version, stages_ms, "images", len(result.items))
        return JsonBytes(answer)

    async def _read(self, request: Request, ref: ModelRef, options: _Options, ticket: Ticket) -> InferenceRequest:
        """Body and parameters, checked as far as they can be without the model."""
        limits = self._limits
        kind = uploads.content_type(request)
        if kind.media_type in self._media_types:
            body = await uploads.read_body(request, ticket, limits.body_bytes)
            images: tuple[ImagePayload, ...] = (ImagePayload(body, None, kind.media_type),)
        elif kind.media_type == "multipart/form-data":
            body = await uploads.read_body(request, ticket, limits.body_bytes)
            images = uploads.images_of_multipart(body, kind.parameters.get("boundary"), limits)
        elif kind.media_type == "application/json":
            body = await uploads.read_body(request, ticket, limits.json_body_bytes)
            parsed = uploads.parse_classify_body(body, limits)
            options = _merged(options, parsed)
            images = uploads.images_of_json(parsed, limits)
        else:
            known = ", ".join([*sorted(self._media_types), "multipart/form-data", "application/json"])
            raise UnsupportedMediaType(f"Content-Type {kind.media_type[:64]!r} is not taken; send {known}.")
        timeout_ms = min(options.timeout_ms or limits.timeout_ms, limits.timeout_ms)
        deadline_at = ticket.started_at + timeout_ms / 1000.0
        return InferenceRequest(ref, images, deadline_at, options.top_k or DEFAULT_TOP_K, options.threshold)


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


@lru_cache(256)  # a service's callers ask the same way
def _options(query: bytes) -> _Options:
    """What the query says; of a parameter given twice the last. Raises InvalidParameter."""
    try:
        given = ClassifyQuery.model_validate(dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)))
    except ValidationError as error:
        raise errors.invalid_parameter(error.errors(include_url=False, include_input=False)) from None
    return _Options(given.top_k, given.threshold, given.timeout_ms)


# Documentation


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "description": (
        "One encoded image; or parts named `image`; or images in base64. A model of clips takes one animated WebP, or "
        "the images as its frames, and answers with one result."
    ),
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
        ClassifyRoute.route: _operation(
            "classify", "Classify images", "Ranked labels, by the model's default version.", [model, *query]
        ),
        ClassifyRoute.route_of_version: _operation(
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
