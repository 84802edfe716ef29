"""`make bench`: what the machine can do in-process, what the running service does, and the ratio; in one run.

Every window of the server stands between two of the ceiling and is compared with these: a machine shared with others
changes its speed within seconds. The ratio is the median over the rounds, with its quartiles, so that one sees what it
is worth. The ceiling is the same work without HTTP, queue and limits: as many threads as CPUs, each decoding and
running batches of its own over one session, in the best batch size tried.
The slowest answer is of all rounds: what comes once in a thousand, p99 hides.
Writes bench.json and bench.svg and .png: rate and latency over concurrency.
"""

import argparse
import json
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from closed_loop import Window, closed_loop
from local_server import LocalServer, local_server
from payloads import PAYLOADS, Payload
from prometheus_client.parser import text_string_to_metric_families

from service import manifest as manifests
from service.engine.ort import OrtEngine
from service.imaging.decode import DecodeBudget
from service.imaging.preprocess import Preprocessor
from service.imaging.spec import ImageLimits
from service.machine import usable_cpus
from service.messages import ImagePayload
from service.tasks import TASKS

_CEILING_BATCHES = (1, 4, 8)


class InProcess:
    """One model's whole work on a body, without a server around it."""

    def __init__(self, repository: Path, payload: Payload) -> None:
        folder = repository / payload.model
        version = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
        manifest = manifests.read(folder, version)
        labels = manifests.read_labels(folder, version, manifest)
        self.engine = OrtEngine(folder / str(version) / "model.onnx", manifest.execution_spec)
        spec = manifests.resolve(manifest, labels, self.engine.inputs, self.engine.outputs, self.engine.provider.name)
        assert spec.input is not None
        self.input = spec.input
        self.preprocessor = Preprocessor(spec.input, ImageLimits(), DecodeBudget(1 << 28))
        self.task = TASKS[spec.task_name](spec.task)
        self.images = [ImagePayload(body) for body in payload.bodies]

    def decode(self, number: int, row: "np.ndarray[Any, Any]") -> None:
        """The `number`th image, as the graph wants it, into `row`."""
        image = self.images[number % len(self.images)]
        self.preprocessor.prepare(self.preprocessor.inspect(image), row)

    def decoded(self, start: int, size: int) -> "np.ndarray[Any, Any]":
        """`size` images from the `start`th on."""
        rows = np.empty((size, *self.input.shape), self.input.dtype)
        for place in range(size):
            self.decode(start + place, rows[place])
        return rows

    def batch(self, start: int, size: int) -> None:
        """Decode, run and rank `size` images."""
        raw = self.engine.run({self.input.tensor: self.decoded(start, size)})[0]
        for scores in self.task.scores(raw):
            self.task.predictions(scores, 5, None)

    def rate(self, threads: int, size: int, seconds: float) -> float:
        """Images a second of `threads` threads in batches of `size`."""
        done = [0] * threads
        ends_at = time.perf_counter() + seconds

        def work(number: int) -> None:
            while time.perf_counter() < ends_at:
                self.batch(done[number] + number, size)
                done[number] += size

        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        started_at = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sum(done) / (time.perf_counter() - started_at)

    def one_ms(self, seconds: float) -> float:
        """Median milliseconds of one image, alone on one thread."""
        times: list[float] = []
        ends_at = time.perf_counter() + seconds
        while time.perf_counter() < ends_at:
            started_at = time.perf_counter()
            self.batch(len(times), 1)
            times.append(time.perf_counter() - started_at)
        return statistics.median(times) * 1000.0


@dataclass(slots=True)
class Served:
    """The windows of one concurrency, what the server used in them, and their ratios to the ceiling around them."""

    windows: list[Window] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    batches: list[float] = field(default_factory=list)
    pss_bytes: list[int] = field(default_factory=list)

    def median(self, of: Callable[[Window], float]) -> float:
        return statistics.median(of(window) for window in self.windows)


def measure(payload: Payload, server: LocalServer, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one payload."""
    inside = InProcess(options.model_repo, payload)
    url = f"{server.url}/api/v1/models/{payload.model}/classify"
    threads = usable_cpus()
    closed_loop(url, payload.bodies, payload.content_type, max(options.concurrency), 1.0)
    size = _best_batch(inside, threads, options.seconds)
    ceilings: list[float] = []
    alone: list[float] = []
    served = {clients: Served() for clients in options.concurrency}
    for _ in range(options.rounds):
        alone.append(inside.one_ms(options.seconds / 2))
        ceilings.append(inside.rate(threads, size, options.seconds / 2))
        for clients, result in served.items():
            before, cpu = _executions(server, payload.model), _cpu_seconds(server)
            window = closed_loop(url, payload.bodies, payload.content_type, clients, options.seconds)
            images, executions = _executions(server, payload.model) - before
            result.windows.append(window)
            result.cpu_seconds.append((_cpu_seconds(server) - cpu) / max(1, len(window.latencies)))
            result.batches.append(images / max(1.0, executions))
            result.pss_bytes.append(psutil.Process(server.pid).memory_full_info().pss)
            ceilings.append(inside.rate(threads, size, options.seconds / 2))
            result.ratios.append(window.rate / statistics.fmean(ceilings[-2:]))
    rows = [_row(clients, result) for clients, result in served.items()]
    return {
        "payload": payload.name,
        "model": payload.model,
        "ceiling": statistics.median(ceilings),
        "ceiling_batch": size,
        "alone_ms": statistics.median(alone),
        "rows": rows,
    }


def _best_batch(inside: InProcess, threads: int, seconds: float) -> int:
    """The batch size of the ceiling, by two turns of windows of all."""
    rates = dict.fromkeys(_CEILING_BATCHES, 0.0)
    for _ in range(2):
        for size in _CEILING_BATCHES:
            rates[size] += inside.rate(threads, size, seconds / 2)
    return max(_CEILING_BATCHES, key=rates.__getitem__)


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower one, the median and the upper one."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return low, median, high


def _row(clients: int, result: Served) -> dict[str, Any]:
    low, ratio, high = _quartiles(result.ratios)
    return {
        "concurrency": clients,
        "rate": result.median(lambda window: window.rate),
        "ratio": ratio,
        "ratio_quartiles": [low, high],
        "p50_ms": result.median(lambda window: window.percentile(0.50)),
        "p99_ms": result.median(lambda window: window.percentile(0.99)),
        "slowest_ms": max(window.percentile(1.0) for window in result.windows),
        "mean_batch": statistics.median(result.batches),
        "cpu_ms": statistics.median(result.cpu_seconds) * 1000.0,
        "pss_mib": max(result.pss_bytes) / 2**20,
        "failures": sum(window.failures for window in result.windows),
        "rates": [round(window.rate, 1) for window in result.windows],
    }


def _executions(server: LocalServer, model: str) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """(images, executions) so far, from the server's own metrics."""
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        text = answer.read().decode()
    totals = {"fovea_batch_size_sum": 0.0, "fovea_batch_size_count": 0.0}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in totals and sample.labels.get("model") == model:
                totals[sample.name] += sample.value
    return np.asarray([totals["fovea_batch_size_sum"], totals["fovea_batch_size_count"]])


def _cpu_seconds(server: LocalServer) -> float:
    times = psutil.Process(server.pid).cpu_times()
    return times.user + times.system


def _print(result: dict[str, Any]) -> None:
    ceiling, size, alone = result["ceiling"], result["ceiling_batch"], result["alone_ms"]
    print(
        f"\n{result['payload']} -> {result['model']}: ceiling {ceiling:.1f}/s in batches of {size}, "
        f"one alone in-process {alone:.2f} ms"
    )
    print("  clients   rate/s   ratio (quartiles)     p50 ms    p99 ms   slowest   batch   CPU ms  PSS MiB   failed")
    for row in result["rows"]:
        low, high = row["ratio_quartiles"]
        print(
            f"  {row['concurrency']:7d} {row['rate']:8.1f} {row['ratio']:7.3f} {low:5.2f} to {high:4.2f}"
            f" {row['p50_ms']:9.2f}"
            f" {row['p99_ms']:9.2f} {row['slowest_ms']:9.2f} {row['mean_batch']:7.2f} {row['cpu_ms']:8.2f}"
            f" {row['pss_mib']:8.0f} {row['failures']:8d}"
        )


def draw(results: Sequence[dict[str, Any]], folder: Path) -> None:
    """A column a payload: rate with its ceiling above, p50 and p99 below, over concurrency."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = "fovea"  # the same figures make the same file
    figure, axes = pyplot.subplots(
        2, len(results), sharex=True, squeeze=False, figsize=(3.4 * len(results), 5), layout="constrained"
    )
    for result, (upper, lower) in zip(results, axes.T, strict=True):
        clients = [row["concurrency"] for row in result["rows"]]
        upper.plot(clients, [row["rate"] for row in result["rows"]], "o-", label="served")
        upper.axhline(result["ceiling"], linestyle="--", color="gray", label="in-process")
        upper.set(title=result["payload"], ylim=(0, None), xscale="log", xticks=clients, xticklabels=clients)
        for name in ("p50", "p99"):
            lower.plot(clients, [row[f"{name}_ms"] for row in result["rows"]], "o-", label=name)
        lower.set(yscale="log", xlabel="clients")
        for axis in (upper, lower):
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("answers a second")
    axes[1, 0].set_ylabel("latency, ms")
    axes[0, 0].legend()
    axes[1, 0].legend()
    for kind in ("svg", "png"):
        figure.savefig(folder / f"bench.{kind}", metadata={"Date": None} if kind == "svg" else None)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--payload", action="append", choices=list(PAYLOADS), help="default: all")
    parser.add_argument("--concurrency", "-c", action="append", type=int, help="default: 1, 8, 32, 64")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one window")
    parser.add_argument("--model-repo", type=Path, default=Path("model_repo"))
    parser.add_argument("--reports", type=Path, default=Path("build/bench"), help="folder for the figures")
    parser.add_argument("--server-cpus", default="", help="such as 0 or 0,1: keep the server to these CPUs")
    parser.add_argument("--server-args", default="", help="passed on to `fovea serve`")
    options = parser.parse_args(arguments)
    options.concurrency = options.concurrency or [1, 8, 32, 64]
    server_arguments = ["--model-repo", str(options.model_repo), *options.server_args.split()]
    results = []
    cpus = [int(cpu) for cpu in options.server_cpus.split(",") if cpu]
    options.reports.mkdir(parents=True, exist_ok=True)
    with local_server(server_arguments, cpus) as server:
        print(f"{usable_cpus()} CPUs, server ready in {server.ready_seconds:.2f} s, "
              f"{options.rounds} rounds of {options.seconds:g} s windows, medians")  # fmt: skip
        for name in options.payload or PAYLOADS:
            results.append(measure(PAYLOADS[name](), server, options))
            _print(results[-1])
        memory = psutil.Process(server.pid).memory_full_info()
        print(f"\nserver memory now: PSS {memory.pss / 2**20:.0f} MiB, RSS {memory.rss / 2**20:.0f} MiB")
    (options.reports / "bench.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(results, options.reports)


if __name__ == "__main__":
    main()
