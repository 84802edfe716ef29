"""Measure what the simulation needs to know of this machine, and try the simulation on runs it has not seen.

    calibrate.py --payload photo            measure, predict, measure again, compare; exit 1 where a bound is missed

Three measurements of a few seconds each:

1. in-process, one thread, then as many as CPUs: CPU seconds of an execution by batch size, and how much executions slow
   each other down;
2. the service at an easy open-loop rate: CPU seconds of its event loop and of all its threads a request, from
   /proc, and the part of a client's latency that occupies nothing (`wire`);
3. the generator's own CPU seconds a request: where it shares the service's CPUs, the service has that much less.

The check then predicts open-loop runs at other rates, up to more than the service can do. It is told when requests
arrive (the generator's seed), and nothing else of the run.
"""

import argparse
import json
import os
import statistics
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from arrivals import Run, open_loop
from bench import InProcess
from closed_loop import closed_loop
from local_server import LocalServer, local_server
from payloads import PAYLOADS, Payload
from simulation import Deployment, Outcome, ReplicaSpec, Times, poisson

from service.batching.spec import BatchingSpec
from service.machine import usable_cpus

_SIZES = (1, 2, 4, 8)
_EASY_LOAD = 0.25  # of what a closed loop of 32 clients gets: hardly anything waits
_CHECKED_LOADS = (0.6, 0.8, 1.3)  # of the predicted capacity; never the calibration's own rate
_RATE_TOLERANCE, _P99_TOLERANCE = 0.10, 0.25
_SIMULATED_SECONDS = 120.0
_PREDICTIONS = 5
_WINDOWS = 5
_PATIENCE = 2  # times as many windows are tried until enough were quiet
_QUIET_CPUS = 0.06  # 3 % of two CPUs; at 80 % load a neighbour that takes that much moves p99 by a fifth
_SAME_SPEED = 0.08  # of what the CPUs did at calibration: guests of one host slow each other down by a third, unseen
_SPEED_SECONDS = 0.25
_CALIBRATIONS = 3  # at most, until one kept its speed
_WAKE_SECONDS = 0.004  # a tick of a 250 Hz kernel: until then a running thread may keep its CPU from a woken one
_HEADER = "  asked/s  good/s: seen, said        p50 ms: both    p99 ms: seen, said       shed: both   others  speed"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Calibration:
    """One model on one kind of machine."""

    payload: str
    model: str
    cpus: int
    instances: int
    batching: BatchingSpec
    times: Times
    cpu_seconds: float  # of the whole process, an image, at the easy rate
    client_cpu_seconds: float  # of the generator, a request
    speed: float = 0.0  # images a second in-process, meanwhile

    def replica(self, rate: float = 0.0, *, shares_cpus: bool = True) -> ReplicaSpec:
        """One replica here, beside a generator of `rate` where that shares its CPUs."""
        taken = rate * self.client_cpu_seconds if shares_cpus else 0.0
        return ReplicaSpec(self.times, max(0.1, self.cpus - taken), self.instances, self.batching, shares_cpus)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Calibration":
        """What `asdict` and JSON made of one: keys of batch sizes are text there."""
        times = fields["times"] | {"execution": {int(size): row for size, row in fields["times"]["execution"].items()}}
        return cls(**fields | {"batching": _batching(fields["batching"]), "times": Times(**times)})


def calibrate(payload: Payload, server: LocalServer, inside: InProcess, seconds: float) -> Calibration:
    """All three measurements, about `seconds` long; again where the machine did not keep its speed meanwhile."""
    for _ in range(_CALIBRATIONS):
        before = _speed(inside)
        known = _calibrated(payload, server, inside, seconds)
        after = _speed(inside)
        if abs(after / before - 1) <= _SAME_SPEED:
            break
    return replace(known, speed=(before + after) / 2)


def _calibrated(payload: Payload, server: LocalServer, inside: InProcess, seconds: float) -> Calibration:
    details = _get(f"{server.url}/api/v1/models/{payload.model}")
    instances = next(item["instances"] for item in details["versions"] if item["state"] == "READY")
    batching = _batching(details["batching"])
    execution, slowdown = _executions(inside, batching.max_batch_size, seconds / 2)
    times = Times(execution, slowdown, wake=_WAKE_SECONDS)
    known = Calibration(payload.name, payload.model, usable_cpus(), instances, batching, times, 0.0, 0.0)
    url = f"{server.url}/api/v1/models/{payload.model}/classify"
    easy = _EASY_LOAD * closed_loop(url, payload.bodies, payload.content_type, 32, 2.0).rate
    loop_before, all_before = _loop_seconds(server.pid), _process_seconds(server.pid)
    runs = [
        open_loop(url, payload.bodies, payload.content_type, easy, seconds / 2 / _WINDOWS, seed)
        for seed in range(_WINDOWS)
    ]
    arrivals = sum(run.arrivals for run in runs)
    loop = (_loop_seconds(server.pid) - loop_before) / arrivals
    every = (_process_seconds(server.pid) - all_before) / arrivals
    client = sum(run.client_cpu_seconds for run in runs) / arrivals
    times = replace(times, loop_in=loop / 2, loop_out=loop / 2)
    known = replace(known, times=times, cpu_seconds=every, client_cpu_seconds=client)
    p50_ms = statistics.median(run.percentile_ms(0.5) for run in runs)
    missing = (p50_ms - simulate(known, easy).percentile_ms(0.5)) / 1000.0
    return replace(known, times=replace(times, wire=max(0.0, missing)))


def capacity(known: Calibration) -> float:
    """Images a second that the simulated replica answers when more arrive than it can do."""
    best = max(size / statistics.mean(samples) for size, samples in known.times.execution.items()) * known.instances
    loop = 1.0 / max(1e-6, known.times.loop_in + known.times.loop_out)
    return simulate(known, 1.5 * min(best, loop), 20_000 / best).rate


def simulate(known: Calibration, rate: float, seconds: float = _SIMULATED_SECONDS, seed: int = 7) -> Outcome:
    """One replica on this machine, under Poisson arrivals from a generator on the same machine."""
    return Deployment(known.replica(rate), 1, seed=seed).run(poisson(rate, seconds, seed))


def predict(known: Calibration, rate: float, seconds: float, seed: int) -> tuple[float, float, float, float]:
    """Rate, p50 ms, p99 ms and share shed of the run that `open_loop` makes of the same numbers: medians of several."""
    runs = [
        Deployment(known.replica(rate), 1, seed=draw).run(poisson(rate, seconds, seed)) for draw in range(_PREDICTIONS)
    ]
    return (
        statistics.median(run.rate for run in runs),
        statistics.median(run.percentile_ms(0.5) for run in runs),
        statistics.median(run.percentile_ms(0.99) for run in runs),
        statistics.median(run.shed_ratio for run in runs),
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """A measured run and what the simulation had said."""

    asked_rate: float
    rate: float
    predicted_rate: float
    p50_ms: float
    predicted_p50_ms: float
    p99_ms: float
    predicted_p99_ms: float
    shed_ratio: float
    predicted_shed_ratio: float
    others_cpus: float  # CPUs that other processes of this machine (or its host) took meanwhile
    speed: float  # as a share of the calibration's; of the windows the one furthest from 1

    @property
    def is_disturbed(self) -> bool:
        """Whether the run says more about its neighbours than about the service."""
        return not _is_quiet(self.others_cpus, self.speed)

    @property
    def holds(self) -> bool:
        return (
            abs(self.predicted_rate / self.rate - 1) <= _RATE_TOLERANCE
            and abs(self.predicted_p99_ms / self.p99_ms - 1) <= _P99_TOLERANCE
        )

    def __str__(self) -> str:
        return (
            f"  {self.asked_rate:7.1f}  {self.rate:7.1f} {self.predicted_rate:7.1f} "
            f"({self.predicted_rate / self.rate - 1:+5.1%})  {self.p50_ms:6.1f} {self.predicted_p50_ms:6.1f}  "
            f"{self.p99_ms:7.1f} {self.predicted_p99_ms:7.1f} ({self.predicted_p99_ms / self.p99_ms - 1:+6.1%})  "
            f"{self.shed_ratio:5.1%} {self.predicted_shed_ratio:5.1%}  {self.others_cpus:5.2f} {self.speed:6.2f}  "
            f"{'ok' if self.holds else 'OUT OF BOUNDS'}{', disturbed' if self.is_disturbed else ''}"
        )


def compare(
    known: Calibration,
    payload: Payload,
    server: LocalServer,
    inside: InProcess,
    rate: float,
    seconds: float,
    seed: int,
) -> Comparison:
    """Predict, then measure: medians of quiet windows, so that one stalled moment of the machine decides nothing."""
    windows = _quiet_windows(
        inside, known.speed, payload, server, rate, seconds / _WINDOWS, first_seed=seed * _WINDOWS * _PATIENCE
    )
    said = [predict(known, rate, seconds / _WINDOWS, window.seed) for window in windows]
    seen = [window.run for window in windows]
    said_rate, said_p50, said_p99, said_shed = (statistics.median(column) for column in zip(*said, strict=True))
    return Comparison(
        asked_rate=rate,
        rate=statistics.median(run.rate for run in seen),
        predicted_rate=said_rate,
        p50_ms=statistics.median(run.percentile_ms(0.5) for run in seen),
        predicted_p50_ms=said_p50,
        p99_ms=statistics.median(run.percentile_ms(0.99) for run in seen),
        predicted_p99_ms=said_p99,
        shed_ratio=statistics.median(run.shed_ratio for run in seen),
        predicted_shed_ratio=said_shed,
        others_cpus=max(window.others_cpus for window in windows),
        speed=max((window.speed for window in windows), key=lambda speed: abs(speed - 1)),
    )


@dataclass(frozen=True, slots=True)
class _Window:
    seed: int
    run: Run
    others_cpus: float
    speed: float

    @property
    def is_quiet(self) -> bool:
        return _is_quiet(self.others_cpus, self.speed)


def _is_quiet(others_cpus: float, speed: float) -> bool:
    return others_cpus <= _QUIET_CPUS and abs(speed - 1) <= _SAME_SPEED


def _quiet_windows(
    inside: InProcess,
    usual_speed: float,
    payload: Payload,
    server: LocalServer,
    rate: float,
    seconds: float,
    first_seed: int,
) -> list[_Window]:
    """Runs in which nobody else took much of this machine; where there are too few, the quietest there were.

    Only neighbours' CPU time and the speed of the CPUs decide which run counts, never what the run measured.
    """
    url = f"{server.url}/api/v1/models/{payload.model}/classify"
    windows: list[_Window] = []
    before = _speed(inside)
    for seed in range(first_seed, first_seed + _WINDOWS * _PATIENCE):
        others_before, started_at = _others_seconds(server.pid), time.perf_counter()
        run = open_loop(url, payload.bodies, payload.content_type, rate, seconds, seed)
        others = (_others_seconds(server.pid) - others_before) / (time.perf_counter() - started_at)
        after = _speed(inside)
        windows.append(_Window(seed, run, max(0.0, others), (before + after) / 2 / usual_speed))
        before = after
        if sum(window.is_quiet for window in windows) == _WINDOWS:
            break
    return sorted(windows, key=lambda window: (not window.is_quiet, window.others_cpus))[:_WINDOWS]


def _speed(inside: InProcess) -> float:
    """Images a second that all CPUs do in-process: what this machine can do just now, whoever shares it."""
    samples = _timed(inside, usable_cpus(), 1, _SPEED_SECONDS)
    return usable_cpus() / statistics.median(samples)


def _executions(inside: InProcess, largest: int, seconds: float) -> tuple[dict[int, list[float]], float]:
    """CPU seconds of executions by batch size, alone; and by how much all threads at once slow each other down."""
    sizes = [size for size in _SIZES if size <= largest] or [1]
    alone: dict[int, list[float]] = {size: [] for size in sizes}
    together: dict[int, list[float]] = {size: [] for size in sizes}
    rounds = 4  # interleaved: what a noisy machine does to one it does to the other
    for _ in range(rounds):
        for size in sizes:
            part = seconds / rounds / len(sizes) / 2
            alone[size] += _timed(inside, 1, size, part)
            together[size] += _timed(inside, usable_cpus(), size, part)
    ratios = [statistics.mean(together[size]) / statistics.mean(alone[size]) for size in sizes]
    return alone, max(1.0, statistics.mean(ratios))


def _timed(inside: InProcess, threads: int, size: int, seconds: float) -> list[float]:
    samples: list[float] = []
    ends_at = time.perf_counter() + seconds

    def work(number: int) -> None:
        inside.batch(number, size)  # a thread's first execution pays for its memory
        while time.perf_counter() < ends_at:
            cpu_at = time.thread_time()  # CPU time: what others on the machine take is not the model's
            inside.batch(number + size * len(samples), size)
            samples.append(time.thread_time() - cpu_at)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return samples


def _batching(fields: dict[str, Any]) -> BatchingSpec:
    return BatchingSpec(**fields | {"preferred_batch_sizes": tuple(fields["preferred_batch_sizes"])})


def _loop_seconds(pid: int) -> float:
    """CPU seconds of the process's first thread, which is the event loop's."""
    return _stat_seconds(Path(f"/proc/{pid}/task/{pid}/stat"))


def _process_seconds(pid: int) -> float:
    return _stat_seconds(Path(f"/proc/{pid}/stat"))


def _others_seconds(pid: int) -> float:
    """CPU seconds of everybody else on this machine since it started, its host's other guests (steal) included."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    total = (user + nice + system + irq + softirq + steal) / _TICKS
    return total - _process_seconds(pid) - _process_seconds(os.getpid())


def _stat_seconds(path: Path) -> float:
    user, system = path.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / _TICKS


def _get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url) as answer:
        result: dict[str, Any] = json.load(answer)
    return result


def describe(known: Calibration) -> str:
    """A few lines for people."""
    by_size = ", ".join(
        f"{size}: {1000 * statistics.mean(samples):.2f}" for size, samples in known.times.execution.items()
    )
    return (
        f"{known.payload} -> {known.model}, {known.cpus} CPUs: {1000 * known.cpu_seconds:.2f} CPU ms an image, "
        f"of which {1000 * (known.times.loop_in + known.times.loop_out):.2f} on the event loop\n"
        f"  ms of an execution by batch size: {by_size}; x {known.times.slowdown:.3f} when all run at once\n"
        f"  wire {1000 * known.times.wire:.2f} ms, generator {1000 * known.client_cpu_seconds:.3f} CPU ms a request, "
        f"largest batch {known.batching.max_batch_size}; capacity {capacity(known):.1f}/s"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--payload", choices=list(PAYLOADS), default="photo")
    parser.add_argument("--model-repo", type=Path, default=Path("model_repo"))
    parser.add_argument("--seconds", type=float, default=16.0, help="of calibration")
    parser.add_argument("--check-seconds", type=float, default=60.0, help="of each checked rate; 0: calibrate only")
    parser.add_argument("--repeat", type=int, default=1, help="calibrate and check so many times")
    parser.add_argument("--json", type=Path, default=Path("build/load/calibration.json"))
    options = parser.parse_args(arguments)
    payload = PAYLOADS[options.payload]()
    inside = InProcess(options.model_repo, payload)
    compared: list[Comparison] = []
    with local_server(["--model-repo", str(options.model_repo), "--log.success-sample", "0"]) as server:
        for seed in range(2, 2 + options.repeat):  # other arrivals each time
            known = calibrate(payload, server, inside, options.seconds)
            print(describe(known))
            if options.check_seconds:
                print(_HEADER)
            for load in _CHECKED_LOADS if options.check_seconds else ():
                compared.append(
                    compare(known, payload, server, inside, load * capacity(known), options.check_seconds, seed)
                )
                print(compared[-1], flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "calibration": asdict(known),
        "checks": [asdict(item) | {"holds": item.holds, "is_disturbed": item.is_disturbed} for item in compared],
    }
    options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if all(item.holds for item in compared) else 1


if __name__ == "__main__":
    sys.exit(main())
