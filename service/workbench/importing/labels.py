"""Labels as people have them: a text file, the class folders they trained on, JSON, or words on the command line."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.errors import ConfigurationError

_BESIDE = ("labels.txt", "classes.txt", "class_names.txt")


def read(given: str) -> tuple[str, ...]:
    """What `--labels` means. Raises ConfigurationError."""
    path = Path(given)
    if path.is_dir():
        return _of_folders(path)
    if path.is_file():
        return _of_json(path) if path.suffix.lower() == ".json" else _of_lines(path)
    if "," not in given:
        raise ConfigurationError(f"--labels {given}: no such file or folder; labels in line are written a,b,c")
    return tuple(label.strip() for label in given.split(","))


def beside(source: Path) -> tuple[tuple[str, ...], str] | None:
    """Labels that lie beside the model under a usual name, and that name."""
    for name in _BESIDE:
        if (source.parent / name).is_file():
            return _of_lines(source.parent / name), name
    return None


def _of_folders(path: Path) -> tuple[str, ...]:
    """One class a folder, in the order that Keras and torchvision number them."""
    names = sorted(child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not names:
        raise ConfigurationError(f"--labels {path}: there are no class folders in it")
    return tuple(names)


def _of_lines(path: Path) -> tuple[str, ...]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path.name} is not UTF-8 text with one label a line") from None
    return tuple(_without_numbers(lines))


def _without_numbers(lines: Sequence[str]) -> list[str]:
    """Teachable Machine and others number the lines: "0 cat", "1: dog". Numbers that are not all in order are names."""
    found = [re.fullmatch(r"(\d+)[\s:,]+(.+)", line) for line in lines]
    if lines and all(match and int(match[1]) == index for index, match in enumerate(found)):
        return [match[2] for match in found if match]
    return list(lines)


def _of_json(path: Path) -> tuple[str, ...]:
    """A list; {"0": "cat"}; or {"cat": 0}, as Keras' class_indices."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{path.name} is not JSON: {error}") from None
    pairs = list(enumerate(value)) if isinstance(value, list) else _numbered(value)
    ordered = sorted(pairs, key=lambda pair: pair[0])
    if [index for index, _ in ordered] != list(range(len(ordered))) or not ordered:
        raise ConfigurationError(f'{path.name}: labels are a list, {{"0": "cat", ...}} or {{"cat": 0, ...}}')
    return tuple(str(label) for _, label in ordered)


def _numbered(value: Any) -> list[tuple[int, Any]]:
    if not isinstance(value, dict):
        return []
    if all(isinstance(number, int) for number in value.values()):
        return [(number, label) for label, number in value.items()]
    return [(int(index), label) for index, label in value.items() if str(index).isdecimal()]
