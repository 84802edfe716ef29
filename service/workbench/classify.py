"""`fovea classify`: files and folders to ranked labels, in this process or through a running server."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, nullcontext
from pathlib import Path
from typing import Any

import orjson
from tqdm import tqdm

from service.config import Settings
from service.errors import ConfigurationError
from service.workbench.asking import Row, expand, opened, reference, rows
from service.workbench.row_files import RowFile

_BAR_FROM_FILES = 20


def classify_files(
    places: Sequence[Path],
    settings: Settings,
    model: str,
    url: str | None,
    top_k: int,
    *,
    as_json: bool,
    output: Path | None = None,
    resume: bool = False,
) -> int:
    """Classify, and print or write to `output`; 0 where every file was answered, 1 otherwise.

    Raises ConfigurationError.
    """
    if resume and output is None:
        raise ConfigurationError("--resume continues a file: give --output too")
    files = [str(file) for file in expand(places)]  # text, as a hundred thousand Paths weigh three times as much
    if not files:
        raise ConfigurationError(f"no image files in {', '.join(map(str, places))}")
    ref = reference(model)

    async def run() -> int:
        async with opened(settings, ref, url) as asker:
            with RowFile(output, top_k, resume=resume) if output else nullcontext() as row_file:
                waiting = [file for file in files if file not in row_file.done] if row_file else files
                with bar(len(files), len(files) - len(waiting)) as progress:
                    take = row_file.write if row_file else _printer(progress, as_json=as_json)
                    return await _classify(rows(asker, map(Path, waiting), top_k), progress, take)

    failures = asyncio.run(run())
    if output:
        print(f"{output}: {len(files):,} images, {failures:,} failed")
    return 1 if failures else 0


async def _classify(all_rows: AsyncGenerator[Row], progress: "tqdm[Any]", take: Callable[[Row], None]) -> int:
    """How many failed."""
    failures = 0
    async with aclosing(all_rows):
        async for row in all_rows:
            failures += "error" in row
            take(row)
            progress.update()
    return failures


def bar(total: int, done: int = 0, unit: str = "image") -> "tqdm[Any]":
    """A progress bar on stderr for long work, while stdout holds the answers."""
    quiet = total < _BAR_FROM_FILES or not sys.stderr.isatty()
    return tqdm(total=total, initial=done, unit=unit, file=sys.stderr, disable=quiet)


def _printer(progress: "tqdm[Any]", *, as_json: bool) -> Callable[[Row], None]:
    def show(row: Row) -> None:
        if as_json:
            progress.write(orjson.dumps(row).decode(), file=sys.stdout)
        elif "error" in row:
            progress.write(f"{row['file']}: {row['error']}", file=sys.stderr)
        else:
            best = ", ".join(f"{entry['label']} {entry['score']:.3f}" for entry in row["predictions"])
            progress.write(f"{row['file']}: {best}", file=sys.stdout)

    return show
