"""`fovea tune`: the instances, threads, batch size and delay that give a model the most throughput on this machine
while 99 of 100 requests are answered within a bound.

Owns the search and its budget. Each candidate is served as it would be (the same queue, lanes and engine, without
HTTP), asked by more and more clients until the bound breaks. One thing is varied at a time, the best so far kept; at
the end the best few run again, in turns, as one short window on a busy machine says little.
"""

import asyncio
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from service.config import Settings
from service.errors import ConfigurationError, FoveaError
from service.machine import usable_cpus
from service.messages import ImagePayload, InferenceRequest, ModelRef
from service.workbench import tune_report
from service.workbench.asking import Here, expand, opened_here, reference
from service.workbench.manifest_text import with_keys
from service.workbench.pictures import pictures_for
from service.workbench.trials import Candidate, Point, Trial

MANIFEST_NAME = "model.toml"
_CLIENTS = (1, 2, 4, 8, 16, 32, 64, 128)
_WARM_SECONDS = 0.2
_WINDOW_SECONDS = 1.0  # some hundred answers of a real network: enough to rank, not to judge; see _FINALISTS
_WINDOWS_IN_BUDGET = 40  # at least; a smaller budget has shorter windows
_FINALISTS = 3
_FINAL_SHARE = 0.3  # of the budget
_FINAL_ROUNDS = 3
_GROWTH = 1.03  # less than this from twice the clients is no gain; two such steps are the end of the climb, ...
_IDLE_STEPS = 2  # ... as a batch may first have to fill
_BATCH_SIZES = (1, 2, 4, 8, 16, 32)
_DELAYS_MS = (1.0, 2.0, 5.0)
_PATIENCE_SECONDS = 60.0
_MOST_PICTURES = 32
_ROOT = Path("fovea-reports")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    model: str
    p99_ms: float
    budget_s: float = 90.0
    images: Path | None = None
    output: Path | None = None
    write: bool = True


class Budget:
    """Seconds that the whole search may take."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._started_at = clock()

    @property
    def spent(self) -> float:
        return self._clock() - self._started_at

    def allows(self, seconds: float) -> bool:
        return self.spent + seconds <= self.seconds


def tune(settings: Settings, options: Options) -> int:
    """Search, report, write the manifest; 1 where nothing keeps the bound. Raises ConfigurationError."""
    ref = reference(options.model)
    with tempfile.TemporaryDirectory(prefix="fovea-tune-") as scratch:
        search = asyncio.run(_prepared(settings, ref, options, Path(scratch)))
        winner = search.run()
    output = options.output or _ROOT / f"tune-{ref.name}"
    tune_report.write(output, ref.name, options.p99_ms, search.trials, winner)
    print(tune_report.as_text(search.trials, winner))
    print(f"\n{output / 'report.html'}, report.json")
    if winner is None or winner.best is None:
        quickest = min((point for trial in search.trials for point in trial.points), key=lambda point: point.p99_ms)
        print(f"nothing kept p99 under {options.p99_ms:g} ms; the quickest was {quickest.p99_ms:.1f} ms")
        return 1
    path = _manifest_of(settings.repository.path / ref.name, search.version)
    if options.write:
        draft = path.with_name(f".{path.name}.draft")  # a running server watches the folder
        draft.write_text(with_keys(_text_of(path), winner.candidate.tables), encoding="utf-8")
        draft.replace(path)
    print(f"{path}{'' if options.write else ' would get'}:")
    for table, keys in winner.candidate.tables.items():
        print(f"  [{table}] " + ", ".join(f"{key} = {value}" for key, value in keys.items()))
    return 0


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else "schema = 1\n"


def _manifest_of(folder: Path, version: int) -> Path:
    """Where the keys have to stand to count: a version's own manifest lies over the model's."""
    own = folder / str(version) / MANIFEST_NAME
    return own if own.exists() else folder / MANIFEST_NAME


async def _prepared(settings: Settings, ref: ModelRef, options: Options, scratch: Path) -> "Search":
    """A copy of the version to try things on, and what to send to it."""
    async with opened_here(settings, ref) as here:
        version = here.loaded.version
        spec = here.loaded.description.spec
        if spec.input is None:
            raise ConfigurationError(f"{ref.name} takes tensors only; its manifest has no [input] to make images for")
        fixed = here.loaded.description.engine.inputs[0].shape[0] == 1
        on_cpu = here.loaded.description.engine.provider.name == "cpu"
        size = spec.input.size
    folder = settings.repository.path / ref.name
    (scratch / ref.name).mkdir()
    for file in folder.iterdir():
        if file.is_file():
            shutil.copy(file, scratch / ref.name)
    shutil.copytree(folder / str(version), scratch / ref.name / str(version))
    pictures = _pictures(options.images) if options.images else pictures_for(size)
    repository = settings.repository.model_copy(update={"path": scratch})
    tried = settings.model_copy(update={"repository": repository})
    cpus = usable_cpus() if on_cpu else 1
    return Search(tried, ref.name, version, pictures, options, cpus, _BATCH_SIZES[:1] if fixed else _BATCH_SIZES)


def _pictures(place: Path) -> list[bytes]:
    files = [file for file, _ in zip(expand([place]), range(_MOST_PICTURES), strict=False)]
    if not files:
        raise ConfigurationError(f"no image files in {place}")
    return [file.read_bytes() for file in files]


class Search:
    """One thing after the other, within the budget."""

    def __init__(
        self,
        settings: Settings,
        model: str,
        version: int,
        pictures: Sequence[bytes],
        options: Options,
        cpus: int,
        batch_sizes: Sequence[int],
    ) -> None:
        self.version = version
        self.trials: list[Trial] = []
        self._settings = settings
        self._model = model
        self._pictures = pictures
        self._bound_ms = options.p99_ms
        self._cpus = cpus
        self._batch_sizes = batch_sizes
        self._budget = Budget(options.budget_s)
        self._window_seconds = min(_WINDOW_SECONDS, options.budget_s / _WINDOWS_IN_BUDGET)

    def run(self) -> Trial | None:
        """The best trial, or None where none kept the bound."""
        best = self._best_of(self._threads())
        best = self._best_of(self._batches((best or self.trials[0]).candidate), best)
        if best is not None:
            self._best_of(self._delays(best.candidate), best)
        return self._finalist()

    def _threads(self) -> Iterator[Candidate]:
        """From one execution a CPU to one execution over all of them."""
        batch = self._batch_sizes[min(2, len(self._batch_sizes) - 1)]
        threads = 1
        while threads <= self._cpus:
            yield Candidate(max(1, self._cpus // threads), threads, batch)
            threads *= 2

    def _batches(self, base: Candidate) -> Iterator[Candidate]:
        for size in self._batch_sizes:
            if size != base.max_batch_size:
                yield replace(base, max_batch_size=size)

    def _delays(self, base: Candidate) -> Iterator[Candidate]:
        if base.max_batch_size > 1:
            for delay in _DELAYS_MS:
                if delay < self._bound_ms / 2:
                    yield replace(base, max_queue_delay_ms=delay)

    def _best_of(self, candidates: Iterable[Candidate], best: Trial | None = None) -> Trial | None:
        for candidate in candidates:
            reserved = self._budget.seconds * _FINAL_SHARE + 3 * (self._window_seconds + _WARM_SECONDS)
            if self.trials and not self._budget.allows(reserved):
                break
            trial = self._tried(candidate)
            if trial.best and (best is None or best.best is None or trial.best.rate > best.best.rate):
                best = trial
        return best

    def _tried(self, candidate: Candidate) -> Trial:
        trial = Trial(candidate)
        self.trials.append(trial)
        asyncio.run(self._climb(trial))
        said = f"{trial.best.rate:.1f}/s at p99 {trial.best.p99_ms:.1f} ms" if trial.best else "over the bound"
        print(
            f"[{self._budget.spent:3.0f} of {self._budget.seconds:.0f} s] {candidate}: {trial.problem or said}",
            flush=True,
        )
        return trial

    async def _climb(self, trial: Trial) -> None:
        """Twice the clients as long as that gives more within the bound."""
        idle = 0
        try:
            async with self._served(trial.candidate) as here:
                for clients in _CLIENTS:
                    point = await window(here, self._pictures, clients, self._window_seconds)
                    trial.points.append(point)
                    if point.p99_ms > self._bound_ms:
                        return
                    if trial.best is None or point.rate >= trial.best.rate * _GROWTH:
                        trial.best, idle = point, 0
                    elif (idle := idle + 1) == _IDLE_STEPS:
                        return
        except (ConfigurationError, FoveaError) as error:  # it does not load, or its queue is longer than it may be
            trial.problem = "" if trial.best else str(error)

    def _served(self, candidate: Candidate):  # type: ignore[no-untyped-def]  # what opened_here gives
        own = self._settings.repository.path / self._model / str(self.version) / MANIFEST_NAME
        own.write_text(with_keys(_text_of(own), candidate.tables), encoding="utf-8")
        return opened_here(self._settings, ModelRef(self._model, self.version))

    def _finalist(self) -> Trial | None:
        """The best few again, in turns, with what is left of the time; the median decides."""
        ranked = sorted((trial for trial in self.trials if trial.best), key=lambda trial: -_rate(trial))[:_FINALISTS]
        left = self._budget.seconds - self._budget.spent
        seconds = left / (_FINAL_ROUNDS * max(1, len(ranked))) - 1.0  # a second to load it
        if len(ranked) < 2 or seconds < self._window_seconds / 2:
            return ranked[0] if ranked else None
        again: dict[int, list[Point]] = {place: [] for place in range(len(ranked))}
        for _ in range(_FINAL_ROUNDS):
            for place, trial in enumerate(ranked):
                assert trial.best is not None
                again[place].append(asyncio.run(self._once_more(trial.candidate, trial.best.clients, seconds)))
        for place, trial in enumerate(ranked):
            assert trial.best is not None
            trial.best, trial.windows = _median(again[place]), _FINAL_ROUNDS
            print(f"[{self._budget.spent:3.0f} of {self._budget.seconds:.0f} s] again {trial.candidate}: "
                  f"{trial.best.rate:.1f}/s at p99 {trial.best.p99_ms:.1f} ms")  # fmt: skip
        within = [trial for trial in ranked if trial.best and trial.best.p99_ms <= self._bound_ms] or ranked[:1]
        most = max(map(_rate, within))
        alike = [trial for trial in within if _rate(trial) * _GROWTH >= most]  # no difference worth waiting for
        return min(alike, key=lambda trial: trial.best.p99_ms if trial.best else 0.0)

    async def _once_more(self, candidate: Candidate, clients: int, seconds: float) -> Point:
        async with self._served(candidate) as here:
            return await window(here, self._pictures, clients, seconds)


def _rate(trial: Trial) -> float:
    return trial.best.rate if trial.best else 0.0


def _median(points: Sequence[Point]) -> Point:
    """Each figure's median."""
    return Point(
        points[0].clients,
        statistics.median(point.rate for point in points),
        statistics.median(point.p50_ms for point in points),
        statistics.median(point.p99_ms for point in points),
    )


async def window(here: Here, pictures: Sequence[bytes], clients: int, seconds: float) -> Point:
    """A closed loop: each client sends its next image when it has its answer. Raises FoveaError."""
    latencies: list[float] = []
    starts_at = time.perf_counter() + _WARM_SECONDS
    ends_at = starts_at + seconds

    async def client(number: int) -> None:
        while (sent_at := time.perf_counter()) < ends_at:
            await _ask(here, pictures[(number + len(latencies)) % len(pictures)])
            answered_at = time.perf_counter()
            if sent_at >= starts_at:
                latencies.append(answered_at - sent_at)
            await asyncio.sleep(0)  # an answer may come without the loop having turned

    await asyncio.gather(*(client(number) for number in range(clients)))
    took = time.perf_counter() - starts_at
    ordered = sorted(latencies) or [took]
    return Point(clients, len(latencies) / took, _percentile(ordered, 0.5), _percentile(ordered, 0.99))


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000.0


async def _ask(here: Here, picture: bytes) -> None:
    request = InferenceRequest(here.ref, (ImagePayload(picture),), time.monotonic() + _PATIENCE_SECONDS)
    with here.server.pipeline.admit("native", here.ref) as ticket:
        await here.server.pipeline.classify(request, ticket)
