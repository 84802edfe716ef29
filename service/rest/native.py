"""`/api/v1/models`: what the repository holds. Classifying itself is in classify.py."""

from typing import Any

from fastapi import APIRouter

from service.rest.errors import PROBLEMS
from service.rest.schemas import ModelOut, ModelsOut, model_answer
from service.server import InferenceServer


def build_router(server: InferenceServer) -> APIRouter:
    """The listings of the native API, bound to `server`."""
    router = APIRouter(prefix="/api/v1")

    @router.get(
        "/models",
        response_model=ModelsOut,
        response_model_exclude_none=True,
        responses={422: PROBLEMS[422]},
        tags=["models"],
    )
    async def models(labels: bool = False) -> dict[str, Any]:
        """Every model of the repository, with the state of each version and the reason for it."""
        return {"models": [model_answer(status, labels=labels) for status in server.repository.index()]}

    @router.get(
        "/models/{model}",
        response_model=ModelOut,
        response_model_exclude_none=True,
        responses={404: PROBLEMS[404], 422: PROBLEMS[422]},
        tags=["models"],
    )
    async def model(model: str, labels: bool = False) -> dict[str, Any]:
        """One model."""
        return model_answer(server.repository.status(model), labels=labels)

    return router
