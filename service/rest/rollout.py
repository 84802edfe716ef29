"""`/api/v1/models/{model}/rollout`: which version is stable, canary and shadow, and what the shadow has seen."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from service.errors import InvalidParameter
from service.repository.rollout import Rollout, Share
from service.rest import admin, errors
from service.rest.errors import PROBLEMS
from service.server import InferenceServer
from service.shadow import Best, Comparison

_PROBLEM = PROBLEMS[404]["content"]
_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"description": "The admin token is missing or wrong", "content": _PROBLEM},
    403: {"description": "Admin calls are off: no token is configured", "content": _PROBLEM},
    404: PROBLEMS[404],
    422: PROBLEMS[422],
}
_REFUSALS_OF_CHANGES: dict[int | str, dict[str, Any]] = {
    400: PROBLEMS[400],
    409: {"description": "A version that is named does not pass its gates", "content": _PROBLEM},
    413: PROBLEMS[413],
}


_LARGEST = 10**18 - 1  # version that a folder can be named by


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ShareIn(_Schema):
    """A version and its percentage: of requests for a canary, of executions for a shadow."""

    version: Annotated[int, Field(ge=1, le=_LARGEST, strict=True)]
    percent: Annotated[float, Field(ge=0, le=100)]


class RolloutIn(_Schema):
    """What to change. What is left out stays; null removes."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={"example": {"stable": 3, "canary": {"version": 4, "percent": 10}, "shadow": None}},
    )

    stable: Annotated[int | None, Field(ge=1, le=_LARGEST, strict=True)] = None
    canary: ShareIn | None = None
    shadow: ShareIn | None = None


# By hand, as the body is read under our own limit and errors; the shares are written out, not referred to.
_SHARE = {"anyOf": [ShareIn.model_json_schema(), {"type": "null"}]}
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": RolloutIn.model_json_schema()
            | {
                "properties": {
                    "stable": RolloutIn.model_json_schema()["properties"]["stable"],
                    "canary": _SHARE,
                    "shadow": _SHARE,
                }
            }
        }
    },
}


class BestOut(_Schema):
    label: str
    score: float


class DisagreementOut(_Schema):
    request_id: str | None
    stable: BestOut
    shadow: BestOut


class MillisecondsOut(_Schema):
    """CPU time of an image, on average."""

    stable: float
    shadow: float


class ComparisonOut(_Schema):
    """What the shadow has seen since it was set, or since the versions were loaded."""

    compared: int = Field(description="Images run by both.")
    agreement: float | None = Field(description="Share with the same best label.")
    mean_score_difference: float | None = Field(description="Of the stable version's best label.")
    milliseconds: MillisecondsOut | None
    left_out: int = Field(description="Images for which there was no idle time.")
    failed: int
    disagreements: list[DisagreementOut] = Field(description="The last ones.")


class RolloutOut(_Schema):
    """`stable`, `canary` and `shadow` are what was asked for; `in_force` who has the role now."""

    model: str
    stable: int | None
    canary: ShareIn | None
    shadow: ShareIn | None
    in_force: RolloutIn
    comparison: ComparisonOut | None = None


def build_router(server: InferenceServer) -> APIRouter:
    """Bound to `server`."""
    router = APIRouter(prefix="/api/v1", tags=["models"])

    @router.get("/models/{model}/rollout", response_model=RolloutOut, responses=_REFUSALS)
    async def rollout(model: str) -> dict[str, Any]:
        """Who has which role, and how the shadow compares."""
        return _answer(server, model)

    @router.patch(
        "/models/{model}/rollout",
        response_model=RolloutOut,
        responses=_REFUSALS | _REFUSALS_OF_CHANGES,
        openapi_extra={"requestBody": _BODY},
    )
    async def change(request: Request, model: str) -> dict[str, Any]:
        """Change roles; answered when they are in force. Versions that are not in service are loaded first."""
        wanted = _changed(server.repository.rollout(model).asked, await admin.json_object(request))
        await server.repository.set_rollout(model, wanted)
        return _answer(server, model)

    return router


def _changed(now: Rollout, body: dict[str, Any]) -> Rollout:
    """Raises InvalidParameter."""
    try:
        given = RolloutIn.model_validate(body)
    except ValidationError as error:
        raise errors.invalid_parameter(error.errors(include_url=False, include_input=False)) from None
    stable, canary, shadow = (
        getattr(given, role) if role in given.model_fields_set else getattr(now, role)
        for role in ("stable", "canary", "shadow")
    )
    wanted = Rollout(stable, *(share and Share(share.version, share.percent) for share in (canary, shadow)))
    if wanted.canary is not None and wanted.canary.version == wanted.stable:
        raise InvalidParameter(f"canary: version {wanted.stable} is the stable one; remove the canary with null.")
    return wanted


def _answer(server: InferenceServer, model: str) -> dict[str, Any]:
    status = server.repository.rollout(model)
    asked, seen = status.asked, server.shadows.comparison(model)
    return {
        "model": model,
        "stable": asked.stable,
        "canary": _share(asked.canary),
        "shadow": _share(asked.shadow),
        "in_force": {
            "stable": status.stable,
            "canary": _share(status.canary),
            "shadow": _share(status.shadow),
        },
        "comparison": None if seen is None else _comparison(seen),
    }


def _share(share: Share | None) -> dict[str, Any] | None:
    return None if share is None else {"version": share.version, "percent": share.percent}


def _comparison(seen: Comparison) -> dict[str, Any]:
    rows = seen.rows
    mean = {"stable": seen.stable_seconds, "shadow": seen.shadow_seconds}
    return {
        "compared": rows,
        "agreement": seen.agreed / rows if rows else None,
        "mean_score_difference": seen.score_difference / rows if rows else None,
        "milliseconds": {role: round(seconds / rows * 1000, 4) for role, seconds in mean.items()} if rows else None,
        "left_out": seen.left_out,
        "failed": seen.failed,
        "disagreements": [
            {"request_id": one.request_id, "stable": _best(one.stable), "shadow": _best(one.shadow)}
            for one in list(seen.examples)
        ],
    }


def _best(best: Best) -> dict[str, Any]:
    return {"label": best.label, "score": round(best.score, 6)}
