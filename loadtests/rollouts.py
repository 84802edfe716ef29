"""`make rollouts`: versions come and go under load. Each check prints its figures and says whether its bound held.

    flips    windows with a new version every few seconds, each loaded, swapped in and the old one freed, and without
    bad      every kind of version that must never serve, one by one
    shadow   the same load without and with a shadow
    canary   a share of requests, and keys that stick
    drift    the drift gauges over usual and over shifted traffic
    poison   an image that the graph fails on, in each position of batches of eight

It serves a repository of its own, made from model_repo/, on a free port of 127.0.0.1. Exit code 1 where a bound broke.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import uvloop
from arrivals import Load, Run
from closed_loop import closed_loop, request_bytes
from local_server import LocalServer, local_server
from payloads import PAYLOADS, Payload
from prometheus_client.parser import text_string_to_metric_families

_PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_PROJECT))  # the builders of bad versions and odd graphs are the tests'

from tests.support.bad_versions import BAD  # noqa: E402

_TOKEN = "a-token-for-load-tests"
_SETTINGS = ("--admin.token", _TOKEN, "--repository.poll-interval-s", "0.5", "--log.success-sample", "0")
_CAPACITY_CLIENTS = 16
_CAPACITY_SECONDS = 4.0
_STEADY_MEDIAN = 3.0  # times the quick answers: at four fifths of what a machine carries 2, and 10 and more beyond


class Service:
    """A server over a repository that the check may change."""

    def __init__(self, server: LocalServer, root: Path, payload: Payload) -> None:
        self.url = server.url
        self.root = root
        self.payload = payload
        self.folder = root / payload.model
        self._process = psutil.Process(server.pid)

    @property
    def rss_mib(self) -> float:
        return float(self._process.memory_info().rss) / 2**20

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """A call as admin; its JSON, or the status of a refusal."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"authorization": f"Bearer {_TOKEN}"}, method=method)
        with urllib.request.urlopen(request, timeout=150) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def rollout(self, **body: Any) -> Any:
        return self.call("PATCH", f"/api/v1/models/{self.payload.model}/rollout", body)

    def versions(self) -> dict[int, tuple[str, str]]:
        """State and reason of each version."""
        found = self.call("GET", f"/api/v1/models/{self.payload.model}")["versions"]
        return {int(one["version"]): (one["state"], one.get("reason", "")) for one in found}

    def metric(self, name: str, **labels: str) -> float | None:
        """The sum of a series; None where there is none."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        values = [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(values) if values else None

    def capacity(self) -> float:
        """Answers a second of a closed loop."""
        url, kind = self.url + self.payload.path, self.payload.content_type
        closed_loop(url, self.payload.bodies, kind, _CAPACITY_CLIENTS, 1.0)
        return closed_loop(url, self.payload.bodies, kind, _CAPACITY_CLIENTS, _CAPACITY_SECONDS).rate

    def steady_rate(self) -> float:
        """Of the capacity four fifths, or less: where half of those who arrive by chance are answered soon."""
        rate = 0.8 * self.capacity()
        while True:
            run = uvloop.run(self.load(rate, _CAPACITY_SECONDS))
            if run.percentile_ms(0.5) <= _STEADY_MEDIAN * run.percentile_ms(0.05):
                return rate
            rate *= 0.9

    async def load(
        self, rate: float, seconds: float, seen: Callable[[bytes, bytes], None] = lambda status, body: None
    ) -> Run:
        """Poisson arrivals."""
        url = self.url + self.payload.path
        requests = [request_bytes(url, body, self.payload.content_type) for body in self.payload.bodies]
        return await Load(url, requests, rate, seconds, 0, seen).drive()

    def put(self, version: int, source: Path, spoil: Callable[[Path, Path], None] | None = None) -> None:
        """A new version, renamed into place; `spoil` makes it in the place of a copy."""
        beside = self.folder / f".{version}"
        if spoil is None:
            shutil.copytree(source, beside)
        else:
            spoil(source, beside)
        beside.rename(self.folder / str(version))


@contextmanager
def serving(payload: Payload, *settings: str, prepare: Callable[[Path], None] = lambda root: None) -> Iterator[Service]:
    """The payload's model alone, served from a copy.

    A model that runs on the event loop needs one CPU, and so does a load of thousands a second: each keeps to its own.
    """
    cpus = sorted(os.sched_getaffinity(0))
    server_cpus, client_cpus = (cpus[:1], cpus[1:] or cpus) if payload.model == "digits" else (cpus, cpus)
    os.sched_setaffinity(0, client_cpus)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "model_repo"
        shutil.copytree(_PROJECT / "model_repo" / payload.model, root / payload.model)
        prepare(root / payload.model)
        with local_server(["--model-repo", str(root), *_SETTINGS, *settings], server_cpus) as server:
            yield Service(server, root, payload)


class Verdict:
    """Collects whether bounds held."""

    def __init__(self) -> None:
        self.broken = 0

    def bound(self, what: str, figure: float | str, *, held: bool, bound: str) -> None:
        shown = f"{figure:.4g}" if isinstance(figure, float) else figure
        print(f"{'held  ' if held else 'BROKEN'}  {what}: {shown} ({bound})", flush=True)
        self.broken += not held


# Flips


class _Answers:
    """Holds every answer against the version that it names: labels of even versions begin with `even`."""

    def __init__(self, expected: dict[int, set[str]]) -> None:
        self.expected = expected
        self.wrong: list[str] = []
        self.statuses: Counter[str] = Counter()
        self.versions: Counter[str] = Counter()

    def __call__(self, status: bytes, body: bytes) -> None:
        self.statuses[status.decode()] += 1
        if status != b"200":
            self.wrong.append(body[:200].decode("utf-8", "replace"))
            return
        version, best = _between(body, b'"version":"'), _between(body, b'"label":"')
        self.versions[version] += 1
        if best not in self.expected[int(version) % 2]:
            self.wrong.append(f"version {version} said {best}")


def _between(body: bytes, mark: bytes) -> str:
    """The text behind the first `mark`. Parsing each answer whole would be the load's bottleneck."""
    start = body.index(mark) + len(mark)
    return body[start : body.index(b'"', start)].decode()


async def _flip(service: Service, versions: Sequence[int], every_seconds: float) -> tuple[list[float], list[float]]:
    """Put each version beside the one before; seconds until it served, and from then until that one was freed."""
    taken, freed = [], []
    for version in versions:
        began_at = time.monotonic()
        old = service.folder / str(version - 1)
        word = "odd" if version % 2 else "even"
        labels = "\n".join(f"{word} {place}" for place in range(_labels(service)))
        service.put(version, old, lambda source, new, labels=labels: _relabelled(source, new, labels))
        await asyncio.to_thread(service.call, "POST", f"/v2/repository/models/{service.payload.model}/load", {})
        swapped_at = time.monotonic()
        taken.append(swapped_at - began_at)
        while (await asyncio.to_thread(service.versions))[version - 1][0] != "UNKNOWN":  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.05)
        freed.append(time.monotonic() - swapped_at)
        shutil.rmtree(old)
        await asyncio.sleep(max(0.0, every_seconds - (time.monotonic() - began_at)))
    return taken, freed


_LOOKS = 3  # at the memory, each at a version of its own
_OVERLOADED_FLIPS = 12


def _rss_after_flips(service: Service, first: int) -> float:
    """MiB with a fresh version and nothing to do, after others came and went under twice the load that can be answered.

    That takes all the connections and buffers there can be, and spreads out what lies between them: memory that stays,
    and is no growth. A version under load is no measure: what it takes beyond that depends on which sizes of batches
    met by chance. Nor is one look: where things lie differs by 2 % from version to version. The middle of several is.
    """
    rate = 2 * service.capacity()

    async def overload(versions: Sequence[int]) -> None:
        load = asyncio.create_task(service.load(rate, float(len(versions))))
        await _flip(service, versions, 1.0)
        await load

    fresh = first + _OVERLOADED_FLIPS
    uvloop.run(overload(range(first, fresh)))
    seen = []
    for version in range(fresh, fresh + _LOOKS):
        uvloop.run(_flip(service, [version], 2.0))
        seen.append(service.rss_mib)
    print("RSS MiB after a version was replaced:", *(f"{one:.1f}" for one in seen))
    return statistics.median(seen)


def _relabelled(source: Path, new: Path, labels: str) -> None:
    shutil.copytree(source, new)
    (new / "labels.txt").write_text(labels)


def _labels(service: Service) -> int:
    return len((service.folder / "labels.txt").read_text().split("\n"))


def _with_odd_labels(folder: Path) -> None:
    count = len((folder / "labels.txt").read_text().rstrip("\n").split("\n"))
    (folder / "labels.txt").write_text("\n".join(f"odd {place}" for place in range(count)))


def flips(options: argparse.Namespace, verdict: Verdict) -> None:
    """Windows without and with flips in turns, each pair at 70 % of what the machine then does."""
    payload = PAYLOADS[options.payload]()
    with serving(payload, prepare=_with_odd_labels) as service:
        places = range(_labels(service))
        answers = _Answers({parity: {f"{word} {n}" for n in places} for parity, word in ((0, "even"), (1, "odd"))})
        without, with_flips = [], []
        taken: list[float] = []
        freed: list[float] = []

        async def window(versions: Sequence[int], rate: float) -> None:
            without.append(await service.load(rate, options.seconds))
            load = asyncio.create_task(service.load(rate, len(versions) * options.every, answers))
            for seconds, more in zip((taken, freed), await _flip(service, versions, options.every), strict=True):
                seconds.extend(more)
            with_flips.append(await load)

        rss = _rss_after_flips(service, 2)
        first = 2 + _OVERLOADED_FLIPS + _LOOKS
        for versions in np.array_split(range(first, first + options.count), options.rounds):
            rate = 0.7 * service.capacity()
            uvloop.run(window(versions.tolist(), rate))
            pair = [round(runs[-1].percentile_ms(0.99), 1) for runs in (without, with_flips)]
            print(f"{rate:.0f}/s: p99 ms without and with flips {pair}, refused {with_flips[-1].shed}")
        print(f"{sum(run.arrivals for run in with_flips)} answers, {len(answers.versions)} versions")
        print(f"a load took {statistics.median(taken):.2f} s (at most {max(taken):.2f})")
        bad, usual = (sum(run.shed + run.failures for run in runs) for runs in (with_flips, without))
        verdict.bound("answers other than 2xx", f"{bad}, without flips {usual}", held=bad == 0, bound="none")
        wrong = len(answers.wrong) - bad
        verdict.bound("answers wrong for their version", str(wrong), held=wrong == 0, bound="none")
        ratios = [
            one.percentile_ms(0.99) / usual.percentile_ms(0.99) for one, usual in zip(with_flips, without, strict=True)
        ]
        middle = statistics.median(ratios)
        shown = f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        verdict.bound("p99 with flips / without, middle pair", shown, held=middle <= 2, bound="at most 2")
        after = _rss_after_flips(service, first + options.count)
        verdict.bound("RSS MiB", f"{rss:.1f} -> {after:.1f}", held=after <= 1.05 * rss, bound="at most +5 %")
        verdict.bound("seconds until the old session was freed", max(freed), held=max(freed) <= 5, bound="at most 5")


# Bad versions


def bad(options: argparse.Namespace, verdict: Verdict) -> None:
    payload = PAYLOADS[options.payload]()
    with serving(payload) as service:
        rate = 0.7 * service.capacity()

        async def measured() -> Run:
            load = asyncio.create_task(service.load(rate, 2.0 * len(BAD) + 4))
            await asyncio.sleep(1)
            for version, kind in enumerate(sorted(BAD), 2):
                await _try(service, version, kind, verdict)
            return await load

        run = uvloop.run(measured())
        refused = run.shed + run.failures
        verdict.bound(f"answers other than 2xx of {run.arrivals}", str(refused), held=refused == 0, bound="none")
        with urllib.request.urlopen(f"{service.url}/readyz", timeout=5) as answer:
            verdict.bound("ready", str(answer.status), held=answer.status == 200, bound="200 to the end")


async def _try(service: Service, version: int, kind: str, verdict: Verdict) -> None:
    """One bad version: found by the poll, refused, with its reason in both indexes."""
    service.put(version, service.folder / "1", BAD[kind].make)
    state, reason = "", ""
    for _ in range(60):
        await asyncio.sleep(0.05)
        state, reason = (await asyncio.to_thread(service.versions)).get(version, ("", ""))
        if state == "UNAVAILABLE":
            break
    index = await asyncio.to_thread(service.call, "POST", "/v2/repository/index", {})
    told = any(line.get("version") == str(version) and line.get("reason") == reason for line in index)
    held = state == "UNAVAILABLE" and BAD[kind].says in reason and told
    verdict.bound(kind, f"{state}: {reason[:110]}", held=held, bound="UNAVAILABLE, with the reason in the index")
    counted = await asyncio.to_thread(
        service.metric, "fovea_model_refusals_total", model=service.payload.model, reason=BAD[kind].gate
    )
    if not counted:
        verdict.bound(f"{kind}: counted", "no", held=False, bound=f"reason {BAD[kind].gate}")
    place = service.folder / str(version)
    place.unlink() if place.is_symlink() else shutil.rmtree(place)


# Shadow


def shadow(options: argparse.Namespace, verdict: Verdict) -> None:
    """Pairs of windows, with a shadow first or last in turns, each pair at 80 % of what the machine then carries."""
    payload = PAYLOADS[options.payload]()
    with serving(payload) as service:
        ratios = []
        for number in range(options.rounds):
            service.rollout(stable=1, shadow=None)
            rate = service.steady_rate()
            p99: dict[bool, float] = {}
            for with_shadow in (False, True) if number % 2 else (True, False):
                service.rollout(shadow={"version": 1, "percent": options.percent} if with_shadow else None)
                p99[with_shadow] = uvloop.run(service.load(rate, options.seconds)).percentile_ms(0.99)
                if with_shadow:
                    seen = service.rollout()["comparison"]
            ratios.append(p99[True] / p99[False])
            print(f"{rate:.0f}/s: p99 {p99[False]:.1f} ms without, {p99[True]:.1f} ms with; {_short(seen)}", flush=True)
            verdict.bound("agreement with itself", seen["agreement"], held=seen["agreement"] == 1, bound="exactly 1")
        middle = statistics.median(ratios)
        shown = f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        verdict.bound("p99 with a shadow / without, middle pair", shown, held=middle <= 1.1, bound="at most 1.1")


def _short(seen: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in seen.items() if key != "disagreements")


# Canary


def canary(options: argparse.Namespace, verdict: Verdict) -> None:
    payload = PAYLOADS[options.payload]()
    with serving(payload) as service:
        service.put(2, service.folder / "1")
        service.rollout(stable=1, canary={"version": 2, "percent": 10})
        versions: Counter[str] = Counter()

        def count(status: bytes, body: bytes) -> None:
            versions[json.loads(body)["version"] if status == b"200" else status.decode()] += 1

        uvloop.run(service.load(500, 11, count))
        share = versions["2"] / versions.total()
        verdict.bound(
            f"canary's share of {versions.total()} requests", share, held=0.08 <= share <= 0.12, bound="10 % +-2"
        )
        verdict.bound(
            "answers other than 2xx",
            str(versions.total() - versions["1"] - versions["2"]),
            held=set(versions) <= {"1", "2"},
            bound="none",
        )
        by_key = {key: {_ask(service, key) for _ in range(5)} for key in map(str, range(200))}
        torn = sum(len(seen) > 1 for seen in by_key.values())
        verdict.bound("keys seen by two versions", str(torn), held=torn == 0, bound="none of 200")
        share = sum(seen == {"2"} for seen in by_key.values()) / len(by_key)
        verdict.bound("canary's share of keys", share, held=0.03 <= share <= 0.17, bound="10 % +-7 of 200")
        _roll_back(service, verdict)


def _roll_back(service: Service, verdict: Verdict) -> None:
    """Promote and go back under load; seconds until no answer is the promoted version's."""
    service.rollout(stable=2, canary=None)
    last: dict[str, float] = {}

    def note(status: bytes, body: bytes) -> None:
        last[json.loads(body)["version"]] = time.monotonic()

    async def measured() -> float:
        load = asyncio.create_task(service.load(500, 4, note))
        await asyncio.sleep(2)
        called_at = time.monotonic()
        await asyncio.to_thread(service.rollout, stable=1)
        await load
        return last["2"] - called_at

    seconds = uvloop.run(measured())
    verdict.bound("seconds until a rollback is in force", seconds, held=seconds <= 1, bound="at most 1")


def _ask(service: Service, key: str) -> str:
    headers = {"content-type": service.payload.content_type, "x-fovea-key": key}
    request = urllib.request.Request(service.url + service.payload.path, service.payload.bodies[0], headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.loads(answer.read())["version"])


# Drift


def drift(options: argparse.Namespace, verdict: Verdict) -> None:
    """Digits drawn by a random generator; a shift sends three in ten images to one of them."""
    payload = PAYLOADS["digit"]()
    digits = _digits(payload)
    with serving(payload, prepare=lambda folder: _write_reference(folder, digits)) as service:
        random = np.random.default_rng(1)

        def send(shares: np.ndarray, images: int) -> tuple[float, float]:
            bodies = [
                digits[place][random.integers(len(digits[place]))] for place in random.choice(10, images, p=shares)
            ]
            for start in range(0, images, 10):
                _classify_many(service, bodies[start : start + 10])
            model = payload.model
            found = [service.metric(f"fovea_{what}_drift", model=model) for what in ("prediction", "confidence")]
            return found[0] or 0.0, found[1] or 0.0

        usual = np.full(10, 0.1)
        seen = [send(usual, 5000) for _ in range(options.runs)]
        classes, confidence = max(one for one, _ in seen), max(one for _, one in seen)
        verdict.bound(
            f"PSI of usual traffic, worst of {options.runs} runs of 5,000", classes, held=classes < 0.1, bound="< 0.1"
        )
        verdict.bound("PSI of its confidence", confidence, held=confidence < 0.1, bound="< 0.1")
        shifted = usual * 0.7
        shifted[3] += 0.3
        classes, _ = send(shifted, 2000)
        verdict.bound("PSI after a shift of 30 %, one window of 2,000", classes, held=classes > 0.2, bound="> 0.2")


def _digits(payload: Payload) -> list[list[bytes]]:
    """Drawn digits that the model calls what they are meant to be, by class."""
    from tests.support import bodies

    return [
        [
            bodies.drawn_digit(digit, size=size, shift=(x, y))
            for size in (20, 22, 24)
            for x in (-1, 0, 1)
            for y in (-1, 0, 1)
        ]
        for digit in range(10)
    ]


def _write_reference(folder: Path, digits: list[list[bytes]]) -> None:
    import subprocess

    images = folder.parents[1] / "images"
    images.mkdir()
    random = np.random.default_rng(0)
    for number in range(5000):
        kind = digits[number % 10]
        (images / f"{number}.png").write_bytes(kind[random.integers(len(kind))])
    command = [
        sys.executable,
        "-m",
        "service",
        "check",
        "--model-repo",
        str(folder.parent),
        "--write-reference",
        str(images),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _classify_many(service: Service, images: Sequence[bytes]) -> None:
    boundary = "fovea-rollouts"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\n'
        f"Content-Type: image/png\r\n\r\n".encode()
        + image
        + b"\r\n"
        for image in images
    ]
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    with urllib.request.urlopen(
        urllib.request.Request(service.url + service.payload.path, body, headers), timeout=10
    ) as a:
        a.read()


# Poison


def poison(options: argparse.Namespace, verdict: Verdict) -> None:
    """In-process: batches of eight, of which one is all white, which the graph cannot look up."""
    uvloop.run(_poison(options.batches, verdict))


async def _poison(batches: int, verdict: Verdict) -> None:
    from service.errors import EngineFailed
    from tests.support import tiny_models

    manifest = tiny_models.UNIT + "[batching]\nmax_batch_size = 8\nmax_queue_delay_ms = 500\n"
    with tempfile.TemporaryDirectory() as place:
        tiny_models.write_model(Path(place), "model", tiny_models.afraid_of_white(), manifest=manifest)
        async with tiny_models.serving(Path(place)) as server:
            (model,) = server.repository.loaded()
            runs, run = [0], model.description.engine.run

            def counted(feeds: Any) -> Any:
                runs[0] += 1
                return run(feeds)

            model.description.engine.run = counted  # type: ignore[method-assign]
            red, white = tiny_models.picture("red"), tiny_models.picture("white")

            async def ask(image: bytes) -> Any:
                return await tiny_models.classify(server.pipeline, "model", image)

            alone = (await asyncio.gather(*[ask(red)] * 1))[0].items[0].predictions
            right = typed = worst = 0
            for number in range(batches):
                runs[0] = 0
                asked = [ask(white if place == number % 8 else red) for place in range(8)]
                results = await asyncio.gather(*asked, return_exceptions=True)
                worst = max(worst, runs[0] - 1)
                typed += isinstance(results.pop(number % 8), EngineFailed)
                right += sum(
                    not isinstance(one, BaseException)
                    and all(
                        abs(a.score - b.score) <= 1e-5 for a, b in zip(one.items[0].predictions, alone, strict=True)
                    )
                    for one in results
                )
            verdict.bound(
                "mates answered as alone", f"{right} of {7 * batches}", held=right == 7 * batches, bound="all"
            )
            verdict.bound("poison refused", f"{typed} of {batches}", held=typed == batches, bound="all")
            verdict.bound("further runs of a batch", str(worst), held=worst <= 4, bound="at most log2(8) + 1 = 4")


CHECKS: dict[str, Callable[[argparse.Namespace, Verdict], None]] = {
    check.__name__: check for check in (flips, bad, shadow, canary, drift, poison)
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", choices=[[], *CHECKS], metavar="CHECK", help="default: all")
    parser.add_argument("--payload", choices=PAYLOADS, default="digit")
    parser.add_argument("--count", type=int, default=100, help="flips")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between flips")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a window of load")
    parser.add_argument("--rounds", type=int, default=10, help="of the load without and with flips, or a shadow")
    parser.add_argument("--percent", type=float, default=20.0, help="a shadow's share")
    parser.add_argument("--runs", type=int, default=10, help="of usual traffic, for drift")
    parser.add_argument("--batches", type=int, default=1000, help="with poison in them")
    options = parser.parse_args(arguments)
    verdict = Verdict()
    for name in options.checks or CHECKS:
        print(f"-- {name}", flush=True)
        CHECKS[name](options, verdict)
    return 1 if verdict.broken else 0


if __name__ == "__main__":
    sys.exit(main())
