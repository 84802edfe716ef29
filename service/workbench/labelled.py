"""Labelled images on disk: a folder of class folders, or a CSV file with the columns `file` and `label`.

Owns how names of classes find their places in a model's output. What cannot be placed is an error that names it:
an evaluation of the wrong classes would look like a bad model.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from service.errors import ConfigurationError
from service.workbench.asking import expand

_SHOWN = 5
_SEVERAL = "|"  # between the labels of one image in a CSV file
_WORDNET_ID = re.compile(r"n\d{8}")


class Labelled(NamedTuple):
    """One image, and the places in the output that are right for it."""

    file: str
    truth: tuple[int, ...]


def read(place: Path, labels: Sequence[str], *, several: bool = False) -> list[Labelled]:
    """The labelled images of `place`. Raises ConfigurationError.

    With `several`, an image has all of its labels, or none; otherwise any one of those written is right for it.
    """
    found = _from_csv(place) if place.is_file() else _from_folders(place)
    if not found:
        raise ConfigurationError(
            f"{place}: no labelled images; give a folder with one folder a class, or a CSV file with file,label"
        )
    names = sorted({name for _, written in found for name in written})
    places = _places(names, labels, place)
    images = [Labelled(file, tuple(sorted({places[name] for name in written}))) for file, written in found]
    bare = None if several else next((image for image in images if not image.truth), None)
    if bare is not None:
        raise ConfigurationError(f"{bare.file}: no label, and the model's task has one an image")
    return images


def files(table: Path) -> list[str]:
    """The images that a CSV file names. Raises ConfigurationError."""
    return [file for file, _ in _from_csv(table)]


def is_labelled(place: Path) -> bool:
    """Whether there are class folders or a CSV file to read, and not only images."""
    return place.is_file() or (place.is_dir() and any(_class_folders(place)))


def _class_folders(place: Path) -> Iterator[Path]:
    yield from sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))


def _from_folders(place: Path) -> list[tuple[str, tuple[str, ...]]]:
    if not place.is_dir():
        raise ConfigurationError(f"{place}: no such file or folder")
    return [(str(file), (folder.name,)) for folder in _class_folders(place) for file in expand([folder])]


def _from_csv(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file)
            missing = {"file", "label"} - set(lines.fieldnames or ())
            if missing:
                raise ConfigurationError(f"{path}: no column {' or '.join(sorted(missing))}; the first line names them")
            return [(str(path.parent / line["file"]), _written(line["label"])) for line in lines if line["file"]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"{path}: {error}") from None


def _written(cell: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (cell or "").split(_SEVERAL) if part.strip())


def _places(names: Sequence[str], labels: Sequence[str], place: Path) -> Mapping[str, int]:
    """Each name's place in the output: by label, by label as people write file names, by number."""
    exact = {label: index for index, label in enumerate(labels)}
    if all(name in exact for name in names):
        return {name: exact[name] for name in names}
    times = Counter(map(_plain, labels))
    alike = {_plain(label): index for index, label in enumerate(labels) if times[_plain(label)] == 1}
    if all(_plain(name) in alike for name in names):
        return {name: alike[_plain(name)] for name in names}
    if all(name.isdecimal() and int(name) < len(labels) for name in names):
        return {name: int(name) for name in names}
    if len(names) == len(labels) and all(map(_WORDNET_ID.fullmatch, names)):
        return {name: index for index, name in enumerate(names)}  # ImageNet's classes stand in the order of their ids
    unknown = [name for name in names if name not in exact and _plain(name) not in alike]
    raise ConfigurationError(
        f"{place}: {_listed(unknown)} not among the {len(labels)} labels of the model ({_listed(labels)}); "
        "name the folders, or the column label of a CSV file, by label or by place in the output"
    )


def _plain(label: str) -> str:
    return " ".join(re.split(r"[\W_]+", label.casefold())).strip()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
