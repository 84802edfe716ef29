"""`make tensors`: what a tensor costs on its way through /v2, against the same batch in-process; in one run.

Two questions. How near comes a binary request of 32 float32 photographs to the engine's own rate for that batch, with
as many threads as CPUs? How much longer than the binary form takes the JSON form of one photograph? Windows are
interleaved, medians are printed; exit code 1 where a bound is missed.
"""

import argparse
import http.client
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from local_server import LocalServer, local_server

from service import manifest as manifests
from service.engine.ort import OrtEngine
from service.machine import usable_cpus

MODEL = "imagenet"
LEAST_RATIO = 0.8
MOST_EXTRA_MS = 15.0
_SHAPE = (3, 224, 224)

Body = tuple[bytes, dict[str, str]]


def binary_body(name: str, rows: npt.NDArray[np.float32]) -> Body:
    """An infer request with one binary tensor; the outputs come back binary too."""
    one = {"name": name, "shape": list(rows.shape), "datatype": "FP32", "parameters": {"binary_data_size": rows.nbytes}}
    head = json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}}).encode()
    return head + rows.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def json_body(name: str, rows: npt.NDArray[np.float32]) -> Body:
    one = {"name": name, "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}
    return json.dumps({"inputs": [one]}).encode(), {}


class Client:
    """One kept connection."""

    def __init__(self, server: LocalServer) -> None:
        self._connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)

    def infer(self, body: Body) -> float:
        """Milliseconds of one request."""
        content, headers = body
        started_at = time.perf_counter()
        self._connection.request("POST", f"/v2/models/{MODEL}/infer", content, headers)
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {data[:200]!r}")
        return (time.perf_counter() - started_at) * 1000.0


def rate(workers: Sequence[Callable[[], object]], images: int, seconds: float) -> float:
    """Images a second of `workers` side by side, each call `images` of them."""
    done = [0] * len(workers)
    ends_at = time.perf_counter() + seconds

    def work(place: int) -> None:
        while time.perf_counter() < ends_at:
            workers[place]()
            done[place] += images

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(workers))]
    started_at = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - started_at)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one window")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--model-repo", type=Path, default=Path("model_repo"))
    options = parser.parse_args(arguments)
    folder = options.model_repo / MODEL
    engine = OrtEngine(folder / "1" / "model.onnx", manifests.read(folder, 1).execution_spec)
    name = engine.inputs[0].name
    rows = np.random.default_rng(0).standard_normal((options.rows, *_SHAPE)).astype(np.float32)
    many, one, text = binary_body(name, rows), binary_body(name, rows[:1]), json_body(name, rows[:1])
    inside: list[float] = []
    served: dict[int, list[float]] = {1: [], 2: [], 4: []}
    alone: dict[str, list[float]] = {"binary": [], "JSON": []}
    with local_server(["--model-repo", str(options.model_repo)]) as server:
        clients = [Client(server) for _ in range(max(served))]
        for client in clients:
            client.infer(many)
        for _ in range(options.rounds):
            inside.append(rate([lambda: engine.run({name: rows})] * usable_cpus(), options.rows, options.seconds))
            for count, rates in served.items():
                callers = [lambda client=client: client.infer(many) for client in clients[:count]]
                rates.append(rate(callers, options.rows, options.seconds))
            for _ in range(25):
                alone["binary"].append(clients[0].infer(one))
                alone["JSON"].append(clients[0].infer(text))
    ceiling = statistics.median(inside)
    ratios = {count: statistics.median(rates) / ceiling for count, rates in served.items()}
    print(f"{options.rows} rows in-process, {usable_cpus()} threads: {ceiling:.1f} images/s")
    for count, ratio in ratios.items():
        print(f"  binary requests of {options.rows} from {count}: {ratio * ceiling:6.1f} images/s, ratio {ratio:.3f}")
    medians = {form: statistics.median(times) for form, times in alone.items()}
    extra = medians["JSON"] - medians["binary"]
    print(f"one row: binary {medians['binary']:.2f} ms, JSON ({len(text[0]):,} bytes) {extra:.2f} ms more")
    return int(min(ratios.values()) < LEAST_RATIO or extra >= MOST_EXTRA_MS)


if __name__ == "__main__":
    sys.exit(main())
