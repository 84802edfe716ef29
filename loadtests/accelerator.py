"""`make accelerator`: what a device makes of encoded photographs, alone, with decoding, and through HTTP.

    device     the graph on batches that lie ready, by size
    decoding   every CPU decodes, and nothing runs
    in-process every CPU decodes the next batch while the device runs the one before: the ceiling
    served     the running service, each window between two of the ceiling, and the ratio
    agreement  the same photographs on the device and on the CPU: labels and scores

Exits 1 where the service reaches less than `--least` of the ceiling at every concurrency, or where device and CPU do
not say the same. The provider is the only one allowed: what does not run there is an error and no slow figure. With
`--provider cpu` the whole of it runs on a machine without a device, which says nothing about one.
"""

import argparse
import json
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bench import InProcess
from closed_loop import closed_loop
from local_server import LocalServer, local_server
from payloads import PAYLOADS, Payload, photo_256

from service.engine.providers import PROVIDERS
from service.errors import ModelLoadError
from service.machine import usable_cpus

_MOST_DIFFERENCE = 1e-3  # between a score of the device and of the CPU
_UNDER_WAY = 2  # batches: the device has one, the other is being filled

Rows = npt.NDArray[Any]


@contextmanager
def repository_on(provider: str, source: Path, model: str) -> Iterator[Path]:
    """A repository of `model` alone, which may run on `provider` and nowhere else."""
    with tempfile.TemporaryDirectory() as folder:
        copied = shutil.copytree(source / model, Path(folder) / model)
        manifest = copied / "model.toml"
        text = manifest.read_text(encoding="utf-8")
        manifest.write_text(with_provider(text, provider), encoding="utf-8")
        yield Path(folder)


def with_provider(manifest: str, provider: str) -> str:
    """The text of a manifest whose [execution] names `provider` alone."""
    line = f'providers = ["{provider}"]'
    if re.search(r"^providers\s*=", manifest, re.MULTILINE):
        return re.sub(r"^providers\s*=.*$", line, manifest, count=1, flags=re.MULTILINE)
    if re.search(r"^\[execution\]", manifest, re.MULTILINE):
        return re.sub(r"^\[execution\].*$", f"[execution]\n{line}", manifest, count=1, flags=re.MULTILINE)
    return f"{manifest.rstrip()}\n\n[execution]\n{line}\n"


def _rate(step: Callable[[], int], seconds: float) -> float:
    """Images a second of `step`, which says how many it did."""
    done, started_at = 0, time.perf_counter()
    while (now := time.perf_counter()) < started_at + seconds:
        done += step()
    return done / (now - started_at)


def device_rate(inside: InProcess, size: int, seconds: float) -> float:
    """Of the graph alone, on a batch that lies ready."""
    feeds = {inside.input.tensor: inside.decoded(0, size)}
    inside.engine.run(feeds)

    def run() -> int:
        inside.engine.run(feeds)
        return size

    return _rate(run, seconds)


def decoding_rate(inside: InProcess, pool: ThreadPoolExecutor, size: int, seconds: float) -> float:
    """Of all threads of `pool`, which do nothing else."""
    rows = np.empty((size, *inside.input.shape), inside.input.dtype)

    def fill() -> int:
        list(pool.map(lambda place: inside.decode(place, rows[place]), range(size)))
        return size

    return _rate(fill, seconds)


class Ceiling:
    """Decoding and the device at once, as fast as they go together, in batches of `size`."""

    def __init__(self, inside: InProcess, pool: ThreadPoolExecutor, size: int) -> None:
        self._inside, self._pool, self._size = inside, pool, size
        shape = (size, *inside.input.shape)
        self._buffers = [np.empty(shape, inside.input.dtype) for _ in range(_UNDER_WAY)]

    def rate(self, seconds: float) -> float:
        filling = [self._fill(rows) for rows in self._buffers]
        turn = 0

        def run() -> int:
            nonlocal turn
            place, turn = turn % _UNDER_WAY, turn + 1
            for one in filling[place]:
                one.result()
            raw = self._inside.engine.run({self._inside.input.tensor: self._buffers[place]})[0]
            filling[place] = self._fill(self._buffers[place])
            for scores in self._inside.task.scores(raw):
                self._inside.task.predictions(scores, 5, None)
            return self._size

        rate = _rate(run, seconds)
        for one in [one for batch in filling for one in batch]:
            one.result()
        return rate

    def _fill(self, rows: Rows) -> "list[Future[None]]":
        return [self._pool.submit(self._inside.decode, place, rows[place]) for place in range(self._size)]


def agreement(device: InProcess, cpu: InProcess) -> tuple[int, int, float]:
    """How many images, of how many the best label is the same on both, and the largest difference of a score."""
    size = len(device.images)
    rows = cpu.decoded(0, size)
    ours, theirs = (one.task.scores(one.engine.run({one.input.tensor: rows})[0]) for one in (device, cpu))
    same = int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())
    return size, same, float(np.abs(ours - theirs).max())


def measure(payload: Payload, inside: InProcess, server: LocalServer, options: argparse.Namespace) -> dict[str, Any]:
    """All rates; the service's with their ratios to the ceiling."""
    url = f"{server.url}{payload.path}"
    seconds = options.seconds
    closed_loop(url, payload.bodies, payload.content_type, max(options.concurrency), seconds)
    with ThreadPoolExecutor(usable_cpus()) as pool:
        device = {size: device_rate(inside, size, seconds / 2) for size in options.batch}
        decoding = decoding_rate(inside, pool, max(options.batch), seconds)
        ceilings = {size: Ceiling(inside, pool, size) for size in options.batch}
        size = max(options.batch, key=lambda size: ceilings[size].rate(seconds))
        ceiling, rates = ceilings[size], [ceilings[size].rate(seconds)]
        served: dict[int, dict[str, list[float]]] = {one: {} for one in options.concurrency}
        for _ in range(options.rounds):
            for clients, found in served.items():
                window = closed_loop(url, payload.bodies, payload.content_type, clients, seconds)
                rates.append(ceiling.rate(seconds))
                seen = {
                    "rate": window.rate,
                    "ratio": window.rate / statistics.fmean(rates[-2:]),
                    "p50_ms": window.percentile(0.50),
                    "p99_ms": window.percentile(0.99),
                    "failed": float(window.failures),
                }
                for name, value in seen.items():
                    found.setdefault(name, []).append(value)
    return {
        "payload": payload.name,
        "model": payload.model,
        "provider": inside.engine.provider.name,
        "device": device,
        "decoding": decoding,
        "ceiling": statistics.median(rates),
        "ceiling_batch": size,
        "served": {
            clients: {name: statistics.median(values) for name, values in found.items()}
            for clients, found in served.items()
        },
    }


def _print(result: dict[str, Any]) -> None:
    print(f"\n{result['payload']} -> {result['model']} on {result['provider']}, {usable_cpus()} CPUs, images a second")
    for size, rate in result["device"].items():
        print(f"  device, batches of {size:3d} {rate:12.1f}")
    print(f"  decoding, all CPUs      {result['decoding']:12.1f}")
    print(f"  in-process, both        {result['ceiling']:12.1f}   in batches of {result['ceiling_batch']}")
    for clients, row in result["served"].items():
        print(
            f"  served, {clients:4d} clients    {row['rate']:12.1f}   ratio {row['ratio']:.3f}"
            f"   p50 {row['p50_ms']:.1f} ms   p99 {row['p99_ms']:.1f} ms   failed {row['failed']:.0f}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", choices=list(PROVIDERS), default="cuda")
    parser.add_argument("--payload", choices=["photo", "phone"], default="photo")
    parser.add_argument("--concurrency", "-c", action="append", type=int, help="default: 32, 64, 128")
    parser.add_argument("--batch", "-b", action="append", type=int, help="default: 1, 8, 32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one window")
    parser.add_argument("--least", type=float, default=0.9, help="of the ceiling")
    parser.add_argument("--model-repo", type=Path, default=Path("model_repo"))
    parser.add_argument("--reports", type=Path, default=Path("build/accelerator"), help="folder for the figures")
    options = parser.parse_args(arguments)
    options.concurrency = options.concurrency or [32, 64, 128]
    options.batch = options.batch or [1, 8, 32]
    payload = PAYLOADS[options.payload]()
    with (
        repository_on(options.provider, options.model_repo, payload.model) as repository,
        repository_on("cpu", options.model_repo, payload.model) as on_cpu,
    ):
        try:
            inside = InProcess(repository, payload)
        except ModelLoadError as error:
            sys.exit(str(error))
        with local_server(["--model-repo", str(repository)]) as server:
            result = measure(payload, inside, server, options)
        _print(result)
        images = Payload("both sizes", payload.model, payload.content_type, payload.bodies + photo_256().bodies)
        count, same, difference = agreement(InProcess(repository, images), InProcess(on_cpu, images))
    print(f"  {result['provider']} and cpu: the same label for {same} of {count}, scores within {difference:.1e}")
    result["agreement"] = {"images": count, "same_label": same, "largest_difference": difference}
    best = max(row["ratio"] for row in result["served"].values())
    failed = sum(row["failed"] for row in result["served"].values())
    is_well = best >= options.least and not failed and same == count and difference <= _MOST_DIFFERENCE
    options.reports.mkdir(parents=True, exist_ok=True)
    (options.reports / "accelerator.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(
        "held" if is_well else f"MISSED: at least {options.least:g} of the ceiling, no failures, and the same answers"
    )
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
