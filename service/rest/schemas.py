"""What goes over the wire on `/api/v1`: pydantic models for validation and OpenAPI, and how results become JSON.

Answers are written from plain values with orjson, not through the models; a test holds every answer to its model.
"""

import time
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictInt, model_validator

from service.errors import FoveaError
from service.messages import Classification, InferenceRequest, InferenceResult, milliseconds
from service.model import LoadedModel
from service.pipeline import Ticket
from service.repository.table import ModelStatus, VersionStatus
from service.rest.errors import item_error

MAX_TOP_K = 100
DEFAULT_TOP_K = 5


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


# In


class ImageIn(_Schema):
    b64: Annotated[str, Field(description="The encoded image (JPEG, PNG or WebP) in base64, RFC 4648.")]
    name: Annotated[str | None, Field(max_length=255, description="Returned with the result.")] = None


class ClassifyQuery(BaseModel):
    """The query of a classify request; what else stands there is not ours to judge."""

    top_k: Annotated[
        int | None, Field(ge=1, le=MAX_TOP_K, description=f"Predictions an image; {DEFAULT_TOP_K} by default.")
    ] = None
    threshold: Annotated[float | None, Field(ge=0, le=1, allow_inf_nan=False, description="Drop lower scores.")] = None
    timeout_ms: Annotated[
        int | None, Field(ge=1, description="The request's deadline; may only shorten the server's.")
    ] = None


class ClassifyBody(_Schema):
    """The JSON form of a classify request."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={"example": {"images": [{"b64": "/9j/4AAQSkZJRg...", "name": "cup.jpg"}], "top_k": 3}},
    )

    images: Annotated[list[ImageIn], Field(min_length=1)]
    top_k: Annotated[StrictInt | None, Field(ge=1, le=MAX_TOP_K)] = None
    threshold: Annotated[float | None, Field(ge=0, le=1, strict=True)] = None
    timeout_ms: Annotated[StrictInt | None, Field(ge=1)] = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_no_value(cls, value: Any) -> Any:
        given = [name for name in ("top_k", "threshold", "timeout_ms") if isinstance(value, dict) and name in value]
        for name in given:
            if value[name] is None:
                raise ValueError(f"{name} must not be null: leave it out")
        return value


# Out


class PredictionOut(_Schema):
    label: str
    index: int = Field(description="Place of the label in the model's output.")
    score: float


class ImageOut(_Schema):
    format: Literal["jpeg", "png", "webp", "gif", "bmp", "tiff", "avif"]
    width: int = Field(description="Pixels, as displayed.")
    height: int = Field(description="Pixels, as displayed.")


class ItemErrorOut(_Schema):
    code: str
    detail: str
    status: int


class ResultOut(_Schema):
    """One image's answer: predictions, or its own error."""

    name: str | None = None
    predictions: list[PredictionOut] | None = None
    image: ImageOut | None = None
    error: ItemErrorOut | None = None


class TimingsOut(_Schema):
    """Milliseconds; with several images, of the one answered last. They add up to no more than `total`."""

    decode: float
    queue: float
    infer: float
    total: float


class ClassifyOut(_Schema):
    """The answer to a classify request."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "model": "imagenet",
                "version": "1",
                "request_id": "5f0c2f0e9c1b4a6e8d7c6b5a4f3e2d1c",
                "results": [
                    {
                        "name": "cup.jpg",
                        "predictions": [{"label": "espresso", "index": 967, "score": 0.94}],
                        "image": {"format": "jpeg", "width": 640, "height": 480},
                    }
                ],
                "timings_ms": {"decode": 1.1, "queue": 0.2, "infer": 9.8, "total": 11.6},
            }
        },
    )

    model: str
    version: str
    request_id: str
    results: list[ResultOut]
    timings_ms: TimingsOut


class ProblemOut(_Schema):
    """RFC 9457 problem details; `code` is a stable word."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


class BatchingOut(_Schema):
    max_batch_size: int
    max_queue_delay_ms: float
    preferred_batch_sizes: list[int]
    max_queue_size: int
    max_queue_wait_ms: float


class InputOut(_Schema):
    """How images are fed: absent for a model that takes tensors only."""

    tensor: str
    shape: list[int]
    dtype: str
    color: str
    layout: str
    resize: str
    decode: str


class VersionOut(_Schema):
    version: str
    state: Literal["UNKNOWN", "LOADING", "READY", "UNLOADING", "UNAVAILABLE"]
    reason: str | None = None
    provider: str | None = None
    provider_fallback: str | None = Field(None, description="Why the preferred provider is not in use.")
    instances: int | None = None
    sha256: str | None = None


class ModelOut(_Schema):
    """A model of the repository and the state of its versions."""

    name: str
    ready: bool
    reason: str | None = Field(None, description="Why it is not ready.")
    default_version: str | None = None
    versions: list[VersionOut]
    card: bool = Field(description="Whether it has a card to read.")
    task: str | None = None
    num_labels: int | None = None
    labels: list[str] | None = Field(None, description="All of them with `?labels=true`.")
    input: InputOut | None = None
    batching: BatchingOut | None = None


class ModelsOut(_Schema):
    models: list[ModelOut]


class ReadyOut(_Schema):
    ready: bool
    reason: str


class AliveOut(_Schema):
    status: Literal["alive"]


# From inside to the wire


def classify_answer(
    result: InferenceResult,
    request: InferenceRequest,
    stages_ms: tuple[float, float, float],
    ticket: Ticket,
    request_id: str,
) -> bytes:
    """The 200 of a classify request, as JSON bytes."""
    decode_ms, queue_ms, infer_ms = stages_ms
    named = zip(result.items, request.images, strict=False)  # the frames of a clip are one item, named as the first
    items = [_result(item, image.name) for item, image in named]
    return orjson.dumps(
        {
            "model": result.model,
            "version": str(result.version),
            "request_id": request_id,
            "results": items,
            "timings_ms": {
                "decode": decode_ms,
                "queue": queue_ms,
                "infer": infer_ms,
                "total": milliseconds(time.monotonic() - ticket.started_at),
            },
        }
    )


def _result(item: Classification | FoveaError, name: str | None) -> dict[str, Any]:
    named: dict[str, Any] = {} if name is None else {"name": name}
    if isinstance(item, FoveaError):
        return named | {"error": item_error(item)}
    kind, width, height = item.image  # and the predictions are data classes, which orjson writes as they are
    return named | {"predictions": item.predictions, "image": {"format": kind, "width": width, "height": height}}


def model_answer(status: ModelStatus[LoadedModel], *, labels: bool) -> dict[str, Any]:
    """One model for `/api/v1/models`."""
    answer: dict[str, Any] = {
        "name": status.name,
        "ready": status.is_ready,
        "default_version": None if status.default is None else str(status.default),
        "versions": [_version(version) for version in status.versions],
        "card": status.card is not None,
    }
    if not status.is_ready:
        answer["reason"] = status.reason
    shown = next((entry.loaded for entry in status.versions if entry.version == status.default), None)
    if shown is not None:
        answer |= _signature(shown, labels=labels)
    return answer


def _signature(model: LoadedModel, *, labels: bool) -> dict[str, Any]:
    description = model.description
    batching, image = description.spec.batching, description.spec.input
    signature: dict[str, Any] = {
        "task": description.task,
        "num_labels": len(description.labels),
        "batching": {
            "max_batch_size": batching.max_batch_size,
            "max_queue_delay_ms": batching.max_queue_delay_ms,
            "preferred_batch_sizes": list(batching.preferred_batch_sizes),
            "max_queue_size": batching.max_queue_size,
            "max_queue_wait_ms": batching.max_queue_wait_ms,
        },
    }
    if image is not None:
        signature["input"] = {
            "tensor": image.tensor,
            "shape": [-1, *image.shape],
            "dtype": image.dtype,
            "color": image.color,
            "layout": image.layout,
            "resize": image.resize,
            "decode": image.decode,
        }
    if labels:
        signature["labels"] = list(description.labels)
    return signature


def _version(status: VersionStatus[LoadedModel]) -> dict[str, Any]:
    answer: dict[str, Any] = {"version": str(status.version), "state": status.state.value}
    if status.reason:
        answer["reason"] = status.reason
    if status.loaded is not None:
        description = status.loaded.description
        provider = description.engine.provider
        answer |= {
            "provider": provider.name,
            "instances": description.instances,
            "sha256": description.sha256,
        }
        if provider.fallback_reason:
            answer["provider_fallback"] = provider.fallback_reason
    return answer
