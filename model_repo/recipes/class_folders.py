"""A folder of class folders, as a data set: which files, in which split. Knows no network and no framework."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


@dataclass(frozen=True)
class Files:
    """Files with the number of their class."""

    paths: tuple[Path, ...]
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    def only(self, places: Sequence[int]) -> "Files":
        return Files(tuple(self.paths[place] for place in places), self.classes[list(places)])


def read(folder: Path) -> tuple[tuple[str, ...], Files]:
    """The classes (the folders' names, sorted) and every picture in them. Ends the recipe where there are none."""
    if not folder.is_dir():
        raise SystemExit(f"--data {folder}: no such folder; it holds one folder of pictures for each class")
    labels = tuple(sorted(child.name for child in folder.iterdir() if child.is_dir() and child.name[0] != "."))
    found = [
        (path, number)
        for number, label in enumerate(labels)
        for path in sorted((folder / label).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    empty = [label for number, label in enumerate(labels) if not any(kind == number for _, kind in found)]
    if len(labels) < 2 or empty:
        raise SystemExit(
            f"--data {folder}: needs two class folders or more, with pictures in each; empty: {empty or 'all'}"
        )
    return labels, Files(tuple(path for path, _ in found), np.array([number for _, number in found], np.int64))


def split(files: Files, shares: Sequence[float], seed: int) -> list[Files]:
    """Parts of these `shares`, each with every class in proportion, at least one of each where there are enough."""
    random = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in shares]
    for number in np.unique(files.classes):
        places = random.permutation(np.flatnonzero(files.classes == number))
        ends = np.round(np.cumsum(shares) / sum(shares) * len(places)).astype(int)
        for part, chosen in zip(parts, np.split(places, ends[:-1]), strict=True):
            part.extend(int(place) for place in chosen)
    return [files.only(sorted(part)) for part in parts]


def report(labels: Sequence[str], truth: NDArray[np.int64], found: NDArray[np.int64]) -> str:
    """Precision, recall and F1 of each class, the accuracy, and the confusion matrix (a row for each true class)."""
    matrix = np.zeros((len(labels), len(labels)), int)
    np.add.at(matrix, (truth, found), 1)
    right = matrix.diagonal()
    with np.errstate(invalid="ignore"):
        precision, recall = right / matrix.sum(axis=0), right / matrix.sum(axis=1)
        f1 = 2 * precision * recall / (precision + recall)
    width = max(map(len, labels))
    lines = [f"{'':{width}}  precision  recall      f1  images   confusion"]
    for number, label in enumerate(labels):
        figures = "".join(f"{_shown(value[number]):>8}" for value in (recall, f1))
        row = " ".join(f"{count:4}" for count in matrix[number])
        lines.append(f"{label:{width}} {_shown(precision[number]):>10}{figures} {matrix[number].sum():7}   {row}")
    lines.append(f"accuracy {right.sum() / max(len(truth), 1):.3f} of {len(truth)} images")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"
