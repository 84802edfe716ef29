"""The page at `/`: its files, the headers they go out with, and the way to it from a prefix without its final slash.

Knows nothing of models: the page asks the native API, like any other client.
"""

from html import escape
from os import PathLike, stat_result
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from service.rest.context import route_path
from service.server import InferenceServer

STATIC = Path(__file__).parent / "static"
_BASE = '<base href="./">'
_REVALIDATED = "no-cache"  # kept, and asked for again by its ETag: a page is never older than the server it talks to
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",  # blob: pictures that never left the browser
        "connect-src 'self'",
        "base-uri 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # with no policy allowed: no text becomes HTML or a script
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "cache-control": _REVALIDATED,
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "vary": "Accept",
}


def build_router(server: InferenceServer) -> APIRouter:
    """`/`, as a page for people and a sign of life for programs."""
    router = APIRouter()
    html = _html(server.settings.server.root_path)

    @router.get("/", include_in_schema=False)
    async def root(request: Request) -> Response:
        """The page where `Accept` prefers HTML, else a sign of life."""
        if _prefers_html(request.headers.get("accept", "")):
            return HTMLResponse(html, headers=_HEADERS)
        return JSONResponse({"status": "alive", "name": "fovea", "version": server.version}, headers={"vary": "Accept"})

    return router


class PageFiles(StaticFiles):
    """Style, module and icon."""

    def __init__(self) -> None:
        super().__init__(directory=STATIC)

    def file_response(
        self, full_path: str | PathLike[str], stat_result: stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["cache-control"] = _REVALIDATED
        return response


class FinalSlash:
    """Sends `/vision` on to `/vision/`; passes everything else on to `app`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not route_path(scope):
            response = RedirectResponse(f"{scope['root_path']}/")
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _html(root_path: str) -> str:
    """The page, its addresses based on the prefix, so that they are right where a proxy takes even the slash off."""
    html = (STATIC / "index.html").read_text("utf-8")
    assert _BASE in html, "the page has no base to set: this is a bug"
    return html.replace(_BASE, f'<base href="{escape(root_path)}/">') if root_path else html


def _prefers_html(accept: str) -> bool:
    """Whether text/html stands before (or above, by q) application/json in an Accept header."""
    weights = {"text/html": 0.0, "application/json": 0.0}
    for entry in accept.split(","):
        media_type, *parameters = (part.strip() for part in entry.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
        if media_type in weights:
            weights[media_type] = max(weights[media_type], quality)
    return weights["text/html"] > weights["application/json"]
