"""Asking a model about many image files, in this process or through a running server.

Owns how many files are in flight, and that whatever one file does to a request it does to no other. A row is what
is said of one file: `{"file", "predictions": [{"label", "index", "score"}]}` or `{"file", "error"}`. Rows come in the
order of the files, and only those in flight are in memory.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx2

from service import __version__
from service.client import AsyncFoveaClient, FoveaApiError, ImageResult, RetryPolicy
from service.config import Settings
from service.errors import ConfigurationError, FoveaError, NoImageSignature, Overloaded
from service.messages import Classification, ImagePayload, InferenceRequest, ModelRef
from service.model import LoadedModel
from service.repository.source import FolderSource, FoundModel
from service.server import InferenceServer

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
_GROUP_FILES = 4  # to a request: halves what HTTP costs small images ...
_GROUP_BYTES = 4 * 1024 * 1024  # ... and keeps far from the bound on a body
_GROUPS_IN_FLIGHT = 8  # enough that every execution thread finds a batch waiting
_PATIENCE_SECONDS = 300.0  # with a model that is slow: bulk work waits rather than fails ...
_AWAY_SECONDS = 60.0  # ... and with a server that is away: a restart takes less
_STATUSES_OF_ALL = frozenset({401, 403, 404, 409, 429, 503})  # what is wrong is not the images

Row = dict[str, Any]
Image = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Described:
    """The version that answers. `labels` in output order."""

    name: str
    version: int
    task: str
    labels: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


class Refused(Exception):
    """A request of several images failed as a whole; each may be good on its own."""


class Asker(Protocol):
    """A model that can be asked. `ask` gives predictions or an error's text for each image.

    It raises Refused, or ConfigurationError where going on is no use.
    """

    described: Described

    async def ask(self, images: Sequence[Image], top_k: int) -> list[Row]: ...


class Here:
    """A model loaded in this process."""

    def __init__(self, server: InferenceServer, loaded: LoadedModel) -> None:
        self.server = server
        self.loaded = loaded
        description = loaded.description
        self.described = Described(loaded.name, loaded.version, description.task, description.labels)

    @property
    def ref(self) -> ModelRef:
        return ModelRef(self.loaded.name, self.loaded.version)

    async def ask(self, images: Sequence[Image], top_k: int) -> list[Row]:
        payloads = tuple(ImagePayload(data, name) for name, data in images)
        request = InferenceRequest(self.ref, payloads, time.monotonic() + _PATIENCE_SECONDS, top_k)
        while True:
            try:
                with self.server.pipeline.admit("native", request.ref) as ticket:
                    items = (await self.server.pipeline.classify(request, ticket)).items
                return [_row(item) for item in items]
            except Overloaded as error:  # a slow model: its queue is bounded by time
                await asyncio.sleep(error.retry_after_seconds)
            except NoImageSignature as error:
                raise ConfigurationError(str(error)) from None
            except FoveaError as error:
                raise Refused(str(error)) from None


def _row(item: Classification | FoveaError) -> Row:
    if isinstance(item, FoveaError):
        return {"error": str(item)}
    return {"predictions": [asdict(prediction) for prediction in item.predictions]}


class There:
    """A model of a running server."""

    def __init__(self, client: AsyncFoveaClient, url: str, described: Described) -> None:
        self._client = client
        self._url = url
        self.described = described

    async def ask(self, images: Sequence[Image], top_k: int) -> list[Row]:
        name, version = self.described.name, self.described.version
        try:
            answer = await self._client.classify(name, images, version=version, top_k=top_k)
        except FoveaApiError as error:
            if error.status in _STATUSES_OF_ALL:
                raise ConfigurationError(f"{self._url}: {error}") from None
            raise Refused(str(error)) from None
        except httpx2.TransportError as error:
            raise ConfigurationError(f"{self._url}: {type(error).__name__}: {error}") from None
        return [self._row(result) for result in answer.results]

    def _row(self, result: ImageResult) -> Row:
        if result.error_code:
            return {"error": result.error_detail}
        for prediction in result.predictions:
            at = prediction.index
            if self.described.labels[at : at + 1] != (prediction.label,):
                raise ConfigurationError(
                    f"{self._url}: {self.described} has labels of its own, and a server lists those of its default "
                    "version: leave out --url, give --model-repo"
                )
        return {"predictions": [asdict(prediction) for prediction in result.predictions]}


def reference(text: str) -> ModelRef:
    """MODEL or MODEL/VERSION. Raises ConfigurationError."""
    name, slash, version = text.partition("/")
    if not name or (slash and not version.isdecimal()):
        raise ConfigurationError(f"{text!r}: give MODEL, or MODEL/VERSION with a number")
    return ModelRef(name, int(version) if slash else None)


def opened(settings: Settings, ref: ModelRef, url: str | None) -> AbstractAsyncContextManager[Asker]:
    """The model, ready to be asked. Raises ConfigurationError where it is not there or not ready."""
    return _opened_there(settings, ref, url) if url else opened_here(settings, ref)


@asynccontextmanager
async def opened_here(settings: Settings, ref: ModelRef) -> AsyncIterator[Here]:
    """The model loaded in this process, without the others of the repository."""
    server = InferenceServer(settings, __version__, source=_OneModel(settings.repository.path, ref))
    try:
        await server.repository.reconcile()
        status = next((status for status in server.repository.index() if status.name == ref.name), None)
        if status is None:
            raise ConfigurationError(f"{settings.repository.path}: there is no model {ref.name!r}")
        loaded = next((version.loaded for version in status.versions if version.loaded is not None), None)
        if loaded is None:
            reason = status.reason if status.versions else f"there is no version {ref.version}"
            raise ConfigurationError(f"{settings.repository.path}: {ref.name}: {reason}")
        yield Here(server, loaded)
    finally:
        await server.close()


class _OneModel(FolderSource):
    """A repository of which only what is asked is seen: the rest need not be loaded."""

    def __init__(self, root: Path, ref: ModelRef) -> None:
        super().__init__(root)
        self._ref = ref

    def scan(self) -> dict[str, FoundModel]:
        found = super().scan().get(self._ref.name)
        if found is None:
            return {}
        if self._ref.version is not None:
            versions = {number: seen for number, seen in found.versions.items() if number == self._ref.version}
            found = FoundModel(found.name, found.folder, versions, found.problem)
        return {found.name: found}


@asynccontextmanager
async def _opened_there(settings: Settings, ref: ModelRef, url: str) -> AsyncIterator[There]:
    token = settings.auth.tokens[0].get_secret_value() if settings.auth.tokens else None
    try:
        async with AsyncFoveaClient(url, token=token) as client:
            about = await client.model(ref.name)
    except FoveaApiError as error:
        raise ConfigurationError(f"{url}: {error}") from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise ConfigurationError(f"{url}: {type(error).__name__}: {error}") from None
    version = ref.version or about.get("default_version")
    if version is None:
        raise ConfigurationError(f"{url}: {ref.name}: {about.get('reason', 'it is not ready')}")
    retry = RetryPolicy(attempts=1000, patience_seconds=_AWAY_SECONDS)
    async with AsyncFoveaClient(url, token=token, timeout_seconds=_PATIENCE_SECONDS, retry=retry) as client:
        yield There(client, url, Described(ref.name, int(version), about["task"], tuple(about["labels"])))


def expand(places: Iterable[Path]) -> Iterator[Path]:
    """Files as given; of folders, every image file below, sorted. Raises ConfigurationError."""
    for place in places:
        if place.is_dir():
            yield from _images_below(place)
        elif place.exists():
            yield place
        else:
            raise ConfigurationError(f"{place}: no such file or folder")


def _images_below(folder: Path) -> Iterator[Path]:
    """One folder's names in memory at a time."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if (path := Path(root, name)).suffix.lower() in _SUFFIXES:
                yield path


async def rows(asker: Asker, files: Iterable[Path], top_k: int) -> AsyncGenerator[Row]:
    """What the model says of each file, in their order. Raises ConfigurationError where going on is no use.

    Close it (`contextlib.aclosing`) where it is left early: requests are in flight.
    """
    in_flight: deque[asyncio.Task[list[Row]]] = deque()
    try:
        for group in _groups(files):
            in_flight.append(asyncio.create_task(_group_rows(asker, group, top_k)))
            if len(in_flight) == _GROUPS_IN_FLIGHT:
                for row in await in_flight.popleft():
                    yield row
        while in_flight:
            for row in await in_flight.popleft():
                yield row
    finally:
        for task in in_flight:
            task.cancel()
        await asyncio.gather(*in_flight, return_exceptions=True)


def _groups(files: Iterable[Path]) -> Iterator[list[Path]]:
    group: list[Path] = []
    nbytes = 0
    for file in files:
        size = file.stat().st_size if file.is_file() else 0
        if group and (len(group) == _GROUP_FILES or nbytes + size > _GROUP_BYTES):
            yield group
            group, nbytes = [], 0
        group.append(file)
        nbytes += size
    if group:
        yield group


async def _group_rows(asker: Asker, files: Sequence[Path], top_k: int) -> list[Row]:
    read = await asyncio.to_thread(lambda: [_read(file) for file in files])
    images = [(file.name, data) for file, data in zip(files, read, strict=True) if isinstance(data, bytes)]
    answers = iter(await _ask(asker, images, top_k))
    return [
        {"file": str(file), **(next(answers) if isinstance(data, bytes) else {"error": data})}
        for file, data in zip(files, read, strict=True)
    ]


def _read(file: Path) -> bytes | str:
    try:
        return file.read_bytes()
    except OSError as error:
        return error.strerror or type(error).__name__


async def _ask(asker: Asker, images: Sequence[Image], top_k: int) -> list[Row]:
    """Where a request is refused as a whole, its images are asked about one by one."""
    if not images:
        return []
    try:
        return await asker.ask(images, top_k)
    except Refused as error:
        if len(images) == 1:
            return [{"error": str(error)}]
    return [row for image in images for row in await _ask(asker, [image], top_k)]
