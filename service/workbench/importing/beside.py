"""What publishers put beside a model: Hugging Face's preprocessor_config.json and config.json, timm's config.json.

Each becomes the same thing: keys of the manifest's [input], labels, and a task, as far as the file says them.
Sources: transformers' image processors, timm.data.resolve_data_config and create_transform.
"""

import ast
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from service.errors import ConfigurationError

Table = dict[str, Any]

_PIL_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "area"}
_STRETCHED_FROM = 384  # ConvNeXt's processor: from this side on, the picture is stretched and nothing cropped


@dataclass(slots=True)
class Beside:
    """What the files say. `source` names the file of each key, for the report; `unclear` what cannot be followed."""

    input: Table = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    labels_from: str = ""
    task: str | None = None
    unclear: list[str] = field(default_factory=list)

    def take(self, keys: Table, file: str) -> None:
        for key, value in keys.items():
            self.input.setdefault(key, value)
            self.source.setdefault(key, file)

    def name(self, labels: tuple[str, ...] | None, file: str) -> None:
        if labels and self.labels is None:
            self.labels, self.labels_from = labels, file


def read(source: Path, properties: dict[str, str]) -> Beside:
    """What lies beside `source`; `properties` are the ONNX file's own. Raises ConfigurationError for a broken file."""
    found = Beside()
    processor = _json(source.parent / "preprocessor_config.json")
    if processor is not None:
        found.take(_understood(partial(_hugging_face, processor, found.unclear)), "preprocessor_config.json")
    config = _json(source.parent / "config.json")
    if config is not None:
        timm = config.get("pretrained_cfg", config)
        if isinstance(timm, dict) and "mean" in timm and "input_size" in timm:
            found.take(_understood(partial(_timm, timm)), "config.json")
        found.name(_labels_of(config), "config.json")
        if config.get("problem_type") == "multi_label_classification":
            found.task = "multilabel"
    found.name(_names(properties.get("names", "")), "the ONNX file's metadata")
    return found


def _understood(read: Callable[[], Table]) -> Table:
    """What `read` makes of a file. Raises ConfigurationError where a value is not what the publishers' tools write."""
    try:
        return read()
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ConfigurationError(
            f"a configuration beside the model is not understood ({error!r}); move it away, and say --size, --resize, "
            "--scale, --mean and --std"
        ) from None


def _json(path: Path) -> Table | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(
            f"{path.name} beside the model is not JSON ({error}); repair it or move it away"
        ) from None
    return value if isinstance(value, dict) else None


def _hugging_face(config: Table, unclear: list[str]) -> Table:
    keys: Table = {"resampler": "pil"} | _hugging_face_scaling(config)
    if config.get("do_flip_channel_order"):
        keys["color"] = "bgr"
    filter_number = config.get("resample", 2)
    if filter_number in _PIL_FILTERS:
        keys["interpolation"] = _PIL_FILTERS[filter_number]
    if config.get("do_resize", True) and "size" in config:
        keys |= _hugging_face_geometry(config, unclear)
    return keys


def _hugging_face_scaling(config: Table) -> Table:
    scale = float(config.get("rescale_factor") or 1 / 255) if config.get("do_rescale", True) else 1.0
    shift = 1.0 if config.get("rescale_offset") else 0.0
    mean, std = [0.0], [1.0]
    if config.get("do_normalize", "image_mean" in config):
        mean, std = config.get("image_mean", [0.5, 0.5, 0.5]), config.get("image_std", [0.5, 0.5, 0.5])
    return {"scale": scale, "mean": [float(value) + shift for value in mean], "std": [float(value) for value in std]}


def _hugging_face_geometry(config: Table, unclear: list[str]) -> Table:
    size = _sides(config["size"])
    crop = _sides(config["crop_size"]) if config.get("do_center_crop") and "crop_size" in config else None
    if isinstance(size, int):  # the shortest side
        fraction = config.get("crop_pct")
        if fraction and not crop:
            if size >= _STRETCHED_FROM:
                return {"size": [size, size], "resize": "stretch"}
            return {"size": [size, size], "resize": "shortest_side", "resize_to": int(size / fraction)}
        final = [crop, crop] if isinstance(crop, int) else crop or [size, size]
        return {"size": final, "resize": "shortest_side", "resize_to": size}
    final = [crop, crop] if isinstance(crop, int) else crop or size
    if crop and final != size:
        unclear.append(
            f"preprocessor_config.json stretches to {size[0]} x {size[1]} and then crops {final[0]} x {final[1]}; "
            "served is the shortest side and a crop, which is the same for square pictures only (--resize)"
        )
        return {"size": final, "resize": "shortest_side", "resize_to": min(size)}
    return {"size": final, "resize": "stretch"}


def _sides(size: Any) -> int | list[int]:
    """A side, where only the shortest is given, or [height, width]."""
    if isinstance(size, dict):
        if "height" in size and "width" in size:
            return [int(size["height"]), int(size["width"])]
        if "shortest_edge" in size:
            return int(size["shortest_edge"])
    if isinstance(size, int):
        return size
    if isinstance(size, list) and len(size) == 2:
        return [int(side) for side in size]
    raise ConfigurationError(f"preprocessor_config.json: size = {size!r} is not understood; say --size and --resize")


def _timm(config: Table) -> Table:
    _, height, width = (int(side) for side in config["input_size"])
    keys: Table = {
        "scale": 1 / 255,
        "mean": [float(value) for value in config["mean"]],
        "std": [float(value) for value in config["std"]],
        "size": [height, width],
        "resampler": "pil",
        "resize": "stretch" if config.get("crop_mode") == "squash" else "shortest_side",
    }
    if config.get("interpolation") in ("nearest", "bilinear", "bicubic", "lanczos"):
        keys["interpolation"] = config["interpolation"]
    if keys["resize"] == "shortest_side":
        keys["resize_to"] = int(max(height, width) / float(config.get("crop_pct") or 1.0))
    return keys


def _labels_of(config: Table) -> tuple[str, ...] | None:
    by_index = config.get("id2label")
    if isinstance(by_index, dict) and by_index:
        try:
            ordered = sorted((int(index), str(label)) for index, label in by_index.items())
        except ValueError:
            return None
        return (
            tuple(label for _, label in ordered)
            if [index for index, _ in ordered] == list(range(len(ordered)))
            else None
        )
    names = config.get("label_names")
    if isinstance(names, list) and names:
        described = config.get("label_descriptions")
        return tuple(str(described.get(name, name)) if isinstance(described, dict) else str(name) for name in names)
    return None


def _names(text: str) -> tuple[str, ...] | None:
    """A dictionary or list written as Python does it, as some exporters put it into the file's metadata."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if isinstance(value, dict):
        return _labels_of({"id2label": value})
    return tuple(map(str, value)) if isinstance(value, list) and value else None
