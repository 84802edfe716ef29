"""The request's way, in one function.

    admit -> lease -> inspect -> queue -> (decode, run, finish on an execution thread) -> record

Owns the order of the steps and that every request is recorded exactly once, however it ends. Knows no HTTP: a
front-end builds an InferenceRequest and renders an InferenceResult.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from service.admission import Admission, Slot
from service.batching.request_queue import Entry
from service.errors import (
    FoveaError,
    InvalidImage,
    InvalidTensor,
    Outcome,
    Overloaded,
    UnsupportedMediaType,
)
from service.logs import request_id_var
from service.messages import (
    Classification,
    ClipPayload,
    ImagePayload,
    InferenceRequest,
    InferenceResult,
    ModelRef,
    Stage,
    Timings,
)
from service.metrics import Metrics
from service.model import Answer, ImageItem, Item, LoadedModel, RawImageItem, stages_of
from service.repository.manager import ModelRepository
from service.tensors import TensorRequest, TensorResult
from service.turns import NextTurn

_IMAGE_FAULTS = (InvalidImage, UnsupportedMediaType)


class Ticket(Slot):
    """One request from its first byte to its answer: what it holds of the bounds, and what is recorded of it.

    Entering raises Overloaded or Draining. However the block ends, and if it is not even entered, that is recorded.
    """

    __slots__ = (
        "_record",
        "ended_at",
        "images",
        "inferred_at",
        "model",
        "phase",
        "protocol",
        "received_at",
        "ref",
        "started_at",
        "timings",
        "version",
    )

    def __init__(
        self,
        admission: Admission,
        share: float,
        protocol: str,
        ref: ModelRef,
        record: "Callable[[Ticket, BaseException | None], None]",
    ) -> None:
        super().__init__(admission, share)
        self.protocol = protocol
        self.ref = ref
        self._record = record
        self.started_at = time.monotonic()
        self.received_at: float | None = None
        self.ended_at = 0.0
        self.version: int | None = None
        self.model: LoadedModel | None = None
        self.phase = "receive"
        self.timings = Timings()
        self.inferred_at = 0.0
        self.images: Sequence[Entry[Item, Answer] | FoveaError] = ()

    def __enter__(self) -> "Ticket":
        try:
            super().__enter__()
        except FoveaError as error:
            self._end(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        self._end(error)

    def body_received(self) -> None:
        """The whole body is here: the stage `receive` ends."""
        self.received_at = time.monotonic()
        self.phase = "queue"

    def stages(self, ended_at: float) -> Iterator[Stage]:
        """What the request went through, for its trace."""
        yield Stage("receive", self.started_at, self.received_at or ended_at)
        for place in self.images:
            if isinstance(place, Entry):
                yield from stages_of(place, ended_at)

    def settle(self) -> Timings:
        """All is answered: the timings are those of what was answered last, which the rest did not wait for."""
        for place in self.images:
            answer = place.answer if isinstance(place, Entry) else None
            if answer is not None and answer.inferred_at >= self.inferred_at:
                self.inferred_at, self.timings = answer.inferred_at, answer.timings
        return self.timings

    def _end(self, error: BaseException | None) -> None:
        self.ended_at = time.monotonic()
        self._record(self, error)


class Pipeline:
    """Carries requests to models and records them."""

    def __init__(self, admission: Admission, repository: ModelRepository[LoadedModel], metrics: Metrics) -> None:
        self._admission = admission
        self._repository = repository
        self._metrics = metrics
        self._record_later = NextTurn(self._record)
        metrics.inflight.set_function(lambda: admission.requests)

    def admit(self, protocol: str, ref: ModelRef, share: float = 1.0) -> Ticket:
        """A ticket to be entered: holds a place for the block, and records how it ended.

        The request is refused when more than `share` of any bound, here or in its model's queue, is in use.
        """
        return Ticket(self._admission, share, protocol, ref, self._record_later)

    async def classify(self, request: InferenceRequest, ticket: Ticket) -> InferenceResult:
        """Answer one request. Raises what concerns all of it; an image's own fault stands in its place.

        A request of one bad image raises that image's error.
        """
        await asyncio.sleep(0)  # whatever came with it is read before the first is looked at (`turns`)
        with self._repository.lease(request.ref) as (version, model):
            ticket.version, ticket.model = version, model
            ticket.images = places = []
            items: list[Classification | FoveaError] = []
            try:
                for image in model.grouped(request.images):
                    places.append(_enter(model, image, request, ticket))  # noqa: PERF401  # what entered before a failure is forgotten
                for place in places:
                    items.append(await _settled(model, place))  # noqa: PERF401  # a comprehension is a coroutine more
            finally:
                _forget(model, places, ticket)
            for item in items:
                if isinstance(item, FoveaError):
                    self._metrics.images_rejected.labels(model.name, item.code).inc()
                    if len(items) == 1:
                        raise item
            return InferenceResult(model.name, version, tuple(items), ticket.settle())

    async def infer(self, request: TensorRequest, ticket: Ticket) -> TensorResult:
        """The graph's own outputs for tensors or images. Raises what concerns all of it, as everything does here."""
        with self._repository.lease(request.ref) as (version, model):
            ticket.version, ticket.model = version, model
            ticket.images = places = []
            try:
                for item in self._items(model, request):
                    places.append(model.submit(item, request.deadline_at, ticket.share))  # noqa: PERF401  # as above
                answers = [await place.future for place in places]
            except _IMAGE_FAULTS as error:
                raise self._refused_image(model, error) from None
            finally:
                _forget(model, places, ticket)
            return model.tensor_result(answers, ticket.settle())

    def _items(self, model: LoadedModel, request: TensorRequest) -> Sequence[Item]:
        """What goes into the queue. Raises InvalidTensor."""
        given = request.read(model.signature)
        if not isinstance(given, tuple):
            return model.rows_of(given)
        return [RawImageItem(model.inspect(image)) for image in given]

    def _refused_image(self, model: LoadedModel, error: FoveaError) -> InvalidTensor:
        self._metrics.images_rejected.labels(model.name, error.code).inc()
        return InvalidTensor(str(error))

    def _record(self, ticket: Ticket, error: BaseException | None) -> None:
        outcome = _outcome(error)
        model = self._metrics.model_label(ticket.ref.name)
        received_at = ticket.received_at or ticket.started_at
        seconds = ticket.ended_at - ticket.started_at
        if ticket.model is not None:
            ticket.model.answered(ticket.images)
            if outcome is Outcome.OK:
                output_seconds = ticket.ended_at - ticket.inferred_at if ticket.inferred_at else 0.0
                ticket.model.statistics.succeeded(seconds, ticket.timings, output_seconds)
            else:
                ticket.model.statistics.failed(seconds)
        if outcome is Outcome.CANCELLED:
            self._metrics.cancelled.labels(model, ticket.phase).inc()
        elif outcome is Outcome.REJECTED:
            reason = error.reason if isinstance(error, Overloaded) else "not_ready"
            self._metrics.rejected.labels(model, reason).inc()
        self._metrics.request_finished(
            model, ticket.version, ticket.protocol, outcome, seconds, received_at - ticket.started_at
        )


def _outcome(error: BaseException | None) -> Outcome:
    if error is None:
        return Outcome.OK
    if isinstance(error, asyncio.CancelledError):
        return Outcome.CANCELLED
    return error.outcome if isinstance(error, FoveaError) else Outcome.ERROR


def _enter(
    model: LoadedModel, image: ImagePayload | ClipPayload, request: InferenceRequest, ticket: Ticket
) -> Entry[Item, Answer] | FoveaError:
    """Into the queue, or what is wrong with the image. Raises NoImageSignature, Overloaded."""
    try:
        inspected = model.inspect(image)
    except _IMAGE_FAULTS as error:
        return error
    item = ImageItem(inspected, request.top_k, request.threshold, request_id_var.get())
    return model.submit(item, request.deadline_at, ticket.share)


async def _settled(model: LoadedModel, place: Entry[Item, Answer] | FoveaError) -> Classification | FoveaError:
    """How an image was answered. Raises what concerns the whole request: Overloaded, DeadlineExceeded, EngineFailed."""
    if isinstance(place, FoveaError):
        return place
    try:
        answer = await place.future
    except _IMAGE_FAULTS as error:
        return error.with_traceback(None)  # whose frames hold this entry, which holds the error
    return model.classified(place, answer)


def _forget(model: LoadedModel, places: Sequence[Entry[Item, Answer] | FoveaError], ticket: Ticket) -> None:
    """Nobody waits any more for what is not done."""
    for place in places:
        if isinstance(place, Entry) and place.answer is None and not place.is_answered:
            ticket.phase = "queue" if place.dispatched_at is None else "infer"
            model.forget(place)
