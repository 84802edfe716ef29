"""The version policy's steps, numbers in and actions out. What must always hold is in tests/property."""

import pytest

from service.repository.policy import Latest, Load, Unload, VersionPolicy, actions, wanted
from service.repository.states import ModelState

READY, LOADING, UNLOADING, UNKNOWN, UNAVAILABLE = (
    ModelState.READY,
    ModelState.LOADING,
    ModelState.UNLOADING,
    ModelState.UNKNOWN,
    ModelState.UNAVAILABLE,
)


@pytest.mark.parametrize(
    ("policy", "versions"),
    [(Latest(), [4]), (Latest(2), [4, 2]), (Latest(9), [4, 2, 1]), ("all", [4, 2, 1]), ((1, 2, 3), [2, 1]), ((), [])],
)
def test_each_policy_wants_its_versions_but_no_failed_one(policy: VersionPolicy, versions: list[int]) -> None:
    assert wanted(policy, [1, 2, 3, 4], {3}) == versions


def test_what_is_wanted_and_not_there_is_loaded() -> None:
    assert actions(Latest(), [1, 2], set(), {1: UNKNOWN, 2: UNKNOWN}) == [Load(2)]


def test_the_old_version_is_not_unloaded_in_the_step_that_loads_the_new_one() -> None:
    assert actions(Latest(), [1, 2], set(), {1: READY, 2: UNKNOWN}) == [Load(2)]


def test_the_old_version_is_unloaded_once_the_new_one_is_ready() -> None:
    assert actions(Latest(), [1, 2], set(), {1: READY, 2: READY}) == [Unload(1)]


def test_a_failed_version_changes_nothing_for_the_one_in_service() -> None:
    assert actions(Latest(), [1, 2], {2}, {1: READY, 2: UNAVAILABLE}) == []


@pytest.mark.parametrize("state", [LOADING, UNLOADING])
def test_a_version_in_motion_is_left_alone(state: ModelState) -> None:
    assert actions(Latest(), [1], set(), {1: state}) == []


def test_an_emptied_folder_unloads_nothing() -> None:
    assert actions(Latest(), [], set(), {1: READY}) == []
    assert actions("all", [], set(), {1: READY, 2: READY}) == []


def test_a_list_that_names_nothing_that_is_there_unloads_nothing() -> None:
    assert actions((9,), [1], set(), {1: READY}) == []


def test_nothing_is_unloaded_before_everything_wanted_is_ready() -> None:
    states = {1: READY, 2: READY, 3: UNLOADING}
    assert actions(Latest(2), [2, 3], set(), states) == []
