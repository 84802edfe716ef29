"""One version on one set of labelled images, counted from its rows; and two of them beside each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from service.drift import REFERENCE_NAME
from service.messages import Prediction
from service.workbench.asking import Described
from service.workbench.baseline import replace_file
from service.workbench.labelled import Labelled
from service.workbench.measures import Tally, mcnemar


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One version on one set of images. `best` holds the index predicted for each image, -1 where it failed."""

    described: Described
    tally: Tally
    best: npt.NDArray[np.int32]
    is_right: npt.NDArray[np.bool_]
    errors: tuple[tuple[str, str], ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions on the same images; the counts are images."""

    first: Evaluation
    second: Evaluation

    @property
    def only_first(self) -> int:
        return int(np.sum(self.first.is_right & ~self.second.is_right))

    @property
    def only_second(self) -> int:
        return int(np.sum(self.second.is_right & ~self.first.is_right))

    @property
    def agreement(self) -> float:
        """Share of images for which both say the same first."""
        return float(np.mean(self.first.best == self.second.best))

    @property
    def p_value(self) -> float:
        return mcnemar(self.only_first, self.only_second)


def counted(described: Described, images: Sequence[Labelled], path: Path, seconds: float = 0.0) -> Evaluation:
    """The figures of a file of rows."""
    places = {image.file: place for place, image in enumerate(images)}
    tally = Tally(described.labels, several=described.task == "multilabel")
    best = np.full(len(images), -1, np.int32)
    is_right = np.zeros(len(images), np.bool_)
    errors: list[tuple[str, str]] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            row: dict[str, Any] = orjson.loads(line)
            place = places.get(row["file"])
            if place is None:
                continue  # of an earlier run over other images
            if "error" in row:
                tally.errors += 1
                errors.append((row["file"], row["error"]))
                continue
            predictions = [Prediction(**each) for each in row["predictions"]]
            before = tally.right
            tally.add(row["file"], images[place].truth, predictions)
            best[place] = predictions[0].index if predictions else -1
            is_right[place] = tally.right > before
    return Evaluation(described, tally, best, is_right, tuple(errors), seconds)


def answers_as_truth(described: Described, path: Path) -> list[Labelled]:
    """The images of a file of rows, what was answered taken for the truth."""
    images = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = orjson.loads(line)
            answered = [each["index"] for each in row.get("predictions", ())]
            if "error" not in row:
                images.append(
                    Labelled(row["file"], tuple(answered if described.task == "multilabel" else answered[:1]))
                )
    return images


def write_reference(folder: Path, tally: Tally) -> None:
    """What the version in `folder` answers on images as they should be, for drift in service to be measured against."""
    replace_file(folder, REFERENCE_NAME, tally.reference.reference().to_json() + b"\n")
