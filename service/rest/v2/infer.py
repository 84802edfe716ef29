"""`POST /v2/models/{model}[/versions/{version}]/infer`: tensors or images in, the graph's own outputs out.

The content type is not looked at, as Triton's clients send none, or any; but for the raw form, where `image/*` says
that the body is an image.
"""

import asyncio
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service.errors import MalformedRequest
from service.messages import ModelRef
from service.pipeline import Ticket
from service.rest import content_encoding, tensor_body
from service.rest.context import context_of
from service.rest.data_plane import DataRoute, note_result, unless_gone
from service.rest.v2.request import parse
from service.rest.v2.response import InferAnswer, render
from service.tensors import TensorRequest

_HEADER_LENGTH = "inference-header-content-length"
_INLINE_BYTES = 64 * 1024  # longer answers are packed beside the event loop


class InferRoute(DataRoute):
    """See the module."""

    protocol = "v2"
    path = re.compile(r"/v2/models/([^/]+)(?:/versions/([0-9]+))?/infer")
    route = "/v2/models/{model}/infer"
    route_of_version = "/v2/models/{model}/versions/{version}/infer"

    async def answer(self, request: Request, ref: ModelRef, ticket: Ticket) -> Response:
        limits = self._limits
        header_length = _header_length(request)
        encoding = content_encoding.encoding_of(request.headers.get("content-encoding", ""))
        body = await tensor_body.read(request, ticket, limits, header_length or 0, encoding)
        asked = parse(body, header_length, request.headers.get("content-type", "").lower(), limits)
        timeout_ms = min(asked.timeout_us / 1000 or limits.timeout_ms, limits.timeout_ms)
        wanted = TensorRequest(ref, asked.read, ticket.started_at + timeout_ms / 1000)
        result = await unless_gone(request, self._pipeline.infer(wanted, ticket))
        answer = render(result, asked)
        note_result(context_of(request.scope), result.version, result.timings.milliseconds, "rows", result.rows)
        return await _response(answer, request.headers.get("accept-encoding", ""))


def _header_length(request: Request) -> int | None:
    given = request.headers.getlist(_HEADER_LENGTH)
    if not given:
        return None
    if len(given) > 1 or not given[0].isascii() or not given[0].isdecimal() or len(given[0]) > 18:
        raise MalformedRequest("Inference-Header-Content-Length is not one unsigned integer.")
    return int(given[0])


async def _response(answer: InferAnswer, accept_encoding: str) -> Response:
    headers = {"vary": "Accept-Encoding"}
    if answer.header_length is not None:
        headers[_HEADER_LENGTH] = str(answer.header_length)
    body = answer.body
    if encoding := content_encoding.accepted(accept_encoding):
        headers["content-encoding"] = encoding
        if len(body) > _INLINE_BYTES:
            body = await asyncio.to_thread(content_encoding.deflated, body, encoding)
        else:
            body = content_encoding.deflated(body, encoding)
    media_type = "application/json" if answer.header_length is None else "application/octet-stream"
    return Response(body, 200, headers, media_type)


# Documentation

_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"type": "string"},
        "parameters": {"type": "object"},
        "data": {"type": "array", "items": {}},
    },
}
_INFER_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
            },
        },
    },
}
_INFER_RESPONSE = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": _TENSOR},
    },
}
ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
ERRORS: dict[int, Any] = {
    status: {"description": description, "content": {"application/json": {"schema": ERROR}}}
    for status, description in {
        400: "Anything wrong with the request's data",
        401: "Without the token that is asked for, where any is",
        404: "No such model or version",
        408: "The body came too slowly",
        413: "Too many bytes",
        415: "A content encoding that is not taken",
        500: "A bug of ours",
        503: "Overloaded, draining or not ready; see Retry-After",
        504: "The deadline passed",
    }.items()
}


def openapi_paths() -> dict[str, Any]:
    """The route's entries for `paths` of the OpenAPI document."""
    return {
        InferRoute.route: _operation("infer", ["model"]),
        InferRoute.route_of_version: _operation("infer_version", ["model", "version"]),
    }


def _operation(name: str, path: list[str]) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    answers = {"application/json": {"schema": _INFER_RESPONSE}, "application/octet-stream": binary}
    return {
        "post": {
            "tags": ["open inference protocol"],
            "summary": "Tensors or images in, tensors out",
            "description": "JSON, or JSON with binary tensors behind it (Inference-Header-Content-Length).",
            "operationId": name,
            "parameters": [{"name": one, "in": "path", "required": True, "schema": {"type": "string"}} for one in path],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _INFER_REQUEST}, "application/octet-stream": binary},
            },
            "responses": {"200": {"description": "The outputs", "content": answers}}
            | {str(status): error for status, error in ERRORS.items()},
        }
    }
