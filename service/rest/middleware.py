"""One pure ASGI layer around the app: request ids, the log line, the trace, and `Connection: close` while draining.

Pure ASGI because Starlette's BaseHTTPMiddleware hides a client's disconnect from the handler.
"""

import logging
import random
import time
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.logs import request_id_var
from service.messages import milliseconds
from service.rest.connection import Departure
from service.rest.context import RequestContext, published, route_path
from service.server import InferenceServer
from service.turns import NextTurn

if TYPE_CHECKING:
    from service.tracing.otlp import RequestTrace, Tracing

logger = logging.getLogger("fovea.access")

_QUIET = frozenset({"/livez", "/readyz", "/startupz", "/metrics"})  # asked every second: logged only when they fail
_NOTHING: dict[str, str] = {}
_SECURITY_HEADERS = [(b"x-content-type-options", b"nosniff")]


class RequestLayer:
    """See the module."""

    def __init__(self, app: ASGIApp, server: InferenceServer, tracing: "Tracing | None" = None) -> None:
        settings = server.settings
        self._app = app
        self._server = server
        self._tracing = tracing
        self._slow_seconds = settings.log.slow_ms / 1000.0
        self._sample = settings.log.success_sample
        self._root_path = settings.server.root_path
        self._log_later = NextTurn(self._log)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = published(scope, self._root_path)
        context = scope["fovea"] = RequestContext(scope["headers"])
        method = scope["method"]
        if method == "HEAD":  # is answered as GET; uvicorn, which sees a scope of its own, leaves the body out
            scope["method"] = "GET"
        token = request_id_var.set(context.request_id)
        trace = self._begin_trace(scope, context)
        status = 0
        departure: Departure = scope["fovea.departure"]

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], (b"x-request-id", context.request_id.encode()), *_SECURITY_HEADERS]
                if trace is not None:
                    headers.append((b"traceparent", trace.traceparent.encode()))
                if self._server.is_draining or departure.fault is not None:
                    headers.append((b"connection", b"close"))
                message["headers"] = headers
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            self._log_later(method, scope, context, status, time.monotonic() - context.started_at)
            if trace is not None and trace.is_recording:
                _end_trace(trace, method, scope, context, status)
            request_id_var.reset(token)

    def _begin_trace(self, scope: Scope, context: RequestContext) -> "RequestTrace | None":
        if self._tracing is None or route_path(scope) in _QUIET:
            return None
        given = {"traceparent": context.traceparent, "tracestate": context.tracestate}
        trace = self._tracing.begin(
            scope["method"], {name: value for name, value in given.items() if value}, context.started_at
        )
        context.traceparent = trace.traceparent
        return trace

    def _log(self, method: str, scope: Scope, context: RequestContext, status: int, seconds: float) -> None:
        failed = status >= 400 or status == 0
        slow = seconds >= self._slow_seconds
        if not failed and not slow and (route_path(scope) in _QUIET or not self._is_sampled()):
            return
        level = logging.ERROR if status == 500 else logging.WARNING if failed or slow else logging.INFO
        if not logger.isEnabledFor(level):
            return
        client = scope.get("client")
        traceparent = {"traceparent": context.traceparent} if context.traceparent else _NOTHING
        fields = {
            "request_id": context.request_id,
            "method": method,
            "path": scope["path"][:512],
            "status": status,
            "duration_ms": milliseconds(seconds),
            "client": client[0] if client else None,
            **traceparent,
            **context.fields,
        }
        logs.log(logger, level, "request", fields)

    def _is_sampled(self) -> bool:
        return self._sample >= 1.0 or random.random() < self._sample  # noqa: S311  # which lines are kept is no secret


def _end_trace(trace: "RequestTrace", method: str, scope: Scope, context: RequestContext, status: int) -> None:
    """Names and attributes by OpenTelemetry's conventions for HTTP servers; ours begin with `fovea.`."""
    route = context.route or getattr(scope.get("route"), "path", None)
    attributes = {"http.request.method": method, "url.path": scope["path"][:512], "http.response.status_code": status}
    if route:
        attributes["http.route"] = route
    fields = {"request_id": context.request_id} | context.fields
    attributes |= {
        f"fovea.{name}": fields[name] for name in ("request_id", "model", "version", "images", "code") if name in fields
    }
    stages = context.ticket.stages(time.monotonic()) if context.ticket else ()
    trace.end(f"{method} {route}" if route else method, attributes, stages, failed=status >= 500 or status == 0)
