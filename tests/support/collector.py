"""A collector of OTLP traces over HTTP: keeps the spans that are sent to it, as the protocol's own messages."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """Listens on a free port; use as a context manager."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resource: dict[str, str] = {}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["content-length"]))
                collector._take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="collector", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10.0)

    def of_trace(self, trace_id: str) -> list[Span]:
        """The spans of one trace, in the order of their start."""
        spans = [span for span in self.spans if span.trace_id.hex() == trace_id]
        return sorted(spans, key=lambda span: span.start_time_unix_nano)

    def _take(self, request: ExportTraceServiceRequest) -> None:
        for group in request.resource_spans:
            self.resource |= {item.key: item.value.string_value for item in group.resource.attributes}
            for scope in group.scope_spans:
                self.spans.extend(scope.spans)


def attributes_of(span: Span) -> dict[str, str | int]:
    """Attributes as plain values."""
    return {item.key: item.value.string_value or item.value.int_value for item in span.attributes}
