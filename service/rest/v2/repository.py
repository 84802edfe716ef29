"""Triton's model repository extension: what there is, and loading and unloading by name, for admins."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.errors import MalformedRequest
from service.repository.states import ModelState
from service.repository.table import ModelStatus
from service.rest import admin
from service.rest.v2.infer import ERRORS
from service.server import InferenceServer

_TAGS = ["open inference protocol"]
_ADMIN: dict[int | str, dict[str, Any]] = {
    400: ERRORS[400],
    401: ERRORS[400] | {"description": "The admin token is missing or wrong"},
    403: ERRORS[400] | {"description": "Admin calls are off, or the token is for inference"},
    404: ERRORS[404],
    413: ERRORS[413],
}


def build_router(server: InferenceServer) -> APIRouter:
    """Bound to `server`."""
    router = APIRouter(prefix="/v2/repository", tags=list(_TAGS))

    @router.post("/index", responses={status: ERRORS[status] for status in (400, 413)})
    async def index(request: Request) -> list[dict[str, str]]:
        """Every version known, with its state and the reason for it; `{"ready": true}` for those in service only."""
        body = await admin.json_object(request)
        ready = body.get("ready", False)
        if not isinstance(ready, bool):
            raise MalformedRequest("ready is neither true nor false.")
        return [line for status in server.repository.index() for line in _lines(status) if _is_wanted(line, ready)]

    @router.post("/models/{model}/load", responses=_ADMIN, response_class=Response)
    async def load(request: Request, model: str) -> Response:
        """Bring a model into service, or up to date with its folder; answered when it is ready."""
        _parameters(await admin.json_object(request), allowed=frozenset())
        await server.repository.load(model)
        return Response(media_type="application/json")

    @router.post("/models/{model}/unload", responses=_ADMIN, response_class=Response)
    async def unload(request: Request, model: str) -> Response:
        """Take a model out of service until it is loaded again, or the process starts again."""
        parameters = _parameters(await admin.json_object(request), allowed=frozenset({"unload_dependents"}))
        if not isinstance(parameters.get("unload_dependents", False), bool):
            raise MalformedRequest("unload_dependents is neither true nor false.")
        await server.repository.unload(model)
        return Response(media_type="application/json")

    return router


def _parameters(body: dict[str, Any], allowed: frozenset[str]) -> dict[str, Any]:
    parameters = body.get("parameters", {})
    if not isinstance(parameters, dict):
        raise MalformedRequest("parameters is not an object.")
    for name in parameters:
        if name not in allowed:
            raise MalformedRequest(f"Parameter {name[:128]!r} is not supported: models come from the repository only.")
    return parameters


def _lines(status: ModelStatus[Any]) -> list[dict[str, str]]:
    if not status.versions:
        return [{"name": status.name, "state": "UNAVAILABLE", "reason": status.reason}]
    lines = []
    for version in status.versions:
        state = version.state
        if state is ModelState.UNKNOWN and version.reason:
            state = ModelState.UNAVAILABLE  # known well, and not in service
        line = {"name": status.name, "version": str(version.version), "state": state.value}
        lines.append(line | ({"reason": version.reason} if version.reason else {}))
    return lines


def _is_wanted(line: dict[str, str], ready: bool) -> bool:
    return not ready or line["state"] == "READY"
