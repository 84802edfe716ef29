"""The table of execution providers: their names in a manifest, in ONNX Runtime, and their options.

To add a provider: one row here, and an image variant that has its libraries.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from service.engine.spec import ExecutionSpec

Options = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ExecutionProvider:
    """One row. `remedy` is what to do where this onnxruntime does not have it."""

    name: str
    ort_name: str
    options: Callable[[ExecutionSpec], Options]
    remedy: str


def _cuda(spec: ExecutionSpec) -> Options:
    # kSameAsRequested: the arena grows by what a batch needs instead of by doubling (onnxruntime #11627)
    return {"device_id": spec.device_ids[0], "arena_extend_strategy": "kSameAsRequested"}


def _tensorrt(spec: ExecutionSpec) -> Options:
    return {"device_id": spec.device_ids[0]}


_GPU = "install the extra `gpu` and an NVIDIA driver with CUDA 13 and cuDNN 9"

PROVIDERS: dict[str, ExecutionProvider] = {
    row.name: row
    for row in (
        ExecutionProvider("cpu", "CPUExecutionProvider", lambda spec: {}, "install the extra `cpu`"),
        ExecutionProvider("cuda", "CUDAExecutionProvider", _cuda, _GPU),
        ExecutionProvider("tensorrt", "TensorrtExecutionProvider", _tensorrt, _GPU + " and TensorRT"),
    )
}
NAME_OF = {row.ort_name: row.name for row in PROVIDERS.values()}
