"""OpenTelemetry traces over OTLP: one span for a request, and below it the stages that the request went through.

    POST /api/v1/models/{model}/classify      the request, child of the span that the caller's `traceparent` names
      receive                                 its body arrives
      queue                                   an image waits for an execution           } once for
      batch                                   that execution, with its batch size       } each image
        decode, infer

The only importer of opentelemetry. Stages become spans after the answer, from moments that are noted in any case: a
request's way through the service knows nothing of traces.
"""

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.messages import Stage

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 3.0  # at the end: a collector that does not answer must not use up a pod's grace
_PROPAGATOR = TraceContextTextMapPropagator()


class Tracing:
    """Makes request traces and hands them to a collector. `lost` counts the spans that it did not take."""

    def __init__(self, version: str) -> None:
        self.lost = 0
        resource = Resource.create().merge(Resource({SERVICE_VERSION: version}))
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "fovea"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_CountingExporter(self)))
        self._tracer = self._provider.get_tracer("fovea", version)

    def begin(self, method: str, headers: Mapping[str, str], started_at: float) -> "RequestTrace":
        """The span of a request that began at `started_at`, below the one that its `headers` name."""
        return RequestTrace(self._tracer, method, headers, started_at)

    def close(self) -> None:
        """Export what is left, for a few seconds at most."""
        flushing = threading.Thread(target=self._provider.shutdown, name="trace-flush", daemon=True)
        flushing.start()
        flushing.join(_FLUSH_SECONDS)
        if flushing.is_alive():
            logger.warning("traces_not_flushed", extra={"waited_s": _FLUSH_SECONDS})


class RequestTrace:
    """The open span of one request. `traceparent` is its name for the caller."""

    def __init__(self, tracer: Tracer, method: str, headers: Mapping[str, str], started_at: float) -> None:
        self._tracer = tracer
        self._epoch = time.time() - time.monotonic()  # spans are dated, moments are monotonic
        self._span = tracer.start_span(
            method, _PROPAGATOR.extract(headers), SpanKind.SERVER, start_time=self._nanoseconds(started_at)
        )
        context = self._span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"

    @property
    def is_recording(self) -> bool:
        """Whether the request was sampled; if not, there is nothing to tell `end`."""
        return self._span.is_recording()

    def end(
        self, name: str, attributes: Mapping[str, str | int | float], stages: Iterable[Stage], *, failed: bool
    ) -> None:
        """Close the span, now, with its stages below it."""
        self._span.update_name(name)
        self._span.set_attributes(attributes)
        if failed:
            self._span.set_status(StatusCode.ERROR)
        self._add(self._span, stages)
        self._span.end()

    def _add(self, parent: Span, stages: Iterable[Stage]) -> None:
        below = set_span_in_context(parent)
        for stage in stages:
            span = self._tracer.start_span(
                stage.name, below, attributes=stage.attributes, start_time=self._nanoseconds(stage.started_at)
            )
            self._add(span, stage.inner)
            span.end(self._nanoseconds(stage.ended_at))

    def _nanoseconds(self, moment: float) -> int:
        return int((moment + self._epoch) * 1e9)


class _CountingExporter(OTLPSpanExporter):
    """Exports by HTTP; what fails after the SDK's retries is logged by the SDK and counted here."""

    def __init__(self, tracing: Tracing) -> None:
        super().__init__()
        self._tracing = tracing

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._tracing.lost += len(spans)
        return result
