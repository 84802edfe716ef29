"""`fovea quantize`: a smaller, faster copy of a version, published only if it still answers as well.

Owns the gate and the publishing. Calibration and gate never share an image, and nothing is chosen by what the gate
says: it is asked once. What fails it leaves no trace in the repository.
"""

import asyncio
import shutil
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from service.config import Settings
from service.engine.base import Engine
from service.errors import ConfigurationError, FoveaError
from service.imaging.decode import DecodeBudget
from service.imaging.preprocess import Preprocessor
from service.imaging.spec import InputSpec
from service.messages import ImagePayload, ModelRef
from service.repository.source import FolderSource
from service.server import image_limits
from service.workbench import labelled
from service.workbench.asking import Here, expand, opened_here, reference
from service.workbench.conversions import CONVERSIONS, require_tools
from service.workbench.evaluate import answer_all
from service.workbench.evaluation import Comparison, answers_as_truth, counted
from service.workbench.labelled import Labelled
from service.workbench.manifest_text import Value, with_keys
from service.workbench.stem import Pixels

_MODEL_FILE = "model.onnx"
_CARD = "README.md"
_MANIFEST = "model.toml"
_WHITE = 255
_FIGURES_BEGIN = "<!-- figures: written by fovea quantize, do not edit -->"
_FIGURES_END = "<!-- end of figures -->"
_CALIBRATION_IMAGES = 128  # ranges and means hardly move beyond
_CALIBRATION_BYTES = 256 * 1024 * 1024
_FEWEST_CALIBRATION_IMAGES = 16
_FEWEST_GATE_IMAGES = 200  # so that one image is no more than the half point that is asked for
_SEED = 0
_TIMED_RUNS = 50  # the quickest of them counts: others use the machine too


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for. `gate` are other images to judge by; else a part of `images` is kept apart."""

    model: str
    images: Path
    precision: str = "int8"
    gate: Path | None = None
    name: str | None = None
    as_version: bool = False
    replace: bool = False
    max_drop_points: float = 0.5
    min_agreement: float = 0.98


class Side(NamedTuple):
    """The original, or the copy: its answers, its size, and its time for one image on one thread."""

    milliseconds: float
    nbytes: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate found. Without labels the original's answers are the truth."""

    comparison: Comparison
    is_labelled: bool
    calibration_images: int
    before: Side
    after: Side
    options: Options

    @property
    def drop_points(self) -> float:
        return (self.comparison.first.tally.accuracy - self.comparison.second.tally.accuracy) * 100.0

    @property
    def passed(self) -> bool:
        if len(self.comparison.second.errors) > len(self.comparison.first.errors):
            return False
        if self.is_labelled:
            return round(self.drop_points, 9) <= self.options.max_drop_points
        return self.comparison.agreement >= self.options.min_agreement

    @property
    def demand(self) -> str:
        if self.is_labelled:
            return f"top-1 may fall by {self.options.max_drop_points:g} points; it fell by {self.drop_points:.2f}"
        return (
            f"{self.options.min_agreement:.1%} must agree with the original's top-1; {self.comparison.agreement:.1%} do"
        )

    @property
    def lines(self) -> list[tuple[str, str]]:
        """For people: what was measured, and how much of it there was."""
        first, second = self.comparison.first, self.comparison.second
        images = f"{first.tally.images:,} images that calibration did not see"
        rows = [("Gate", ("passed: " if self.passed else "failed: ") + self.demand)]
        if self.is_labelled:
            rows.append(("Top-1", f"{first.tally.accuracy:.2%} -> {second.tally.accuracy:.2%} of {images}"))
            rows.append(("Top-5", f"{first.tally.top_k_accuracy:.2%} -> {second.tally.top_k_accuracy:.2%}"))
            alone = f"the original {self.comparison.only_first}, the copy {self.comparison.only_second}"
            rows.append(("Right alone", f"{alone} (p = {self.comparison.p_value:.2g}, McNemar)"))
        agreed = f"{self.comparison.agreement:.1%}" + ("" if self.is_labelled else f" of {images}")
        rows.append(("Same top-1 as the original", agreed))
        rows.append(("Calibrated on", f"{self.calibration_images:,} other images"))
        rows.append(("File", f"{self.before.nbytes:,} -> {self.after.nbytes:,} bytes"))
        times = self.before.milliseconds / self.after.milliseconds
        spent = f"{self.before.milliseconds:.2f} -> {self.after.milliseconds:.2f} ms here, {times:.1f} times as fast"
        rows.append(("One image, one thread", spent))
        return rows


class Draft(NamedTuple):
    """A model folder where no server looks: one version, its manifest and its labels."""

    folder: Path
    version: int


def quantize(settings: Settings, options: Options) -> int:
    """Convert, judge, publish; 1 where the gate refuses. Raises ConfigurationError."""
    require_tools()
    ref = reference(options.model)
    target = _target(settings.repository.path, ref.name, options)
    with tempfile.TemporaryDirectory(prefix=".draft-", dir=_folder(settings.repository.path)) as scratch:
        draft, verdict, source = asyncio.run(_drafted(settings, ref, target, options, Path(scratch)))
        width = max(len(name) for name, _ in verdict.lines)
        print("\n".join(f"{name:<{width}}  {value}" for name, value in verdict.lines))
        if not verdict.passed:
            print("refused: nothing was written")
            return 1
        place = _published(settings.repository.path, draft, source, verdict)
    print(place)
    return 0


def _folder(root: Path) -> Path:
    if not root.is_dir():
        raise ConfigurationError(f"repository.path = {str(root)!r}: no such folder")
    return root


def _target(root: Path, model: str, options: Options) -> ModelRef:
    """The model and version that will be written. Raises ConfigurationError where it is there."""
    if options.as_version:
        if options.name:
            raise ConfigurationError("--as-version adds a version to the model itself: leave out --name")
        found = FolderSource(_folder(root)).scan().get(model)
        return ModelRef(model, max(found.versions, default=0) + 1 if found else 1)
    name = options.name or f"{model}-{options.precision}"
    if (root / name).exists() and not options.replace:
        raise ConfigurationError(f"{root / name} is there already: give --replace, --name, or --as-version")
    if name == model:
        raise ConfigurationError(f"{name} cannot replace itself: give another --name, or --as-version")
    return ModelRef(name, 1)


async def _drafted(
    settings: Settings, ref: ModelRef, target: ModelRef, options: Options, scratch: Path
) -> tuple[Draft, Verdict, str]:
    """The copy, what the gate says of it, and what it is a copy of."""
    async with opened_here(settings, ref) as here:
        calibration, gate, is_labelled = _split(here, options)
        rows = _rows(here, settings, calibration)
        await answer_all(here, gate, scratch / "before.jsonl")
        if not is_labelled:
            gate = answers_as_truth(here.described, scratch / "before.jsonl")
        first = counted(here.described, gate, scratch / "before.jsonl")
        before_ms = _milliseconds(here.loaded.description.engine, rows)
    source = settings.repository.path / ref.name / str(here.loaded.version)
    draft = _copied(source, target, scratch)
    file = draft.folder / str(draft.version) / _MODEL_FILE
    spec = here.loaded.description.spec.input
    assert spec is not None
    pixels = None if options.as_version or (source / _MANIFEST).exists() else _pixels_of(spec)
    manifest = draft.folder / _MANIFEST
    fed_pixels = _fed_pixels(manifest.read_text(encoding="utf-8")) if pixels else None
    if _converted(options.precision, source / _MODEL_FILE, file, rows, pixels if fed_pixels else None):
        assert pixels is not None
        assert fed_pixels is not None
        rows = pixels.of(rows, spec.layout)
        manifest.write_text(fed_pixels, encoding="utf-8")
    repository = settings.repository.model_copy(update={"path": scratch})
    tried = settings.model_copy(update={"repository": repository})
    async with opened_here(tried, ModelRef(target.name, target.version)) as copy:
        await answer_all(copy, gate, scratch / "after.jsonl")
        second = counted(copy.described, gate, scratch / "after.jsonl")
        after_ms = _milliseconds(copy.loaded.description.engine, rows)
    before = Side(before_ms, (source / _MODEL_FILE).stat().st_size)
    after = Side(after_ms, file.stat().st_size)
    verdict = Verdict(Comparison(first, second), is_labelled, len(rows), before, after, options)
    return draft, verdict, str(here.described)


def _pixels_of(spec: InputSpec) -> Pixels | None:
    """How the input comes from pixels, where one step and one zero do for all channels; a copy may then take them."""
    scale, mean, std = np.broadcast_arrays(*(np.asarray(numbers) for numbers in (spec.scale, spec.mean, spec.std)))
    steps, zeros = scale / std, mean / scale
    step, zero = float(steps.flat[0]), round(float(zeros.flat[0]))
    is_one = bool(np.all(steps == step)) and bool(np.allclose(zeros, zero, rtol=0, atol=1e-6))
    return Pixels(step, zero) if is_one and 0 <= zero <= _WHITE and spec.dtype == "float32" else None


def _fed_pixels(manifest: str) -> str | None:
    """The text for a copy that is fed pixels as they are, pixels last; None where its keys cannot be changed."""
    keys: dict[str, Value] = {"layout": "nhwc"}
    if "preset" in tomllib.loads(manifest).get("input", {}):
        keys |= {"preset": "raw"}
    else:
        keys |= {"scale": 1.0, "mean": 0.0, "std": 1.0}
    try:
        return with_keys(manifest, {"input": keys})
    except tomllib.TOMLDecodeError:
        return None


def _converted(precision: str, source: Path, target: Path, rows: npt.NDArray[Any], pixels: Pixels | None) -> bool:
    """Whether it takes pixels now. Raises ConfigurationError, whatever the tools stumble over."""
    try:
        return CONVERSIONS[precision](source, target, rows, pixels)
    except ConfigurationError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise ConfigurationError(
            f"{precision}: the graph cannot be converted: {type(error).__name__}: {said}"
        ) from None


def _split(here: Here, options: Options) -> tuple[list[Path], list[Labelled], bool]:
    """Images to calibrate with and others to judge by, drawn once with a fixed seed. Raises ConfigurationError."""
    judged_by = options.gate or options.images
    is_labelled = labelled.is_labelled(judged_by)
    several = here.described.task == "multilabel"
    gate = _shuffled(
        labelled.read(judged_by, here.described.labels, several=several) if is_labelled else _bare(judged_by)
    )
    if options.gate:
        calibration = _shuffled(_bare(options.images))[:_CALIBRATION_IMAGES]
        taken = {Path(image.file).resolve() for image in calibration}
        gate = [image for image in gate if Path(image.file).resolve() not in taken]
    else:
        spare = len(gate) - _FEWEST_GATE_IMAGES
        count = max(0, min(_CALIBRATION_IMAGES, spare, max(_FEWEST_CALIBRATION_IMAGES, len(gate) // 4)))
        calibration, gate = gate[:count], gate[count:]
    if len(calibration) < _FEWEST_CALIBRATION_IMAGES or len(gate) < _FEWEST_GATE_IMAGES:
        raise ConfigurationError(
            f"{len(calibration)} images to calibrate with beside {len(gate)} to judge by; "
            f"give at least {_FEWEST_CALIBRATION_IMAGES} and {_FEWEST_GATE_IMAGES}"
        )
    return [Path(image.file) for image in calibration], gate, is_labelled


def _bare(place: Path) -> list[Labelled]:
    """Images of which only the files matter."""
    if place.is_file():
        return [Labelled(file, ()) for file in labelled.files(place)]
    return [Labelled(str(file), ()) for file in expand([place])]


def _shuffled(images: Sequence[Labelled]) -> list[Labelled]:
    return [images[place] for place in np.random.default_rng(_SEED).permutation(len(images))]


def _rows(here: Here, settings: Settings, files: Sequence[Path]) -> npt.NDArray[Any]:
    """The model's input for these images, prepared as it is for serving."""
    spec = here.loaded.description.spec.input
    if spec is None:
        raise ConfigurationError(f"{here.described} takes tensors only; its manifest has no [input] to calibrate with")
    limits = image_limits(settings)
    preprocessor = Preprocessor(spec, limits, DecodeBudget(limits.decode_bytes))
    rows: list[npt.NDArray[Any]] = []
    for file in files:
        row = np.empty(spec.shape, spec.dtype)
        if (len(rows) + 1) * row.nbytes > _CALIBRATION_BYTES:
            break
        try:
            preprocessor.prepare(preprocessor.inspect(ImagePayload(file.read_bytes())), row)
        except (FoveaError, OSError):
            continue
        rows.append(row)
    if len(rows) < _FEWEST_CALIBRATION_IMAGES:
        raise ConfigurationError(f"{len(rows)} of {len(files)} images could be read; give more")
    return np.stack(rows)


def _milliseconds(engine: Engine, rows: npt.NDArray[Any]) -> float:
    """The quickest of some runs of one image, on one thread as the server runs it."""
    feeds = {engine.inputs[0].name: rows[:1]}
    times = []
    for _ in range(_TIMED_RUNS):
        started_at = time.perf_counter()
        engine.run(feeds)
        times.append(time.perf_counter() - started_at)
    return min(times) * 1000.0


def _copied(source: Path, target: ModelRef, scratch: Path) -> Draft:
    """Manifest and labels of a version folder, for a graph that is still to be written."""
    folder = scratch / target.name
    version = folder / str(target.version)
    version.mkdir(parents=True)
    for origin, place in ((source.parent, folder), (source, version)):
        for file in origin.iterdir():
            if file.suffix in (".toml", ".txt") and file.is_file():
                shutil.copy(file, place)
    assert target.version is not None
    return Draft(folder, target.version)


def _published(root: Path, draft: Draft, source: str, verdict: Verdict) -> Path:
    """Into the repository, in one step that a running server sees whole; and into the model's card."""
    name, options = draft.folder.name, verdict.options
    table = "".join(f"| {title} | {value} |\n" for title, value in verdict.lines)
    table = f"| figure | value |\n|---|---|\n{table}"
    if options.as_version:
        place = root / name / str(draft.version)
        (draft.folder / str(draft.version)).rename(place)
        card = root / name / _CARD
        text = card.read_text(encoding="utf-8") if card.exists() else f"# {name}\n"
        section = f"\n## Version {draft.version}: {options.precision} of {source}\n\n{table}"
        card.write_text(text.rstrip("\n") + "\n" + section, encoding="utf-8")
        return place
    old = root / name / _CARD
    before = old.read_text(encoding="utf-8") if old.exists() else ""
    (draft.folder / _CARD).write_text(_card(before, name, source, options.precision, table), encoding="utf-8")
    if (root / name).exists():
        (root / name).rename(draft.folder.with_name("replaced"))
    draft.folder.rename(root / name)
    return root / name


def _card(before: str, name: str, source: str, precision: str, table: str) -> str:
    """A card with these figures; of one that is there already only they change."""
    above, begin, rest = before.partition(_FIGURES_BEGIN)
    _, end, below = rest.partition(_FIGURES_END)
    if begin and end:
        return f"{above}{begin}\n{table}{end}{below}"
    model = source.partition("/")[0]
    intro = f"`{source}` in {precision}, made by `fovea quantize`. What it knows, its origin and its licence: "
    figures = f"{_FIGURES_BEGIN}\n{table}{_FIGURES_END}\n"
    return f"# {name}\n\n{intro}[{model}](../{model}/README.md).\n\n## Against the original\n\n{figures}"
