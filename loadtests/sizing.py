"""Replicas for a rate, from calibrations: the tables of SIZING.md.

    sizing.py build/load/photo.json build/load/digit.json     files that calibrate.py wrote

Everything is simulated with the generator elsewhere: it takes no CPU of the replicas.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from calibrate import Calibration
from simulation import Autoscaler, Balancer, Deployment, at_random, least_outstanding, poisson, two_choices

_RATES = (1_000, 100_000)
_ZONES = 3  # one may fail: the others carry its part
_MACHINES_DIFFER = 1.10  # two machines of one kind, or one at two hours of a day, differ by a tenth
_REQUESTS = 15_000  # of one simulated run: 150 of them lie above p99
_CLOSE_ENOUGH = 0.01

_BEFORE, _RISE, _AFTER = 60.0, 30.0, 240.0  # seconds: calm, growing, and what follows


def safe_rate(known: Calibration, max_p99_ms: float, replicas: int = 1, balancer: Balancer = at_random) -> float:
    """Images a second and replica that keep p99 under the bound and shed nothing, by bisection."""

    def holds(rate: float) -> bool:
        due = poisson(rate * replicas, _REQUESTS / (rate * replicas), seed=11)
        outcome = Deployment(known.replica(shares_cpus=False), replicas, balancer=balancer).run(due)
        return outcome.percentile_ms(0.99) <= max_p99_ms and outcome.shed_ratio == 0.0

    good, bad = 0.0, known.cpus / (known.cpu_seconds or 1e-6) * 1.5
    while bad - good > _CLOSE_ENOUGH * bad:
        middle = (good + bad) / 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    if good == 0.0:
        raise SystemExit(f"{known.payload}: one image alone takes longer than {max_p99_ms:g} ms")
    return good


def replicas_for(rate: float, safe: float) -> tuple[int, int]:
    """(without reserve; with a tenth for differing machines and one zone of three lost, in whole zones)."""
    bare = math.ceil(rate / safe)
    reserved = rate * _MACHINES_DIFFER / safe * _ZONES / (_ZONES - 1)
    return bare, _ZONES * math.ceil(reserved / _ZONES)


def growth_row(known: Calibration, safe: float, growth: float, reserve: float, start_up: float) -> str:
    """Ten replicas at `safe / reserve` each; then the load grows by `growth` within half a minute.

    At most thrice as many: a queue tells that pods are too few, not by how many, and the autoscaler doubles them at
    every look until the first new ones are ready.
    """
    replicas = 10
    before = replicas * safe / reserve

    def rate(moment: float) -> float:
        return before * (1 + (growth - 1) * min(1.0, max(0.0, (moment - _BEFORE) / _RISE)))

    scaler = Autoscaler(start_up=start_up, fewest=replicas, most=3 * replicas)
    run = Deployment(known.replica(shares_cpus=False), replicas, autoscaler=scaler, balancer=two_choices).run(
        poisson(rate, _BEFORE + _RISE + _AFTER, seed=5)
    )
    after = run.between(_BEFORE, _BEFORE + _RISE + _AFTER)
    first = next((moment - _BEFORE for moment, count in run.replicas if count > replicas), None)
    late = run.between(_BEFORE + _RISE + _AFTER - 60, math.inf)
    return (
        f"| x {growth:g} | {reserve:.2f} | {'none' if first is None else f'{first:.0f} s'} | {run.most_replicas} | "
        f"{after.shed_ratio:.1%} | {after.percentile_ms(0.99):.0f} | {late.percentile_ms(0.99):.0f} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calibrations", type=Path, nargs="+")
    parser.add_argument("--max-p99-ms", type=float, default=100.0)
    parser.add_argument("--start-up-s", type=float, default=30.0, help="from the autoscaler's wish to a ready replica")
    options = parser.parse_args(arguments)
    calibrations = [Calibration.from_json(json.loads(file.read_text())["calibration"]) for file in options.calibrations]
    safe = {known.payload: safe_rate(known, options.max_p99_ms) for known in calibrations}
    columns = "".join(f"| busy CPUs at {rate:,}/s | replicas, bare | with reserve " for rate in _RATES)
    print(f"| payload | CPU ms an image | images/s a replica at p99 <= {options.max_p99_ms:g} ms {columns}|")
    print("|---" * (3 + 3 * len(_RATES)) + "|")
    for known in calibrations:
        cells = [f"{known.payload} -> {known.model}", f"{1000 * known.cpu_seconds:.2f}", f"{safe[known.payload]:.0f}"]
        for rate in _RATES:
            bare, reserved = replicas_for(rate, safe[known.payload])
            cells += [f"{rate * known.cpu_seconds:,.0f}", f"{bare:,}", f"{reserved:,}"]
        print("| " + " | ".join(cells) + " |")
    first = calibrations[0]
    print(f"\nBalancing, {first.payload}, 6 replicas, images/s a replica at p99 <= {options.max_p99_ms:g} ms:\n")
    for name, balancer in (("random", at_random), ("two choices", two_choices), ("fewest", least_outstanding)):
        print(f"| {name} | {safe_rate(first, options.max_p99_ms, 6, balancer):.0f} |")
    print(
        "\n| load grows | reserve before | first new replica | most | shed meanwhile | p99 ms | p99 ms, last minute |"
    )
    print("|---|---|---|---|---|---|---|")
    for growth in (1.25, 1.5, 2.0):
        for reserve in (1.1, 1.65):
            print(growth_row(first, safe[first.payload], growth, reserve, options.start_up_s), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
