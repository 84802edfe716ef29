"""The readiness rule."""

import pytest

from service.health import ServerState, readiness

SERVING, STARTING, DRAINING, STOPPED = (
    ServerState.SERVING,
    ServerState.STARTING,
    ServerState.DRAINING,
    ServerState.STOPPED,
)


@pytest.mark.parametrize(
    ("state", "required", "ready", "pending", "is_ready", "reason"),
    [
        (SERVING, (), ("cats",), False, True, "serving"),
        (SERVING, (), (), False, False, "no model is ready"),
        (SERVING, (), ("cats",), True, False, "models are loading"),
        (STARTING, (), ("cats",), False, False, "models are loading"),
        (STARTING, (), ("cats",), True, False, "models are loading"),
        (SERVING, ("cats",), ("cats", "dogs"), False, True, "all required models are ready"),
        (SERVING, ("cats",), ("cats",), True, True, "all required models are ready"),
        (SERVING, ("dogs", "cats", "cows"), ("cats",), False, False, "required models are not ready: cows, dogs"),
        (SERVING, ("cats",), (), False, False, "required models are not ready: cats"),
        (DRAINING, (), ("cats",), False, False, "the server is draining"),
        (DRAINING, ("cats",), ("cats",), False, False, "the server is draining"),
        (STOPPED, ("cats",), ("cats",), False, False, "the server is stopped"),
    ],
)
def test_traffic_should_come_exactly_when(
    state: ServerState,
    required: tuple[str, ...],
    ready: tuple[str, ...],
    pending: bool,
    is_ready: bool,
    reason: str,
) -> None:
    verdict = readiness(state, required=required, ready_models=ready, first_loads_pending=pending)
    assert (verdict.ready, verdict.reason) == (is_ready, reason)
