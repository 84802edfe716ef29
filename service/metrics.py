"""Every metric, declared once; the only importer of prometheus_client.

Owns names, labels and buckets. Labels come from closed sets: `model` and `version` only of models in the repository,
anything else is `_other`. Children are bound when a version is loaded, so that the request's way only adds numbers.
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import ClassVar, Generic, Protocol, TypeVar

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from service.drift import CONFIDENCE_BUCKETS, DriftWindow, Reference
from service.errors import Outcome
from service.messages import Prediction, Timings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "_other"

DURATION_BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_DIFFERENCE_BUCKETS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # of two scores
_LOAD_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_LABELS_SHOWN = 50
_GONE_VERSIONS_SHOWN = 16


disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, that nobody reads


ChildT = TypeVar("ChildT")
_RequestKey = tuple[str, int | None, str, str]


class StateSource(Protocol):
    """What the scrape asks the repository for."""

    def states(self) -> Iterable[tuple[str, str, str]]:
        """(model, version, state) of every version known."""
        ...

    def roles(self) -> Iterable[tuple[str, str, str, float]]:
        """(model, version, role, share) of every version that has a role."""
        ...


class Distribution:
    """One series of a histogram. Event loop only."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Count:
    """One series of a counter. Event loop only."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class QuickMetric(Collector, ABC, Generic[ChildT]):
    """A metric by labels that every request moves. prometheus_client's own take a lock and four calls for each number,
    and look at the buckets of a histogram one after the other: a microsecond each, of which these leave a fifth.
    """

    kind: ClassVar[str]

    def __init__(self, name: str, text: str, labels: Sequence[str], *, registry: CollectorRegistry) -> None:
        self.name, self.text, self.label_names = name, text, labels
        self._children: dict[tuple[str, ...], ChildT] = {}
        registry.register(self)

    @abstractmethod
    def _child(self) -> ChildT:
        """A new series."""

    @abstractmethod
    def _family(self) -> Metric:
        """What is scraped."""

    def labels(self, *values: str) -> ChildT:
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._child()
        return child

    def remove_by_labels(self, labels: Mapping[str, str]) -> None:
        """Forget every child with these values, as prometheus_client's own metrics do."""
        wanted = {self.label_names.index(name): value for name, value in labels.items()}
        for values in list(self._children):
            if all(values[place] == value for place, value in wanted.items()):
                del self._children[values]

    def describe(self) -> list[Metric]:
        return [self._family()]

    def collect(self) -> Iterator[Metric]:
        yield self._family()


class Tally(QuickMetric[Count]):
    """A counter."""

    kind = "counter"

    def _child(self) -> Count:
        return Count()

    def _family(self) -> Metric:
        family = CounterMetricFamily(self.name, self.text, labels=self.label_names)
        for values, child in self._children.items():
            family.add_metric(values, child.value)
        return family


class Histogram(QuickMetric[Distribution]):
    """A histogram."""

    kind = "histogram"

    def __init__(
        self, name: str, text: str, labels: Sequence[str], *, buckets: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._bounds = buckets
        self._les = [str(floatToGoString(bound)) for bound in (*buckets, math.inf)]  # type: ignore[no-untyped-call]  # theirs
        super().__init__(name, text, labels, registry=registry)

    def _child(self) -> Distribution:
        return Distribution(self._bounds)

    def _family(self) -> Metric:
        family = HistogramMetricFamily(self.name, self.text, labels=self.label_names)
        for values, child in self._children.items():
            family.add_metric(values, list(zip(self._les, accumulate(child.counts), strict=True)), child.total)
        return family


class PredictedLabels:
    """Counts of top-1 predictions of one version, of which the most frequent labels are shown by name.

    A label, once shown, stays shown; what it had before it was shown stays in `_other`. So every series only grows.
    """

    def __init__(self, labels: tuple[str, ...], shown: int = _LABELS_SHOWN) -> None:
        self._labels = labels
        self._room = shown
        self._counts = [0] * len(labels)  # which numpy would take three times as long to add to
        self._hidden_before: dict[int, int] = {}

    def add(self, index: int) -> None:
        self._counts[index] += 1

    def series(self) -> Iterator[tuple[str, int]]:
        """(label, count) of the labels shown, then `_other`."""
        counts = np.array(self._counts)
        for index in np.argsort(-counts, kind="stable")[: self._room].tolist():
            if self._counts[index] == 0 or len(self._hidden_before) >= self._room:
                break
            if self._labels[index] == OTHER:
                continue
            self._hidden_before.setdefault(index, 0 if len(self._labels) <= self._room else self._counts[index] - 1)
        shown = {index: self._counts[index] - before for index, before in self._hidden_before.items()}
        for index, count in shown.items():
            yield self._labels[index], count
        yield OTHER, sum(self._counts) - sum(shown.values())


class ModelMetrics:
    """The metrics of one loaded version, bound to its labels. Event loop only."""

    def __init__(self, metrics: "Metrics", model: str, version: int, labels: tuple[str, ...]) -> None:
        number = str(version)
        self.labels = labels
        self.predicted = PredictedLabels(labels)
        self.drift: DriftWindow | None = None
        self._failed_executions = metrics.failed_executions.labels(model)
        self._hung = metrics.hung_executions.labels(model)
        self._broken = metrics.broken.labels(model, number)
        self._images = metrics.images.labels(model, number)
        self._batch_size = metrics.batch_size.labels(model)
        self._confidence = metrics.confidence.labels(model, number)
        self._decode, self._queue, self._infer, self._postprocess = (
            metrics.stage_seconds.labels(model, stage) for stage in ("decode", "queue", "infer", "postprocess")
        )

    def watch_drift(self, reference: Reference | None, window: int) -> None:
        """Compare what is predicted from now on with `reference`; a window that compares with the same one goes on."""
        if reference is None:
            self.drift = None
        elif self.drift is None or self.drift.reference != reference:
            self.drift = DriftWindow(reference, window)

    def executions_failed(self, count: int) -> None:
        self._failed_executions.inc(count)

    def hung(self) -> None:
        self._hung.inc()

    def broken(self, is_broken: bool) -> None:
        self._broken.set(is_broken)

    def batch_executed(self, size: int, seconds: float) -> None:
        self._batch_size.observe(size)

    def postprocessed(self, seconds: float) -> None:
        self._postprocess.observe(seconds)

    def image_answered(self, predictions: tuple[Prediction, ...], timings: Timings) -> None:
        self._images.value += 1
        self._decode.observe(timings.decode_seconds)
        self._queue.observe(timings.queue_seconds)
        self._infer.observe(timings.infer_seconds)
        if predictions:
            best = predictions[0]
            self.predicted.add(best.index)
            self._confidence.observe(best.score)
            if self.drift is not None:
                self.drift.add(best.index, best.score)


class ShadowMetrics:
    """What a shadow counts."""

    def __init__(self, metrics: "Metrics", model: str, version: int) -> None:
        number = str(version)
        self._rows = {
            result: metrics.shadow_rows.labels(model, number, result)
            for result in ("agreed", "disagreed", "failed", "left_out")
        }
        self._difference = metrics.shadow_difference.labels(model, number)
        self._seconds = {role: metrics.shadow_seconds.labels(model, number, role) for role in ("stable", "shadow")}

    def rows(self, result: str, count: int) -> None:
        self._rows[result].inc(count)

    def score_difference(self, difference: float) -> None:
        self._difference.observe(difference)

    def executed(self, stable_seconds: float, shadow_seconds: float) -> None:
        """CPU seconds of the same execution in both versions."""
        self._seconds["stable"].observe(stable_seconds)
        self._seconds["shadow"].observe(shadow_seconds)


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self._counter = partial(Counter, registry=self.registry)
        self._tally = partial(Tally, registry=self.registry)
        self._gauge = partial(Gauge, registry=self.registry)
        self._histogram = partial(Histogram, registry=self.registry)
        self._declare_requests()
        self._declare_loading()
        self._declare_execution()
        self._declare_process(version)
        self._request_children: dict[_RequestKey, tuple[Count, Distribution, Distribution]] = {}
        self._loaded: dict[tuple[str, int], ModelMetrics] = {}
        self._queues: dict[str, list[Callable[[], int]]] = {}
        self._providers: dict[tuple[str, str], str] = {}
        self._times_loaded: Counts[tuple[str, int]] = Counts()
        self._gone: dict[tuple[str, int], None] = {}  # in the order of going
        self._names: frozenset[str] = frozenset()

    def _declare_requests(self) -> None:
        self.requests = self._tally(
            "fovea_requests", "Requests by how they ended.", ["model", "version", "protocol", "outcome"]
        )
        self.request_seconds = self._histogram(
            "fovea_request_duration_seconds",
            "From the first byte of a request to its answer.",
            ["model", "protocol"],
            buckets=DURATION_BUCKETS,
        )
        self.stage_seconds = self._histogram(
            "fovea_stage_duration_seconds",
            "Time a request spent in each stage.",
            ["model", "stage"],
            buckets=DURATION_BUCKETS,
        )
        self.images = self._tally("fovea_images", "Images answered.", ["model", "version"])
        self.batch_size = self._histogram(
            "fovea_batch_size", "Images in one execution.", ["model"], buckets=_BATCH_BUCKETS
        )
        self.queue_entries = self._gauge("fovea_queue_entries", "Entries waiting for an execution.", ["model"])
        self.inflight = self._gauge("fovea_inflight_requests", "Requests admitted and not yet answered.")
        self.rejected = self._counter(
            "fovea_rejected", "Requests refused or dropped to keep the service healthy.", ["model", "reason"]
        )
        self.cancelled = self._counter(
            "fovea_cancelled", "Requests whose caller left, by where they were then.", ["model", "phase"]
        )
        self.images_rejected = self._counter("fovea_images_rejected", "Images refused.", ["model", "reason"])
        self.confidence = self._histogram(
            "fovea_prediction_confidence",
            "Score of the best prediction.",
            ["model", "version"],
            buckets=CONFIDENCE_BUCKETS,
        )

    def _declare_loading(self) -> None:
        self.reloads = self._counter("fovea_model_reloads", "Loads of a version.", ["model", "result"])
        self.refusals = self._counter(
            "fovea_model_refusals", "Versions kept out, by the check they failed.", ["model", "reason"]
        )
        self.load_seconds = self._histogram(
            "fovea_model_load_duration_seconds",
            "Loading one version, warm-up included.",
            ["model"],
            buckets=_LOAD_BUCKETS,
        )

    def _declare_execution(self) -> None:
        self.failed_executions = self._counter(
            "fovea_failed_executions",
            "Engine calls that failed, those that look for who is at fault included.",
            ["model"],
        )
        self.hung_executions = self._counter("fovea_hung_executions", "Engine calls that had to be ended.", ["model"])
        self.lost_threads = self._counter("fovea_lost_threads", "Execution threads given up with what hung in them.")
        self.broken = self._gauge(
            "fovea_engine_broken",
            "1 while a version is out of service as its engine always fails.",
            ["model", "version"],
        )
        self.shadow_rows = self._counter(
            "fovea_shadow_images",
            "Images a shadow was offered, by what became of them.",
            ["model", "version", "result"],
        )
        self.shadow_difference = self._histogram(
            "fovea_shadow_score_difference",
            "How far the shadow scores the stable version's best label from it.",
            ["model", "version"],
            buckets=_DIFFERENCE_BUCKETS,
        )
        self.shadow_seconds = self._histogram(
            "fovea_shadow_duration_seconds",
            "CPU time of one execution, by the stable version and by its shadow.",
            ["model", "version", "role"],
            buckets=DURATION_BUCKETS,
        )

    def _declare_process(self, version: str) -> None:
        self.repository_errors = self._counter("fovea_repository_errors", "Looks at the repository that did not work.")
        self.open_connections = self._gauge("fovea_open_connections", "Connections of clients, as of the last second.")
        self.connections_closed = self._counter(
            "fovea_connections_closed", "Connections and requests ended by a limit of the transport.", ["reason"]
        )
        self.accepts_failed = self._counter(
            "fovea_accepts_failed", "Times that a connection had to wait for a descriptor or for memory."
        )
        self.tasks = self._gauge("fovea_event_loop_tasks", "Tasks of the event loop that have not ended.")
        self.auth_failures = self._counter(
            "fovea_auth_failures", "Requests without the credential they need.", ["reason"]
        )
        self.log_dropped = self._gauge("fovea_log_lines_dropped", "Log lines lost to a stalled reader of stdout.")
        self.spans_lost = self._gauge("fovea_trace_spans_lost", "Spans of traces that no collector took.")
        self._gauge("fovea_build_info", "The running build.", ["version"]).labels(version).set(1)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)

    def watch(self, source: StateSource) -> None:
        """Show the states of `source`, and the predictions of loaded versions, at every scrape."""
        self.registry.register(_StateCollector(source, self))

    def model_label(self, name: str) -> str:
        """`name` where it is a model of the repository, else `_other`: callers cannot make series."""
        return name if name in self._names else OTHER

    def models_found(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)

    def model_loaded(self, model: str, version: int, labels: tuple[str, ...], provider: str) -> ModelMetrics:
        """Bind the metrics of a version. Counters of a version loaded again go on where they were."""
        self._gone.pop((model, version), None)
        self._providers[model, str(version)] = provider
        self._times_loaded[model, version] += 1
        known = self._loaded.get((model, version))
        if known is None or known.labels != labels:
            known = self._loaded[model, version] = ModelMetrics(self, model, version, labels)
        return known

    def model_unloaded(self, model: str, version: int) -> None:
        """The last few versions that went stay to be scraped; of those before them nothing is kept."""
        self._times_loaded[model, version] -= 1
        if self._times_loaded[model, version]:  # it was loaded again beside itself
            return
        self._providers.pop((model, str(version)), None)
        self._loaded[model, version].broken(False)
        self._gone[model, version] = None
        if len(self._gone) > _GONE_VERSIONS_SHOWN:
            self._forget(*next(iter(self._gone)))

    def _forget(self, model: str, version: int) -> None:
        del self._gone[model, version], self._loaded[model, version], self._times_loaded[model, version]
        for key in [key for key in self._request_children if key[:2] == (model, version)]:
            del self._request_children[key]
        for family in (
            self.requests,
            self.images,
            self.confidence,
            self.broken,
            self.shadow_rows,
            self.shadow_difference,
            self.shadow_seconds,
        ):
            family.remove_by_labels({"model": model, "version": str(version)})

    def watch_queue(self, model: str, waiting: Callable[[], int]) -> None:
        """Read at every scrape, from any thread; the queues of a model's versions add up."""
        queues = self._queues.setdefault(model, [])
        queues.append(waiting)
        self.queue_entries.labels(model).set_function(lambda: sum(queue() for queue in queues))

    def unwatch_queue(self, model: str, waiting: Callable[[], int]) -> None:
        self._queues[model].remove(waiting)

    def load_finished(self, model: str, *, ok: bool, seconds: float = 0.0, gate: str = "") -> None:
        """`gate` is which check a version failed."""
        self.reloads.labels(model, "success" if ok else "failure").inc()
        if ok:
            self.load_seconds.labels(model).observe(seconds)
        else:
            self.refusals.labels(model, gate or "internal").inc()

    def shadow_of(self, model: str, version: int) -> ShadowMetrics:
        """Bind the metrics of a shadow."""
        return ShadowMetrics(self, model, version)

    def request_finished(
        self, model: str, version: int | None, protocol: str, outcome: Outcome, seconds: float, receive_seconds: float
    ) -> None:
        key = (model, version, protocol, outcome._value_)  # an Enum's own hash and `value` are calls of Python
        children = self._request_children.get(key)
        if children is None:
            number = OTHER if version is None else str(version)
            children = self._request_children[key] = (
                self.requests.labels(model, number, protocol, outcome.value),
                self.request_seconds.labels(model, protocol),
                self.stage_seconds.labels(model, "receive"),
            )
        ended, took, received = children
        ended.value += 1
        took.observe(seconds)
        if receive_seconds > 0:
            received.observe(receive_seconds)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def predicted_series(self) -> Iterator[tuple[str, str, str, int]]:
        for (model, version), metrics in self._loaded.items():
            for label, count in metrics.predicted.series():
                yield model, str(version), label, count

    def drift_series(self) -> Iterator[tuple[str, str, float, float]]:
        """(model, version, of the classes, of the confidence) of versions whose window is full."""
        for (model, version), metrics in self._loaded.items():
            indices = (
                metrics.drift.indices() if metrics.drift is not None and self._times_loaded[model, version] else None
            )
            if indices is not None:
                yield model, str(version), *indices

    def provider_series(self) -> Iterator[tuple[str, str, str]]:
        for (model, version), provider in self._providers.items():
            yield model, version, provider


class _StateCollector(Collector):
    """What is read at the scrape instead of being counted on the request's way."""

    def __init__(self, source: StateSource, metrics: Metrics) -> None:
        self._source = source
        self._metrics = metrics

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        states = GaugeMetricFamily(
            "fovea_model_state", "1 for the state a version is in.", labels=["model", "version", "state"]
        )
        for model, version, state in self._source.states():
            states.add_metric([model, version, state], 1)
        yield states
        providers = GaugeMetricFamily(
            "fovea_provider_info", "The execution provider in use.", labels=["model", "version", "provider"]
        )
        for model, version, provider in self._metrics.provider_series():
            providers.add_metric([model, version, provider], 1)
        yield providers
        shares = GaugeMetricFamily(
            "fovea_rollout_share", "Share of what a role gives a version.", labels=["model", "version", "role"]
        )
        for model, version, role, share in self._source.roles():
            shares.add_metric([model, version, role], share)
        yield shares
        classes = GaugeMetricFamily(
            "fovea_prediction_drift",
            "Population stability index of the predicted classes against reference.json.",
            labels=["model", "version"],
        )
        confidence = GaugeMetricFamily(
            "fovea_confidence_drift",
            "Population stability index of the best scores against reference.json.",
            labels=["model", "version"],
        )
        for model, version, of_classes, of_confidence in self._metrics.drift_series():
            classes.add_metric([model, version], of_classes)
            confidence.add_metric([model, version], of_confidence)
        yield classes
        yield confidence
        predictions = CounterMetricFamily(
            "fovea_predictions", "Best predictions by label.", labels=["model", "version", "label"]
        )
        for model, version, label, count in self._metrics.predicted_series():
            predictions.add_metric([model, version, label], count)
        yield predictions
