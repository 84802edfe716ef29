"""The request's way with an engine in the test's hand: answers, faults, phases, and one record for each request."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.errors import (
    ClientDisconnected,
    DeadlineExceeded,
    Draining,
    EngineFailed,
    ImageTooLarge,
    InternalError,
    InvalidImage,
    MalformedRequest,
    ModelNotFound,
    ModelNotReady,
    OutOfMemory,
    Overloaded,
    UnsupportedMediaType,
)
from service.imaging.preprocess import Preprocessor
from service.messages import Classification, InferenceResult, ModelRef
from service.metrics import OTHER
from tests.support.puppets import PATIENCE_SECONDS, PuppetService, turns, until
from tests.support.tiny_models import best_labels, classify, damaged_picture, picture

NOT_AN_IMAGE = b"just some text, and long enough to be looked at"


@pytest.fixture
async def service() -> AsyncIterator[PuppetService]:
    async with PuppetService() as service:
        yield service


async def counted(service: PuppetService, name: str) -> dict[tuple[str, ...], float]:
    """The samples of one series that are not zero, by the values of their labels in the order of their names.

    What ended in this turn of the event loop is recorded in the next.
    """
    await asyncio.sleep(0)
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(service.metrics.render().decode())
        for sample in family.samples
        if sample.name == name and sample.value
    }


async def requests(service: PuppetService) -> dict[tuple[str, ...], float]:
    """fovea_requests_total by (model, outcome, protocol, version)."""
    return await counted(service, "fovea_requests_total")


def ask(service: PuppetService, *images: bytes, **rest: Any) -> Coroutine[Any, Any, InferenceResult]:
    return classify(service.pipeline, "puppet", *images, **rest)


async def waiting(service: PuppetService, *images: bytes) -> asyncio.Task[InferenceResult]:
    """A request whose images are in the queue behind a held engine."""
    before = service.admission.requests
    task = asyncio.create_task(ask(service, *images))
    await turns()
    assert service.admission.requests == before + 1
    return task


async def running(service: PuppetService, *images: bytes) -> asyncio.Task[InferenceResult]:
    """A request whose images are in the held engine."""
    service.engine.hold()
    task = asyncio.create_task(ask(service, *images))
    await service.engine.entered()
    return task


# Answers


async def test_an_image_is_answered_with_predictions_header_and_timings(service: PuppetService) -> None:
    result = await ask(service, picture("green", 20, 10))
    assert (result.model, result.version) == ("puppet", 1)
    (item,) = result.items
    assert isinstance(item, Classification)
    assert [(prediction.label, prediction.index) for prediction in item.predictions] == [
        ("green", 1),
        ("red", 0),
        ("blue", 2),
    ]
    assert item.predictions[0].score == pytest.approx(1.0)
    assert item.image == ("png", 20, 10)
    assert result.timings == item.timings
    assert min(item.timings) >= 0
    assert sum(item.timings) < PATIENCE_SECONDS


async def test_several_images_are_answered_in_their_order(service: PuppetService) -> None:
    result = await ask(service, *map(picture, ("blue", "red", "green", "red")))
    assert best_labels(result) == ["blue", "red", "green", "red"]


async def test_the_timings_of_several_images_are_those_of_the_last() -> None:
    async with PuppetService(max_batch_size=1) as service:
        began_at = time.monotonic()
        result = await ask(service, picture("red"), picture("blue"), picture("green"))
        whole_seconds = time.monotonic() - began_at
    items = [item for item in result.items if isinstance(item, Classification)]
    assert result.timings == items[-1].timings
    assert result.timings.queue_seconds > items[0].timings.queue_seconds
    assert sum(result.timings) <= whole_seconds


async def test_top_k_and_threshold_are_each_requests_own(service: PuppetService) -> None:
    blocker = await running(service, picture("red"))
    one = asyncio.create_task(ask(service, picture("yellow"), top_k=1))
    two = asyncio.create_task(ask(service, picture("yellow"), threshold=0.5))
    await turns()
    service.engine.release()
    await blocker
    (first,), (second,) = (await one).items, (await two).items
    assert isinstance(first, Classification)
    assert isinstance(second, Classification)
    assert [prediction.label for prediction in first.predictions] == ["red"]
    assert [prediction.label for prediction in second.predictions] == ["red", "green"]
    assert service.engine.sizes == [1, 2]


async def test_a_request_may_spread_over_executions() -> None:
    async with PuppetService(max_batch_size=2) as service:
        names = ["red", "green", "blue", "red", "blue"]
        result = await ask(service, *map(picture, names))
        assert best_labels(result) == names
        assert max(service.engine.sizes) <= 2
        assert sum(service.engine.sizes) == 5


# Images that are bad


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (b"", InvalidImage),
        (NOT_AN_IMAGE, UnsupportedMediaType),
        (picture("red")[:20], InvalidImage),
        (damaged_picture(), InvalidImage),
        (picture("red", 17_000, 1), ImageTooLarge),
    ],
    ids=["empty", "text", "cut header", "damaged pixels", "too long"],
)
async def test_a_bad_image_alone_raises_its_own_error(
    service: PuppetService, image: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await ask(service, image)
    assert service.engine.sizes == []
    assert await requests(service) == {("puppet", "client_error", "native", "1"): 1}


async def test_among_several_each_bad_image_has_its_error_in_its_place(service: PuppetService) -> None:
    result = await ask(service, picture("red"), NOT_AN_IMAGE, picture("blue"), damaged_picture())
    assert best_labels(result) == ["red", "unsupported_media_type", "blue", "invalid_image"]
    assert await requests(service) == {("puppet", "ok", "native", "1"): 1}
    assert await counted(service, "fovea_images_rejected_total") == {
        ("puppet", "unsupported_media_type"): 1,
        ("puppet", "invalid_image"): 1,
    }
    assert await counted(service, "fovea_images_total") == {("puppet", "1"): 2}


async def test_a_request_of_several_bad_images_is_still_answered(service: PuppetService) -> None:
    result = await ask(service, NOT_AN_IMAGE, damaged_picture())
    assert best_labels(result) == ["unsupported_media_type", "invalid_image"]
    assert result.timings == (0, 0, 0)


async def test_a_damaged_image_is_answered_before_its_neighbours_run(service: PuppetService) -> None:
    blocker = await running(service, picture("red"))
    good = await waiting(service, picture("green"))
    bad = await waiting(service, damaged_picture())
    also_good = await waiting(service, picture("blue"))
    service.engine.step()
    await blocker
    await service.engine.entered()
    with pytest.raises(InvalidImage):
        await bad
    assert not good.done()
    service.engine.release()
    assert best_labels(await good) == ["green"]
    assert best_labels(await also_good) == ["blue"]


async def test_preprocessing_that_runs_out_of_memory_fails_that_request_only(
    service: PuppetService, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Preprocessor.prepare

    def prepare(self: Preprocessor, image: Any, out: Any) -> None:
        if image.header.width == 9:
            raise MemoryError
        if image.header.width == 10:
            raise ZeroDivisionError("a bug")
        real(self, image, out)

    monkeypatch.setattr(Preprocessor, "prepare", prepare)
    blocker = await running(service, picture("red"))
    large, good, bug = [
        await waiting(service, picture("green", 9)),
        await waiting(service, picture("green", 8)),
        await waiting(service, picture("green", 10)),
    ]
    service.engine.release()
    await blocker
    assert best_labels(await good) == ["green"]
    with pytest.raises(OutOfMemory):
        await large
    with pytest.raises(InternalError, match=r"^Preprocessing failed: this is a bug$"):
        await bug


# Neighbours


async def test_neighbours_of_a_request_that_left_are_answered(service: PuppetService) -> None:
    blocker = await running(service, picture("red"))
    first, second, third = [await waiting(service, picture(color)) for color in ("red", "green", "blue")]
    second.cancel()
    await turns()
    service.engine.release()
    assert best_labels(await blocker) == ["red"]
    assert best_labels(await first) == ["red"]
    assert best_labels(await third) == ["blue"]
    assert service.engine.sizes == [1, 2]
    with pytest.raises(asyncio.CancelledError):
        await second


async def test_an_engine_that_fails_fails_the_batch_and_the_next_one_runs(service: PuppetService) -> None:
    def broken(rows: Any) -> Any:
        raise EngineFailed("The model failed on this input.")

    good, service.engine.function = service.engine.function, broken
    with pytest.raises(EngineFailed):
        await ask(service, picture("red"))
    service.engine.function = good
    assert best_labels(await ask(service, picture("red"))) == ["red"]
    assert await requests(service) == {("puppet", "error", "native", "1"): 1, ("puppet", "ok", "native", "1"): 1}


async def test_a_row_that_is_not_finite_fails_its_own_request_only(service: PuppetService) -> None:
    """One image that makes the network overflow must not take its neighbours with it."""

    def overflow_on_blue(rows: Any) -> Any:
        means = rows.mean((2, 3))
        means[means[:, 2] == 1.0] = float("inf")
        return means

    service.engine.function = overflow_on_blue
    blocker = await running(service, picture("red"))
    good = await waiting(service, picture("green"))
    bad = await waiting(service, picture("blue"))
    service.engine.release()
    await blocker
    with pytest.raises(EngineFailed, match="not a finite number"):
        await bad
    assert best_labels(await good) == ["green"]
    assert service.engine.sizes == [1, 2]


# One record for each request, however it ends


async def test_an_answer_is_recorded_once(service: PuppetService) -> None:
    await ask(service, picture("red"), picture("blue"))
    assert await requests(service) == {("puppet", "ok", "native", "1"): 1}
    assert await counted(service, "fovea_request_duration_seconds_count") == {("puppet", "native"): 1}
    assert await counted(service, "fovea_images_total") == {("puppet", "1"): 2}
    assert await counted(service, "fovea_stage_duration_seconds_count") == {
        ("puppet", "receive"): 1,
        ("puppet", "decode"): 2,
        ("puppet", "queue"): 2,
        ("puppet", "infer"): 2,
        ("puppet", "postprocess"): len(service.engine.sizes),
    }
    assert max((await counted(service, "fovea_stage_duration_seconds_sum")).values()) < PATIENCE_SECONDS
    assert await counted(service, "fovea_predictions_total") == {
        ("red", "puppet", "1"): 1,
        ("blue", "puppet", "1"): 1,
    }


async def test_an_unknown_model_is_recorded_under_other(service: PuppetService) -> None:
    with pytest.raises(ModelNotFound):
        await classify(service.pipeline, "nobody", picture("red"))
    assert await requests(service) == {(OTHER, "client_error", "native", OTHER): 1}


async def test_an_unknown_version_is_recorded_without_it(service: PuppetService) -> None:
    with pytest.raises(ModelNotFound):
        await ask(service, picture("red"), version=77)
    assert await requests(service) == {("puppet", "client_error", "native", OTHER): 1}


async def test_a_model_that_is_not_ready_is_a_rejection(service: PuppetService) -> None:
    service.source.put("late", 1)
    await service.repository.reconcile()
    with pytest.raises(ModelNotReady):
        await classify(service.pipeline, "late", picture("red"))
    assert await requests(service) == {("late", "rejected", "native", OTHER): 1}
    assert await counted(service, "fovea_rejected_total") == {("late", "not_ready"): 1}


async def test_a_full_queue_is_a_rejection_of_the_whole_request() -> None:
    async with PuppetService(max_queue_size=2) as service:
        blocker = await running(service, picture("red"))
        with pytest.raises(Overloaded):
            await ask(service, *[picture("red")] * 3)
        assert await requests(service) == {("puppet", "rejected", "native", "1"): 1}
        assert await counted(service, "fovea_rejected_total") == {("puppet", "queue_full"): 1}
        assert await counted(service, "fovea_queue_entries") == {}  # those that had entered were forgotten
        service.engine.release()
        await blocker
        assert service.engine.sizes == [1]


async def test_too_many_requests_are_a_rejection() -> None:
    async with PuppetService(max_requests=1) as service:
        blocker = await running(service, picture("red"))
        with pytest.raises(Overloaded):
            await ask(service, picture("red"))
        assert await requests(service) == {("puppet", "rejected", "native", OTHER): 1}
        assert await counted(service, "fovea_rejected_total") == {("puppet", "inflight_requests"): 1}
        service.engine.release()
        await blocker


async def test_too_many_bytes_are_a_rejection() -> None:
    async with PuppetService(max_bytes=100) as service:
        with pytest.raises(Overloaded):
            await ask(service, bytes(101))
        assert await counted(service, "fovea_rejected_total") == {("puppet", "inflight_bytes"): 1}
        assert service.admission.bytes == 0


async def test_a_server_that_is_shutting_down_is_a_rejection(service: PuppetService) -> None:
    service.admission.close()
    with pytest.raises(Draining):
        await ask(service, picture("red"))
    assert await requests(service) == {("puppet", "rejected", "native", OTHER): 1}
    assert await counted(service, "fovea_rejected_total") == {("puppet", "draining"): 1}


async def test_a_deadline_that_passed_before_the_queue_is_a_timeout_and_runs_nothing(service: PuppetService) -> None:
    with pytest.raises(DeadlineExceeded):
        await ask(service, picture("red"), timeout_seconds=-1.0)
    assert await requests(service) == {("puppet", "timeout", "native", "1"): 1}
    assert service.engine.sizes == []


async def test_a_deadline_that_passes_in_the_queue_is_a_timeout_and_leaves_the_queue(service: PuppetService) -> None:
    blocker = await running(service, picture("red"))
    with pytest.raises(DeadlineExceeded):
        await ask(service, picture("red"), timeout_seconds=0.02)
    assert await requests(service) == {("puppet", "timeout", "native", "1"): 1}
    assert await counted(service, "fovea_queue_entries") == {}
    service.engine.release()
    await blocker
    assert service.engine.sizes == [1]


async def test_a_deadline_that_passes_while_it_runs_is_a_timeout(service: PuppetService) -> None:
    service.engine.hold()
    with pytest.raises(DeadlineExceeded):
        await ask(service, picture("red"), timeout_seconds=0.2)
    assert await requests(service) == {("puppet", "timeout", "native", "1"): 1}
    service.engine.release()
    assert best_labels(await ask(service, picture("blue"))) == ["blue"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError("a bug"), "error"),
        (MalformedRequest("no boundary"), "client_error"),
        (ClientDisconnected("gone"), "cancelled"),
        (asyncio.CancelledError(), "cancelled"),
        (KeyboardInterrupt(), "error"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_whatever_ends_a_request_early_is_recorded_once(error: BaseException, outcome: str) -> None:
    service = PuppetService()
    with pytest.raises(type(error)), service.pipeline.admit("native", ModelRef("puppet")):
        raise error
    assert await requests(service) == {(OTHER, outcome, "native", OTHER): 1}
    assert service.admission.requests == 0


async def test_requests_in_flight_are_shown(service: PuppetService) -> None:
    task = await running(service, picture("red"))
    assert await counted(service, "fovea_inflight_requests") == {(): 1}
    service.engine.release()
    await task
    assert await counted(service, "fovea_inflight_requests") == {}


# Where a request was when its caller left


async def phases(service: PuppetService) -> dict[tuple[str, ...], float]:
    return await counted(service, "fovea_cancelled_total")


async def test_a_caller_that_leaves_while_the_body_comes_is_counted_there(service: PuppetService) -> None:
    with pytest.raises(ClientDisconnected), service.pipeline.admit("native", ModelRef("puppet")) as ticket:
        ticket.grow(10)
        raise ClientDisconnected("The client left.")
    assert await phases(service) == {("puppet", "receive"): 1}
    assert service.admission.bytes == 0


async def test_a_caller_that_leaves_in_the_queue_is_counted_there_and_never_runs(service: PuppetService) -> None:
    blocker = await running(service, picture("red"))
    task = await waiting(service, picture("green"), picture("blue"))
    assert await counted(service, "fovea_queue_entries") == {("puppet",): 2}
    task.cancel()
    await turns()
    assert await counted(service, "fovea_queue_entries") == {}
    assert await phases(service) == {("puppet", "queue"): 1}
    assert await requests(service) == {("puppet", "cancelled", "native", "1"): 1}
    service.engine.release()
    await blocker
    assert service.engine.sizes == [1]


async def test_a_caller_that_leaves_while_it_runs_is_counted_there(service: PuppetService) -> None:
    task = await running(service, picture("red"))
    task.cancel()
    await until(task.done)
    assert await phases(service) == {("puppet", "infer"): 1}
    assert await requests(service) == {("puppet", "cancelled", "native", "1"): 1}
    service.engine.release()
    assert best_labels(await ask(service, picture("blue"))) == ["blue"]


async def test_a_caller_that_leaves_frees_its_lease(service: PuppetService) -> None:
    task = await running(service, picture("red"))
    task.cancel()
    await until(task.done)
    service.engine.release()
    async with asyncio.timeout(20):
        await service.repository.close()
    assert service.engine.is_closed


async def test_a_model_in_use_is_closed_only_after_the_answer(service: PuppetService) -> None:
    task = await running(service, picture("red"))
    closing = asyncio.create_task(service.repository.close())
    await turns()
    assert not closing.done()
    assert not service.engine.is_closed
    service.engine.release()
    assert best_labels(await task) == ["red"]
    await closing
    assert service.engine.is_closed
