"""Names and labels of metrics against the contract, and that each of them is moved by somebody."""

import re
from pathlib import Path

import pytest
from prometheus_client.core import Metric
from prometheus_client.metrics import MetricWrapperBase

from service.metrics import Metrics, QuickMetric

SERVICE = Path(__file__).parents[2] / "service"
CONTRACT = {  # contract.md section 5; counters by the name that is scraped
    "fovea_requests_total": {"model", "version", "protocol", "outcome"},
    "fovea_request_duration_seconds": {"model", "protocol"},
    "fovea_stage_duration_seconds": {"model", "stage"},
    "fovea_images_total": {"model", "version"},
    "fovea_batch_size": {"model"},
    "fovea_queue_entries": {"model"},
    "fovea_inflight_requests": set(),
    "fovea_rejected_total": {"model", "reason"},
    "fovea_cancelled_total": {"model", "phase"},
    "fovea_images_rejected_total": {"model", "reason"},
    "fovea_model_state": {"model", "version", "state"},
    "fovea_model_reloads_total": {"model", "result"},
    "fovea_predictions_total": {"model", "version", "label"},
    "fovea_prediction_confidence": {"model", "version"},
    "fovea_build_info": {"version"},
    "fovea_provider_info": {"model", "version", "provider"},
}
HISTOGRAMS = {
    "fovea_request_duration_seconds",
    "fovea_stage_duration_seconds",
    "fovea_batch_size",
    "fovea_prediction_confidence",
}
LABELS = frozenset({"role"}).union(*CONTRACT.values())  # of a version in a rollout: stable, canary, shadow


class OneModel:
    """A StateSource."""

    def states(self) -> list[tuple[str, str, str]]:
        return [("cats", "1", "READY")]

    def roles(self) -> list[tuple[str, str, str, float]]:
        return [("cats", "1", "stable", 1.0)]


def declared() -> dict[str, tuple[str, str, frozenset[str]]]:
    """Every metric of ours by its scraped name: (type, help, label names)."""
    metrics = Metrics("test")
    wrappers = [one for one in metrics.registry._collector_to_names if isinstance(one, MetricWrapperBase)]
    found = {one._name: (one._type, one._documentation, frozenset(one._labelnames)) for one in wrappers}
    metrics.watch(OneModel())
    metrics.model_loaded("cats", 1, ("tabby",), "cpu").predicted.add(0)
    for collector in list(metrics.registry._collector_to_names):
        if isinstance(collector, QuickMetric):
            found[collector.name] = (collector.kind, collector.text, frozenset(collector.label_names))
        elif type(collector).__module__ == "service.metrics":
            families: list[Metric] = list(collector.collect())
            for family in families:
                labels = frozenset().union(*(sample.labels for sample in family.samples))
                found[family.name] = (family.type, family.documentation, labels)
    return {
        name + ("_total" if kind == "counter" else ""): (kind, text, labels)
        for name, (kind, text, labels) in found.items()
    }


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_a_metric_of_the_contract_exists_with_its_labels(name: str) -> None:
    assert declared()[name][2] == CONTRACT[name]


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_a_metric_of_the_contract_has_the_type_its_name_says(name: str) -> None:
    expected = "histogram" if name in HISTOGRAMS else "counter" if name.endswith("_total") else "gauge"
    assert declared()[name][0] == expected


def test_every_name_starts_with_fovea_and_uses_base_units() -> None:
    for name, (kind, _, _) in declared().items():
        assert re.fullmatch(r"fovea_[a-z]+(_[a-z]+)*", name), name
        assert not re.search(r"_(ms|millis|milliseconds|us|ns|minutes|kb|mb|kib|mib|percent)(_|$)", name), name
        assert name.endswith("_total") == (kind == "counter"), name
        assert not name.endswith(("_count", "_sum", "_bucket", "_created")), name


def test_durations_are_in_seconds() -> None:
    for name in declared():
        if "duration" in name or "latency" in name:
            assert name.endswith("_seconds"), name


def test_every_metric_says_what_it_is() -> None:
    for name, (_, text, _) in declared().items():
        assert text.endswith("."), name


def test_labels_come_from_the_contract() -> None:
    for name, (_, _, labels) in declared().items():
        assert labels <= LABELS, name


@pytest.mark.parametrize(
    "attribute",
    sorted(name for name, one in vars(Metrics("x")).items() if isinstance(one, MetricWrapperBase | QuickMetric)),
)
def test_every_metric_is_moved_by_somebody(attribute: str) -> None:
    """Declared and never touched, it would be nought for ever."""
    used = re.compile(rf"metrics\.{attribute}\.|self\.{attribute}\.")
    assert any(used.search(path.read_text(encoding="utf-8")) for path in SERVICE.rglob("*.py"))
