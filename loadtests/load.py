"""`make load SCENARIO=steady`: one Locust scenario against the service; exit code 0 where its objectives held.

Without `--url` it starts `fovea serve` on a free port for the run. Options that are not its own go to Locust
(`--seconds`, `--clients`, `--rate`, `--max-p99-ms`, ...). Reports: build/load/SCENARIO/report.html, *.csv, stats.json,
slo.json.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from local_server import local_server

_HERE = Path(__file__).resolve().parent
_NOT_SCENARIOS = ("traffic", "gate")
SCENARIOS = sorted(path.stem for path in (_HERE / "scenarios").glob("*.py") if path.stem not in _NOT_SCENARIOS)
_STOP_SECONDS = 10  # for requests on their way when the run ends


@contextmanager
def service_at(url: str | None, arguments: Sequence[str]) -> Iterator[str]:
    """The service at `url`, or else one of our own, started with `arguments`."""
    if url:
        yield url.rstrip("/")
        return
    with local_server(arguments) as own:
        yield own.url


def run(scenario: str, url: str, reports: Path, options: Sequence[str]) -> int:
    """Run one scenario against `url`; returns Locust's exit code: 0 held, 1 objectives missed or errors."""
    reports.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "locust", "--headless", "--only-summary", "--host", url),
        *("-f", str(_HERE / "scenarios" / f"{scenario}.py"), "--stop-timeout", str(_STOP_SECONDS)),
        *("--html", str(reports / "report.html"), "--csv", str(reports / scenario)),
        *("--json-file", str(reports / "stats"), "--slo-json", str(reports / "slo.json")),
    ]
    environment = os.environ | {"PYTHONPATH": str(_HERE)}  # where scenarios find the payloads
    return subprocess.run([*command, *options], env=environment, check=False).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--url", help="a service that runs already; default: one of our own")
    parser.add_argument("--model-repo", default="model_repo")
    parser.add_argument("--reports", type=Path, default=Path("build/load"), help="folder; default: build/load")
    options, passed_on = parser.parse_known_args(arguments)
    with service_at(options.url, ["--model-repo", options.model_repo]) as url:
        return run(options.scenario, url, options.reports / options.scenario, passed_on)


if __name__ == "__main__":
    sys.exit(main())
