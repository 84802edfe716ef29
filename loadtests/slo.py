"""`make slo`: the highest rate of arrivals at which the service keeps its promise, and the curve around it.

The promise: p99 at most `--max-p99-ms`, at most `--max-shed-ratio` answered 503, nothing failed. Load is open-loop with
Poisson arrivals, latency counted from when a request was due. First a coarse sweep for the curve, then bisection
between the best rate that held and the lowest that did not, then the answer is measured once more, for longer. Takes
three minutes. Writes curve.svg, curve.png and slo.json; exit code 1 where no rate held or `--min-rate` was missed.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from arrivals import Run, open_loop
from closed_loop import closed_loop
from load import service_at
from payloads import PAYLOADS, Payload

_SWEEP = (0.2, 0.4, 0.6, 0.75, 0.85, 0.95, 1.05, 1.25)  # of what a closed loop of 32 clients gets
_CLOSED_LOOP_CLIENTS = 32
_CLOSE_ENOUGH = 0.02  # bisection ends where the two sides differ by less
_CONFIRM_FACTOR = 2.0  # the last run is that much longer than the others
_STEP_DOWN = 0.03  # and where it does not hold, the next one is that much slower, then twice that, and so on
_CONFIRMATIONS = 5


@dataclass(frozen=True, slots=True)
class Point:
    """One rate and what it gave."""

    asked_rate: float
    rate: float
    p50_ms: float
    p99_ms: float
    shed_ratio: float
    failures: int
    held: bool


@dataclass(frozen=True, slots=True)
class Promise:
    max_p99_ms: float
    max_shed_ratio: float

    def holds(self, run: Run) -> bool:
        return (
            run.percentile_ms(0.99) <= self.max_p99_ms
            and run.shed_ratio <= self.max_shed_ratio
            and run.failures == 0
            and run.arrivals > 0
        )


def search(measure: Callable[[float, float], Point], capacity: float) -> tuple[Point | None, list[Point]]:
    """The best confirmed point (None where nothing held) and every point measured.

    `measure` gets a rate and how many times as long as usual the run shall be.
    """
    points = [measure(share * capacity, 1.0) for share in _SWEEP]
    good = _best_below_first_miss(points)
    bad = min((point.asked_rate for point in points if not point.held and point.asked_rate > good), default=None)
    while bad is not None and bad - good > _CLOSE_ENOUGH * bad and good > 0:
        points.append(measure((good + bad) / 2, 1.0))
        if points[-1].held:
            good = points[-1].asked_rate
        else:
            bad = points[-1].asked_rate
    for attempt in range(_CONFIRMATIONS if good > 0 else 0):
        points.append(measure(good, _CONFIRM_FACTOR))
        if points[-1].held:
            return points[-1], points
        good *= 1 - _STEP_DOWN * 2**attempt
    return None, points


def _best_below_first_miss(points: Sequence[Point]) -> float:
    """A lucky run above a rate that did not hold counts for nothing."""
    best = 0.0
    for point in sorted(points, key=lambda point: point.asked_rate):
        if not point.held:
            break
        best = point.asked_rate
    return best


def draw(points: Sequence[Point], best: Point | None, promise: Promise, title: str, folder: Path) -> None:
    """p50, p99 and the share shed over the rate of arrivals."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = "fovea"  # the same figures make the same file
    ordered = sorted(points, key=lambda point: point.asked_rate)
    rates = [point.asked_rate for point in ordered]
    figure, (upper, lower) = pyplot.subplots(
        2, 1, sharex=True, figsize=(8, 5.5), height_ratios=(3, 1), layout="constrained"
    )
    upper.plot(rates, [point.p99_ms for point in ordered], "o-", label="p99")
    upper.plot(rates, [point.p50_ms for point in ordered], "o-", label="p50")
    upper.axhline(promise.max_p99_ms, linestyle="--", color="gray", label=f"bound: {promise.max_p99_ms:g} ms")
    if best is not None:
        for axis in (upper, lower):
            axis.axvline(best.asked_rate, color="green", linewidth=1)
        upper.set_title(f"{title}: {best.asked_rate:.0f}/s keep p99 at {best.p99_ms:.0f} ms")
    else:
        upper.set_title(f"{title}: no rate held")
    upper.set(yscale="log", ylabel="latency, ms")
    upper.legend()
    upper.grid(alpha=0.3, which="both")
    lower.plot(rates, [100 * point.shed_ratio for point in ordered], "o-", color="tab:red")
    lower.set(xlabel="arrivals a second (Poisson)", ylabel="shed, %", ylim=(0, None))
    lower.grid(alpha=0.3)
    for kind in ("svg", "png"):
        figure.savefig(folder / f"curve.{kind}", metadata={"Date": None} if kind == "svg" else None)
    pyplot.close(figure)


def _measure(url: str, payload: Payload, promise: Promise, seconds: float) -> Callable[[float, float], Point]:
    def measure(rate: float, longer: float) -> Point:
        run = open_loop(url, payload.bodies, payload.content_type, rate, seconds * longer)
        point = Point(
            rate,
            run.rate,
            run.percentile_ms(0.50),
            run.percentile_ms(0.99),
            run.shed_ratio,
            run.failures,
            promise.holds(run),
        )
        print(
            f"  {point.asked_rate:8.1f} {point.rate:8.1f} {point.p50_ms:9.2f} {point.p99_ms:9.2f} "
            f"{point.shed_ratio:7.2%} {point.failures:7d}  {'held' if point.held else 'missed'}",
            flush=True,
        )
        return point

    return measure


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--payload", choices=list(PAYLOADS), default="photo")
    parser.add_argument("--url", help="a service that runs already; default: one of our own")
    parser.add_argument("--model-repo", default="model_repo")
    parser.add_argument("--max-p99-ms", type=float, default=100.0)
    parser.add_argument("--max-shed-ratio", type=float, default=0.001)
    parser.add_argument("--min-rate", type=float, default=0.0, help="exit code 1 below it")
    parser.add_argument("--seconds", type=float, default=9.0, help="of one run; 1,000 arrivals are few for a p99")
    parser.add_argument("--reports", type=Path, default=Path("build/load/slo"))
    options = parser.parse_args(arguments)
    options.reports.mkdir(parents=True, exist_ok=True)
    payload, promise = PAYLOADS[options.payload](), Promise(options.max_p99_ms, options.max_shed_ratio)
    ours = ["--model-repo", options.model_repo, "--log.success-sample", "0"]
    with service_at(options.url, ours) as served:
        url = f"{served}/api/v1/models/{payload.model}/classify"
        warm = closed_loop(url, payload.bodies, payload.content_type, _CLOSED_LOOP_CLIENTS, min(4.0, options.seconds))
        if not warm.latencies:
            parser.error(f"{url} gave no good answer to {payload.name}")
        print(f"{payload.name} -> {payload.model}; closed loop of {_CLOSED_LOOP_CLIENTS}: {warm.rate:.1f}/s")
        print("   asked/s   good/s    p50 ms    p99 ms    shed  failed")
        best, points = search(_measure(url, payload, promise, options.seconds), warm.rate)
    draw(points, best, promise, f"{payload.name} on {payload.model}", options.reports)
    report = {
        "payload": payload.name,
        "model": payload.model,
        "promise": asdict(promise),
        "closed_loop_rate": warm.rate,
        "best": asdict(best) if best else None,
        "points": [asdict(point) for point in points],
    }
    (options.reports / "slo.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{best.asked_rate:.1f}/s hold p99 <= {promise.max_p99_ms:g} ms" if best else "no rate held")
    print(f"reports: {options.reports}")
    return 0 if best is not None and best.asked_rate >= options.min_rate else 1


if __name__ == "__main__":
    sys.exit(main())
