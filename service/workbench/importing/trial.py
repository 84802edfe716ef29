"""The imported graph at work: held against its framework, and shown real images under each plausible preprocessing."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from service import manifest as manifests
from service.errors import ConfigurationError, EngineFailed, FoveaError
from service.imaging.clips import row_maker
from service.imaging.decode import DecodeBudget
from service.imaging.formats import FORMATS
from service.imaging.spec import ImageLimits
from service.manifest import PRESETS, Manifest, ModelSpec
from service.messages import ImagePayload
from service.tasks import TASKS
from service.workbench.importing.graph import Array, Fitted
from service.workbench.importing.sources import Source

Table = dict[str, Any]

PARITY_LIMIT = 1e-4  # of an output's own size; float32 sums in another order differ by about 1e-6
_RANDOM_ROWS = 5  # more than one and odd, from dark to bright: a batch dimension that mixes rows is noticed
_PARITY_IMAGES = 8
_SHOWN_IMAGES = 6
_JUDGED_IMAGES = 200  # with known labels; enough to tell a right preprocessing from a wrong one
_TOP = 5
_LIMITS = ImageLimits(formats=tuple(FORMATS))


@dataclass(frozen=True, slots=True)
class Parity:
    """The largest difference of any output number, and of how many rows; `worst` is it relative to the numbers."""

    difference: float
    worst: float
    rows: int


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to prepare images, with the flags that ask for it."""

    flags: str
    table: Table


class Trial:
    """A fitted graph with its head and labels, ready to answer under any [input]."""

    def __init__(self, fitted: Fitted, output: Table, labels: Sequence[str]) -> None:
        self._fitted = fitted
        self._engine = engine = fitted.engine
        self._output = output
        self._labels = tuple(labels)
        self._place = [spec.name for spec in engine.outputs].index(output["tensor"])

    @property
    def was_changed(self) -> bool:
        return bool(self._fitted.notes)

    @property
    def quantizes_batches(self) -> bool:
        """Whether steps of the graph's integers are chosen as it runs, by the largest number of the whole batch."""
        return any(node.op_type == "DynamicQuantizeLinear" for node in self._fitted.model.graph.node)

    def spec(self, table: Table) -> ModelSpec:
        """What the server would make of this [input]. Raises ConfigurationError."""
        try:
            manifest = Manifest.model_validate({"schema": 1, "input": table, "output": self._output})
        except ValidationError as error:
            raise ConfigurationError("; ".join(problem["msg"] for problem in error.errors())) from None
        return manifests.resolve(manifest, self._labels, self._engine.inputs, self._engine.outputs, "cpu")

    def tensors(self, table: Table, images: Sequence[bytes]) -> Array:
        """The images as rows of the graph's input. Raises InvalidImage and its kind."""
        spec = self.spec(table).input
        assert spec is not None
        maker = row_maker(spec, _LIMITS, DecodeBudget(_LIMITS.decode_bytes))
        rows = np.empty((len(images), *spec.shape), spec.dtype)
        for row, data in zip(rows, images, strict=True):
            maker.prepare(maker.inspect(ImagePayload(data)), row)
        return rows

    def readable(self, table: Table, files: Sequence[Path]) -> list[tuple[Path, bytes]]:
        """The first of the files that can be prepared, with their content."""
        found: list[tuple[Path, bytes]] = []
        for file in files:
            if len(found) == _PARITY_IMAGES:
                break
            try:
                data = file.read_bytes()
                self.tensors(table, [data])
            except (FoveaError, OSError):
                continue
            found.append((file, data))
        return found

    def noise(self, table: Table) -> Array:
        """Random pixels, prepared as the table says."""
        spec = self.spec(table).input
        assert spec is not None
        channels_last = (*spec.shape[1:], spec.shape[0]) if spec.layout == "nchw" else spec.shape
        pixels = np.random.default_rng(0).integers(0, 256, (_RANDOM_ROWS, *channels_last)).astype(np.float32)
        for place, row in enumerate(pixels):
            row *= (1 + place) / _RANDOM_ROWS
        scale, mean, std = (np.asarray(numbers, np.float32) for numbers in (spec.scale, spec.mean, spec.std))
        rows: Array = (pixels * scale - mean) / std
        return np.moveaxis(rows, -1, 1).astype(spec.dtype) if spec.layout == "nchw" else rows.astype(spec.dtype)

    def parity(self, source: Source, rows: Array) -> Parity:
        """ONNX Runtime on the fitted graph against the framework on the source. Raises ConfigurationError."""
        taken = self._fitted.to_source(rows)
        framework, again = source.answer(taken)[self._place], source.answer(taken)[self._place]
        if not np.array_equal(framework, again):
            raise ConfigurationError(
                "the model answers the same input differently each time: it was exported in training mode; call "
                "model.eval() before exporting it"
            )
        mine = self._raw(rows).reshape(framework.shape).astype(np.float64)
        difference = float(np.abs(mine - framework).max())
        return Parity(difference, difference / max(1.0, float(np.abs(framework).max())), len(rows))

    def mixing(self, rows: Array) -> float:
        """How far an image's numbers move, relative to their size, with those beside it. Raises ConfigurationError."""
        try:
            together = self._raw(rows).astype(np.float64)
            alone = np.concatenate([self._raw(row[None]) for row in rows]).astype(np.float64)
        except EngineFailed as error:
            reason = " ".join(str(error.__cause__ or error).split())[:300]
            raise ConfigurationError(
                f"the batch dimension is open, and {len(rows)} images do not run at once: {reason}; export it with a "
                "dynamic one (torch.export: dynamic_shapes; torch.onnx.export: dynamic_axes), or with 1"
            ) from None
        if together.shape != alone.shape:
            return float("inf")
        return float(np.abs(together - alone).max()) / max(1.0, float(np.abs(alone).max()))

    def _raw(self, rows: Array) -> Array:
        step = 1 if self._fitted.input.shape[0] == 1 else max(len(rows), 1)
        parts = [self._engine.run({self._fitted.input.name: rows[at : at + step]}) for at in range(0, len(rows), step)]
        return np.concatenate([part[self._place] for part in parts])

    def scores(self, table: Table, rows: Array) -> Array:
        task = TASKS[self._output["task"]](self.spec(table).task)
        return np.concatenate([task.scores(self._raw(row[None])) for row in rows])

    def shown(self, table: Table, rows: Array) -> list[str]:
        """The best labels of each row, in words."""
        task = TASKS[self._output["task"]](self.spec(table).task)
        return [
            ", ".join(f"{best.label} {best.score:.3f}" for best in task.predictions(row, _TOP, 0.0))
            for row in self.scores(table, rows)
        ]


def made_picture(seed: int) -> bytes:
    """A PNG of coarse random colours, the same for ever."""
    random = np.random.RandomState(seed)  # its stream is frozen, a Generator's is not
    coarse = Image.fromarray(random.randint(0, 256, (24, 32, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((256, 192), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def variants(table: Table, *, scaling_is_known: bool) -> Iterator[Variant]:
    """The chosen preprocessing first, then every plausible other one: scaling, then colour, then geometry."""
    if "preset" in table or "scale" in table:
        yield Variant("as imported", table)
    rest = {key: value for key, value in table.items() if key not in ("preset", "scale", "mean", "std")}
    if not scaling_is_known:
        for preset in ("unit", "keras_tf", "imagenet", "caffe", "raw"):
            if preset != table.get("preset"):
                color = {} if rest["color"] == "gray" else {"color": PRESETS[preset][3]}
                if color or len(PRESETS[preset][1]) == 1:  # three means do not fit one channel
                    yield Variant(f"--preset {preset}", rest | color | {"preset": preset})
    if "preset" not in table and "scale" not in table:
        return
    if table["color"] != "gray":
        other = "bgr" if table["color"] == "rgb" else "rgb"
        yield Variant(f"--color {other}", table | {"color": other})
    for resize in ("stretch", "shortest_side", "letterbox"):
        if resize != table.get("resize"):
            yield Variant(
                f"--resize {resize}", {k: v for k, v in table.items() if k != "resize_to"} | {"resize": resize}
            )


def show(trial: Trial, ways: Sequence[Variant], files: Sequence[Path], labels: Sequence[str]) -> Iterator[str]:
    """Lines: the top labels of some images under each way; where folders are named as labels, how many were right."""
    truth = [labels.index(file.parent.name) if file.parent.name in labels else None for file in files]
    judged = [(file, wanted) for file, wanted in zip(files, truth, strict=True) if wanted is not None]
    judged = judged[:: max(1, len(judged) // _JUDGED_IMAGES)]
    width = max(len(way.flags) for way in ways)
    for file in files[:: max(1, len(files) // _SHOWN_IMAGES)][:_SHOWN_IMAGES]:
        yield str(file)
        for way in ways:
            yield f"  {way.flags:{width}}  {_answer(trial, way, file)}"
    if len(judged) > 1:
        yield f"right answers for {len(judged)} images in folders named as labels"
        for way in ways:
            yield f"  {way.flags:{width}}  {_right(trial, way, judged):.1%}"


def _answer(trial: Trial, way: Variant, file: Path) -> str:
    try:
        return trial.shown(way.table, trial.tensors(way.table, [file.read_bytes()]))[0]
    except (FoveaError, OSError) as error:
        return str(error)


def _right(trial: Trial, way: Variant, judged: Sequence[tuple[Path, int]]) -> float:
    right = 0
    for file, wanted in judged:
        try:
            (scores,) = trial.scores(way.table, trial.tensors(way.table, [file.read_bytes()]))
        except (FoveaError, OSError):
            continue
        right += int(scores.argmax()) == wanted
    return right / len(judged)
