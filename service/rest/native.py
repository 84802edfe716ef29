"""`/api/v1/models`: what the repository holds. Classifying itself is in classify.py."""

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from service.errors import NoModelCard
from service.rest.errors import PROBLEMS
from service.rest.schemas import ModelOut, ModelsOut, model_answer
from service.server import InferenceServer

_NO_CARD = PROBLEMS[404] | {"description": "No such model, or it has no card"}
_MOST_CARD_BYTES = 1024 * 1024  # a long card has 20 kB; whatever else stands under its name is not read into memory


class MarkdownResponse(PlainTextResponse):
    media_type = "text/markdown"


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

    @router.get(
        "/models/{model}/card",
        response_class=MarkdownResponse,
        responses={404: _NO_CARD, 422: PROBLEMS[422], 503: PROBLEMS[503]},
        tags=["models"],
    )
    async def card(model: str) -> Response:
        """The model's card, its README.md: origin, licence, accuracy, how to make it again."""
        path = server.repository.status(model).card
        if path is None:
            raise NoModelCard(f"Model {model!r} has no card; put a README.md into its folder.")
        return MarkdownResponse(await asyncio.to_thread(_read_card, path, model))

    return router


def _read_card(path: Path, model: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_CARD_BYTES + 1)
    except OSError as error:
        raise NoModelCard(f"The card of model {model!r} cannot be read: {error.strerror or 'it is damaged'}.") from None
    if len(data) > _MOST_CARD_BYTES:
        raise NoModelCard(f"The card of model {model!r} is larger than {_MOST_CARD_BYTES} bytes; make it shorter.")
    return data.decode("utf-8", "replace")
