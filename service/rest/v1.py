"""The V1 predict protocol of TF Serving and KServe: rows in, rows out, and nothing but JSON.

An instance is an array for the model's one input, `{"b64": ...}` of an encoded image, or an object with a member for
each input. Predictions are the graph's own outputs: an array for one output, an object by name for several.
"""

import re
from typing import Any, NamedTuple

import numpy as np
import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.config import LimitSettings
from service.engine.base import TensorSpec
from service.errors import InvalidTensor, MalformedRequest, NonFiniteOutput, PayloadTooLarge, UnsupportedContentEncoding
from service.messages import ImagePayload, ModelRef
from service.pipeline import Ticket
from service.repository.states import ModelState
from service.repository.table import ModelStatus
from service.rest import content_encoding, json_tensors, tensor_body
from service.rest.context import context_of
from service.rest.data_plane import DataRoute, JsonBytes, note_result, unless_gone
from service.rest.json_tensors import base64_member, from_base64, is_array, is_object, members
from service.rest.v2.datatypes import NAME_OF, array_of_elements
from service.rest.v2.infer import ERRORS
from service.server import InferenceServer
from service.tensors import Array, Signature, TensorRequest, TensorResult, Tensors

_TAGS = ["v1 predict"]
# TF Serving's words for the states of a version
_STATES = {
    ModelState.UNKNOWN: "END",
    ModelState.LOADING: "LOADING",
    ModelState.READY: "AVAILABLE",
    ModelState.UNLOADING: "UNLOADING",
    ModelState.UNAVAILABLE: "END",
}


# Models


def build_router(server: InferenceServer) -> APIRouter:
    """What is asked by GET, bound to `server`."""
    router = APIRouter(prefix="/v1", tags=list(_TAGS))

    @router.get("/models", operation_id="v1_models")
    async def models() -> dict[str, list[str]]:
        """The names of the models that are ready."""
        return {"models": sorted(server.repository.ready_models)}

    @router.get(
        "/models/{model}", operation_id="v1_model", responses={404: ERRORS[404], 503: ERRORS[503]}, response_model=None
    )
    async def model(model: str) -> Response:
        """Whether a model is ready, as KServe reads it, and the state of each version, as TF Serving has it."""
        status = server.repository.status(model)
        answer = {"name": model, "ready": status.is_ready, "model_version_status": _versions(status)}
        if status.is_ready:
            return JSONResponse(answer)
        return JSONResponse({"error": f"Model {model!r} is not ready: {status.reason}."} | answer, 503)

    return router


def _versions(status: ModelStatus[Any]) -> list[dict[str, Any]]:
    """Newest first, as TF Serving lists them."""
    return [
        {
            "version": str(version.version),
            "state": _STATES[version.state],
            "status": {
                "error_code": "UNAVAILABLE" if version.state is ModelState.UNAVAILABLE else "OK",
                "error_message": version.reason,
            },
        }
        for version in reversed(status.versions)
    ]


# Predict


class PredictRoute(DataRoute):
    """`POST .../{model}[/versions/{version}]:predict`."""

    protocol = "v1"
    path = re.compile(r"/v1/models/([^/]+)(?:/versions/([^/]+))?:predict")
    route = "/v1/models/{model}:predict"
    route_of_version = "/v1/models/{model}/versions/{version}:predict"

    async def answer(self, request: Request, ref: ModelRef, ticket: Ticket) -> Response:
        limits = self._limits
        if content_encoding.encoding_of(request.headers.get("content-encoding", "")) is not None:
            raise UnsupportedContentEncoding("Content-Encoding is not taken here; /v2 takes gzip and deflate.")
        body = await tensor_body.read(request, ticket, limits, 0, None)
        wanted = TensorRequest(ref, parse(body, limits).read, ticket.started_at + limits.timeout_ms / 1000)
        result = await unless_gone(request, self._pipeline.infer(wanted, ticket))
        answer = render(result)
        note_result(context_of(request.scope), result.version, result.timings.milliseconds, "rows", result.rows)
        return JsonBytes(answer)


class PredictBody(NamedTuple):
    """`instances`, as they came; at least one."""

    instances: Any
    limits: LimitSettings

    def read(self, signature: Signature) -> Tensors | tuple[ImagePayload, ...]:
        """The tensors or images for a version. Raises InvalidTensor, MalformedRequest."""
        first: Any = self.instances[0]
        if not is_object(first):
            if len(signature.inputs) != 1:
                names = ", ".join(spec.name for spec in signature.inputs)
                raise InvalidTensor(f"The model has several inputs: give each instance as an object with {names}.")
            return {signature.inputs[0].name: _tensor(self.instances, signature.inputs[0])}
        if len(self.instances) > self.limits.max_rows:
            raise InvalidTensor(f"{len(self.instances)} instances; a request has 1 to {self.limits.max_rows}.")
        rows = [members(row, f"Instance {place}") for place, row in enumerate(self.instances)]
        if _base64_of(rows[0]) is not None:
            return self._images(rows, signature)
        return _columns(rows, signature)

    def _images(self, rows: list[dict[str, Any]], signature: Signature) -> tuple[ImagePayload, ...]:
        if signature.image_tensor is None:
            raise InvalidTensor("The model takes tensors: its manifest has no image preprocessing.")
        if len(rows) > self.limits.max_images:
            raise InvalidTensor(f"{len(rows)} images; a request has 1 to {self.limits.max_images}.")
        return tuple(ImagePayload(from_base64(_base64_of(row), f"Instance {place}")) for place, row in enumerate(rows))


def parse(body: memoryview, limits: LimitSettings) -> PredictBody:
    """A predict request's body. Raises MalformedRequest, PayloadTooLarge."""
    if len(body) > limits.json_body_bytes:
        raise PayloadTooLarge(f"The JSON has more than {limits.json_body_bytes:,} bytes.")
    found = members(json_tensors.parse(body), "The request")
    instances = found.get("instances")
    if not is_array(instances):
        raise MalformedRequest("instances is missing or not an array.")
    if not len(instances):
        raise MalformedRequest("instances is empty.")
    return PredictBody(instances, limits)


def render(result: TensorResult) -> bytes:
    """The 200 of a predict request. Raises NonFiniteOutput."""
    for name, array in result.outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise NonFiniteOutput(f"Output {name!r} holds a value that is not finite; /v2 has it as binary data.")
    outputs = {name: array.tolist() if array.dtype == object else array for name, array in result.outputs.items()}
    if len(outputs) == 1:
        (predictions,) = outputs.values()
    elif result.rows:
        predictions = [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]
    else:
        predictions = outputs
    return orjson.dumps({"predictions": predictions}, option=orjson.OPT_SERIALIZE_NUMPY)


def _base64_of(row: dict[str, Any]) -> Any:
    """The text of `{"b64": text}`, or of `{"any name": {"b64": text}}` as TF Serving's signatures have it."""
    if len(row) != 1:
        return None
    ((name, value),) = row.items()
    return base64_member(value) if is_object(value) else value if name == "b64" else None


def _columns(rows: list[dict[str, Any]], signature: Signature) -> Tensors:
    """Instances that name the inputs, as a tensor for each input."""
    specs = {spec.name: spec for spec in signature.inputs}
    for place, row in enumerate(rows):
        if row.keys() != specs.keys():
            raise InvalidTensor(f"Instance {place} must have the members {', '.join(specs)}, and no others.")
    columns = {name: [_tensor(row[name], spec) for row in rows] for name, spec in specs.items()}
    for name, column in columns.items():
        if len({array.shape for array in column}) > 1:
            raise InvalidTensor(f"Input {name!r} has different shapes in different instances.")
    return {name: np.stack(column) for name, column in columns.items()}


def _tensor(data: Any, spec: TensorSpec) -> Array:
    """Nested arrays, or one number, as the input's dtype."""
    if spec.dtype not in NAME_OF or spec.dtype == "bfloat16":
        raise InvalidTensor(f"Input {spec.name!r} is {spec.dtype}, which has no JSON form.")
    if spec.dtype == "object":
        elements = [data] if isinstance(data, str) else list(json_tensors.scalars(data, spec.name))
        if not all(isinstance(element, str) for element in elements):
            raise InvalidTensor(f"Input {spec.name!r}: data holds something that is no string.")
        shape = () if isinstance(data, str) else json_tensors.shape_of(data)
        return array_of_elements(elements, spec.name, shape)
    if isinstance(data, bool | int | float):
        return json_tensors.one(data, spec.name, spec.dtype)
    return json_tensors.array_of(data, spec.name, spec.dtype, json_tensors.shape_of(data))


# Documentation


def openapi_paths() -> dict[str, Any]:
    """The route's entries for `paths` of the OpenAPI document."""
    return {
        PredictRoute.route: _operation("predict", ["model"]),
        PredictRoute.route_of_version: _operation("predict_version", _PLACES),
    }


_PLACES = ["model", "version"]


def _operation(name: str, path: list[str]) -> dict[str, Any]:
    values = {"type": "array", "items": {}}
    body = {"type": "object", "required": ["instances"], "properties": {"instances": values}}
    answer = {"type": "object", "required": ["predictions"], "properties": {"predictions": {}}}
    return {
        "post": {
            "tags": list(_TAGS),
            "summary": "Rows or images in, the graph's own outputs out",
            "description": 'An instance is an array, `{"b64": "..."}` of an image, or an object with each input.',
            "operationId": name,
            "parameters": [{"name": one, "in": "path", "required": True, "schema": {"type": "string"}} for one in path],
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": {"200": {"description": "The outputs", "content": {"application/json": {"schema": answer}}}}
            | {str(status): error for status, error in ERRORS.items()},
        }
    }
