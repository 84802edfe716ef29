"""`make together`: what models on one machine notice of each other.

Closed loops, each driven from a process of its own, in rounds: every load alone, then with the others. Printed are the
rates and the p99 of both cases and their ratio:

- photo and digit together, eight clients each: what share of its rate alone keeps each?
- digit beside a saturating photo load: how much later are its answers?
- photo with a telephone's 12 megapixels among its clients: how much later are the small ones' answers?
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from closed_loop import Window, closed_loop
from local_server import local_server
from payloads import PAYLOADS


@dataclass(frozen=True, slots=True)
class Load:
    """So many clients that send one payload."""

    payload: str
    clients: int


# name -> the load that is looked at, and what is there beside it
CASES: Mapping[str, tuple[Load, Load]] = {
    "photo with digit": (Load("photo", 8), Load("digit", 8)),
    "digit with photo": (Load("digit", 8), Load("photo", 8)),
    "digit under saturation by photo": (Load("digit", 4), Load("photo", 32)),
    "photo among phone": (Load("photo", 7), Load("phone", 1)),
}


@dataclass(slots=True)
class Result:
    """Medians over the rounds; latencies in milliseconds."""

    rate_alone: float
    rate_together: float
    p99_alone_ms: float
    p99_together_ms: float
    failures: int


def run(url: str, load: Load, seconds: float) -> Window:
    """One window; in a worker process."""
    payload = PAYLOADS[load.payload]()
    return closed_loop(f"{url}{payload.path}", payload.bodies, payload.content_type, load.clients, seconds)


def measure(pool: ProcessPoolExecutor, url: str, rounds: int, seconds: float) -> dict[str, Result]:
    """All cases, alone and together by turns."""
    windows: dict[str, tuple[list[Window], list[Window]]] = {name: ([], []) for name in CASES}
    for _ in range(rounds):
        for name, (looked_at, beside) in CASES.items():
            alone, together = windows[name]
            alone.append(pool.submit(run, url, looked_at, seconds).result())
            other = pool.submit(run, url, beside, seconds)
            together.append(pool.submit(run, url, looked_at, seconds).result())
            other.result()
    return {name: _result(*both) for name, both in windows.items()}


def _result(alone: Sequence[Window], together: Sequence[Window]) -> Result:
    return Result(
        statistics.median(window.rate for window in alone),
        statistics.median(window.rate for window in together),
        statistics.median(window.percentile(0.99) for window in alone),
        statistics.median(window.percentile(0.99) for window in together),
        sum(window.failures for window in (*alone, *together)),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one window")
    parser.add_argument("--model-repo", type=Path, default=Path("model_repo"))
    parser.add_argument("--reports", type=Path, default=Path("build/bench"), help="folder for the figures")
    options = parser.parse_args(arguments)
    options.reports.mkdir(parents=True, exist_ok=True)
    with (
        local_server(["--model-repo", str(options.model_repo)]) as server,
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool,
    ):
        results = measure(pool, server.url, options.rounds, options.seconds)
    print(f"{'':34}{'alone/s':>9}{'with/s':>9}{'share':>7}{'p99 ms':>9}{'with':>8}{'times':>7}  failed")
    for name, one in results.items():
        print(
            f"{name:34}{one.rate_alone:9.1f}{one.rate_together:9.1f}{one.rate_together / one.rate_alone:7.2f}"
            f"{one.p99_alone_ms:9.2f}{one.p99_together_ms:8.2f}{one.p99_together_ms / one.p99_alone_ms:7.2f}"
            f"{one.failures:8d}"
        )
    report = {name: {field: getattr(one, field) for field in Result.__slots__} for name, one in results.items()}
    (options.reports / "together.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
