"""Roles of versions: who answers requests without a version, and what a change of that loads, keeps and unloads."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ModelLoadError, ModelNotFound, ModelNotReady, RolloutRefused
from service.messages import ModelRef
from service.repository.policy import Latest, wanted
from service.repository.rollout import Rollout, Share, goes_to_canary, stable_of
from tests.support.puppets import until
from tests.unit.repository.conftest import Shelf

versions = st.integers(1, 6)
shares = st.none() | st.builds(Share, versions, st.floats(0, 100))
rollouts = st.builds(Rollout, st.none() | versions, shares, shares)


async def put(shelf: Shelf, *numbers: int, rollout: Rollout | None = None) -> None:
    shelf.source.put("cats", *numbers)
    if rollout is not None:
        shelf.loader.rollouts["cats"] = rollout
    await shelf.look(2)


def answered_by(shelf: Shelf, key: str | None = None) -> int:
    with shelf.repository.lease(ModelRef("cats", None, key)) as (number, _):
        return number


# The rules


@given(rollout=rollouts, ready=st.sets(versions))
def test_somebody_answers_as_long_as_anybody_is_ready(rollout: Rollout, ready: set[int]) -> None:
    stable = stable_of(rollout, ready)
    assert (stable is None) == (not ready)
    assert stable is None or stable in ready
    if rollout.stable in ready:
        assert stable == rollout.stable
    elif ready - rollout.aside:
        assert stable not in rollout.aside


@given(rollout=rollouts, available=st.sets(versions), failed=st.sets(versions), count=st.integers(1, 3))
def test_what_a_rollout_names_is_wanted_besides_what_the_policy_wants(
    rollout: Rollout, available: set[int], failed: set[int], count: int
) -> None:
    found = wanted(Latest(count), available, failed, rollout)
    assert len(set(found)) == len(found)
    assert set(found) <= available - failed
    assert rollout.versions & (available - failed) <= set(found)
    others = sorted((available - failed) - rollout.versions, reverse=True)
    assert [version for version in found if version not in rollout.versions] == others[:count][: len(others)] or (
        rollout.stable is not None
    )
    if rollout.stable in found:
        assert found[0] == rollout.stable


def test_a_stable_version_that_is_away_is_stood_in_for_by_one_below_it() -> None:
    assert stable_of(Rollout(3, Share(4, 10)), {1, 2, 4, 5}) == 2
    assert stable_of(Rollout(3, Share(4, 10)), {4, 5}) == 5
    assert stable_of(Rollout(3, Share(4, 10)), {4}) == 4


def test_a_canary_gets_its_share_of_requests_and_of_keys() -> None:
    random = sum(goes_to_canary("cats", None, 10.0) for _ in range(5000))
    keys = sum(goes_to_canary("cats", f"user-{number}", 10.0) for number in range(5000))
    assert 400 <= random <= 600
    assert 400 <= keys <= 600


@given(key=st.text(max_size=20), low=st.floats(0, 100), high=st.floats(0, 100))
def test_a_key_stays_with_the_canary_while_its_share_grows(key: str, low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert goes_to_canary("cats", key, low) <= goes_to_canary("cats", key, high)
    assert goes_to_canary("cats", key, 100.0)
    assert not goes_to_canary("cats", key, 0.0)


# In a repository


async def test_a_table_in_the_manifest_gives_the_roles_and_loads_who_has_one(shelf: Shelf) -> None:
    await put(shelf, 1, 2, 3, rollout=Rollout(1, Share(2, 100.0), Share(3, 20.0)))
    assert set(shelf.ready("cats")) == {1, 2, 3}
    assert shelf.loader.attempts[0] == ("cats", 1), "the stable one comes first"
    assert shelf.default("cats") == 1
    assert answered_by(shelf) == 2, "the canary has all of it"
    assert list(shelf.repository.roles()) == [
        ("cats", "1", "stable", 0.0),
        ("cats", "2", "canary", 1.0),
        ("cats", "3", "shadow", 0.2),
    ]


async def test_the_newest_version_is_not_stable_while_it_is_the_canary(shelf: Shelf) -> None:
    await put(shelf, 1, 2)
    assert shelf.default("cats") == 2
    await shelf.repository.set_rollout("cats", Rollout(canary=Share(2, 10.0)))
    await until(lambda: set(shelf.ready("cats")) == {1, 2})
    assert shelf.default("cats") == 1


async def test_a_call_loads_the_versions_that_it_names_before_it_changes_anything(shelf: Shelf) -> None:
    await put(shelf, 1, 2, 3)
    gate = shelf.loader.hold("cats", 1)
    calling = asyncio.create_task(shelf.repository.set_rollout("cats", Rollout(1)))
    await until(lambda: ("cats", 1) in shelf.loader.attempts)
    assert answered_by(shelf) == 3
    gate.set()
    await calling
    assert answered_by(shelf) == 1


async def test_going_back_takes_no_load_and_waits_for_none(shelf: Shelf) -> None:
    await put(shelf, 1, rollout=None)
    await shelf.repository.set_rollout("cats", Rollout(1))
    shelf.source.put("cats", 2)
    await shelf.look(2)
    await shelf.repository.set_rollout("cats", Rollout(2))
    await shelf.look(2)
    assert answered_by(shelf) == 2
    shelf.source.put("dogs", 1)
    await shelf.look()
    gate = shelf.loader.hold("dogs", 1)
    loading = asyncio.create_task(shelf.look())
    await until(lambda: ("dogs", 1) in shelf.loader.attempts)
    attempts = len(shelf.loader.attempts)
    await asyncio.wait_for(shelf.repository.set_rollout("cats", Rollout(1)), 0.5)
    assert answered_by(shelf) == 1
    assert len(shelf.loader.attempts) == attempts
    gate.set()
    await loading


async def test_a_version_that_does_not_load_gets_no_role_and_nothing_changes(shelf: Shelf) -> None:
    await put(shelf, 1)
    await shelf.repository.set_rollout("cats", Rollout(1))
    shelf.source.put("cats", 2)
    shelf.loader.faults["cats", 2] = ModelLoadError("golden.json: another answer", gate="golden")
    with pytest.raises(RolloutRefused, match="another answer"):
        await shelf.repository.set_rollout("cats", Rollout(2))
    with pytest.raises(ModelNotFound, match="no version 9"):
        await shelf.repository.set_rollout("cats", Rollout(1, Share(9, 5.0)))
    assert answered_by(shelf) == 1
    assert shelf.repository.rollout("cats").asked == Rollout(1)
    assert shelf.log.gates[-1] == "golden"


async def test_what_has_no_role_any_more_is_unloaded_but_for_the_last_stable_one(shelf: Shelf) -> None:
    await put(shelf, 1, 2, 3, rollout=Rollout(1, Share(2, 10.0), Share(3, 10.0)))
    await shelf.repository.set_rollout("cats", Rollout(2))
    await shelf.look(2)
    assert set(shelf.ready("cats")) == {1, 2, 3}, "1 to go back to, 3 by the policy"
    await shelf.repository.set_rollout("cats", Rollout())
    await shelf.look(2)
    assert shelf.default("cats") == 3


async def test_a_manifest_that_changes_its_table_replaces_what_a_call_said(shelf: Shelf) -> None:
    await put(shelf, 1, 2, rollout=Rollout(1))
    await shelf.repository.set_rollout("cats", Rollout(2))
    await shelf.look()
    assert answered_by(shelf) == 2, "the same table does not undo a call"
    shelf.loader.rollouts["cats"] = Rollout(1, Share(2, 0.0))
    await shelf.look()
    assert answered_by(shelf) == 1


async def test_a_canary_out_of_service_is_not_asked(shelf: Shelf) -> None:
    await put(shelf, 1, 2, rollout=Rollout(1, Share(2, 100.0)))
    canary = next(model for model in shelf.loader.loaded if model.version == 2)
    canary.fault = "its engine fails on every input"
    assert answered_by(shelf) == 1


async def test_a_faulty_version_makes_its_model_not_ready_with_the_reason(shelf: Shelf) -> None:
    await put(shelf, 1)
    shelf.loader.loaded[0].fault = "its engine fails on every input"
    assert shelf.repository.ready_models == []
    assert "fails on every input" in shelf.repository.status("cats").reason
    assert "fails on every input" in shelf.reason("cats", 1)
    with pytest.raises(ModelNotReady, match="fails on every input"):
        answered_by(shelf)
    shelf.loader.loaded[0].fault = ""
    assert answered_by(shelf) == 1
