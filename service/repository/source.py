"""Looks at the model folder and says what is there. Reads names, sizes and times; opens no file, judges no content.

A place of another kind (an object store) is a module beside this one with the same `scan`.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from service.errors import ConfigurationError

MANIFEST_NAME = "model.toml"
CARD_NAME = "README.md"
_MODEL_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_VERSION_NAME = re.compile(r"[1-9][0-9]{0,17}")
_RESERVED = frozenset({"stats"})  # /v2/models/stats is a route

Fingerprint = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model folder. `versions` maps a number to what its files looked like; `problem` is why it cannot be used.

    `card` is its README, where there is one.
    """

    name: str
    folder: Path
    versions: dict[int, Fingerprint]
    problem: str | None = None
    card: Path | None = None


class FolderSource:
    """A repository on a file system."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def scan(self) -> dict[str, FoundModel]:
        """Every model of the folder by name. Blocking. Raises ConfigurationError where it cannot be read."""
        try:
            folders = sorted(path for path in self.root.iterdir() if path.is_dir() and path.name[0] not in "._")
        except OSError as error:
            raise ConfigurationError(
                f"repository.path = {str(self.root)!r}: {error.strerror or error}; give a folder of model folders"
            ) from None
        found = (_look(folder) for folder in folders)
        return {model.name: model for model in found if model is not None}


def _look(folder: Path) -> FoundModel | None:
    name = os.fsencode(folder.name).decode("utf-8", "backslashreplace")  # whatever it is, it can be shown
    try:
        versions = {
            int(path.name): _fingerprint(folder, path)
            for path in folder.iterdir()
            if _VERSION_NAME.fullmatch(path.name) and path.is_dir()
        }
        if not versions and not (folder / MANIFEST_NAME).is_file():
            return None
        card = folder / CARD_NAME if (folder / CARD_NAME).is_file() else None
    except OSError as error:
        return FoundModel(name, folder, {}, f"the folder cannot be read: {error.strerror or error}")
    return FoundModel(name, folder, versions, _problem(name, versions), card)


def _problem(name: str, versions: dict[int, Fingerprint]) -> str | None:
    if not _MODEL_NAME.fullmatch(name) or name in _RESERVED:
        return f"{name!r} cannot be a model's name: rename the folder to letters, digits, '.', '_' and '-'"
    if not versions:
        return "there is no version folder: put the file at 1/model.onnx"
    return None


def _fingerprint(folder: Path, version: Path) -> Fingerprint:
    files = [path for path in (*folder.iterdir(), *version.iterdir()) if path.is_file()]
    stats = ((str(path.relative_to(folder)), path.stat()) for path in sorted(files))
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
