"""InferenceServer: start, watch, drain, close; and that a broken model never stops the good ones."""

import asyncio
import logging
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.config import Settings
from service.errors import ConfigurationError, DeadlineExceeded, Draining
from service.health import ServerState
from service.repository.policy import Latest
from service.repository.source import FoundModel
from service.server import InferenceServer, image_limits
from tests.support import tiny_models
from tests.support.puppets import PuppetSource, turns, until
from tests.support.tiny_models import UNIT, best_labels, classify, picture, serving, write_model

POLL_SECONDS = 0.01


@asynccontextmanager
async def started(path: Path, **sections: dict[str, object]) -> AsyncIterator[InferenceServer]:
    """A server that runs and watches the repository at `path`."""
    sections.setdefault("execution", {"threads": 1})
    watched = {"path": path, "poll_interval_s": POLL_SECONDS} | sections.pop("repository", {})
    server = InferenceServer(Settings.model_validate({"repository": watched, **sections}), "test")
    work = asyncio.create_task(server.run())
    try:
        async with asyncio.timeout(20):
            await server.started.wait()
        yield server
        assert not work.done(), "the server's own task ended"
    finally:
        work.cancel()
        await asyncio.wait({work})
        await server.close()


# A broken model never stops the good ones


def without_graph(root: Path) -> None:
    (write_model(root, "broken") / "1" / "model.onnx").unlink()


def with_garbage(root: Path) -> None:
    write_model(root, "broken", b"\x00" * 100)


def with_unknown_key(root: Path) -> None:
    write_model(root, "broken", manifest="inpt = 1")


def with_broken_toml(root: Path) -> None:
    write_model(root, "broken", manifest="[input")


def with_deep_toml(root: Path) -> None:
    write_model(root, "broken", manifest="x = " + "[" * 5000)


def with_endless_number(root: Path) -> None:
    write_model(root, "broken", manifest="[batching]\nmax_batch_size = " + "9" * 5000)


def with_binary_manifest(root: Path) -> None:
    (write_model(root, "broken") / "model.toml").write_bytes(b"\xff\xfe\x00")


def with_manifest_folder(root: Path) -> None:
    (write_model(root, "broken", manifest=None) / "model.toml").mkdir()


def with_binary_labels(root: Path) -> None:
    (write_model(root, "broken") / "labels.txt").write_bytes(b"\xff\xfe\x00")


def with_wrong_labels(root: Path) -> None:
    write_model(root, "broken", labels=("only one",))


def with_activation_twice(root: Path) -> None:
    write_model(root, "broken", tiny_models.classifier(ending="Softmax"))


def with_bad_name(root: Path) -> None:
    write_model(root, "bro ken")


def with_name_that_is_not_utf_8(root: Path) -> None:
    write_model(root, os.fsdecode(b"broken\xff"))


def with_manifest_only(root: Path) -> None:
    (root / "broken").mkdir()
    (root / "broken" / "model.toml").write_text(UNIT)


BROKEN = [
    without_graph,
    with_garbage,
    with_unknown_key,
    with_broken_toml,
    with_deep_toml,
    with_endless_number,
    with_binary_manifest,
    with_manifest_folder,
    with_binary_labels,
    with_wrong_labels,
    with_activation_twice,
    with_bad_name,
    with_name_that_is_not_utf_8,
    with_manifest_only,
]


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda function: function.__name__)
async def test_a_broken_model_never_stops_the_good_ones(tmp_path: Path, break_it: Callable[[Path], None]) -> None:
    write_model(tmp_path, "good")
    break_it(tmp_path)
    async with serving(tmp_path) as server:
        assert server.repository.ready_models == ["good"]
        assert best_labels(await classify(server.pipeline, "good", picture("red"))) == ["red"]
        (broken,) = [status for status in server.repository.index() if status.name != "good"]
        assert broken.reason
        assert str(tmp_path) not in broken.reason
        assert b'fovea_model_state{model="good",state="READY",version="1"} 1.0' in server.metrics.render()


# Start


async def test_a_server_is_ready_once_its_models_are_loaded(tmp_path: Path) -> None:
    write_model(tmp_path, "model")
    server = InferenceServer(Settings.model_validate({"repository": {"path": tmp_path}}), "test")
    assert (server.readiness.ready, server.readiness.reason) == (False, "models are loading")
    await server.close()
    async with started(tmp_path) as server:
        assert server.state is ServerState.SERVING
        assert server.readiness.ready


async def test_a_server_with_an_empty_repository_runs_and_is_not_ready(tmp_path: Path) -> None:
    async with started(tmp_path) as server:
        assert server.state is ServerState.SERVING
        assert (server.readiness.ready, server.readiness.reason) == (False, "no model is ready")


async def test_required_models_decide_the_readiness(tmp_path: Path) -> None:
    write_model(tmp_path, "cats")
    async with started(tmp_path, repository={"required": ("cats", "dogs")}) as server:
        assert server.readiness.reason == "required models are not ready: dogs"
        write_model(tmp_path, "dogs")
        await until(lambda: server.readiness.ready)


async def test_a_repository_that_is_not_there_is_logged_counted_and_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(tmp_path / "later") as server:
        assert not server.readiness.ready
        assert b"fovea_repository_errors_total" in server.metrics.render()
        assert b"fovea_repository_errors_total 0.0" not in server.metrics.render()
        write_model(tmp_path / "later", "model")
        await until(lambda: server.readiness.ready)
    errors = [record for record in caplog.records if record.getMessage() == "repository_unreadable"]
    assert errors
    assert "repository.path" in vars(errors[0])["reason"]
    assert errors[0].levelno == logging.ERROR


async def test_threads_are_as_many_as_the_settings_say(tmp_path: Path) -> None:
    async with started(tmp_path, execution={"threads": 3}) as server:
        assert server.threads.count == 3


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", Latest(1)),
        ('version_policy = "latest"', Latest(1)),
        ("version_policy = { latest = 2 }", Latest(2)),
        ('version_policy = "all"', "all"),
        ("version_policy = [1, 3]", (1, 3)),
    ],
)
async def test_the_manifests_version_policy_is_followed(tmp_path: Path, text: str, policy: object) -> None:
    for version in (1, 2, 3):
        write_model(tmp_path, "model", version=version, manifest=f"{text}\n{UNIT}")
    async with serving(tmp_path) as server:
        ready = {version.version for version in server.repository.status("model").versions if version.loaded}
        assert ready == {Latest(1): {3}, Latest(2): {2, 3}, "all": {1, 2, 3}, (1, 3): {1, 3}}[policy]


# Watching


async def test_a_version_moved_into_place_takes_over_while_requests_are_answered(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_model(repository, "model")
    answered: list[list[int]] = [[], [], []]  # the versions that each of three clients was answered by

    async with started(repository) as server:

        async def client(versions: list[int]) -> None:
            while versions[-10:] != [2] * 10:
                result = await classify(server.pipeline, "model", picture("red"))
                assert best_labels(result) == ["red"]
                versions.append(result.version)

        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            for versions in answered:
                group.create_task(client(versions))
            await until(lambda: all(len(versions) > 10 for versions in answered))
            write_model(tmp_path / "staging", "model", version=2)
            (tmp_path / "staging" / "model" / "2").rename(repository / "model" / "2")
        for versions in answered:
            assert versions[0] == 1
            assert versions == sorted(versions)
        await until(lambda: ("model", "1", "UNKNOWN") in server.repository.states())


async def test_a_repository_that_vanishes_and_returns_stops_nothing(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_model(repository, "model")
    async with started(repository) as server:
        repository.rename(tmp_path / "away")
        await until(lambda: b"fovea_repository_errors_total 0.0" not in server.metrics.render())
        assert server.readiness.ready
        assert best_labels(await classify(server.pipeline, "model", picture("red"))) == ["red"]
        (tmp_path / "away").rename(repository)
        write_model(repository, "model", version=2)
        await until(lambda: server.repository.status("model").default == 2)


async def test_an_emptied_repository_stops_nothing(tmp_path: Path) -> None:
    write_model(tmp_path, "model")
    async with started(tmp_path) as server:
        shutil.rmtree(tmp_path / "model")
        for _ in range(3):
            await server.repository.reconcile()
        assert best_labels(await classify(server.pipeline, "model", picture("red"))) == ["red"]


@pytest.mark.parametrize(("interval", "once"), [(0, True), (0.0001, False)])
async def test_with_no_interval_the_repository_is_looked_at_once(interval: float, once: bool) -> None:
    class Counted(PuppetSource):
        looks = 0

        def scan(self) -> dict[str, FoundModel]:
            self.looks += 1
            return super().scan()

    source = Counted()
    settings = Settings.model_validate({"repository": {"poll_interval_s": interval}, "execution": {"threads": 1}})
    server = InferenceServer(settings, "test", source)
    work = asyncio.create_task(server.run())
    await server.started.wait()
    if once:
        await turns(100)
        assert source.looks == 1
    else:
        await until(lambda: source.looks > 3)
    work.cancel()
    await asyncio.wait({work})
    await server.close()


# Drain and close


async def test_a_draining_server_is_not_ready_and_still_answers(tmp_path: Path) -> None:
    write_model(tmp_path, "model")
    async with started(tmp_path) as server:
        assert not server.is_draining
        server.drain()
        assert server.is_draining
        assert (server.readiness.ready, server.readiness.reason) == (False, "the server is draining")
        assert best_labels(await classify(server.pipeline, "model", picture("red"))) == ["red"]


async def test_a_server_that_drains_while_it_starts_stays_draining(tmp_path: Path) -> None:
    write_model(tmp_path, "model")
    server = InferenceServer(Settings.model_validate({"repository": {"path": tmp_path}}), "test")
    server.drain()
    work = asyncio.create_task(server.run())
    await server.started.wait()
    assert server.state is ServerState.DRAINING
    work.cancel()
    await asyncio.wait({work})
    await server.close()


async def test_close_answers_what_was_accepted_and_refuses_what_is_new(tmp_path: Path) -> None:
    write_model(tmp_path, "model")
    async with serving(tmp_path) as server:
        accepted = [asyncio.create_task(classify(server.pipeline, "model", picture("red"))) for _ in range(20)]
        await until(lambda: server.admission.requests == 20)
        closing = asyncio.create_task(server.close())
        await asyncio.sleep(0)
        assert server.state is ServerState.STOPPED
        with pytest.raises(Draining):
            await classify(server.pipeline, "model", picture("red"))
        assert [best_labels(result) for result in await asyncio.gather(*accepted)] == [["red"]] * 20
        await closing


async def test_a_closed_server_leaves_no_execution_thread_behind(tmp_path: Path) -> None:
    write_model(tmp_path, "model")

    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("execution")}

    before = threads()
    async with serving(tmp_path) as server:
        await classify(server.pipeline, "model", picture("red", 400, 400))  # too large for the event loop
        assert threads() - before
    assert not threads() - before


async def test_a_closed_server_has_nothing_loaded(tmp_path: Path) -> None:
    write_model(tmp_path, "model")
    async with serving(tmp_path) as server:
        pass
    assert server.repository.ready_models == []
    assert [state for _, _, state in server.repository.states()] == ["UNKNOWN"]
    assert b"fovea_provider_info{" not in server.metrics.render()


# Limits


def test_the_settings_limits_are_the_images_limits() -> None:
    limits = image_limits(
        Settings.model_validate(
            {
                "limits": {
                    "image_bytes": 1,
                    "source_pixels": 2,
                    "decoded_pixels": 3,
                    "image_side": 4,
                    "decode_bytes": 5,
                    "image_formats": ("png", "gif"),
                }
            }
        )
    )
    assert (limits.image_bytes, limits.source_pixels, limits.decoded_pixels) == (1, 2, 3)
    assert (limits.side, limits.decode_bytes, limits.formats) == (4, 5, ("png", "gif"))


def test_an_unknown_image_format_stops_the_start_and_names_itself() -> None:
    with pytest.raises(ConfigurationError, match=r"limits\.image_formats: 'jpg' is unknown; known are jpeg, png"):
        image_limits(Settings.model_validate({"limits": {"image_formats": ("png", "jpg")}}))


# Executions that hang


async def test_a_graph_that_goes_round_for_hours_is_ended_and_its_neighbours_notice_nothing(tmp_path: Path) -> None:
    threads = tiny_models.UNIT + "[execution]\ninstances = 1\n"
    write_model(tmp_path, "lost", tiny_models.lost_in_white(), manifest=threads)
    write_model(tmp_path, "other", manifest=threads)
    async with started(tmp_path, execution={"threads": 2, "hang_s": 0.2}) as server:
        with pytest.raises(DeadlineExceeded):
            await classify(server.pipeline, "lost", picture("white"), timeout_seconds=0.1)
        assert best_labels(await classify(server.pipeline, "other", picture("red"), timeout_seconds=5)) == ["red"]
        async with asyncio.timeout(10):
            assert best_labels(await classify(server.pipeline, "lost", picture("blue"))) == ["blue"]
        assert b'fovea_hung_executions_total{model="lost"} 1.0' in server.metrics.render()
        assert server.threads.lost == 0
