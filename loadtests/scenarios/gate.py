"""Service level objectives as exit code: 0 all held, 1 at least one missed. Also writes what was measured as JSON.

A scenario brings its own; an option or a variable replaces any of them (`SLO_MAX_P99_MS=250 make load`).
"""

import json
import logging
from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from locust import events
from locust.env import Environment
from traffic import SHED

_HELP = {
    "max_p99_ms": "99 of 100 good answers come sooner",
    "max_failure_ratio": "failed requests of all",
    "max_shed_ratio": "requests answered 503 with Retry-After, of all",
    "min_rate": "good answers a second",
}


@dataclass(frozen=True, slots=True)
class Slo:
    """What a run is held to. Shedding is no failure, and has a budget of its own."""

    max_p99_ms: float
    max_failure_ratio: float = 0.0
    max_shed_ratio: float = 0.0
    min_rate: float = 1.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run gave."""

    requests: int
    p50_ms: float
    p99_ms: float
    failure_ratio: float
    shed_ratio: float
    rate: float


def hold_to(slo: Slo) -> None:
    """Judge this run by `slo` when it ends."""

    @events.init_command_line_parser.add_listener
    def add_options(parser: Any) -> None:
        group = parser.add_argument_group("Objectives", "Exit code 1 where one is missed")
        for field in fields(Slo):
            group.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=float,
                default=getattr(slo, field.name),
                env_var=f"SLO_{field.name.upper()}",
                help=_HELP[field.name],
            )
        group.add_argument("--slo-json", default="", env_var="SLO_JSON", help="Write the verdict to this file")

    @events.quitting.add_listener
    def judge(environment: Environment, **_: Any) -> None:
        options = environment.parsed_options
        asked = replace(slo, **{field.name: getattr(options, field.name) for field in fields(Slo)})
        measured = measure(environment)
        missed = missed_objectives(asked, measured)
        for line in missed:
            logging.getLogger("slo").error("missed: %s", line)
        logging.getLogger("slo").info("%s: %s", "MISSED" if missed else "held", measured)
        if options.slo_json:
            verdict = {"held": not missed, "missed": missed, "asked": asdict(asked), "measured": asdict(measured)}
            Path(options.slo_json).write_text(json.dumps(verdict, indent=1) + "\n", encoding="utf-8")
        environment.process_exit_code = 1 if missed else 0


def measure(environment: Environment) -> Measured:
    """The run's figures from Locust's statistics."""
    stats = environment.stats
    requests, failures = stats.total.num_requests, stats.total.num_failures
    good: Counter[float] = Counter()
    shed = 0
    for (name, _), entry in stats.entries.items():
        if name.endswith(SHED):
            shed += entry.num_requests
        else:
            good.update(entry.response_times)  # failures among them: how long a failure took counts too
    seconds = (stats.total.last_request_timestamp or 0) - (stats.total.start_time or 0)
    return Measured(
        requests=requests,
        p50_ms=_percentile(good, 0.50),
        p99_ms=_percentile(good, 0.99),
        failure_ratio=failures / requests if requests else 1.0,
        shed_ratio=shed / requests if requests else 0.0,
        rate=(requests - failures - shed) / seconds if seconds > 0 else 0.0,
    )


def missed_objectives(slo: Slo, measured: Measured) -> list[str]:
    """A line for each objective that `measured` misses."""
    checks = (
        ("p99", measured.p99_ms, "<=", slo.max_p99_ms, "ms"),
        ("failure ratio", measured.failure_ratio, "<=", slo.max_failure_ratio, ""),
        ("shed ratio", measured.shed_ratio, "<=", slo.max_shed_ratio, ""),
        ("rate", measured.rate, ">=", slo.min_rate, "/s"),
    )
    return [
        f"{name} {value:.4g}{unit}, asked {sign} {bound:g}{unit}"
        for name, value, sign, bound, unit in checks
        if not (value <= bound if sign == "<=" else value >= bound)
    ]


def _percentile(times: Counter[float], share: float) -> float:
    """Milliseconds; infinite without any answer, so that a run without answers never holds."""
    wanted, seen = share * times.total(), 0
    for milliseconds, count in sorted(times.items()):
        seen += count
        if seen >= wanted:
            return float(milliseconds)
    return float("inf")
