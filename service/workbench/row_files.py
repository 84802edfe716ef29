"""Files of rows (see `asking`), written one by one and continued after an interruption.

The suffix says which: `.jsonl` has a JSON object a line, `.csv` the labels of an image beside each other. Either way a
file that was cut off anywhere can be continued: what is whole stays, a torn last row and rows of failed images are
asked again.
"""

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, TextIO

import orjson

from service.errors import ConfigurationError
from service.workbench.asking import Row


class RowFormat(Protocol):
    """How rows stand in a file."""

    def head(self) -> str: ...

    def line(self, row: Row) -> str: ...

    def read(self, file: TextIO) -> Iterator[tuple[str, bool, str]]:
        """Of each row: the image's file, whether it was answered, and the row as it stands there.

        Raises ValueError, KeyError or TypeError where the file holds something else.
        """
        ...


class JsonLines:
    def __init__(self, top_k: int) -> None:
        pass

    def head(self) -> str:
        return ""

    def line(self, row: Row) -> str:
        return orjson.dumps(row).decode() + "\n"

    def read(self, file: TextIO) -> Iterator[tuple[str, bool, str]]:
        for line in file:
            row = orjson.loads(line)
            yield row["file"], "error" not in row, line


class Csv:
    """`file, error, label_1, score_1, ...`: as many pairs as labels were asked for."""

    def __init__(self, top_k: int) -> None:
        self._columns = ["file", "error"]
        self._columns += [f"{column}_{rank}" for rank in range(1, top_k + 1) for column in ("label", "score")]

    def head(self) -> str:
        return _csv_line(self._columns)

    def line(self, row: Row) -> str:
        pairs = [value for best in row.get("predictions", ()) for value in (best["label"], f"{best['score']:.6g}")]
        missing = len(self._columns) - 2 - len(pairs)
        return _csv_line([row["file"], row.get("error", ""), *pairs, *[""] * missing])

    def read(self, file: TextIO) -> Iterator[tuple[str, bool, str]]:
        lines = csv.reader(file)
        if next(lines, self._columns) != self._columns:
            raise ValueError("other columns")
        for cells in lines:
            if len(cells) == len(self._columns):  # a name may hold line breaks, so a torn row may end in one
                yield cells[0], not cells[1], _csv_line(cells)


def _csv_line(cells: Iterable[str]) -> str:
    taken: list[str] = []
    csv.writer(_Into(taken), lineterminator="\n").writerow(cells)
    return taken[0]


class _Into:
    """A file that csv can write to."""

    def __init__(self, taken: list[str]) -> None:
        self._taken = taken

    def write(self, text: str) -> None:
        self._taken.append(text)


FORMATS: dict[str, Callable[[int], RowFormat]] = {".jsonl": JsonLines, ".csv": Csv}


class RowFile:
    """A file of rows, open for appending. `done` are the images that it has answers for. A context manager."""

    def __init__(self, path: Path, top_k: int, *, resume: bool) -> None:
        """Raises ConfigurationError where the file is there and is not to be continued, or cannot be."""
        if path.suffix not in FORMATS:
            raise ConfigurationError(f"{path}: rows can be written to {' and '.join(FORMATS)}")
        self._format = FORMATS[path.suffix](top_k)
        self.done: set[str] = set()
        try:
            if path.exists():
                if not resume:
                    raise ConfigurationError(f"{path} is there already; give --resume to continue it, or another name")
                self._keep_what_is_whole(path)
                self._file = path.open("a", encoding="utf-8", buffering=1)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("w", encoding="utf-8", buffering=1)  # a line at a time: see `resume`
                self._file.write(self._format.head())
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror or error}") from None

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def write(self, row: Row) -> None:
        self._file.write(self._format.line(row))

    def _keep_what_is_whole(self, path: Path) -> None:
        """Rewrite the file beside itself without its torn last line and its failures."""
        _cut_torn_line(path)
        kept = path.with_name(f".{path.name}.kept")
        with path.open(encoding="utf-8", newline="") as old, kept.open("w", encoding="utf-8") as new:
            new.write(self._format.head())
            try:
                for file, answered, line in self._format.read(old):
                    if answered:
                        self.done.add(file)
                        new.write(line)
            except (ValueError, KeyError, TypeError):
                kept.unlink()
                raise ConfigurationError(f"{path} does not hold such rows; give another name") from None
        kept.replace(path)


def _cut_torn_line(path: Path) -> None:
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        while size:
            start = max(0, size - 65536)
            file.seek(start)
            newline = file.read(size - start).rfind(b"\n")
            if newline >= 0:
                size = start + newline + 1
                break
            size = start
        file.truncate(size)
