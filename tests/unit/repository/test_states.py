"""The table of states."""

from itertools import product

import pytest

from service.repository.states import TRANSITIONS, ModelState, check

LEGAL = {
    ("UNKNOWN", "LOADING"),
    ("LOADING", "READY"),
    ("LOADING", "UNAVAILABLE"),
    ("UNAVAILABLE", "LOADING"),
    ("READY", "UNLOADING"),
    ("UNLOADING", "UNKNOWN"),
}


@pytest.mark.parametrize(("old", "new"), list(product(ModelState, ModelState)))
def test_only_the_steps_of_the_table_are_allowed(old: ModelState, new: ModelState) -> None:
    if (old.value, new.value) in LEGAL:
        check(old, new)
    else:
        with pytest.raises(RuntimeError, match=f"from {old} to {new}: this is a bug"):
            check(old, new)


def test_every_state_has_a_row_and_a_way_out() -> None:
    assert set(TRANSITIONS) == set(ModelState)
    assert all(TRANSITIONS.values())


def test_the_names_are_those_of_the_open_inference_protocol() -> None:
    assert {state.value for state in ModelState} == {"UNKNOWN", "READY", "UNAVAILABLE", "LOADING", "UNLOADING"}
