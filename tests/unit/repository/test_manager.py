"""The repository with a puppet folder and a puppet loader: what is loaded, when, and what a request gets."""

import asyncio
import logging
import threading

import pytest

from service.errors import ConfigurationError, ModelLoadError, ModelNotFound, ModelNotReady
from service.messages import ModelRef
from service.repository.manager import RETRIES, RETRY_SECONDS, watch
from service.repository.policy import Latest
from service.repository.source import FoundModel
from service.repository.states import ModelState
from tests.support.puppets import turns, until
from tests.unit.repository.conftest import Shelf

# The first look


async def test_what_is_there_at_the_first_look_is_loaded(shelf: Shelf) -> None:
    shelf.source.put("cats", 1)
    shelf.source.put("dogs", 7)
    await shelf.look()
    assert shelf.served("cats") == 1
    assert shelf.served("dogs") == 7
    assert sorted(shelf.repository.ready_models) == ["cats", "dogs"]
    assert sorted(shelf.log.names) == ["cats", "dogs"]
    assert sorted(shelf.log.loads) == [("cats", True), ("dogs", True)]


async def test_first_loads_are_pending_until_the_first_look_has_ended(shelf: Shelf) -> None:
    shelf.source.put("cats", 1)
    gate = shelf.loader.hold("cats", 1)
    assert shelf.repository.first_loads_pending
    looking = asyncio.create_task(shelf.look())
    await until(lambda: bool(shelf.loader.attempts))
    assert shelf.repository.first_loads_pending
    assert shelf.states("cats") == {1: "LOADING"}
    assert shelf.repository.status("cats").reason == "it is loading"
    gate.set()
    await looking
    assert not shelf.repository.first_loads_pending


async def test_before_the_folder_was_read_no_model_is_said_not_to_exist(shelf: Shelf) -> None:
    for asked in (lambda: shelf.served("cats"), lambda: shelf.repository.status("cats")):
        with pytest.raises(ModelNotReady, match="has not been read yet"):
            asked()
    await shelf.look()
    for asked in (lambda: shelf.served("cats"), lambda: shelf.repository.status("cats")):
        with pytest.raises(ModelNotFound):
            asked()


async def test_a_first_look_that_fails_leaves_no_load_pending(shelf: Shelf) -> None:
    shelf.source.is_readable = False
    with pytest.raises(ConfigurationError):
        await shelf.look()
    assert not shelf.repository.first_loads_pending
    assert shelf.repository.index() == []


async def test_a_second_first_load_is_pending_until_it_ends(shelf: Shelf) -> None:
    await shelf.look()
    shelf.source.put("late", 1)
    await shelf.look()
    gate = shelf.loader.hold("late", 1)
    looking = asyncio.create_task(shelf.look())
    await until(lambda: bool(shelf.loader.attempts))
    assert shelf.repository.first_loads_pending
    gate.set()
    await looking
    assert not shelf.repository.first_loads_pending


async def test_models_are_loaded_beside_each_other(shelf: Shelf) -> None:
    shelf.source.put("slow", 1)
    shelf.source.put("quick", 1)
    gate = shelf.loader.hold("slow", 1)
    looking = asyncio.create_task(shelf.look())
    await until(lambda: "quick" in shelf.repository.ready_models)
    assert shelf.states("slow") == {1: "LOADING"}
    gate.set()
    await looking
    assert shelf.served("slow") == 1


# Problems


async def test_a_model_with_a_problem_shows_it_and_the_others_are_served(shelf: Shelf) -> None:
    shelf.source.put("good", 1)
    shelf.source.put("bad", 1)
    shelf.source.problems["bad"] = "'bad' cannot be a model's name"
    await shelf.look()
    assert shelf.served("good") == 1
    status = shelf.repository.status("bad")
    assert not status.is_ready
    assert "cannot be a model's name" in status.reason
    assert ("bad", 1) not in shelf.loader.attempts
    with pytest.raises(ModelNotReady, match="cannot be a model's name"):
        shelf.served("bad")


async def test_a_manifest_problem_is_shown_as_the_reason_and_the_others_are_served(shelf: Shelf) -> None:
    shelf.source.put("good", 1)
    shelf.source.put("bad", 1, 2)
    shelf.loader.faults["bad"] = ModelLoadError("bad/model.toml: inpt is not a known key")
    await shelf.look()
    assert shelf.served("good") == 1
    assert "inpt is not a known key" in shelf.repository.status("bad").reason
    assert "inpt is not a known key" in shelf.reason("bad", 2)
    assert shelf.states("bad") == {1: "UNKNOWN", 2: "UNKNOWN"}
    with pytest.raises(ModelNotReady, match="inpt is not a known key"):
        shelf.served("bad", 2)


async def test_a_manifest_that_is_mended_is_served_at_the_next_look(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    shelf.loader.faults["model"] = ModelLoadError("model/model.toml: a problem")
    await shelf.look()
    del shelf.loader.faults["model"]
    await shelf.look()
    assert shelf.served("model") == 1
    assert shelf.repository.status("model").problem is None


async def test_a_mended_problem_is_no_longer_a_reason(shelf: Shelf) -> None:
    shelf.source.put("model", 1, 2)
    shelf.loader.faults["model"] = ModelLoadError("model/model.toml: a problem")
    await shelf.look()
    del shelf.loader.faults["model"]
    await shelf.look()
    assert shelf.states("model") == {1: "UNKNOWN", 2: "READY"}
    assert shelf.reason("model", 1) == ""


async def test_a_manifest_that_breaks_later_takes_nothing_out_of_service(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    await shelf.look()
    shelf.loader.faults["model"] = ModelLoadError("model/model.toml: half written")
    shelf.source.put("model", 1, 2)
    await shelf.look(3)
    assert shelf.served("model") == 1
    status = shelf.repository.status("model")
    assert status.is_ready
    assert status.reason == ""
    assert status.problem == "model/model.toml: half written"


async def test_a_load_that_fails_keeps_its_reason_in_the_table_and_the_log(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.source.put("model", 1)
    shelf.loader.faults["model", 1] = ModelLoadError("1/model.onnx is missing")
    await shelf.look()
    assert shelf.states("model") == {1: "UNAVAILABLE"}
    assert shelf.reason("model", 1) == "1/model.onnx is missing"
    assert shelf.repository.status("model").reason == "version 1: 1/model.onnx is missing"
    assert shelf.log.loads == [("model", False)]
    with pytest.raises(ModelNotReady, match=r"1/model\.onnx is missing"):
        shelf.served("model")
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [(record.getMessage(), vars(record)["reason"]) for record in warnings] == [
        ("model_state_change", "1/model.onnx is missing")
    ]


async def test_a_bug_while_loading_is_contained_and_logged(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    shelf.source.put("good", 1)
    shelf.source.put("bad", 1)
    shelf.loader.faults["bad", 1] = ZeroDivisionError("internals")
    await shelf.look()
    assert shelf.served("good") == 1
    assert shelf.reason("bad", 1) == "loading failed: ZeroDivisionError"
    assert "model_load_failed" in [record.getMessage() for record in caplog.records]


# Version policies


async def test_latest_serves_the_highest_version(shelf: Shelf) -> None:
    shelf.source.put("model", 1, 2, 10)
    await shelf.look()
    assert shelf.states("model") == {1: "UNKNOWN", 2: "UNKNOWN", 10: "READY"}
    assert shelf.served("model") == 10
    assert shelf.loader.attempts == [("model", 10)]


async def test_all_serves_every_version_and_answers_with_the_highest(shelf: Shelf) -> None:
    shelf.loader.policies["model"] = "all"
    shelf.source.put("model", 1, 2, 3)
    await shelf.look()
    assert shelf.ready("model") == [1, 2, 3]
    assert shelf.served("model") == 3
    assert shelf.served("model", 1) == 1


async def test_latest_n_serves_the_n_highest_versions(shelf: Shelf) -> None:
    shelf.loader.policies["model"] = Latest(2)
    shelf.source.put("model", 1, 2, 3)
    await shelf.look()
    assert shelf.ready("model") == [2, 3]
    assert shelf.served("model") == 3


async def test_a_list_serves_the_versions_it_names(shelf: Shelf) -> None:
    shelf.loader.policies["model"] = (1, 3, 9)
    shelf.source.put("model", 1, 2, 3, 4)
    await shelf.look()
    assert shelf.ready("model") == [1, 3]
    assert shelf.served("model") == 3


async def test_a_list_of_versions_that_are_not_there_says_so(shelf: Shelf) -> None:
    shelf.loader.policies["model"] = (9,)
    shelf.source.put("model", 1)
    await shelf.look()
    with pytest.raises(ModelNotReady, match="version_policy names no version that is there"):
        shelf.served("model")


async def test_a_policy_that_changes_is_followed(shelf: Shelf) -> None:
    shelf.source.put("model", 1, 2, 3)
    await shelf.look()
    shelf.loader.policies["model"] = (1, 2)
    await shelf.look()
    assert shelf.ready("model") == [1, 2]
    assert shelf.states("model")[3] == "UNKNOWN"


async def test_latest_falls_back_to_the_next_lower_when_the_newest_fails(shelf: Shelf) -> None:
    shelf.source.put("model", 1, 2, 3)
    shelf.loader.faults["model", 3] = ModelLoadError("damaged")
    shelf.loader.faults["model", 2] = ModelLoadError("damaged too")
    await shelf.look()
    assert shelf.loader.attempts == [("model", 3), ("model", 2), ("model", 1)]
    assert shelf.states("model") == {1: "READY", 2: "UNAVAILABLE", 3: "UNAVAILABLE"}
    assert shelf.served("model") == 1
    with pytest.raises(ModelNotReady, match="Version 3 of model 'model' is unavailable: damaged"):
        shelf.served("model", 3)


async def test_latest_n_fills_up_with_lower_versions_when_one_fails(shelf: Shelf) -> None:
    shelf.loader.policies["model"] = Latest(2)
    shelf.source.put("model", 1, 2, 3)
    shelf.loader.faults["model", 2] = ModelLoadError("damaged")
    await shelf.look()
    assert shelf.ready("model") == [1, 3]


# New versions and swaps


async def test_a_new_version_takes_over_and_the_old_one_is_closed(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    await shelf.look()
    shelf.source.put("model", 2)
    await shelf.look(2)
    assert shelf.served("model") == 2
    old = shelf.loader.loaded[0]
    assert old.version == 1
    assert old.is_drained
    assert old.is_closed
    assert shelf.states("model") == {1: "UNKNOWN", 2: "READY"}


async def test_the_old_version_serves_while_the_new_one_loads(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    await shelf.look()
    shelf.source.put("model", 2)
    await shelf.look()
    gate = shelf.loader.hold("model", 2)
    looking = asyncio.create_task(shelf.look())
    await until(lambda: ("model", 2) in shelf.loader.attempts)
    assert shelf.states("model") == {1: "READY", 2: "LOADING"}
    assert shelf.served("model") == 1
    with pytest.raises(ModelNotReady, match="Version 2 of model 'model' is loading"):
        shelf.served("model", 2)
    gate.set()
    await looking
    assert shelf.served("model") == 2


async def test_a_new_version_that_fails_stays_out_and_the_old_one_keeps_serving(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    await shelf.look()
    shelf.source.put("model", 2)
    shelf.loader.faults["model", 2] = ModelLoadError("damaged")
    await shelf.look(4)
    assert shelf.served("model") == 1
    assert shelf.states("model") == {1: "READY", 2: "UNAVAILABLE"}
    assert not shelf.loader.loaded[0].is_closed


async def test_a_failed_version_is_retried_only_when_its_files_change(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    shelf.loader.faults["model", 1] = ModelLoadError("damaged")
    await shelf.look(5)
    assert shelf.loader.attempts == [("model", 1)]
    del shelf.loader.faults["model", 1]
    await shelf.look(3)
    assert shelf.loader.attempts == [("model", 1)]
    shelf.source.put("model", 1)
    await shelf.look(2)
    assert shelf.loader.attempts == [("model", 1)] * 2
    assert shelf.served("model") == 1
    assert shelf.reason("model", 1) == ""


async def test_a_failed_version_that_was_taken_away_and_put_back_is_tried_again(shelf: Shelf) -> None:
    shelf.source.put("model", 1, 2)
    shelf.loader.faults["model", 2] = ModelLoadError("damaged")
    await shelf.look()
    shelf.source.remove("model", 2)
    await shelf.look()
    assert shelf.states("model") == {1: "READY"}
    del shelf.loader.faults["model", 2]
    shelf.source.put("model", 2)
    await shelf.look(2)
    assert shelf.served("model") == 2


async def test_a_half_copied_version_is_left_alone_until_two_looks_agree(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    await shelf.look()
    for _ in range(4):  # the copy grows between the looks
        shelf.source.put("model", 2)
        await shelf.look()
        assert shelf.loader.attempts == [("model", 1)]
        assert shelf.served("model") == 1
    await shelf.look()
    assert shelf.loader.attempts == [("model", 1), ("model", 2)]
    assert shelf.served("model") == 2


async def test_a_new_model_is_left_alone_until_two_looks_agree(shelf: Shelf) -> None:
    await shelf.look()
    shelf.source.put("new", 1)
    await shelf.look()
    assert shelf.loader.attempts == []
    with pytest.raises(ModelNotReady, match="has just appeared"):
        shelf.served("new")
    await shelf.look()
    assert shelf.served("new") == 1
    assert not shelf.repository.status("new").is_new


async def test_touching_the_files_of_the_version_in_service_swaps_nothing(shelf: Shelf) -> None:
    shelf.source.put("model", 1, 2)
    await shelf.look()
    shelf.source.put("model", 2)  # a README beside model.onnx, say
    await shelf.look()
    assert shelf.served("model") == 2
    await shelf.look(2)
    assert shelf.loader.attempts == [("model", 2)]


# Availability


async def test_an_emptied_model_folder_unloads_nothing(shelf: Shelf) -> None:
    shelf.source.put("model", 1, 2)
    await shelf.look()
    shelf.source.remove("model", 1, 2)
    await shelf.look(3)
    assert shelf.served("model") == 2
    assert shelf.states("model") == {2: "READY"}


async def test_a_vanished_model_folder_unloads_nothing(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    await shelf.look()
    shelf.source.remove("model")
    await shelf.look(3)
    assert shelf.served("model") == 1
    assert shelf.log.names == ["model"]


async def test_a_repository_that_cannot_be_read_unloads_nothing_and_recovers(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    await shelf.look()
    shelf.source.is_readable = False
    for _ in range(3):
        with pytest.raises(ConfigurationError, match="cannot be read"):
            await shelf.look()
    assert shelf.served("model") == 1
    shelf.source.is_readable = True
    shelf.source.put("model", 2)
    await shelf.look(2)
    assert shelf.served("model") == 2


async def test_a_model_folder_with_a_problem_unloads_nothing(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    await shelf.look()
    shelf.source.problems["model"] = "the folder cannot be read: Stale file handle"
    await shelf.look(3)
    assert shelf.served("model") == 1


async def test_a_deleted_version_goes_out_of_service_once_another_is_ready(shelf: Shelf) -> None:
    shelf.source.put("model", 1, 2)
    await shelf.look()
    shelf.source.remove("model", 2)
    await shelf.look()
    assert shelf.served("model") == 1
    await shelf.look()
    assert shelf.states("model") == {1: "READY"}
    assert shelf.loader.loaded[0].is_closed


async def test_a_deleted_version_stays_when_the_one_below_fails(shelf: Shelf) -> None:
    shelf.source.put("model", 1, 2)
    await shelf.look()
    shelf.source.remove("model", 2)
    shelf.loader.faults["model", 1] = ModelLoadError("damaged")
    await shelf.look(3)
    assert shelf.served("model") == 2


async def test_a_model_that_never_served_and_is_gone_is_forgotten(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    shelf.loader.faults["model", 1] = ModelLoadError("damaged")
    await shelf.look()
    shelf.source.remove("model")
    await shelf.look()
    assert shelf.repository.index() == []
    assert shelf.log.names == []
    with pytest.raises(ModelNotFound):
        shelf.served("model")


# Leases


async def test_an_unload_waits_for_the_leases(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    await shelf.look()
    shelf.source.put("model", 2)
    lease, other = (shelf.repository.lease(ModelRef("model")) for _ in range(2))
    _, old = lease.__enter__()
    other.__enter__()
    await shelf.look(2)
    assert shelf.states("model") == {1: "UNLOADING", 2: "READY"}
    assert shelf.served("model") == 2
    assert not old.is_closed
    lease.__exit__(None, None, None)
    await turns()
    assert not old.is_closed
    other.__exit__(None, None, None)
    await turns()
    assert old.is_closed
    assert shelf.states("model") == {1: "UNKNOWN", 2: "READY"}


async def test_an_unload_waits_until_the_model_has_drained(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    await shelf.look()
    old = shelf.loader.loaded[0]
    old.idle.clear()
    shelf.source.put("model", 2)
    await shelf.look(2)
    assert shelf.states("model")[1] == "UNLOADING"
    assert not old.is_closed
    old.idle.set()
    await turns()
    assert old.is_closed


async def test_a_lease_outlives_a_swap_and_ends_with_an_error_too(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    await shelf.look()
    shelf.source.put("model", 2)
    with pytest.raises(RuntimeError, match="the request failed"), shelf.repository.lease(ModelRef("model")) as (_, old):
        await shelf.look(2)
        assert not old.is_closed
        raise RuntimeError("the request failed")
    await turns()
    assert old.is_closed


async def test_an_unloading_version_takes_no_new_lease(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    await shelf.look()
    shelf.source.put("model", 2)
    with shelf.repository.lease(ModelRef("model", 1)):
        await shelf.look(2)
        with pytest.raises(ModelNotReady, match="Version 1 of model 'model' is unloading"):
            shelf.served("model", 1)


async def test_a_version_that_is_wanted_again_while_it_unloads_is_loaded_afterwards(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    await shelf.look()
    shelf.source.put("model", 2)
    with shelf.repository.lease(ModelRef("model", 1)):
        await shelf.look(2)
        shelf.source.remove("model", 2)
        await shelf.look()
        assert shelf.served("model") == 2
    await turns()
    await shelf.look()
    assert shelf.served("model") == 1
    assert [model.version for model in shelf.loader.loaded] == [1, 2, 1]


async def test_what_is_not_there_is_not_found(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    await shelf.look()
    with pytest.raises(ModelNotFound, match="unknown model: 'cat' is not found"):
        shelf.served("cat")
    with pytest.raises(ModelNotFound, match="unknown model: 'model' version 2 is not found"):
        shelf.served("model", 2)
    with pytest.raises(ModelNotFound, match="unknown model: 'cat' is not found"):
        shelf.repository.status("cat")


async def test_a_version_that_no_policy_wants_is_not_ready(shelf: Shelf) -> None:
    shelf.source.put("model", 1, 2)
    await shelf.look()
    with pytest.raises(ModelNotReady, match="Version 1 of model 'model' is unknown"):
        shelf.served("model", 1)


# The index, concurrency, the end


async def test_the_index_lists_models_by_name_and_versions_ascending(shelf: Shelf) -> None:
    shelf.source.put("b", 10, 9)
    shelf.source.put("a", 1)
    await shelf.look()
    index = shelf.repository.index()
    assert [status.name for status in index] == ["a", "b"]
    assert [(status.version, status.state) for status in index[1].versions] == [
        (9, ModelState.UNKNOWN),
        (10, ModelState.READY),
    ]
    assert index[1].default == 10
    assert index[1].versions[0].loaded is None
    loaded = index[1].versions[1].loaded
    assert loaded is not None
    assert (loaded.name, loaded.version) == ("b", 10)


async def test_reconciles_at_the_same_time_load_nothing_twice(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    gate = shelf.loader.hold("model", 1)
    looks = [asyncio.create_task(shelf.repository.reconcile()) for _ in range(3)]
    await until(lambda: bool(shelf.loader.attempts))
    await turns()
    gate.set()
    await asyncio.gather(*looks)
    assert shelf.loader.attempts == [("model", 1)]


async def test_a_look_that_is_cancelled_while_it_loads_is_made_good_by_the_next(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    gate = shelf.loader.hold("model", 1)
    looking = asyncio.create_task(shelf.repository.reconcile())
    await until(lambda: bool(shelf.loader.attempts))
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    gate.set()
    await shelf.look()
    assert shelf.served("model") == 1


async def test_close_unloads_everything_and_waits_for_the_leases(shelf: Shelf) -> None:
    shelf.loader.policies["model"] = "all"
    shelf.source.put("model", 1, 2)
    shelf.source.put("other", 1)
    await shelf.look()
    with shelf.repository.lease(ModelRef("model", 1)) as (_, leased):
        closing = asyncio.create_task(shelf.repository.close())
        await turns()
        assert not closing.done()
        assert not leased.is_closed
        assert [model.is_closed for model in shelf.loader.loaded].count(True) == 2
    await closing
    assert all(model.is_closed for model in shelf.loader.loaded)
    assert shelf.repository.ready_models == []


async def test_close_waits_for_an_unload_that_is_under_way(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    await shelf.look()
    shelf.loader.loaded[0].idle.clear()
    shelf.source.put("model", 2)
    await shelf.look(2)
    closing = asyncio.create_task(shelf.repository.close())
    await turns()
    assert not closing.done()
    shelf.loader.loaded[0].idle.set()
    await closing
    assert all(model.is_closed for model in shelf.loader.loaded)


async def test_closing_an_empty_repository_is_no_trouble(shelf: Shelf) -> None:
    await shelf.repository.close()


async def test_watching_goes_on_after_a_look_that_failed() -> None:
    outcomes = iter([ConfigurationError("gone"), None, ConfigurationError("gone again"), None])
    heard: list[str] = []
    looked = asyncio.Event()

    async def reconcile() -> None:
        outcome = next(outcomes, "end")
        if outcome == "end":
            looked.set()
        if isinstance(outcome, Exception):
            raise outcome

    watching = asyncio.create_task(watch(reconcile, 0.0, heard.append))
    async with asyncio.timeout(5):
        await looked.wait()
    watching.cancel()
    assert heard == ["gone", "gone again"]


# Reasons that may pass, and folders that hang


async def test_a_reason_that_may_pass_is_tried_again_a_few_times(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    shelf.loader.faults["model", 1] = ModelLoadError("1/model.onnx cannot be read: Input/output error", gate="files")
    await shelf.look(3)
    assert len(shelf.loader.attempts) == 1, "not before a minute has passed"
    for attempt in range(2, RETRIES + 2):
        shelf.clock.advance(RETRY_SECONDS)
        await shelf.look()
        assert len(shelf.loader.attempts) == attempt
    shelf.clock.advance(10 * RETRY_SECONDS)
    await shelf.look(2)
    assert len(shelf.loader.attempts) == RETRIES + 1
    assert "Input/output error" in shelf.reason("model", 1)


async def test_a_reason_that_has_passed_is_forgotten(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    shelf.loader.faults["model", 1] = MemoryError()
    await shelf.look()
    del shelf.loader.faults["model", 1]
    shelf.clock.advance(RETRY_SECONDS)
    await shelf.look()
    assert shelf.served("model") == 1
    assert shelf.reason("model", 1) == ""


async def test_a_reason_that_stays_is_not_tried_again(shelf: Shelf) -> None:
    shelf.source.put("model", 1)
    shelf.loader.faults["model", 1] = ModelLoadError("an operator", gate="operators")
    await shelf.look()
    shelf.clock.advance(RETRY_SECONDS)
    await shelf.look()
    assert len(shelf.loader.attempts) == 1


async def test_a_folder_that_hangs_unloads_nothing_and_is_asked_once(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.source.put("model", 1)
    await shelf.look()
    answers, scans, scan = threading.Event(), [0], shelf.source.scan

    def hanging() -> dict[str, FoundModel]:
        scans[0] += 1
        answers.wait(20)
        return scan()

    monkeypatch.setattr(shelf.source, "scan", hanging)
    monkeypatch.setattr("service.repository.scanner.SCAN_SECONDS", 0.01)
    for _ in range(3):
        with pytest.raises(ConfigurationError, match="no answer within"):
            await shelf.repository.reconcile()
    assert scans == [1]
    assert shelf.served("model") == 1
    shelf.source.put("model", 2)
    answers.set()
    monkeypatch.setattr("service.repository.scanner.SCAN_SECONDS", 10.0)
    await shelf.look(3)
    assert shelf.served("model") == 2
