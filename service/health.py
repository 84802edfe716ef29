"""Server states and the readiness rule. Pure: takes facts, gives a verdict with its reason."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum


class ServerState(StrEnum):
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Readiness:
    ready: bool
    reason: str


def readiness(
    state: ServerState,
    *,
    required: Collection[str],
    ready_models: Collection[str],
    first_loads_pending: bool,
) -> Readiness:
    """Whether traffic should come here.

    Not while draining. With `required` names: all of them ready. Without: at least one model ready and none
    still on its first load.
    """
    if state in (ServerState.DRAINING, ServerState.STOPPED):
        return Readiness(False, f"the server is {state}")
    if required:
        missing = sorted(set(required) - set(ready_models))
        if missing:
            return Readiness(False, f"required models are not ready: {', '.join(missing)}")
        return Readiness(True, "all required models are ready")
    if first_loads_pending or state is ServerState.STARTING:
        return Readiness(False, "models are loading")
    if not ready_models:
        return Readiness(False, "no model is ready")
    return Readiness(True, "serving")
