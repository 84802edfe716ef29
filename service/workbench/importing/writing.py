"""An imported model as a folder of the repository, whole from the moment that it appears.

A running server watches the repository: everything is written beside it and renamed into place.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.errors import ConfigurationError
from service.tasks.base import Scores, best

Table = dict[str, Any]

_GOLDEN_TOP = 5
_GOLDEN_TOLERANCE = 0.02  # another CPU differs by 1e-4; another preprocessing or other weights by far more
_WHY = {
    "scale": "pixel * scale, then (x - mean) / std",
    "preset": "how pixels are scaled",
    "resize": "how a picture comes to the size",
    "resampler": "whose arithmetic",
    "decode": 'the training pipeline\'s own arithmetic; "fast" is quicker and within 0.02 of the top score',
    "frames": "longer clips are sampled, shorter ones end in copies of their last frame",
    "activation": "what the server applies",
}


def manifest_text(title: str, input_table: Table, output_table: Table, metadata: Table) -> str:
    """model.toml."""
    lines = [f"# {title}", "schema = 1", ""]
    tables = {"input": input_table, "output": output_table | {"labels": "labels.txt"}, "metadata": metadata}
    for name, table in tables.items():
        lines.append(f"[{name}]")
        for key, value in table.items():
            line = f"{key} = {json.dumps(value, ensure_ascii=False)}"
            lines.append(f"{line:30} # {_WHY[key]}" if name != "metadata" and key in _WHY else line)
        lines.append("")
    return "\n".join(lines)


def golden_text(cases: Sequence[tuple[str, Scores]], labels: Sequence[str]) -> str:
    """golden.json: for each file of the version's folder its best predictions, and how far they may be off."""
    tree = {
        "schema": 1,
        "tolerance": _GOLDEN_TOLERANCE,
        "cases": [
            {
                "file": name,
                "predictions": [
                    {"index": index, "score": round(score, 6), "label": labels[index]}
                    for index, score in best(scores, _GOLDEN_TOP)
                ],
            }
            for name, scores in cases
        ],
    }
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"


def card_text(name: str, made_from: Sequence[tuple[str, str]], decided: Sequence[tuple[str, str, str]]) -> str:
    """README.md: what is known, and what only a person can say."""
    figures = "".join(f"| {what} | {value} |\n" for what, value in made_from)
    rows = "".join(f"| {what} | {value} | {origin} |\n" for what, value, origin in decided)
    return (
        f"# {name}\n\nWhat it knows: to be written by its owner.\n\n"
        f"## Figures\n\n| figure | value |\n|---|---|\n{figures}\n"
        f"## How it is fed and read\n\n| what | value | known from |\n|---|---|---|\n{rows}\n"
        "## Origin and licence\n\nTo be written by its owner: training data, licence, measured accuracy, limits.\n"
    )


def place_for(repository: Path, name: str, version: int) -> Path:
    """The folder that a version will have. Raises ConfigurationError where it exists."""
    folder = repository / name
    if not repository.is_dir():
        raise ConfigurationError(
            f"{repository}: no such model repository; make the folder, or name another with --model-repo"
        )
    if (folder / str(version)).exists():
        raise ConfigurationError(
            f"{folder / str(version)} exists: give --version {_next_version(folder)}, or another --name"
        )
    return folder


def _next_version(folder: Path) -> int:
    return 1 + max((int(child.name) for child in folder.iterdir() if child.name.isdecimal()), default=0)


def draft_folder(repository: Path) -> "tempfile.TemporaryDirectory[str]":
    """A folder of the same file system that no server looks into."""
    try:
        return tempfile.TemporaryDirectory(prefix=".import-", dir=repository, ignore_cleanup_errors=True)
    except OSError as error:
        raise ConfigurationError(f"{repository}: cannot be written to ({error.strerror})") from None


def publish(draft: Path, folder: Path, version: int) -> None:
    """Rename the draft into place: the whole model, or only its new version beside those that are there."""
    for path in draft.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    if not folder.exists():
        draft.chmod(0o755)
        draft.replace(folder)
        return
    for name in ("model.toml", "labels.txt"):
        shutil.copyfile(draft / name, draft / str(version) / name)
    (draft / str(version)).replace(folder / str(version))
