"""Probes, metrics and the offline API docs. Always open, never counted as traffic."""

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

from service.health import ServerState
from service.metrics import CONTENT_TYPE
from service.rest.schemas import AliveOut, ReadyOut
from service.server import InferenceServer


def build_router(server: InferenceServer) -> APIRouter:
    """Probes and metrics of `server`."""
    router = APIRouter()

    @router.get("/livez", response_model=AliveOut, tags=["operations"])
    async def livez() -> dict[str, str]:
        """The process is alive. Looks at nothing else, so that a broken model restarts no pod."""
        return {"status": "alive"}

    @router.get("/readyz", response_model=ReadyOut, responses={503: {"model": ReadyOut}}, tags=["operations"])
    async def readyz() -> Response:
        """Traffic should come here: not draining, and the models are ready."""
        verdict = server.readiness
        body = {"ready": verdict.ready, "reason": verdict.reason}
        return JSONResponse(body, 200 if verdict.ready else 503)

    @router.get("/startupz", response_model=ReadyOut, responses={503: {"model": ReadyOut}}, tags=["operations"])
    async def startupz() -> Response:
        """The first loads have ended, well or badly."""
        started = server.state is not ServerState.STARTING
        return JSONResponse(
            {"ready": started, "reason": "started" if started else "models are loading"}, 200 if started else 503
        )

    @router.get("/metrics", response_class=PlainTextResponse, tags=["operations"])
    async def metrics() -> Response:
        """Prometheus text format."""
        return Response(server.metrics.render(), media_type=CONTENT_TYPE)

    return router


def add_docs(app: FastAPI) -> None:
    """`/docs` from files of our own dependencies: nothing is fetched from the internet."""
    assets = Path(str(files("fastapi_offline"))) / "static"
    app.mount("/docs-assets", StaticFiles(directory=assets), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        root = request.scope["root_path"]
        return get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=f"{app.title} API",
            swagger_js_url=f"{root}/docs-assets/swagger-ui-bundle.js",
            swagger_css_url=f"{root}/docs-assets/swagger-ui.css",
            swagger_favicon_url=f"{root}/static/favicon.svg",
        )
