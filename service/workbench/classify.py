"""`fovea classify`: files and folders to ranked labels, in this process or through a running server."""

import asyncio
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from tqdm import tqdm

from service import __version__
from service.client import FoveaApiError, FoveaClient
from service.config import Settings
from service.errors import ConfigurationError, FoveaError
from service.messages import Classification, ImagePayload, InferenceRequest, ModelRef
from service.repository.source import FolderSource, FoundModel
from service.server import InferenceServer

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
_IN_FLIGHT = 16
_PATIENCE_SECONDS = 300.0
_BAR_FROM_FILES = 20

Row = dict[str, Any]


def classify_files(
    places: Sequence[Path], settings: Settings, model: str, url: str | None, top_k: int, *, as_json: bool
) -> int:
    """Classify and print; 0 where every file was answered, 1 otherwise. Raises ConfigurationError."""
    files = list(expand(places))
    if not files:
        raise ConfigurationError(f"no image files in {', '.join(map(str, places))}")
    if url:
        token = settings.auth.tokens[0].get_secret_value() if settings.auth.tokens else None
        return _print_all(_through_server(files, url, token, model, top_k), len(files), as_json=as_json)
    return asyncio.run(_in_process(files, settings, model, top_k, as_json=as_json))


def expand(places: Sequence[Path]) -> Iterator[Path]:
    """Files as given; of folders, every image file below, sorted. Raises ConfigurationError."""
    for place in places:
        if place.is_dir():
            yield from sorted(path for path in place.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
        elif place.exists():
            yield place
        else:
            raise ConfigurationError(f"{place}: no such file or folder")


def _through_server(files: Sequence[Path], url: str, token: str | None, model: str, top_k: int) -> Iterator[Row]:
    with FoveaClient(url, token=token) as client, ThreadPoolExecutor(_IN_FLIGHT) as pool:

        def ask(file: Path) -> Row:
            try:
                answer = client.classify(model, [(file.name, file.read_bytes())], top_k=top_k)
            except (FoveaApiError, OSError) as error:
                return {"file": str(file), "error": str(error)}
            except Exception as error:
                return {"file": str(file), "error": f"{url}: {type(error).__name__}: {error}"}
            predictions = [asdict(prediction) for prediction in answer.results[0].predictions]
            return {"file": str(file), "predictions": predictions}

        yield from pool.map(ask, files)


async def _in_process(files: Sequence[Path], settings: Settings, model: str, top_k: int, *, as_json: bool) -> int:
    server = InferenceServer(settings, __version__, source=_OneModel(settings.repository.path, model))
    try:
        await server.repository.reconcile()
        status = next((status for status in server.repository.index() if status.name == model), None)
        if status is None or not status.is_ready:
            reason = f"there is no model {model!r}" if status is None else status.reason
            raise ConfigurationError(f"{settings.repository.path}: {reason}")
        with _bar(len(files)) as bar:
            failures = 0
            for start in range(0, len(files), _IN_FLIGHT):
                tasks = [_ask(server, file, model, top_k) for file in files[start : start + _IN_FLIGHT]]
                for row in await asyncio.gather(*tasks):
                    failures += "error" in row
                    _print_row(row, bar, as_json=as_json)
        return 1 if failures else 0
    finally:
        await server.close()


async def _ask(server: InferenceServer, file: Path, model: str, top_k: int) -> Row:
    try:
        image = ImagePayload(await asyncio.to_thread(file.read_bytes), file.name)
        request = InferenceRequest(ModelRef(model), (image,), time.monotonic() + _PATIENCE_SECONDS, top_k)
        with server.pipeline.admit("native", request.ref) as ticket:
            item = (await server.pipeline.classify(request, ticket)).items[0]
    except (FoveaError, OSError) as error:
        return {"file": str(file), "error": str(error)}
    assert isinstance(item, Classification)
    return {"file": str(file), "predictions": [asdict(prediction) for prediction in item.predictions]}


class _OneModel(FolderSource):
    """A repository of which only one model is seen: the others need not be loaded to ask this one."""

    def __init__(self, root: Path, model: str) -> None:
        super().__init__(root)
        self._model = model

    def scan(self) -> dict[str, FoundModel]:
        return {name: found for name, found in super().scan().items() if name == self._model}


def _print_all(rows: Iterable[Row], total: int, *, as_json: bool) -> int:
    failures = 0
    with _bar(total) as bar:
        for row in rows:
            failures += "error" in row
            _print_row(row, bar, as_json=as_json)
    return 1 if failures else 0


def _bar(total: int) -> "tqdm[Any]":
    """A progress bar on stderr for long work, while stdout holds the answers."""
    return tqdm(total=total, unit="image", file=sys.stderr, disable=total < _BAR_FROM_FILES or not sys.stderr.isatty())


def _print_row(row: Row, bar: "tqdm[Any]", *, as_json: bool) -> None:
    bar.update()
    if as_json:
        bar.write(orjson.dumps(row).decode(), file=sys.stdout)
    elif "error" in row:
        bar.write(f"{row['file']}: {row['error']}", file=sys.stderr)
    else:
        best = ", ".join(f"{entry['label']} {entry['score']:.3f}" for entry in row["predictions"])
        bar.write(f"{row['file']}: {best}", file=sys.stdout)
