"""`fovea check --write-golden` and `--write-reference`: what a version answers today, written down beside it.

golden.json says what it must answer before it serves again; reference.json what it usually answers, which drift is
measured against. Where the version has a SHA256SUMS, the new file's line there is written too.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
from tqdm import tqdm

from service import __version__, drift, golden
from service.config import Settings
from service.errors import ConfigurationError, FoveaError
from service.model import LoadedModel
from service.model_files import SUMS_NAME
from service.server import InferenceServer
from service.workbench.asking import expand

_PICTURES = (".jpg", ".jpeg", ".png", ".webp")
Make = Callable[[Path, LoadedModel], bytes]


def write_golden(settings: Settings, model: str | None) -> int:
    """golden.json of every version in service that takes images: of the pictures in its folder, else of seeds."""
    return asyncio.run(_write(settings, golden.GOLDEN_NAME, _golden, model))


def write_reference(settings: Settings, model: str | None, places: list[Path]) -> int:
    """reference.json from images that stand for the usual traffic. Raises ConfigurationError."""
    files = list(expand(places))
    if len(files) < drift.MIN_REFERENCE_IMAGES:
        raise ConfigurationError(
            f"{len(files)} images in {', '.join(map(str, places))}: a reference needs {drift.MIN_REFERENCE_IMAGES}"
        )
    return asyncio.run(_write(settings, drift.REFERENCE_NAME, lambda folder, loaded: _reference(files, loaded), model))


async def _write(settings: Settings, name: str, make: Make, model: str | None) -> int:
    server = InferenceServer(settings, __version__, unread=[name])
    written = 0
    try:
        await server.repository.reconcile()
        for folder, loaded in _versions(server, model):
            content = await asyncio.to_thread(make, folder, loaded)
            replace_file(folder, name, content)
            written += 1
            print(f"wrote  {loaded.name}/{loaded.version}/{name}")
        for status in server.repository.index():
            if not status.is_ready and model in (None, status.name):
                print(f"ERROR  {status.name}: {status.reason}")
                return 1
    finally:
        await server.close()
    if not written:
        raise ConfigurationError(f"no version of {model or 'any model'} is in service and takes images")
    return 0


def _versions(server: InferenceServer, model: str | None) -> Iterator[tuple[Path, LoadedModel]]:
    for status in server.repository.index():
        for version in status.versions:
            loaded = version.loaded
            if model in (None, status.name) and loaded is not None and loaded.description.spec.input is not None:
                yield server.settings.repository.path / status.name / str(version.version), loaded


def _golden(folder: Path, loaded: LoadedModel) -> bytes:
    spec = loaded.description.spec.input
    assert spec is not None
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES)
    inputs: list[tuple[dict[str, Any], bytes]] = [({"file": path.name}, path.read_bytes()) for path in files]
    inputs = inputs or [({"seed": seed}, golden.picture(seed, *spec.size)) for seed in golden.SEEDS]
    cases = [
        place | {"predictions": [one.model_dump() for one in golden.expected(loaded.score_image(image), loaded.labels)]}
        for place, image in inputs
    ]
    tree = {"schema": 1, "tolerance": golden.TOLERANCE, "cases": cases}
    return orjson.dumps(tree, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _reference(files: list[Path], loaded: LoadedModel) -> bytes:
    tally = drift.Tally(len(loaded.labels))
    for file in tqdm(files, unit="img", disable=None):
        try:
            best = loaded.best_of_image(file.read_bytes())
        except FoveaError as error:
            print(f"left out  {file}: {error}")
            continue
        if best is not None:
            tally.add(best.index, best.score)
    return tally.reference().to_json() + b"\n"


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Write a file of a version, and its line in SHA256SUMS where there is one; each appears whole."""
    _put(folder / name, content)
    sums = folder / SUMS_NAME
    if sums.exists():
        lines = [line for line in sums.read_text(encoding="utf-8").splitlines() if line[66:].removeprefix("./") != name]
        _put(sums, "\n".join([*lines, f"{hashlib.sha256(content).hexdigest()}  {name}", ""]).encode())


def _put(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(content)
    beside.replace(path)
