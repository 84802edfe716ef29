"""The states of a version and which may follow which.

from         to           when
UNKNOWN      LOADING      the policy wants it
LOADING      READY        every gate passed
LOADING      UNAVAILABLE  a gate failed (reason kept)
UNAVAILABLE  LOADING      its files changed
READY        UNLOADING    the policy no longer wants it, and another is ready; or it was unloaded by name
UNLOADING    UNKNOWN      its last lease ended and it was freed
"""

from enum import StrEnum


class ModelState(StrEnum):
    """Names as the Open Inference Protocol's repository index has them."""

    UNKNOWN = "UNKNOWN"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


TRANSITIONS: dict[ModelState, frozenset[ModelState]] = {
    ModelState.UNKNOWN: frozenset({ModelState.LOADING}),
    ModelState.LOADING: frozenset({ModelState.READY, ModelState.UNAVAILABLE}),
    ModelState.READY: frozenset({ModelState.UNLOADING}),
    ModelState.UNLOADING: frozenset({ModelState.UNKNOWN}),
    ModelState.UNAVAILABLE: frozenset({ModelState.LOADING}),
}


def check(old: ModelState, new: ModelState) -> None:
    """Raises RuntimeError on a step that the table does not have."""
    if new not in TRANSITIONS[old]:
        raise RuntimeError(f"a version cannot go from {old} to {new}: this is a bug")
