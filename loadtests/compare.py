"""`make compare`: two models side by side through HTTP, in one run: rates, latencies and the ratio of the rates.

One server holds both. Windows come in pairs, the second model first in every other one, and the ratio is the middle of
the pairs': what a machine that changes its speed does to one window it mostly does to its neighbour, and not to one of
another minute.
"""

import argparse
import statistics
from pathlib import Path

from closed_loop import Window, closed_loop
from local_server import local_server
from payloads import PAYLOADS, SHRUNK_PAYLOADS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs=2, metavar="MODEL", help="the second is measured against the first")
    parser.add_argument("--payload", choices=[*PAYLOADS, *SHRUNK_PAYLOADS], default="photo")
    parser.add_argument("--concurrency", "-c", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.5, help="of one window")
    parser.add_argument("--model-repo", type=Path, default=Path("model_repo"))
    options = parser.parse_args()
    payload = (PAYLOADS | SHRUNK_PAYLOADS)[options.payload]()
    windows: dict[str, list[Window]] = {model: [] for model in options.models}
    with local_server(["--model-repo", str(options.model_repo)]) as server:
        for number in range(options.rounds + 1):
            for model, seen in list(windows.items())[:: 1 if number % 2 else -1]:
                url = f"{server.url}/api/v1/models/{model}/classify"
                seconds = options.seconds if number else 1.0
                window = closed_loop(url, payload.bodies, payload.content_type, options.concurrency, seconds)
                if number:  # the first round warms up
                    seen.append(window)
    rates = {model: statistics.median(window.rate for window in seen) for model, seen in windows.items()}
    print(
        f"{payload.name}, {options.concurrency} clients, medians of {options.rounds} windows of {options.seconds:g} s"
    )
    for model, seen in windows.items():
        p50, p99 = (statistics.median(window.percentile(share) for window in seen) for share in (0.5, 0.99))
        failures = sum(window.failures for window in seen)
        each = " ".join(f"{window.rate:.0f}" for window in seen)
        print(f"  {model}: {rates[model]:.1f}/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms, {failures} failed ({each})")
    first, second = options.models
    ratios = [b.rate / a.rate for a, b in zip(windows[first], windows[second], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    print(f"{second} / {first}: {middle:.2f} (half of the pairs between {low:.2f} and {high:.2f})")


if __name__ == "__main__":
    main()
