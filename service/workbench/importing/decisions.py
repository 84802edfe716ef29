"""Evidence and flags to a manifest.

A flag wins over a file beside the model, that over the graph, that over what the framework's users customarily do;
only the last is a guess, and is reported as one with the flag that changes it. What none of them says is asked for.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from service.engine.base import TensorSpec
from service.errors import ConfigurationError
from service.manifest import PRESETS, customary_resize_to
from service.tasks import TASKS
from service.workbench.importing import labels as label_files
from service.workbench.importing.beside import Beside
from service.workbench.importing.evidence import Head, Scaling
from service.workbench.importing.sources import Geometry

Table = dict[str, Any]

_CROPPED_FROM = 160  # pixels; smaller pictures (MNIST, CIFAR) come at the network's size, and nobody crops them
_GEOMETRY = ("resize", "resize_to", "interpolation", "resampler", "antialias")
_LINEAR = frozenset({"Add", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "Mul", "ReduceMean", "Sum"})
_SIGMOIDS = frozenset({"HardSigmoid", "Sigmoid"})
_ASK_SCALING = (
    "how pixels are scaled is written nowhere: say what training did, --preset unit (pixel / 255), keras_tf (-1..1), "
    "imagenet (torchvision's mean and std), caffe, or raw (0..255); or --scale, --mean and --std. "
    "--try IMAGE... shows the answers under each"
)
_ASK_LABELS = (
    "labels are missing for {units}: --labels FILE (one a line), the FOLDER of class folders that it was "
    "trained on, or a,b,c"
)


@dataclass(frozen=True, slots=True)
class Flags:
    """What the command line says of the model; None where it says nothing."""

    labels: str | None = None
    preset: str | None = None
    scale: tuple[float, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    color: str | None = None
    layout: str | None = None
    frames: int | None = None
    resize: str | None = None
    resize_to: int | None = None
    interpolation: str | None = None
    resampler: str | None = None
    antialias: bool | None = None
    task: str | None = None
    activation: str | None = None
    output: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found out, and where from. A guess has the flag that changes it."""

    what: str
    value: str
    origin: str
    flag: str = ""

    @property
    def is_guess(self) -> bool:
        return bool(self.flag)


@dataclass(slots=True)
class Report:
    """What was found out, in order, and what has to be asked."""

    findings: list[Finding] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)

    def found(self, what: str, value: object, origin: str, flag: str = "") -> None:
        self.findings.append(Finding(what, str(value), origin, flag))


@dataclass(frozen=True, slots=True)
class Picture:
    """One row of the input."""

    layout: Literal["nchw", "nhwc", "nthwc"]
    channels: int
    size: tuple[int, int]
    frames: int

    @property
    def shape(self) -> tuple[int, ...]:
        if self.layout == "nchw":
            return (self.channels, *self.size)
        return (*((self.frames,) if self.layout == "nthwc" else ()), *self.size, self.channels)


def picture_of(tensor: TensorSpec, convolved: int | None, flags: Flags, beside: Beside, report: Report) -> Picture:
    """Layout, channels, size and frames. Raises ConfigurationError, as nothing can be tried without them.

    `convolved` is how many channels the graph convolves of the input as it lies, where it does.
    """
    layout = _layout(tensor, convolved, flags.layout)
    sides = tensor.shape[2:4] if layout in ("nchw", "nthwc") else tensor.shape[1:3]
    channels = tensor.shape[1] if layout == "nchw" else tensor.shape[-1]
    if channels == -1:
        channels = convolved or (1 if flags.color == "gray" else 3)
    if channels not in (1, 3):
        raise ConfigurationError(
            f"input {tensor.name!r} has {channels} channels; pictures have 1 or 3 (--layout says another order)"
        )
    shown = [side if side > 0 else "any" for side in tensor.shape[1:]]
    report.found(
        "input", f"{tensor.name} {tensor.dtype} {shown}, {layout}", "the graph" if flags.layout is None else "--layout"
    )
    size = _size(sides, flags, beside, report)
    frames = 1
    if layout == "nthwc":
        frames = _frames(tensor.shape[1], flags, report)
    elif flags.frames is not None:
        raise ConfigurationError("--frames is for clips, and the model takes one picture")
    return Picture(layout, channels, size, frames)


def _layout(tensor: TensorSpec, convolved: int | None, wanted: str | None) -> Literal["nchw", "nhwc", "nthwc"]:
    if len(tensor.shape) == 5:
        return "nthwc"
    if wanted is not None:
        return "nchw" if wanted == "nchw" else "nhwc"
    first, last = tensor.shape[1] in (1, 3), tensor.shape[-1] in (1, 3)
    if first == last and convolved in (1, 3) and tensor.shape[1] in (-1, convolved):
        return "nchw"
    if first == last:
        raise ConfigurationError(
            f"input {tensor.name!r} has shape {list(tensor.shape)}: that does not tell where the 1 or 3 "
            "channels of a picture are; say --layout nchw or --layout nhwc"
        )
    return "nchw" if first else "nhwc"


def _size(sides: Sequence[int], flags: Flags, beside: Beside, report: Report) -> tuple[int, int]:
    given = flags.size or beside.input.get("size")
    if -1 in sides:
        if given is None:
            raise ConfigurationError("the model takes any size; say the one it was trained with: --size HEIGHT WIDTH")
        origin = "--size" if flags.size else beside.source["size"]
        chosen = tuple(fixed if fixed > 0 else mine for fixed, mine in zip(sides, given, strict=True))
    else:
        chosen, origin = tuple(sides), "the graph"
    height, width = chosen
    if flags.size is not None and flags.size != (height, width):
        raise ConfigurationError(
            f"--size {flags.size[0]} {flags.size[1]}: the graph takes {height} x {width} and nothing else"
        )
    report.found("size", f"{height} x {width} (height x width)", origin)
    return height, width


def _frames(in_graph: int, flags: Flags, report: Report) -> int:
    if in_graph > 0:
        if flags.frames not in (None, in_graph):
            raise ConfigurationError(f"--frames {flags.frames}: the graph takes clips of {in_graph} and nothing else")
        report.found("frames", in_graph, "the graph")
        return in_graph
    if flags.frames is None:
        raise ConfigurationError("the model takes clips of any length; say the one it was trained with: --frames COUNT")
    report.found("frames", flags.frames, "--frames")
    return flags.frames


# Preprocessing


def input_table(
    tensor: TensorSpec,
    picture: Picture,
    flags: Flags,
    beside: Beside,
    own: Scaling | None,
    custom: Geometry,
    report: Report,
) -> Table:
    """[input] of the manifest; without preset and numbers where the scaling has to be asked for."""
    table: Table = {"tensor": tensor.name, "size": list(picture.size), "layout": picture.layout}
    if picture.layout == "nthwc":
        table["frames"] = picture.frames
    scaling = _scaling(flags, beside, own, report)
    table |= _color(picture, flags, beside, scaling, report)
    table |= _geometry(picture, flags, beside, custom, report)
    table["decode"] = "exact"
    return table | (scaling or {})


def _scaling(flags: Flags, beside: Beside, own: Scaling | None, report: Report) -> Table | None:
    """Preset or numbers; None, with a question, where nothing says. Refuses what would scale twice."""
    numbers = {key: list(value) for key in ("scale", "mean", "std") if (value := getattr(flags, key)) is not None}
    if numbers:
        return _numbers(numbers, flags, report)
    takes = own.takes if own is not None else None
    if flags.preset is not None:
        _refuse_twice(flags.preset, own, "--preset " + flags.preset)
        report.found("scaling", flags.preset, "--preset" + (f"; the graph itself does {own}" if own else ""))
        return {"preset": flags.preset}
    if "scale" in beside.input:
        told = {key: beside.input[key] for key in ("scale", "mean", "std")}
        if takes is not None and (told["scale"], told["mean"], told["std"]) != (1.0, [0.0], [1.0]):
            raise ConfigurationError(
                f"the graph scales pixels itself ({own}) and {beside.source['scale']} says to scale them before it: "
                f"--preset {takes} if the graph is right, or the numbers: --scale, --mean and --std"
            )
        report.found("scaling", _as_formula(told), beside.source["scale"])
        return told
    if takes is not None:
        report.found("scaling", f"{takes}: the graph scales pixels itself ({own})", "the graph")
        return {"preset": takes}
    report.questions.append(_ASK_SCALING + (f". The graph itself does {own}" if own else ""))
    return None


def _numbers(numbers: Table, flags: Flags, report: Report) -> Table:
    if flags.preset is not None:
        raise ConfigurationError("give either --preset or --scale, --mean and --std, not both")
    if "scale" not in numbers:
        raise ConfigurationError(
            "--mean and --std need --scale, what a pixel is multiplied by before the mean is taken off: 1, or "
            "0.00392156862745098 (1/255) where mean and std are fractions"
        )
    table = {"mean": [0.0], "std": [1.0]} | numbers
    report.found("scaling", _as_formula(table), "--scale, --mean, --std")
    return table


def _refuse_twice(preset: str, own: Scaling | None, said: str) -> None:
    if own is None or own.takes is None or PRESETS[preset][:3] == PRESETS[own.takes][:3]:
        return
    raise ConfigurationError(
        f"{said}: the graph scales pixels itself ({own}), so that would be done twice; --preset {own.takes} fits it. "
        "If it was trained that way all the same, say the numbers: --scale, --mean and --std"
    )


def _as_formula(table: Table) -> str:
    return f"(pixel * {table['scale']} - {table['mean']}) / {table['std']}"


def _color(picture: Picture, flags: Flags, beside: Beside, scaling: Table | None, report: Report) -> Table:
    if picture.channels == 1:
        if flags.color not in (None, "gray"):
            raise ConfigurationError(f"--color {flags.color}: the model takes one channel, which is gray")
        report.found("colour", "gray", "the graph")
        return {"color": "gray"}
    if flags.color == "gray":
        raise ConfigurationError("--color gray: the model takes three channels")
    preset = (scaling or {}).get("preset")
    if flags.color is not None:
        report.found("colour", flags.color, "--color")
        return {"color": flags.color}
    if "color" in beside.input:
        report.found("colour", beside.input["color"], beside.source["color"])
        return {"color": beside.input["color"]}
    if preset is not None and PRESETS[preset][3] != "rgb":
        report.found("colour", PRESETS[preset][3], f"the preset {preset}")
        return {"color": PRESETS[preset][3]}
    report.found("colour", "rgb", "as nearly all training does; cv2.imread gives bgr", "--color bgr")
    return {"color": "rgb"}


def _geometry(picture: Picture, flags: Flags, beside: Beside, custom: Geometry, report: Report) -> Table:
    """How a picture is brought to the size: custom < files beside < flags, key by key."""
    told = _told_geometry(picture, beside)
    asked = {key: value for key in _GEOMETRY if (value := getattr(flags, key)) is not None}
    if "resize_to" in asked:
        told["resize"] = "shortest_side"
    keys, because, otherwise = dict(custom.keys), custom.because, custom.otherwise
    if max(picture.size) < _CROPPED_FROM and keys["resize"] == "shortest_side":
        keys["resize"], otherwise = "stretch", ""
        because = "pictures for so small a network come at its size, or are stretched to it"
    if (told | asked).get("resampler", "tf") != "tf":
        keys.pop("antialias", None)  # others have their own custom, which the manifest knows
    keys |= told | asked
    if keys["resize"] == "shortest_side":
        keys.setdefault("resize_to", customary_resize_to(picture.size))  # written down, as it changes answers
    else:
        keys.pop("resize_to", None)
    flagged = ", ".join(f"--{key.replace('_', '-')}" for key in asked)
    origin = flagged or (beside.source["resize"] if "resize" in told else because)
    decisive = [key for key in ("resize", "resize_to", "interpolation", "resampler") if key in keys]
    unsaid = [f"--{key.replace('_', '-')}" for key in decisive if key not in told | asked]
    if unsaid and origin != because:
        origin = f"{origin}, {because}"
    elif not told | asked and otherwise:
        origin = f"{origin}; {otherwise}"
    report.found("resize", _shown(keys), origin, ", ".join(unsaid))
    return keys


def _told_geometry(picture: Picture, beside: Beside) -> Table:
    """What files beside the model say; a crop in proportion where they are for another size than the graph's."""
    told = {key: beside.input[key] for key in _GEOMETRY if key in beside.input}
    if "resize_to" in told:
        told["resize_to"] = round(told["resize_to"] * max(picture.size) / max(beside.input["size"]))
    return told


def _shown(keys: Table) -> str:
    named = [str(keys[key]) for key in ("resize", "resize_to", "interpolation") if key in keys]
    return ", ".join([*named, f"{keys['resampler']}'s arithmetic"])


# Head and labels


def output_table(
    head: Head, flags: Flags, beside: Beside, loss: str | None, labels: int | None, report: Report
) -> Table:
    """[output] of the manifest; a question stands in the report where the head is not clear."""
    table: Table = {"tensor": head.output.name}
    decided = _one_unit(head, loss, labels) if head.units == 1 else _several_units(head, loss, beside.task)
    if decided is None and flags.task is None and flags.activation is None:
        report.questions.append(_ask_head(head))
        return table | {"task": "multiclass", "activation": "none"}
    task, activation, origin, flag = decided or ("binary" if head.units == 1 else "multiclass", "", "", "")
    if flags.task is not None:
        task = flags.task
        activation = "none" if activation == "none" else ""
    activation = flags.activation or activation or TASKS[task].default_activation
    said = ", ".join(f"--{name} {value}" for name in ("task", "activation") if (value := getattr(flags, name)))
    report.found(
        "head", f"{task}, {_count(head.units)}, the server applies {activation}", said or origin, "" if said else flag
    )
    return table | {"task": task, "activation": activation}


_Decided = tuple[str, str, str, str]  # task, activation, where from, flag where it is a guess


def _one_unit(head: Head, loss: str | None, labels: int | None) -> _Decided | None:
    if head.operator in _SIGMOIDS:
        return "binary", "none", f"the graph ends in {head.operator}", ""
    if head.operator not in _LINEAR:
        return None
    if loss is not None and "binary" in loss:
        return "binary", "sigmoid", f"trained with {loss}, and the graph ends without an activation", ""
    if loss is None and labels == 2:
        return "binary", "sigmoid", "one number without an activation, and two labels", "--activation"
    return None


def _several_units(head: Head, loss: str | None, beside_task: str | None) -> _Decided | None:
    is_binary_loss = loss is not None and "binary" in loss
    if head.adds_up and head.operator not in _LINEAR:
        return "multiclass", "none", f"the outputs add up to 1 ({head.operator})", ""
    if head.operator == "LogSoftmax":
        return "multiclass", "softmax", "the graph ends in LogSoftmax: softmax gives its probabilities", ""
    if head.operator in _SIGMOIDS:
        if loss is not None and "categorical" in loss:
            return "multiclass", "none", f"the graph ends in {head.operator}, and was trained with {loss}", ""
        return "multilabel", "none", f"the graph ends in {head.operator}", "" if is_binary_loss else "--task multiclass"
    if head.operator not in _LINEAR:
        return None
    if is_binary_loss or beside_task == "multilabel":
        return "multilabel", "sigmoid", f"trained with {loss}" if is_binary_loss else "config.json", ""
    certain = loss is not None and "categorical" in loss
    return (
        "multiclass",
        "softmax",
        f"trained with {loss}" if certain else "no activation at the end",
        "" if certain else "--task multilabel",
    )


def _count(units: int) -> str:
    return "1 output" if units == 1 else f"{units} outputs"


def _ask_head(head: Head) -> str:
    last = head.operator or "nothing"
    if head.units == 1:
        return (
            f"the model ends in one number ({last}), which may be a score or a quantity: --task binary with "
            "--activation sigmoid if it is the logit of two classes, none if it is a probability already"
        )
    return (
        f"the model ends in {last}: say what its {head.units} numbers are, --activation softmax or sigmoid for logits, "
        "none for scores in 0..1"
    )


def labels_of(source: Path, units: int, flags: Flags, beside: Beside, report: Report) -> tuple[str, ...] | None:
    """The labels; None, with a question, where nothing says. Raises ConfigurationError where their number is wrong."""
    needed = 2 if units == 1 else units
    if flags.labels is not None:
        found, origin = label_files.read(flags.labels), "--labels"
    elif beside.labels is not None:
        found, origin = beside.labels, beside.labels_from
    elif (lying := label_files.beside(source)) is not None:
        found, origin = lying
    else:
        report.questions.append(
            _ASK_LABELS.format(units="1 output with its two classes" if units == 1 else f"{units} outputs")
        )
        return None
    if len(found) != needed:
        of = "one output has two (the one below 0.5 first)" if units == 1 else f"the model has {units} outputs"
        raise ConfigurationError(f"{origin} has {len(found)} labels ({_few(found)}) and {of}: give --labels to match")
    repeated = [label for label, times in Counter(found).items() if times > 1]
    twice = f"; more than once: {_few(repeated)}" if repeated else ""
    report.found("labels", _few(found), f"{origin}, in the order of the outputs{twice}")
    return found


def _few(labels: Sequence[str], most: int = 6) -> str:
    return ", ".join(labels[:most]) + (f", ... {len(labels)} in all" if len(labels) > most else "")


def with_size(flags: Flags, beside: Beside) -> Flags:
    """The flags, with the size of a file beside the model where they say none."""
    size = beside.input.get("size")
    return flags if flags.size is not None or size is None else replace(flags, size=(int(size[0]), int(size[1])))
