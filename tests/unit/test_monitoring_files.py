"""Dashboard, rules and runbook against the service and each other: what a rename would break without a sound."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.errors import Outcome
from service.metrics import Metrics
from service.repository.states import ModelState

PROJECT = Path(__file__).parents[2]
MONITORING = PROJECT / "deploy" / "monitoring"
RULES = (MONITORING / "rules.yml").read_text(encoding="utf-8")
RULES_TEST = (MONITORING / "rules_test.yml").read_text(encoding="utf-8")
RUNBOOK = (PROJECT / "deploy" / "RUNBOOK.md").read_text(encoding="utf-8")
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
ALERTS = re.findall(r"^ +- alert: (\w+)$", RULES, re.MULTILINE)
RECORDED = set(re.findall(r"^ +- record: (\S+)", RULES, re.MULTILINE))
COLUMNS = 24
# Names that come from elsewhere: Prometheus itself, and dcgm-exporter where there are GPUs.
FOREIGN = {"up", "ALERTS"}
STAGES = {"receive", "decode", "queue", "infer", "postprocess"}  # contract, section 5

_METRIC = re.compile(r"\b((?:fovea|process|python)_[a-z0-9_]+|up|ALERTS)(?=[\[{ )=]|$)")
_SELECTOR = re.compile(r'(\w+)(=|!=|=~|!~)"([^"]*)"')


class OneModel:
    """A StateSource."""

    def states(self) -> list[tuple[str, str, str]]:
        return [("cats", "1", "READY")]

    def roles(self) -> list[tuple[str, str, str, float]]:
        return [("cats", "1", "stable", 1.0)]


@pytest.fixture(scope="module")
def scraped() -> set[str]:
    """Every sample name a scrape of a service in use has."""
    metrics = Metrics("test")
    metrics.watch(OneModel())
    metrics.model_loaded("cats", 1, ("tabby",), "cpu")
    declared = {"fovea_model_state", "fovea_provider_info", "fovea_predictions_total"}
    for family in metrics.registry.collect():
        declared |= {sample.name for sample in family.samples}
        endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        declared |= {family.name + ending for ending in endings}
    return declared


def rejection_reasons() -> set[str]:
    """Every `reason` the service's code gives to a refusal."""
    found = {"not_ready"}  # ModelNotReady, counted in pipeline.py
    for path in (PROJECT / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name == "_overloaded" and isinstance(node.args[0], ast.Constant):
                    found.add(str(node.args[0].value))
                found |= {
                    str(keyword.value.value)
                    for keyword in node.keywords
                    if keyword.arg == "reason" and isinstance(keyword.value, ast.Constant)
                }
    return found


def rule_expressions() -> Iterator[str]:
    """The text of each `expr:` of rules.yml, one line or a block."""
    for match in re.finditer(r"^( +)expr: (\|\n(?:\1 +.*\n|\n)+|.*)", RULES, re.MULTILINE):
        yield match[2]


def expressions() -> list[str]:
    return [*rule_expressions(), *(target["expr"] for panel in PANELS for target in panel.get("targets", ()))]


def test_every_expression_is_found() -> None:
    assert len(list(rule_expressions())) == len(ALERTS) + len(RECORDED) > 20
    assert len(expressions()) > 60


def test_expressions_use_only_metrics_that_the_service_has(scraped: set[str]) -> None:
    for expression in expressions():
        names = set(_METRIC.findall(expression)) | set(re.findall(r"\bfovea:[a-z0-9_:]+", expression))
        assert names or "DCGM_" in expression, expression
        assert names <= scraped | RECORDED | FOREIGN, expression


def test_expressions_use_only_label_values_that_the_service_gives() -> None:
    closed = {
        "outcome": {outcome.value for outcome in Outcome},
        "state": {state.value for state in ModelState},
        "stage": STAGES,
        "reason": rejection_reasons(),
    }
    used: dict[str, set[str]] = {label: set() for label in closed}
    for expression in expressions():
        for label, _, value in _SELECTOR.findall(expression):
            if label in closed:
                used[label] |= set(value.split("|"))
    for label, values in used.items():
        assert values, label
        assert values <= closed[label], label


def test_every_reason_to_refuse_for_load_is_in_a_rule() -> None:
    (load,) = (one for one in rule_expressions() if "queue_wait|" in one)
    for reason in rejection_reasons() - {"queue_full", "not_ready", "draining", "out_of_memory"}:
        assert reason in load


@pytest.mark.parametrize("alert", ALERTS)
def test_alert_has_its_section_in_the_runbook_and_points_there(alert: str) -> None:
    rule = RULES.split(f"- alert: {alert}\n")[1].split("- alert:")[0]
    assert f"runbook_url: deploy/RUNBOOK.md#{alert.lower()}\n" in rule
    for part in ("for: ", "severity: ", "summary: ", "description: "):
        assert part in rule
    section = RUNBOOK.split(f"### {alert}\n")[1].split("\n### ")[0]
    for word in ("**Means**", "**Look**", "**Do**"):
        assert section.count(word) == 1


def test_runbook_has_no_section_for_an_alert_that_is_not_there() -> None:
    assert re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE) == ALERTS


@pytest.mark.parametrize("alert", ALERTS)
def test_alert_is_tested_to_fire_and_not_to_fire(alert: str) -> None:
    outcomes = re.findall(rf"alertname: {alert}\n +exp_alerts:(.*)", RULES_TEST)
    assert "" in outcomes, "it never fires"
    assert " []" in outcomes, "it never is quiet"


def test_runbook_names_only_events_that_the_service_logs() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (PROJECT / "service").rglob("*.py"))
    events = re.findall(r"`(\w+_(?:died|failed|unreadable|change|problem))`", RUNBOOK)
    assert len(set(events)) >= 8
    for event in events:
        assert f'"{event}"' in code


def test_runbook_names_only_panels_that_the_dashboard_has() -> None:
    titles = {panel["title"].split(",")[0].split(" (")[0] for panel in PANELS}
    named = {re.sub(r"\s+", " ", name) for name in re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", RUNBOOK)}
    assert len(named) > 10
    assert named - {"Job", "Fovea", "Targets"} <= titles


def test_panels_fill_the_grid_without_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        x, y = place.get("x", 0), place.get("y", 0)
        assert x + place["w"] <= COLUMNS, panel["title"]
        cells = {(x + dx, y + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_panel_says_what_it_means() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        if panel["type"] != "row":
            assert panel["description"].rstrip().endswith("."), panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert panel["targets"], panel["title"]
            if panel["type"] == "timeseries":
                assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]
