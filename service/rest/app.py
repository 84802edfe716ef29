"""The FastAPI application: routers, error tables and middleware around one InferenceServer. No handlers here."""

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from service.rest import classify, errors, native, page, probes, rollout, v1
from service.rest.classify import ClassifyRoute
from service.rest.credentials import CredentialLayer, Credentials
from service.rest.middleware import RequestLayer
from service.rest.schemas import ClassifyBody, ClassifyOut, ProblemOut
from service.rest.v1 import PredictRoute
from service.rest.v2 import infer, listings, repository
from service.rest.v2.infer import InferRoute
from service.server import InferenceServer

if TYPE_CHECKING:
    from service.tracing.otlp import Tracing

_DESCRIPTION = "Photographs in, ranked labels out: batching image classification on ONNX Runtime."


def create_api(server: InferenceServer) -> FastAPI:
    """The routes and their documentation."""
    app = FastAPI(
        title="Fovea",
        version=server.version,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # ours begin further out, before FastAPI
    )
    errors.install(app)
    app.include_router(probes.build_router(server))
    app.include_router(page.build_router(server))
    app.include_router(native.build_router(server))
    app.include_router(rollout.build_router(server))
    for protocol in (listings, repository, v1):
        app.include_router(protocol.build_router(server))
    app.mount("/static", page.PageFiles(), name="static")
    probes.add_docs(app)
    _document_data_plane(app)
    return app


def create_app(server: InferenceServer, tracing: "Tracing | None" = None) -> ASGIApp:
    """What uvicorn serves: the request layer, then the data plane, then FastAPI for everything else.

    Credentials stand before all of it, or, where the data plane is open to everyone, before FastAPI.
    """
    settings = server.settings
    credentials = Credentials(settings, server.metrics)
    app: ASGIApp = page.FinalSlash(create_api(server))
    if not credentials.are_wanted_for_inference:
        app = CredentialLayer(app, credentials)
    app = ClassifyRoute(InferRoute(PredictRoute(app, server), server), server)
    if credentials.are_wanted_for_inference:
        app = CredentialLayer(app, credentials)
    if settings.server.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=settings.server.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    return RequestLayer(app, server, tracing)


def _document_data_plane(app: FastAPI) -> None:
    """Add the routes that FastAPI does not serve, and the schemas that it does not know, to its OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for model in (ClassifyBody, ClassifyOut, ProblemOut):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= schema.pop("$defs", {})
            schemas[model.__name__] = schema
        document["paths"] = {
            path: operations
            for protocol in (classify, infer, v1)
            for path, operations in protocol.openapi_paths().items()
        } | document["paths"]
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"] |= errors.HEAD_PROBLEMS
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
