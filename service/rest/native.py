"""`/api/v1`: images in, ranked labels out."""

import asyncio
import re
from collections.abc import Coroutine
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Query, Request
from starlette.responses import Response
from starlette.types import Receive

from service.errors import ClientDisconnected, InvalidParameter, ModelNotFound, UnsupportedMediaType
from service.imaging import formats
from service.messages import ImagePayload, InferenceRequest, InferenceResult, ModelRef
from service.pipeline import Ticket
from service.rest import uploads
from service.rest.context import context_of
from service.rest.schemas import (
    DEFAULT_TOP_K,
    MAX_TOP_K,
    ClassifyBody,
    ClassifyOut,
    ModelOut,
    ModelsOut,
    classify_answer,
    model_answer,
)
from service.server import InferenceServer

_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
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
}
_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemOut"}}}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "content": _PROBLEM}
    for status, description in {
        400: "Cannot be parsed",
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


class _Options(NamedTuple):
    top_k: int | None
    threshold: float | None
    timeout_ms: int | None


TopK = Annotated[
    int | None, Query(ge=1, le=MAX_TOP_K, description=f"Predictions an image; {DEFAULT_TOP_K} by default.")
]
Threshold = Annotated[float | None, Query(ge=0, le=1, allow_inf_nan=False, description="Drop lower scores.")]
TimeoutMs = Annotated[int | None, Query(ge=1, description="The request's deadline; may only shorten the server's.")]


def build_router(server: InferenceServer) -> APIRouter:
    """The routes of the native API, bound to `server`."""
    router = APIRouter(prefix="/api/v1")
    classifier = _Classifier(server)

    @router.post(
        "/models/{model}/classify",
        response_model=ClassifyOut,
        responses=_PROBLEMS,
        openapi_extra=_REQUEST_BODY,
        summary="Classify images",
        tags=["classify"],
    )
    async def classify(
        request: Request, model: str, top_k: TopK = None, threshold: Threshold = None, timeout_ms: TimeoutMs = None
    ) -> Response:
        """Ranked labels for one or more images, by the model's default version."""
        return await classifier.handle(request, ModelRef(model), _Options(top_k, threshold, timeout_ms))

    @router.post(
        "/models/{model}/versions/{version}/classify",
        response_model=ClassifyOut,
        responses=_PROBLEMS,
        openapi_extra=_REQUEST_BODY,
        summary="Classify images with one version",
        tags=["classify"],
    )
    async def classify_version(
        request: Request,
        model: str,
        version: str,
        top_k: TopK = None,
        threshold: Threshold = None,
        timeout_ms: TimeoutMs = None,
    ) -> Response:
        """Ranked labels for one or more images, by one version of the model."""
        ref = ModelRef(model, _version(model, version))
        return await classifier.handle(request, ref, _Options(top_k, threshold, timeout_ms))

    @router.get(
        "/models",
        response_model=ModelsOut,
        response_model_exclude_none=True,
        responses={422: _PROBLEMS[422]},
        tags=["models"],
    )
    async def models(labels: bool = False) -> dict[str, Any]:
        """Every model of the repository, with the state of each version and the reason for it."""
        return {"models": [model_answer(status, labels=labels) for status in server.repository.index()]}

    @router.get(
        "/models/{model}",
        response_model=ModelOut,
        response_model_exclude_none=True,
        responses={404: _PROBLEMS[404], 422: _PROBLEMS[422]},
        tags=["models"],
    )
    async def model(model: str, labels: bool = False) -> dict[str, Any]:
        """One model."""
        return model_answer(server.repository.status(model), labels=labels)

    return router


class _Classifier:
    """A classify request from its headers to its answer."""

    def __init__(self, server: InferenceServer) -> None:
        self._pipeline = server.pipeline
        self._limits = server.settings.limits
        self._media_types = formats.media_types(self._limits.image_formats)

    async def handle(self, request: Request, ref: ModelRef, options: _Options) -> Response:
        context = context_of(request.scope)
        context.note(model=ref.name)
        with self._pipeline.admit("native", ref) as ticket:
            wanted = await self._read(request, ref, options, ticket)
            result = await _unless_disconnected(request.receive, self._pipeline.classify(wanted, ticket))
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


async def _unless_disconnected(receive: Receive, work: Coroutine[Any, Any, InferenceResult]) -> InferenceResult:
    """Await `work`; give it up as soon as the client has gone. Raises ClientDisconnected."""
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.get_running_loop().create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientDisconnected("The client left before the answer.") from None
        raise
    finally:
        watcher.cancel()


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
