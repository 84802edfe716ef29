"""What the Open Inference Protocol tells of the server and its models: health, metadata, configuration, statistics."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse

from service.batching.spec import BatchingSpec
from service.engine.base import TensorSpec
from service.inference_statistics import Duration, VersionStatistics
from service.messages import ModelRef
from service.model import LoadedModel
from service.rest.data_plane import model_ref
from service.rest.v2.datatypes import NAME_OF, config_type
from service.rest.v2.infer import ERRORS
from service.server import InferenceServer
from service.tensors import Signature

EXTENSIONS = [
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
]
_PLATFORM, _BACKEND = "onnxruntime_onnx", "onnxruntime"
_NO_FORMAT = "FORMAT_NONE"
_FORMATS = {"nchw": "FORMAT_NCHW", "nhwc": "FORMAT_NHWC"}  # of images; Triton's own image client refuses any other
_TAGS = ["open inference protocol"]
_OF_A_MODEL: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (404, 503)}
_MODEL = "/models/{model}"
_VERSION = "/versions/{version}"


def build_router(server: InferenceServer) -> APIRouter:
    """Everything of `/v2` that is asked by GET, bound to `server`."""
    router = APIRouter(prefix="/v2", tags=list(_TAGS))

    @router.get("", operation_id="v2_server")
    @router.get("/", include_in_schema=False)
    async def metadata() -> dict[str, Any]:
        """Name, version and extensions of the server."""
        return {"name": "fovea", "version": server.version, "extensions": EXTENSIONS}

    @router.get("/health/live")
    async def live() -> dict[str, bool]:
        """The process is alive."""
        return {"live": True}

    @router.get("/health/ready", responses={503: ERRORS[503]})
    async def ready() -> JSONResponse:
        """As `/readyz`."""
        verdict = server.readiness
        if verdict.ready:
            return JSONResponse({"ready": True, "live": True})
        return JSONResponse({"error": verdict.reason, "ready": False, "live": True}, 503)

    @router.get("/models")
    async def models() -> dict[str, list[str]]:
        """The names of the models that are ready, as KServe lists them."""
        return {"models": sorted(server.repository.ready_models)}

    _add_statistics(router, server)  # first: /models/stats is no model
    _add_models(router, server)
    return router


def _add_statistics(router: APIRouter, server: InferenceServer) -> None:
    @router.get("/models/stats", operation_id="v2_statistics")
    async def all_statistics() -> dict[str, Any]:
        """Counts and durations of every version in service."""
        found = [model for name in sorted(server.repository.ready_models) for model in _loaded(server, name)]
        return {"model_stats": [_statistics(model) for model in found]}

    @router.get(_MODEL + "/stats", operation_id="v2_model_statistics", responses=_OF_A_MODEL)
    async def statistics(model: str) -> dict[str, Any]:
        """Counts and durations of every version in service; they never fall while the process lives."""
        found = list(_loaded(server, model)) or [_one(server, model_ref(model, None))]
        return {"model_stats": [_statistics(one) for one in found]}

    @router.get(_MODEL + _VERSION + "/stats", operation_id="v2_version_statistics", responses=_OF_A_MODEL)
    async def version_statistics(model: str, version: str) -> dict[str, Any]:
        """Counts and durations of one version."""
        return {"model_stats": [_statistics(_one(server, model_ref(model, version)))]}


def _add_models(router: APIRouter, server: InferenceServer) -> None:
    def serve(suffix: str, name: str, what: str, answer: Callable[[LoadedModel], dict[str, Any]]) -> None:
        async def of_model(model: str) -> dict[str, Any]:
            return answer(_one(server, model_ref(model, None)))

        async def of_version(model: str, version: str) -> dict[str, Any]:
            return answer(_one(server, model_ref(model, version)))

        paths = {"model": _MODEL, "version": _MODEL + _VERSION}
        for kind, endpoint in (("model", of_model), ("version", of_version)):
            identity = f"v2_{kind}{name}"
            path = paths[kind] + suffix
            router.add_api_route(path, endpoint, operation_id=identity, summary=what, responses=_OF_A_MODEL)

    def metadata_of(model: LoadedModel) -> dict[str, Any]:
        return _metadata(model, [str(one.version) for one in _loaded(server, model.name)])

    def config_of(model: LoadedModel) -> dict[str, Any]:
        return _config(model, server.settings.limits.max_rows)

    serve("", "", "Inputs, outputs, and in `properties` how images are fed", metadata_of)
    serve("/ready", "_ready", "Whether it can be asked", _readiness)
    serve("/config", "_config", "The model configuration as Triton words it", config_of)


def _one(server: InferenceServer, ref: ModelRef) -> LoadedModel:
    """A version in service. Raises ModelNotFound or ModelNotReady."""
    with server.repository.lease(ref) as (_, model):
        return model


def _loaded(server: InferenceServer, name: str) -> Iterator[LoadedModel]:
    """Every version of a model that is in service. Raises ModelNotFound."""
    for status in server.repository.status(name).versions:
        if status.state == "READY" and status.loaded is not None:
            yield status.loaded


def _readiness(model: LoadedModel) -> dict[str, Any]:
    return {"name": model.name, "version": str(model.version), "ready": True}


def _metadata(model: LoadedModel, versions: list[str]) -> dict[str, Any]:
    signature = model.signature
    return {
        "name": model.name,
        "versions": versions,
        "platform": _PLATFORM,
        "inputs": [_tensor(signature, spec) for spec in signature.inputs],
        "outputs": [_tensor(signature, spec) for spec in signature.outputs],
        "properties": _properties(model),
    }


def _tensor(signature: Signature, spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "datatype": NAME_OF.get(spec.dtype, spec.dtype), "shape": list(signature.shown(spec))}


def _properties(model: LoadedModel) -> dict[str, str]:
    description = model.description
    properties = {"sha256": description.sha256, "task": description.task, "provider": description.engine.provider.name}
    if description.spec.has_labels:
        properties["labels_count"] = str(len(description.labels))
        properties["labels_url"] = f"/api/v1/models/{model.name}?labels=true"
    if (image := description.spec.input) is not None:
        properties["image_input"] = f"{image.tensor}: datatype BYTES, shape [n], encoded images (base64 in JSON)"
        height, width = image.size
        properties["preprocessing"] = f"{image.resize} to {width} x {height}, {image.color}, {image.layout}"
    return properties


def _config(model: LoadedModel, max_rows: int) -> dict[str, Any]:
    """`max_batch_size` is how many rows a request may have: they may spread over executions."""
    description, signature = model.description, model.signature
    batching = description.spec.batching
    config: dict[str, Any] = {
        "name": model.name,
        "platform": _PLATFORM,
        "backend": _BACKEND,
        "runtime": "",
        "version_policy": {"specific": {"versions": [model.version]}},
        "max_batch_size": max_rows if signature.is_batched else 0,
        "input": [_config_input(model, spec) for spec in signature.inputs],
        "output": [_config_output(model, spec) for spec in signature.outputs],
        "batch_input": [],
        "batch_output": [],
        "optimization": {
            "priority": "PRIORITY_DEFAULT",
            "input_pinned_memory": {"enable": False},
            "output_pinned_memory": {"enable": False},
            "gather_kernel_buffer_threshold": 0,
            "eager_batching": False,
        },
        "instance_group": [_instance_group(model)],
        "default_model_filename": "model.onnx",
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {"execution_batch_size": {"string_value": str(batching.max_batch_size)}},
        "model_warmup": [],
    }
    if signature.is_batched:
        config["dynamic_batching"] = _dynamic_batching(batching)
    return config


def _config_input(model: LoadedModel, spec: TensorSpec) -> dict[str, Any]:
    image = model.description.spec.input
    return {
        "name": spec.name,
        "data_type": config_type(spec.dtype),
        "format": _FORMATS.get(image.layout, _NO_FORMAT) if image and spec.name == image.tensor else _NO_FORMAT,
        "dims": _dims(model, spec),
        "is_shape_tensor": False,
        "allow_ragged_batch": False,
        "optional": False,
        "is_non_linear_format_io": False,
    }


def _config_output(model: LoadedModel, spec: TensorSpec) -> dict[str, Any]:
    described = model.description.spec
    is_labelled = described.has_labels and spec.name == described.output_tensor
    return {
        "name": spec.name,
        "data_type": config_type(spec.dtype),
        "dims": _dims(model, spec),
        "label_filename": "labels.txt" if is_labelled else "",
        "is_shape_tensor": False,
        "is_non_linear_format_io": False,
    }


def _dims(model: LoadedModel, spec: TensorSpec) -> list[int]:
    """A tensor's shape, without the dimension that counts rows where there is one."""
    return list(spec.shape[1:] if model.signature.is_batched else spec.shape)


def _instance_group(model: LoadedModel) -> dict[str, Any]:
    is_gpu = model.description.engine.provider.name != "cpu"
    return {
        "name": model.name,
        "kind": "KIND_GPU" if is_gpu else "KIND_CPU",
        "count": model.description.instances,
        "gpus": [0] if is_gpu else [],
        "secondary_devices": [],
        "profile": [],
        "passive": False,
        "host_policy": "",
    }


def _dynamic_batching(batching: BatchingSpec) -> dict[str, Any]:
    return {
        "preferred_batch_size": list(batching.preferred_batch_sizes),
        "max_queue_delay_microseconds": int(batching.max_queue_delay_ms * 1000),
        "preserve_ordering": False,
        "priority_levels": 0,
        "default_priority_level": 0,
        "priority_queue_policy": {},
        "default_queue_policy": {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": int(batching.max_queue_wait_ms * 1000),
            "allow_timeout_override": True,
            "max_queue_size": batching.max_queue_size,
        },
    }


def _statistics(model: LoadedModel) -> dict[str, Any]:
    found: VersionStatistics = model.statistics
    nothing = Duration()
    durations: Mapping[str, Duration] = {
        "success": found.requests.whole,
        "fail": found.fail,
        "queue": found.requests.queue,
        "compute_input": found.requests.input,
        "compute_infer": found.requests.infer,
        "compute_output": found.requests.output,
        "cache_hit": nothing,
        "cache_miss": nothing,
    }
    return {
        "name": model.name,
        "version": str(model.version),
        "last_inference": found.last_inference_ms,
        "inference_count": found.inferences,
        "execution_count": found.executions,
        "inference_stats": {name: _duration(one) for name, one in durations.items()},
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": _duration(batch.input),
                "compute_infer": _duration(batch.infer),
                "compute_output": _duration(batch.output),
            }
            for size, batch in sorted(found.batches.items())
        ],
        "memory_usage": [],
    }


def _duration(one: Duration) -> dict[str, int]:
    return {"count": one.count, "ns": one.nanoseconds}
