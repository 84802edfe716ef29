"""Fitting `temperature` and `thresholds` of a manifest on labelled images.

Needs the model's raw outputs, so it is loaded here.
Fitted on every other image, judged on the rest: what is printed as reached was not fitted on.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from service.config import Settings
from service.errors import ConfigurationError, FoveaError
from service.messages import ImagePayload, ModelRef, Prediction
from service.tasks import TASKS
from service.tensors import TensorRequest
from service.workbench import labelled
from service.workbench.asking import Described, Here, opened_here
from service.workbench.classify import bar
from service.workbench.labelled import Labelled
from service.workbench.measures import Tally, fit_temperature, fit_threshold, negative_log_likelihood

_MOST_VALUES = 10_000_000  # outputs kept: 40 MB
_GROUP = 8
_PATIENCE_SECONDS = 300.0

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Change:
    """One figure on the images that were not fitted on, before and after."""

    name: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """`lines` belong under [output] of model.toml."""

    images: int
    lines: tuple[str, ...]
    changes: tuple[Change, ...]


async def fit(settings: Settings, described: Described, data: Path, wanted: Sequence[str]) -> Fitted:
    """Fit what is `wanted`: "temperature", "thresholds". Raises ConfigurationError where it has no meaning."""
    async with opened_here(settings, ModelRef(described.name, described.version)) as here:
        spec = here.loaded.description.spec.task
        several = described.task == "multilabel"
        images = labelled.read(data, described.labels, several=several)
        images = images[:: -(-len(images) * len(described.labels) // _MOST_VALUES)]
        raw, kept = await _raw_outputs(here, images)
        if len(kept) < 4:
            raise ConfigurationError(f"{data}: {len(kept)} images are too few to fit on")
        lines: list[str] = []
        changes: list[Change] = []
        if "temperature" in wanted:
            if spec.activation != "softmax":
                raise ConfigurationError(
                    f'--fit temperature needs logits; {described} has activation "{spec.activation}"'
                )
            temperature, changed = _temperature(raw, [image.truth[0] for image in kept], described.labels)
            spec = replace(spec, temperature=temperature)
            lines.append(f"temperature = {temperature:.4g}")
            changes += changed
        if "thresholds" in wanted:
            if described.task == "multiclass":
                raise ConfigurationError(
                    f"--fit thresholds is for multilabel and binary models; {described} is neither"
                )
            scores = TASKS[described.task](spec).scores(raw)
            thresholds, changed = _thresholds(scores, kept, described)
            lines.append(f"thresholds = {[round(value, 4) for value in thresholds]}")
            changes += changed
        return Fitted(len(kept), tuple(lines), tuple(changes))


async def _raw_outputs(here: Here, images: Sequence[Labelled]) -> tuple[Rows, list[Labelled]]:
    """The labelled output of each image that can be read, as (n, width)."""
    found: list[Rows] = []
    kept: list[Labelled] = []
    with bar(len(images)) as progress:
        for start in range(0, len(images), _GROUP):
            group = images[start : start + _GROUP]
            for image, row in zip(
                group, await asyncio.gather(*(_raw_output(here, each) for each in group)), strict=True
            ):
                if row is not None:
                    found.append(row)
                    kept.append(image)
            progress.update(len(group))
    return (np.stack(found) if found else np.empty((0, 1), np.float32)), kept


async def _raw_output(here: Here, image: Labelled) -> Rows | None:
    try:
        payload = ImagePayload(await asyncio.to_thread(Path(image.file).read_bytes))
        request = TensorRequest(here.ref, lambda signature: (payload,), time.monotonic() + _PATIENCE_SECONDS)
        with here.server.pipeline.admit("v2", here.ref) as ticket:
            result = await here.server.pipeline.infer(request, ticket)
    except (FoveaError, OSError):
        return None  # it stands among the errors of the evaluation
    return result.outputs[result.labelled].reshape(-1).astype(np.float32)


def _temperature(raw: Rows, truth: Sequence[int], labels: Sequence[str]) -> tuple[float, list[Change]]:
    logits, right = raw.astype(np.float64), np.asarray(truth, np.int64)
    temperature = fit_temperature(logits[0::2], right[0::2])
    held, held_right = logits[1::2], right[1::2]
    likelihoods = [negative_log_likelihood(held, held_right, value) for value in (1.0, temperature)]
    errors = [_calibration_error(held / value, held_right, labels) for value in (1.0, temperature)]
    return temperature, [
        Change("negative log-likelihood", *likelihoods),
        Change("expected calibration error", *errors),
    ]


def _calibration_error(logits: npt.NDArray[np.float64], truth: npt.NDArray[np.int64], labels: Sequence[str]) -> float:
    tally = Tally(labels, several=False)
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    for row, right in zip(scores, truth.tolist(), strict=True):
        best = int(row.argmax())
        tally.add("", (right,), [Prediction("", best, float(row[best]))])
    return tally.expected_calibration_error


def _thresholds(scores: Rows, images: Sequence[Labelled], described: Described) -> tuple[list[float], list[Change]]:
    """One threshold a label; for binary the one of the second label."""
    columns = range(1, 2) if described.task == "binary" else range(scores.shape[1])
    truth = np.zeros(scores.shape, np.bool_)
    for place, image in enumerate(images):
        truth[place, list(image.truth)] = True
    thresholds = [fit_threshold(scores[0::2, at].astype(np.float64), truth[0::2, at]) for at in columns]
    held, held_truth = scores[1::2, list(columns)], truth[1::2, list(columns)]
    before, after = (_macro_f1(held >= cut, held_truth) for cut in (0.5, np.asarray(thresholds)))
    return thresholds, [Change("macro F1", before, after)]


def _macro_f1(called: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    hits = 2.0 * np.sum(called & truth, axis=0)
    total = np.sum(called, axis=0) + np.sum(truth, axis=0)
    return float(np.mean(np.divide(hits, total, out=np.zeros(len(hits)), where=total > 0)))
