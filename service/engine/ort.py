"""OrtEngine: one ONNX file in one ONNX Runtime session.

Owns session options and which provider is really in use. Knows no preprocessing and no queue. Threading: a session's
`run` is thread-safe, and on a CPU several threads share one session with `intra_op` 1, which is what measures fastest.
"""

import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it reports from its import on

import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from service.engine.base import ProviderInfo, Tensor, TensorSpec
from service.engine.providers import NAME_OF, PROVIDERS, ExecutionProvider
from service.engine.spec import ExecutionSpec
from service.errors import EngineFailed, EngineRefusedInput, ModelLoadError

logger = logging.getLogger(__name__)

_NUMPY_OF = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}
_FATAL_ONLY = 4


@cache
def _prepare_runtime() -> None:
    """Once a process: no telemetry, nothing on stderr, and CUDA's libraries loaded where the GPU build is installed."""
    ort.disable_telemetry_events()
    ort.set_default_logger_severity(_FATAL_ONLY)
    if hasattr(ort, "preload_dlls") and "CUDAExecutionProvider" in ort.get_available_providers():
        ort.preload_dlls()


class OrtEngine:
    """Loads `model`, a file or its bytes, on the first of `spec.providers` that works.

    Raises ModelLoadError with the reason of each. `external` holds the bytes of the files that tensors of the model lie
    in; of bytes nothing else is read. `intra_op_threads` is used where the spec leaves it at 0.
    """

    def __init__(
        self,
        model: Path | bytes,
        spec: ExecutionSpec,
        *,
        external: Mapping[str, bytes] | None = None,
        intra_op_threads: int = 1,
    ) -> None:
        _prepare_runtime()
        self._session, self.provider = _open(model, external or {}, spec, spec.intra_op_threads or intra_op_threads)
        self.inputs = tuple(_tensor(node) for node in self._session.get_inputs())
        self.outputs = tuple(_tensor(node) for node in self._session.get_outputs())
        self._output_names = [output.name for output in self.outputs]
        self._runs: set[ort.RunOptions] = set()  # of the runs under way

    def run(self, feeds: Mapping[str, Tensor]) -> list[Tensor]:
        return self._run(feeds, ort.RunOptions())

    def shrink(self, feeds: Mapping[str, Tensor]) -> None:
        options = ort.RunOptions()
        if self.provider.name == "cpu":  # a device's memory is the model's own
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._run(feeds, options)

    def _run(self, feeds: Mapping[str, Tensor], options: ort.RunOptions) -> list[Tensor]:
        self._runs.add(options)
        try:
            outputs: list[Tensor] = self._session.run(self._output_names, feeds, options)
        except Exception as error:
            if "bad_alloc" in str(error) or "Failed to allocate memory" in str(error):
                raise MemoryError from error
            if isinstance(error, InvalidArgument):
                raise EngineRefusedInput("The model failed on this input.") from error
            logger.exception("engine_run_failed")
            raise EngineFailed("The model failed on this input.") from error
        finally:
            self._runs.discard(options)
        return outputs

    def terminate(self) -> None:
        for options in list(self._runs):
            options.terminate = True

    def close(self) -> None:
        del self._session


def _open(
    model: Path | bytes, external: Mapping[str, bytes], spec: ExecutionSpec, intra_op_threads: int
) -> tuple[ort.InferenceSession, ProviderInfo]:
    reasons: list[str] = []
    for name in spec.providers:
        provider = PROVIDERS[name]
        try:
            session = _session(model, external, provider, spec, intra_op_threads)
        except ModelLoadError as error:
            reasons.append(f"{name}: {error}")
            continue
        in_use = NAME_OF.get(session.get_providers()[0], session.get_providers()[0])
        if in_use == name:
            return session, ProviderInfo(name, "; ".join(reasons) or None)
        reasons.append(f"{name}: onnxruntime fell back to {in_use}; {provider.remedy}")
    raise ModelLoadError("no execution provider of the manifest works: " + "; ".join(reasons), gate="engine")


def _session(
    model: Path | bytes,
    external: Mapping[str, bytes],
    provider: ExecutionProvider,
    spec: ExecutionSpec,
    intra_op_threads: int,
) -> ort.InferenceSession:
    if provider.ort_name not in ort.get_available_providers():
        raise ModelLoadError(f"not in this onnxruntime; {provider.remedy}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning takes cores from decoding
    options.add_session_config_entry("session.load_model_format", "ONNX")  # what was inspected, not ORT's own format
    if external:
        names, contents = list(external), list(external.values())
        options.add_external_initializers_from_files_in_memory(names, contents, [len(one) for one in contents])
    providers = [(provider.ort_name, provider.options(spec))]
    if provider.name != "cpu":
        if "cpu" in spec.providers:
            providers.append(("CPUExecutionProvider", {}))
        else:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        source = model if isinstance(model, bytes) else str(model)
        session = ort.InferenceSession(source, options, providers=providers)
        session._model_bytes = None  # it keeps the weights once more, to fall back on another provider by itself
        return session
    except Exception as error:
        raise ModelLoadError(_one_line(error, model)) from error


def _tensor(node: ort.NodeArg) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    rows = node.shape[0] if node.shape and isinstance(node.shape[0], str) else ""
    return TensorSpec(node.name, _NUMPY_OF.get(node.type, node.type), shape, rows)


def _one_line(error: Exception, model: Path | bytes) -> str:
    """What ONNX Runtime says, without where the file lies on this machine."""
    text = str(error)
    if isinstance(model, Path):
        text = text.replace(str(model), f"{model.parent.name}/{model.name}")
    return " ".join(text.split())[:400] or type(error).__name__
