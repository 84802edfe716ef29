"""Series and their labels: closed sets, numbers that only grow, and a scrape that stays small."""

from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from service.errors import Outcome
from service.messages import Prediction, Timings
from service.metrics import CONTENT_TYPE, OTHER, Metrics, PredictedLabels


class States:
    """A StateSource."""

    def __init__(self, *states: tuple[str, str, str]) -> None:
        self.known = list(states)

    def states(self) -> Iterator[tuple[str, str, str]]:
        yield from self.known

    def roles(self) -> Iterator[tuple[str, str, str, float]]:
        yield from ()


def scraped(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of a scrape by name and labels; a series that is there twice is a failure."""
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples, f"{key} is there twice"
            samples[key] = sample.value
    return samples


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return scraped(metrics).get((name, tuple(sorted(labels.items()))))


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics("1.2.3")
    metrics.models_found(["cats"])
    return metrics


# The scrape


def test_a_scrape_is_prometheus_text_and_ours_is_in_it(metrics: Metrics) -> None:
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")
    assert value(metrics, "fovea_build_info", version="1.2.3") == 1
    assert value(metrics, "fovea_inflight_requests") == 0


def test_counters_have_no_created_twins(metrics: Metrics) -> None:
    metrics.request_finished("cats", 1, "native", Outcome.OK, 0.1, 0.0)
    assert not [name for name, _ in scraped(metrics) if name.startswith("fovea_") and name.endswith("_created")]


def test_two_servers_in_one_process_do_not_share_their_numbers(metrics: Metrics) -> None:
    metrics.request_finished("cats", 1, "native", Outcome.OK, 0.1, 0.0)
    assert not [name for name, _ in scraped(Metrics("x")) if name == "fovea_requests_total"]


# Requests


def test_a_request_is_counted_by_how_it_ended_and_timed(metrics: Metrics) -> None:
    metrics.request_finished("cats", 1, "native", Outcome.OK, 0.2, 0.01)
    metrics.request_finished("cats", 1, "native", Outcome.OK, 0.4, 0.0)
    metrics.request_finished("cats", None, "v2", Outcome.REJECTED, 0.0, 0.0)
    labels = {"model": "cats", "version": "1", "protocol": "native", "outcome": "ok"}
    assert value(metrics, "fovea_requests_total", **labels) == 2
    rejected = {"model": "cats", "version": OTHER, "protocol": "v2", "outcome": "rejected"}
    assert value(metrics, "fovea_requests_total", **rejected) == 1
    assert value(metrics, "fovea_request_duration_seconds_count", model="cats", protocol="native") == 2
    assert value(metrics, "fovea_request_duration_seconds_sum", model="cats", protocol="native") == pytest.approx(0.6)
    assert value(metrics, "fovea_stage_duration_seconds_count", model="cats", stage="receive") == 1


def test_durations_have_buckets_from_a_tenth_of_a_millisecond_to_ten_seconds(metrics: Metrics) -> None:
    metrics.request_finished("cats", 1, "native", Outcome.OK, 0.2, 0.0)
    bounds = [
        float(dict(labels)["le"])
        for name, labels in scraped(metrics)
        if name == "fovea_request_duration_seconds_bucket"
    ]
    assert min(bounds) == 0.0001
    assert sorted(bounds)[-2:] == [10.0, float("inf")]


def test_a_model_that_is_not_in_the_repository_is_other(metrics: Metrics) -> None:
    assert metrics.model_label("cats") == "cats"
    assert metrics.model_label("../../etc/passwd") == OTHER
    metrics.models_found([])
    assert metrics.model_label("cats") == OTHER


def test_unknown_names_make_no_new_series(metrics: Metrics) -> None:
    def ask(name: str) -> None:
        metrics.request_finished(metrics.model_label(name), None, "native", Outcome.CLIENT_ERROR, 0.1, 0.1)
        metrics.rejected.labels(metrics.model_label(name), "not_ready").inc()

    ask("nobody")
    before = scraped(metrics)
    for number in range(1000):
        ask(f"model-{number}")
    assert set(scraped(metrics)) == set(before)
    labels = {"model": OTHER, "version": OTHER, "protocol": "native", "outcome": "client_error"}
    assert value(metrics, "fovea_requests_total", **labels) == 1001


# Versions


def test_the_answers_of_a_version_are_counted_by_stage_label_and_score(metrics: Metrics) -> None:
    metrics.watch(States())
    bound = metrics.model_loaded("cats", 3, ("tabby", "manx"), "cpu")
    timings = Timings(decode_seconds=0.1, queue_seconds=0.2, infer_seconds=0.3)
    bound.image_answered((Prediction("manx", 1, 0.9), Prediction("tabby", 0, 0.1)), timings)
    bound.image_answered((), timings)
    bound.postprocessed(0.4)
    bound.batch_executed(2, 0.3)
    metrics.watch_queue("cats", lambda: 7)
    assert value(metrics, "fovea_images_total", model="cats", version="3") == 2
    assert value(metrics, "fovea_predictions_total", model="cats", version="3", label="manx") == 1
    assert value(metrics, "fovea_predictions_total", model="cats", version="3", label=OTHER) == 0
    assert value(metrics, "fovea_prediction_confidence_count", model="cats", version="3") == 1
    assert value(metrics, "fovea_prediction_confidence_sum", model="cats", version="3") == pytest.approx(0.9)
    sums = {
        stage: value(metrics, "fovea_stage_duration_seconds_sum", model="cats", stage=stage)
        for stage in ("decode", "queue", "infer", "postprocess")
    }
    assert sums == pytest.approx({"decode": 0.2, "queue": 0.4, "infer": 0.6, "postprocess": 0.4})
    assert value(metrics, "fovea_batch_size_sum", model="cats") == 2
    assert value(metrics, "fovea_queue_entries", model="cats") == 7


def test_the_queues_of_two_versions_add_up(metrics: Metrics) -> None:
    old, new = [None] * 5, [None] * 2
    metrics.watch_queue("cats", old.__len__)
    metrics.watch_queue("cats", new.__len__)
    assert value(metrics, "fovea_queue_entries", model="cats") == 7
    new.clear()
    assert value(metrics, "fovea_queue_entries", model="cats") == 5
    metrics.unwatch_queue("cats", old.__len__)
    assert value(metrics, "fovea_queue_entries", model="cats") == 0


def test_states_and_providers_are_read_at_the_scrape(metrics: Metrics) -> None:
    states = States(("cats", "1", "LOADING"))
    metrics.watch(states)
    assert value(metrics, "fovea_model_state", model="cats", version="1", state="LOADING") == 1
    states.known = [("cats", "1", "READY")]
    metrics.model_loaded("cats", 1, ("a", "b"), "cuda")
    assert value(metrics, "fovea_model_state", model="cats", version="1", state="LOADING") is None
    assert value(metrics, "fovea_model_state", model="cats", version="1", state="READY") == 1
    assert value(metrics, "fovea_provider_info", model="cats", version="1", provider="cuda") == 1
    metrics.model_unloaded("cats", 1)
    assert value(metrics, "fovea_provider_info", model="cats", version="1", provider="cuda") is None


def test_a_version_loaded_again_goes_on_counting_where_it_was(metrics: Metrics) -> None:
    metrics.watch(States())
    for _ in range(2):
        bound = metrics.model_loaded("cats", 1, ("a", "b"), "cpu")
        bound.image_answered((Prediction("a", 0, 0.9),), Timings())
        metrics.model_unloaded("cats", 1)
    assert value(metrics, "fovea_images_total", model="cats", version="1") == 2
    assert value(metrics, "fovea_predictions_total", model="cats", version="1", label="a") == 2


def test_of_versions_that_went_only_the_last_few_are_shown(metrics: Metrics) -> None:
    metrics.watch(States())
    metrics.models_found(["cats"])
    metrics.model_loaded("cats", 1, ("a", "b"), "cpu")
    first = len(metrics.render())
    for version in range(2, 102):
        bound = metrics.model_loaded("cats", version, ("a", "b"), "cpu")
        bound.image_answered((Prediction("a", 0, 0.9),), Timings())
        bound.broken(True)
        metrics.shadow_of("cats", version).rows("agreed", 1)
        metrics.request_finished("cats", version, "native", Outcome.OK, 0.1, 0.1)
        metrics.model_unloaded("cats", version)
    text = metrics.render().decode()
    assert 'version="85"' not in text
    assert 'version="1"' in text
    assert len(text) < 30 * first
    for version in range(86, 102):
        assert value(metrics, "fovea_images_total", model="cats", version=str(version)) == 1
        assert value(metrics, "fovea_engine_broken", model="cats", version=str(version)) == 0
    again = metrics.model_loaded("cats", 2, ("a", "b"), "cpu")
    again.image_answered((Prediction("a", 0, 0.9),), Timings())
    metrics.request_finished("cats", 2, "native", Outcome.OK, 0.1, 0.1)
    assert value(metrics, "fovea_images_total", model="cats", version="2") == 1
    assert value(metrics, "fovea_requests_total", model="cats", version="2", protocol="native", outcome="ok") == 1


def test_a_version_loaded_again_with_other_labels_is_counted_by_those(metrics: Metrics) -> None:
    """Its files were replaced while it was out of service."""
    metrics.watch(States())
    metrics.model_loaded("cats", 1, ("a", "b"), "cpu")
    bound = metrics.model_loaded("cats", 1, ("x", "y", "z"), "cpu")
    bound.image_answered((Prediction("z", 2, 0.9),), Timings())
    assert value(metrics, "fovea_predictions_total", model="cats", version="1", label="z") == 1


def test_loads_are_counted_by_result(metrics: Metrics) -> None:
    metrics.load_finished("cats", ok=True)
    metrics.load_finished("cats", ok=False)
    metrics.load_finished("cats", ok=False)
    assert value(metrics, "fovea_model_reloads_total", model="cats", result="success") == 1
    assert value(metrics, "fovea_model_reloads_total", model="cats", result="failure") == 2


def test_labels_of_any_text_can_be_scraped(metrics: Metrics) -> None:
    labels = ('with "quotes"', "back\\slash", "K\u00e4se", "\U0001f408", "a{b}=c,d")
    metrics.watch(States())
    bound = metrics.model_loaded("cats", 1, labels, "cpu")
    for index, label in enumerate(labels):
        bound.image_answered((Prediction(label, index, 0.5),), Timings())
    for label in labels:
        assert value(metrics, "fovea_predictions_total", model="cats", version="1", label=label) == 1


def test_a_label_named_as_the_rest_makes_no_second_series(metrics: Metrics) -> None:
    metrics.watch(States())
    bound = metrics.model_loaded("cats", 1, ("cat", OTHER), "cpu")
    bound.image_answered((Prediction(OTHER, 1, 0.5),), Timings())
    assert value(metrics, "fovea_predictions_total", model="cats", version="1", label=OTHER) == 1


# PredictedLabels


@given(
    labels=st.integers(1, 8),
    shown=st.integers(1, 5),
    rounds=st.lists(st.lists(st.integers(0, 7), max_size=12), max_size=12),
)
@example(labels=4, shown=2, rounds=[[0], [1, 2, 3], [3, 3, 3, 2]])
@settings(max_examples=300, deadline=None)
def test_every_series_of_predictions_only_grows_and_they_are_bounded(
    labels: int, shown: int, rounds: list[list[int]]
) -> None:
    names = tuple(f"label {index}" for index in range(labels))
    predicted = PredictedLabels(names, shown)
    before: dict[str, int] = {}
    total = 0
    for additions in rounds:
        for index in additions:
            predicted.add(index % labels)
            total += 1
        listed = list(predicted.series())
        series = dict(listed)
        assert len(series) == len(listed)
        assert len(series) <= shown + 1
        assert sum(series.values()) == total
        assert all(count > 0 for name, count in series.items() if name != OTHER)
        assert all(series.get(name, -1) >= count for name, count in before.items())
        assert set(series) <= {*names, OTHER}
        before = series


@given(additions=st.lists(st.integers(0, 4), max_size=30), scrapes=st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_where_all_labels_fit_each_is_counted_exactly(additions: list[int], scrapes: int) -> None:
    predicted = PredictedLabels(tuple("abcde"), 5)
    for index in additions:
        predicted.add(index)
        for _ in range(scrapes):
            series = dict(predicted.series())
    if additions:
        assert {label: count for label, count in series.items() if label != OTHER} == {
            label: additions.count(index) for index, label in enumerate("abcde") if index in additions
        }
        assert series[OTHER] == 0


def test_the_most_frequent_labels_are_the_ones_shown() -> None:
    predicted = PredictedLabels(tuple("abcdef"), 2)
    for index, times in enumerate((1, 5, 2, 9, 3, 1)):
        for _ in range(times):
            predicted.add(index)
    assert {label for label, _ in predicted.series()} == {"d", "b", OTHER}


def test_a_scrape_of_a_thousand_labels_shows_fifty() -> None:
    predicted = PredictedLabels(tuple(map(str, range(1000))))
    for index in range(1000):
        predicted.add(index)
    assert len(list(predicted.series())) == 51
