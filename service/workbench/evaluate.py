"""`fovea evaluate`: what a version does on labelled images, as a table, a page with pictures, and JSON.

Every answer goes to a file of rows in the report's folder first, and the figures are counted from there: so an
evaluation of any length can be interrupted and continued, and its answers can be looked at.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import orjson

from service.config import Settings
from service.drift import MIN_REFERENCE_IMAGES, REFERENCE_NAME
from service.errors import ConfigurationError
from service.messages import ModelRef
from service.workbench import evaluation_report as reports
from service.workbench import fitting, labelled
from service.workbench.asking import Asker, opened, reference, rows
from service.workbench.classify import bar
from service.workbench.evaluation import Comparison, Evaluation, counted, write_reference
from service.workbench.labelled import Labelled
from service.workbench.measures import TOP_K
from service.workbench.row_files import RowFile

_MOST_LABELS = 100  # that an answer may have
_ROOT = Path("fovea-reports")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for. `output` is the report's folder, `fit` names keys of [output]."""

    model: str
    data: Path
    url: str | None = None
    against: str | None = None
    output: Path | None = None
    resume: bool = False
    fit: tuple[str, ...] = ()
    write_reference: bool = False


def evaluate(settings: Settings, options: Options) -> int:
    """Evaluate and report; 1 where an image could not be classified. Raises ConfigurationError."""
    ref = reference(options.model)
    if options.url and (options.fit or options.write_reference):
        raise ConfigurationError("--fit and --write-reference need the model here: leave out --url, give --model-repo")
    output = options.output or _ROOT / f"evaluate-{ref.name}"
    first = asyncio.run(measured(settings, ref, options, output))
    comparison = None
    if options.against:
        other = ref._replace(version=int(options.against)) if options.against.isdecimal() else None
        second = asyncio.run(measured(settings, other or reference(options.against), options, output))
        if second.described.labels != first.described.labels:
            raise ConfigurationError(f"{second.described} has other labels than {first.described}")
        comparison = Comparison(first, second)
    fitted = asyncio.run(fitting.fit(settings, first.described, options.data, options.fit)) if options.fit else None
    report = reports.as_json(first, comparison, fitted)
    (output / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    (output / "report.html").write_text(reports.as_html(first, comparison, fitted), encoding="utf-8")
    print(reports.as_text(first, comparison, fitted))
    print(f"\n{output / 'report.html'}, report.json")
    if options.write_reference:
        if first.tally.images < MIN_REFERENCE_IMAGES:  # a version with such a file would not load
            raise ConfigurationError(f"{first.tally.images} images: a reference needs {MIN_REFERENCE_IMAGES}")
        folder = settings.repository.path / ref.name / str(first.described.version)
        write_reference(folder, first.tally)
        print(folder / REFERENCE_NAME)
    for file, error in first.errors[:10]:
        print(f"{file}: {error}", file=sys.stderr)
    return 1 if first.errors else 0


async def measured(settings: Settings, ref: ModelRef, options: Options, output: Path) -> Evaluation:
    """One version on the images of `options.data`, its answers in `output`."""
    async with opened(settings, ref, options.url) as asker:
        several = asker.described.task == "multilabel"
        images = labelled.read(options.data, asker.described.labels, several=several)
        path = output / f"predictions-{asker.described.name}-{asker.described.version}.jsonl"
        if not options.resume:
            path.unlink(missing_ok=True)
        seconds = await answer_all(asker, images, path)
    return counted(asker.described, images, path, seconds)


async def answer_all(asker: Asker, images: Sequence[Labelled], path: Path) -> float:
    """Every image's row into the file, those that are there already excepted; the seconds it took."""
    described = asker.described
    top_k = min(_MOST_LABELS, len(described.labels)) if described.task == "multilabel" else TOP_K
    started_at = time.perf_counter()
    with RowFile(path, top_k, resume=True) as row_file:
        waiting = (Path(image.file) for image in images if image.file not in row_file.done)
        with bar(len(images), len(row_file.done)) as progress:
            async with aclosing(rows(asker, waiting, top_k)) as answers:
                async for row in answers:
                    row_file.write(row)
                    progress.update()
    return time.perf_counter() - started_at
