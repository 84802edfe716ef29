"""Engines that fail, hang or run out of memory, behind a whole service."""

import asyncio
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest

from service.engine.base import ProviderInfo
from service.errors import DeadlineExceeded, EngineFailed, ModelNotReady, OutOfMemory
from service.guard import FAILURES, GIVE_UP_SECONDS, Guard
from service.lane import ExecutionThreads, FusedLane
from service.messages import Classification, InferenceResult
from service.server import device_is_lost
from tests.support.clock import FakeClock
from tests.support.puppets import PuppetEngine, PuppetService, ran, turns, until
from tests.support.scrape import Scrape
from tests.support.tiny_models import classify, picture

MATE, POISON = "red", "white"


def poisoned(rows: np.ndarray) -> np.ndarray:
    """Fails on a batch in which a picture is all white."""
    if rows.min(axis=(1, 2, 3)).max() >= 1:
        raise EngineFailed("The model failed on this input.")
    return rows.mean((2, 3))


@pytest.fixture
async def service() -> AsyncIterator[PuppetService]:
    async with PuppetService(max_batch_size=8) as service:
        yield service


async def batch_of(service: PuppetService, *colors: str) -> list[InferenceResult | BaseException]:
    """Requests that share one execution: they wait behind another one."""
    service.engine.hold()
    runs = len(service.engine.sizes)
    blocker = asyncio.create_task(classify(service.pipeline, "puppet", picture("blue")))
    await until(lambda: len(service.engine.sizes) > runs)
    tasks = [asyncio.create_task(classify(service.pipeline, "puppet", picture(color))) for color in colors]
    await turns()
    service.engine.sizes.clear()
    service.engine.release()
    await asyncio.wait({blocker})
    return await asyncio.gather(*tasks, return_exceptions=True)


def scores(result: InferenceResult | BaseException) -> list[float]:
    assert isinstance(result, InferenceResult)
    (item,) = result.items
    assert isinstance(item, Classification)
    return [prediction.score for prediction in item.predictions]


# One item


@pytest.mark.parametrize("position", range(8))
async def test_a_poisonous_image_takes_no_mate_with_it(service: PuppetService, position: int) -> None:
    service.engine.function = poisoned
    alone = scores(await classify(service.pipeline, "puppet", picture(MATE)))
    colors = [POISON if place == position else MATE for place in range(8)]
    results = await batch_of(service, *colors)
    assert service.engine.sizes[0] == 8
    assert len(service.engine.sizes) - 1 <= 4, "log2(8) + 1 further runs"
    assert isinstance(results.pop(position), EngineFailed)
    for result in results:
        assert scores(result) == pytest.approx(alone, abs=1e-5)


async def test_poison_again_and_again_takes_no_version_out_of_service(service: PuppetService) -> None:
    service.engine.function = poisoned
    for _ in range(3 * FAILURES):
        with pytest.raises(EngineFailed):
            await classify(service.pipeline, "puppet", picture(POISON))
    await until(lambda: guard_of(service)._trying is None)
    assert service.repository.ready_models == ["puppet"]
    assert scores(await classify(service.pipeline, "puppet", picture(MATE)))


# Memory


async def test_where_a_batch_has_no_room_its_halves_run(service: PuppetService) -> None:
    def narrow(rows: np.ndarray) -> np.ndarray:
        if len(rows) > 2:
            raise MemoryError
        return rows.mean((2, 3))

    service.engine.function = narrow
    results = await batch_of(service, *[MATE] * 8)
    assert [scores(result)[0] for result in results] == pytest.approx([1.0] * 8)


async def test_an_image_without_room_is_refused_and_the_service_goes_on(service: PuppetService) -> None:
    def full(rows: np.ndarray) -> np.ndarray:
        raise MemoryError

    before, service.engine.function = service.engine.function, full
    results = await batch_of(service, MATE, MATE)
    assert [type(result) for result in results] == [OutOfMemory, OutOfMemory]
    service.engine.function = before
    for _ in range(100):
        assert scores(await classify(service.pipeline, "puppet", picture(MATE)))


# Everything


def guard_of(service: PuppetService) -> Guard:
    (model,) = service.repository.loaded()
    return model.guard


async def test_an_engine_that_always_fails_is_out_of_service_until_it_runs_again(
    service: PuppetService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.guard.RETRY_SECONDS", 0.01)

    def broken(rows: np.ndarray) -> np.ndarray:
        raise EngineFailed("The model failed on this input.")

    before, service.engine.function = service.engine.function, broken
    for _ in range(FAILURES):
        with pytest.raises(EngineFailed):
            await classify(service.pipeline, "puppet", picture(MATE))
    await until(lambda: not service.repository.ready_models)
    with pytest.raises(ModelNotReady, match="fails on every input"):
        await classify(service.pipeline, "puppet", picture(MATE))
    assert Scrape.parse(service.metrics.render().decode()).total("fovea_engine_broken", model="puppet") == 1
    service.engine.function = before
    await until(lambda: service.repository.ready_models == ["puppet"])
    assert scores(await classify(service.pipeline, "puppet", picture(MATE)))
    assert Scrape.parse(service.metrics.render().decode()).total("fovea_engine_broken", model="puppet") == 0


async def test_an_execution_that_cannot_be_recorded_is_answered_and_its_instance_serves_again(
    service: PuppetService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(execution: object) -> None:
        raise RuntimeError("in the recording")

    (model,) = service.repository.loaded()
    monkeypatch.setattr(model.statistics, "executed", broken)
    for _ in range(3):
        assert scores(await classify(service.pipeline, "puppet", picture(MATE)))


# Hanging


async def test_a_run_that_hangs_is_ended_and_its_instance_serves_again(service: PuppetService) -> None:
    service.engine.hold()
    began_at = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await classify(service.pipeline, "puppet", picture(MATE), timeout_seconds=0.3)
    assert time.monotonic() - began_at == pytest.approx(0.3, abs=0.1)
    assert guard_of(service).look(limit_seconds=0.0) == 0
    await until(lambda: not guard_of(service)._runs)
    service.engine.release()
    assert scores(await classify(service.pipeline, "puppet", picture(MATE)))
    assert Scrape.parse(service.metrics.render().decode()).total("fovea_hung_executions_total", model="puppet") == 1


async def test_a_run_that_does_not_end_is_given_up_with_its_thread() -> None:
    threads, clock = ExecutionThreads(1), FakeClock()
    engine = PuppetEngine([], [])
    engine.heeds_termination = False
    engine.hold()

    class Silent:
        def hung(self) -> None:
            pass

    guard = Guard("puppet/1", FusedLane(threads, 1), engine, None, Silent(), clock)  # type: ignore[arg-type]
    rows = {"x": np.zeros((1, 1), np.float32)}
    running = asyncio.create_task(ran(guard, lambda: engine.run(rows)))
    await engine.entered()
    clock.advance(16.0)
    assert guard.look(15.0) == 0
    assert engine.is_terminated
    clock.advance(GIVE_UP_SECONDS)
    assert guard.look(15.0) == 1
    with pytest.raises(EngineFailed, match="given up"):
        await running
    assert guard.look(15.0) == 0
    threads.replace_lost(1)
    assert await ran(guard, lambda: "served by a new thread") == "served by a new thread"
    engine.release()
    threads.close()


async def test_a_device_is_lost_when_all_that_runs_on_it_fails_for_long(service: PuppetService) -> None:
    (model,) = service.repository.loaded()
    guard, clock = model.guard, FakeClock()
    guard._clock = clock
    service.engine.provider = ProviderInfo("cuda")
    assert not device_is_lost([model])
    guard.fault, guard._broken_at = "its engine fails on every input", clock.now
    clock.advance(19)
    assert not device_is_lost([model])
    clock.advance(2)
    assert device_is_lost([model])
    service.engine.provider = ProviderInfo("cpu")
    assert not device_is_lost([model])
    assert not device_is_lost([])
