"""Whether there are traces: what the standard OTEL_* variables ask for. Making them is otlp.py's work.

Everything else about traces (sampling, endpoint, headers, certificates, queue, resource) the OpenTelemetry SDK reads
from those variables itself.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from service.errors import ConfigurationError

if TYPE_CHECKING:
    from service.tracing.otlp import Tracing

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def from_environment(environment: Mapping[str, str], version: str) -> "Tracing | None":
    """Traces as OTEL_* ask for them; None where no exporter and no endpoint is named. Raises ConfigurationError."""
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter == "none"
    if disabled or not (exporter or any(environment.get(name) for name in _ENDPOINTS)):
        return None
    if exporter not in ("", "otlp"):
        raise ConfigurationError(f"environment OTEL_TRACES_EXPORTER: {exporter!r} is unknown; known are otlp and none")
    for name in _PROTOCOLS:
        if environment.get(name, "http/protobuf") != "http/protobuf":
            raise ConfigurationError(
                f"environment {name}: {environment[name]!r} is not spoken; use http/protobuf (a collector's port 4318)"
            )
    try:
        from service.tracing.otlp import Tracing
    except ImportError as error:
        raise ConfigurationError(
            f"environment OTEL_*: traces are asked for, but {error.name} is missing: pip install 'fovea[tracing]'"
        ) from None
    try:
        return Tracing(version)
    except ValueError as error:
        raise ConfigurationError(f"environment OTEL_*: {error}") from None
