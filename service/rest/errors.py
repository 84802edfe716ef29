"""Error codes to HTTP: one table, and how an error looks in each protocol.

`/api/v1` speaks RFC 9457 problem details; `/v1` and `/v2` speak `{"error": "text"}`, which their clients read only
under a content type of exactly `application/json`.
"""

import logging
import random
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.errors import (
    FoveaError,
    InternalError,
    InvalidParameter,
    ModelNotReady,
    Overloaded,
    Unauthorized,
    UnsupportedContentEncoding,
)
from service.rest.context import context_of, route_path

logger = logging.getLogger(__name__)

# code -> (status, title)
STATUS: dict[str, tuple[int, str]] = {
    "malformed_request": (400, "The request cannot be parsed"),
    "empty_body": (400, "The body is empty"),
    "model_not_found": (404, "No such model"),
    "no_model_card": (404, "The model has no card"),
    "no_image_signature": (409, "The model takes no images"),
    "body_timeout": (408, "The body came too slowly"),
    "payload_too_large": (413, "Too many bytes"),
    "unsupported_media_type": (415, "Not a supported image"),
    "media_type_mismatch": (415, "Not what was declared"),
    "invalid_image": (422, "The image cannot be used"),
    "image_too_large": (422, "The image is too large"),
    "invalid_parameter": (422, "A parameter is not acceptable"),
    "invalid_tensor": (400, "The tensor cannot be used"),
    "non_finite_output": (400, "The answer is not a finite number"),
    "admin_disabled": (403, "Admin calls are off"),
    "unauthorized": (401, "Not authorized"),
    "forbidden": (403, "Not allowed"),
    "load_refused": (400, "The model did not load"),
    "rollout_refused": (409, "The rollout cannot be"),
    "client_disconnected": (400, "The client left"),  # written to nobody
    "overloaded": (503, "Overloaded"),
    "draining": (503, "Shutting down"),
    "out_of_memory": (503, "Out of memory"),
    "model_not_ready": (503, "The model is not ready"),
    "deadline_exceeded": (504, "The deadline passed"),
    "engine_error": (500, "The model failed"),
    "internal_error": (500, "Internal error"),
    "configuration_error": (500, "Internal error"),
    "model_load_error": (500, "Internal error"),
}
_TITLES = {404: "No such route", 405: "Method not allowed"}
_CODES = {404: "not_found", 405: "method_not_allowed"}
_LONGEST_RETRY_AFTER = 3
PROBLEM = "application/problem+json"

# What the routes of `/api/v1` document
_PROBLEM_CONTENT = {PROBLEM: {"schema": {"$ref": "#/components/schemas/ProblemOut"}}}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "content": _PROBLEM_CONTENT}
    for status, description in {
        400: "Cannot be parsed",
        401: "Without the token that is asked for, where any is",
        404: "No such model or version",
        408: "The body came too slowly",
        409: "The model takes no images",
        413: "Too many bytes, parts or images",
        415: "Not a supported image type, or not what was declared",
        422: "The image does not decode, breaks a limit, or a parameter is out of range",
        500: "A bug of ours",
        503: "Overloaded, draining or not ready; see Retry-After",
        504: "The deadline passed",
    }.items()
}
# What every route documents: the listener says it before a route is known
HEAD_PROBLEMS: dict[str, dict[str, Any]] = {
    status: {"description": description, "content": _PROBLEM_CONTENT}
    for status, description in {"414": "The request target is too long", "431": "The head is too large"}.items()
}


def status_of(error: FoveaError) -> int:
    return STATUS[error.code][0]


def item_error(error: FoveaError) -> dict[str, Any]:
    """An image's own error, in its place among the results."""
    return {"code": error.code, "detail": str(error), "status": status_of(error)}


def error_response(request: Request, error: FoveaError) -> Response:
    """Any fault of ours or the caller's, in the protocol of the path it was asked under."""
    status, title = STATUS[error.code]
    if status == 422 and _speaks_plain(route_path(request.scope)):
        status = 400  # the tensor protocols have one status for everything wrong with the data
    headers = {}
    if isinstance(error, UnsupportedContentEncoding):
        headers["accept-encoding"] = "gzip, deflate"
    elif isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    elif isinstance(error, Overloaded):
        spread = random.getrandbits(1)  # or all that were refused together would come back together
        headers["retry-after"] = str(min(_LONGEST_RETRY_AFTER, error.retry_after_seconds + spread))
    elif isinstance(error, ModelNotReady):
        headers["retry-after"] = "3"
    detail = "The server failed on this request." if status == 500 else str(error)
    return _render(request, status, title, detail, error.code, headers)


def _render(
    request: Request, status: int, title: str, detail: str, code: str, headers: Mapping[str, str] | None = None
) -> Response:
    context = context_of(request.scope)
    context.note(code=code, reason=detail)
    if _speaks_plain(route_path(request.scope)):
        body: dict[str, Any] = {"error": detail}
        media_type = "application/json"
    else:
        body = {
            "type": f"urn:fovea:error:{code}",
            "title": title,
            "status": status,
            "detail": detail,
            "code": code,
            "request_id": context.request_id,
        }
        media_type = PROBLEM
    return Response(orjson.dumps(body), status, headers, media_type)


def _speaks_plain(path: str) -> bool:
    return path.startswith(("/v1/", "/v2/")) or path in ("/v1", "/v2")


def response_to(request: Request, error: Exception) -> Response:
    """The answer to a request that failed; a bug of ours is logged with its traceback."""
    fault = error if isinstance(error, FoveaError) else InternalError("This is a bug")
    if status_of(fault) == 500:
        logger.error("request_failed", exc_info=error)
    return error_response(request, fault)


def method_not_allowed(request: Request, allowed: str) -> Response:
    """405 of a route that takes only `allowed`."""
    return _render(request, 405, _TITLES[405], "Method Not Allowed", _CODES[405], {"Allow": allowed})


async def _on_fault(request: Request, error: Exception) -> Response:
    return response_to(request, error)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    title = _TITLES.get(status, "Request refused")
    headers = dict(error.headers or {})
    if "GET" in headers.get("Allow", ""):
        headers["Allow"] += ", HEAD"  # see the middleware
    return _render(request, status, title, str(error.detail), _CODES.get(status, f"http_{status}"), headers)


async def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(request, invalid_parameter(error.errors()))


def invalid_parameter(problems: Any) -> InvalidParameter:
    """pydantic's list of problems as one sentence that names each field."""
    parts = []
    for problem in problems:
        place = [str(part) for part in problem["loc"] if part not in ("query", "body", "path")]
        parts.append(f"{'.'.join(place) or 'body'}: {problem['msg']}")
    return InvalidParameter("; ".join(parts[:5]) + ".")


def install(app: FastAPI) -> None:
    """Make every failure of `app` look as the tables above say."""
    app.add_exception_handler(FoveaError, _on_fault)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(Exception, _on_fault)
