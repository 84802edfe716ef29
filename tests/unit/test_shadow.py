"""Shadows over real (tiny) models: what they compare, and that they hold what they use and no longer."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import logs
from service.repository.rollout import Rollout, Share
from service.server import InferenceServer
from service.shadow import Comparison, Shadow
from tests.support import tiny_models
from tests.support.puppets import until
from tests.support.scrape import Scrape
from tests.support.tiny_models import best_labels, classify, picture, serving, write_model

SWAPPED = np.roll(np.eye(3), 1, axis=1) * tiny_models.GAIN  # calls red green, green blue, blue red


def comparison(server: InferenceServer) -> Comparison:
    found = server.shadows.comparison("model")
    assert found is not None
    return found


async def ask(server: InferenceServer, *colors: str) -> None:
    for color in colors:
        assert best_labels(await classify(server.pipeline, "model", picture(color))) == [color]


async def compared(server: InferenceServer, rows: int) -> Comparison:
    await until(lambda: comparison(server).rows + comparison(server).failed >= rows)
    return comparison(server)


@pytest.mark.parametrize("instances", [0, 1], ids=["on the event loop", "on a thread"])
async def test_a_version_agrees_with_itself_exactly(tmp_path: Path, instances: int) -> None:
    manifest = tiny_models.UNIT + f"[execution]\ninstances = {instances}\n"
    write_model(tmp_path, "model", manifest=manifest)
    async with serving(tmp_path) as server:
        await server.repository.set_rollout("model", Rollout(shadow=Share(1, 100.0)))
        await ask(server, "red", "green", "blue", "red")
        seen = await compared(server, 4)
        assert (seen.rows, seen.agreed, seen.score_difference) == (4, 4, 0.0)
        assert not seen.examples


async def test_nothing_is_compared_while_a_request_is_in_flight(tmp_path: Path) -> None:
    write_model(tmp_path, "model")
    async with serving(tmp_path) as server:
        await server.repository.set_rollout("model", Rollout(shadow=Share(1, 100.0)))
        with server.admission.slot():
            await ask(server, "red")
            for _ in range(20):
                await asyncio.sleep(0.005)
                assert comparison(server).rows == 0
        assert (await compared(server, 1)).agreed == 1


async def test_disagreements_are_counted_and_told_by_request(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "model")
    tiny_models.save(tiny_models.classifier(matrix=SWAPPED), folder / "2" / "model.onnx")
    async with serving(tmp_path) as server:
        await server.repository.set_rollout("model", Rollout(1, shadow=Share(2, 100.0)))
        token = logs.request_id_var.set("request-7")
        await ask(server, "red")
        logs.request_id_var.reset(token)
        seen = await compared(server, 1)
        assert (seen.rows, seen.agreed) == (1, 0)
        certain = np.exp(4) / (np.exp(4) + 2)
        assert seen.score_difference == pytest.approx(certain - (1 - certain) / 2, abs=1e-3)
        (example,) = seen.examples
        assert example.request_id == "request-7"
        assert (example.stable.label, example.shadow.label) == ("red", "green")
        assert seen.stable_seconds > 0
        assert seen.shadow_seconds > 0
        scrape = Scrape.parse(server.metrics.render().decode())
        assert scrape.total("fovea_shadow_images_total", model="model", version="2", result="disagreed") == 1
        assert scrape.total("fovea_shadow_score_difference_count", model="model", version="2") == 1


@pytest.mark.parametrize(
    "own", ['[input]\npreset = "unit"\nsize = [4, 4]\n', '[input]\ncolor = "bgr"\n'], ids=["size", "channels"]
)
async def test_a_shadow_with_another_preprocessing_decodes_again(tmp_path: Path, own: str) -> None:
    folder = write_model(
        tmp_path, "model", tiny_models.classifier(size=("h", "w")), manifest=tiny_models.UNIT + "size = [8, 8]"
    )
    shutil.copytree(folder / "1", folder / "2")
    (folder / "2" / "model.toml").write_text(own)
    async with serving(tmp_path) as server:
        await server.repository.set_rollout("model", Rollout(1, shadow=Share(2, 100.0)))
        await ask(server, "green", "green")
        seen = await compared(server, 2)
        assert (seen.rows, seen.agreed, seen.failed) == (2, 2, 0)


async def test_a_shadow_that_fails_harms_nobody(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "model")
    tiny_models.save(tiny_models.inverse(), folder / "2" / "model.onnx")  # infinite for a channel that is black
    (folder / "2" / "model.toml").write_text('[output]\nactivation = "none"\n')
    async with serving(tmp_path) as server:
        await server.repository.set_rollout("model", Rollout(1, shadow=Share(2, 100.0)))
        await ask(server, "red")
        seen = await compared(server, 1)
        assert (seen.rows, seen.failed) == (0, 1)


async def test_what_goes_wrong_in_counting_does_not_end_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path, "model")
    async with serving(tmp_path) as server:
        await server.repository.set_rollout("model", Rollout(shadow=Share(1, 100.0)))
        with monkeypatch.context() as broken:
            broken.setattr(Shadow, "_count", lambda *_: 1 / 0)
            await ask(server, "red")
            assert (await compared(server, 1)).failed == 1
        await ask(server, "green")
        assert (await compared(server, 2)).agreed == 1


async def test_a_shadow_gets_its_share(tmp_path: Path) -> None:
    write_model(tmp_path, "model")
    async with serving(tmp_path) as server:
        await server.repository.set_rollout("model", Rollout(shadow=Share(1, 0.0)))
        await ask(server, *["red"] * 20)
        assert comparison(server) == Comparison()


async def test_without_a_shadow_nobody_looks_and_one_that_goes_is_freed(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "model")
    shutil.copytree(folder / "1", folder / "2")
    async with serving(tmp_path) as server:
        stable: Any = next(iter(server.repository.loaded()))
        assert stable.tap is None
        await server.repository.set_rollout("model", Rollout(2, shadow=Share(1, 100.0)))
        assert stable.version == 2
        assert stable.tap is not None
        await server.repository.set_rollout("model", Rollout())
        assert stable.tap is None
        assert server.shadows.comparison("model") is None
        async with asyncio.timeout(20):
            while len(list(server.repository.loaded())) > 1:  # version 1 has neither role nor lease
                await asyncio.sleep(0.01)


async def test_a_shadow_follows_its_versions_through_a_load_by_name(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "model")
    async with serving(tmp_path) as server:
        await server.repository.set_rollout("model", Rollout(shadow=Share(1, 100.0)))
        (old,) = server.repository.loaded()
        (folder / "labels.txt").write_text("red\ngreen\nazure\n")
        await server.repository.load("model")
        await ask(server, "red")
        assert (await compared(server, 1)).agreed == 1
        await until(lambda: old not in list(server.repository.loaded()))
