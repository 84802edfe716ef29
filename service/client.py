"""A typed client of the REST API, synchronous and asynchronous. Imports nothing else of the service.

    with FoveaClient("http://127.0.0.1:8000") as fovea:
        print(fovea.classify("imagenet", [Path("cup.jpg").read_bytes()]).results[0].predictions[0].label)

Both keep a pool of connections and try again what is safe to repeat: a refused connection, one that the server closed
while idle, and the answers 429 and 503, after the seconds that `Retry-After` names. Classifying changes nothing on the
server, so every request may be repeated.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx2

_RETRIED_STATUSES = frozenset({429, 503})
_BACKOFF_SECONDS = 0.2  # where the server names no time; doubled at each attempt, with jitter
_LONGEST_WAIT_SECONDS = 10.0

Image = bytes | tuple[str, bytes]


class FoveaApiError(Exception):
    """The server said no. `status` is HTTP's, `code` the stable word of the problem."""

    def __init__(self, status: int, code: str, detail: str, request_id: str | None = None) -> None:
        super().__init__(f"{detail} ({status} {code})")
        self.status = status
        self.code = code
        self.detail = detail
        self.request_id = request_id


@dataclass(frozen=True, slots=True)
class Prediction:
    label: str
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class ImageResult:
    """The answer to one image: predictions, best first, or its own error (`error_code` is set then)."""

    name: str | None
    predictions: tuple[Prediction, ...]
    error_code: str | None = None
    error_detail: str | None = None


@dataclass(frozen=True, slots=True)
class ClassifyResult:
    """The answer to a request; `results` has one item per image, in order."""

    model: str
    version: str
    request_id: str
    results: tuple[ImageResult, ...]
    timings_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """At most `attempts` tries within `patience_seconds`."""

    attempts: int = 4
    patience_seconds: float = 30.0

    def wait_seconds(self, attempt: int, elapsed_seconds: float, answer: httpx2.Response | None) -> float | None:
        """Seconds to wait before trying again after failed attempt number `attempt` (from 1); None to give up.

        `answer` is None where the connection failed.
        """
        if attempt >= self.attempts or (answer is not None and answer.status_code not in _RETRIED_STATUSES):
            return None
        wait = _named_wait(answer)
        if wait is None:
            wait = _BACKOFF_SECONDS * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.5)  # noqa: S311  # spreads retries
        wait = min(wait, _LONGEST_WAIT_SECONDS)
        return wait if elapsed_seconds + wait <= self.patience_seconds else None


class FoveaClient:
    """Synchronous calls; thread-safe. Use as a context manager, or `close` it."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_seconds: float = 30.0,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._http = httpx2.Client(base_url=url.rstrip("/"), timeout=timeout_seconds, headers=_headers(token))
        self._retry = retry or RetryPolicy()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def classify(
        self, model: str, images: Sequence[Image], *, version: int | None = None, top_k: int = 5
    ) -> ClassifyResult:
        """Classify images (bytes, or (name, bytes)) in one request. Raises FoveaApiError, httpx2.TransportError."""
        return _classify_result(self._send(_classify_request(self._http, model, images, version, top_k)))

    def models(self) -> dict[str, Any]:
        """The models of the server and their states, as `GET /api/v1/models` documents them."""
        return _json(self._send(self._http.build_request("GET", "/api/v1/models")))

    def model(self, name: str) -> dict[str, Any]:
        """One model with all its labels, as `GET /api/v1/models/{model}` documents it. Raises as `classify`."""
        return _json(self._send(_model_request(self._http, name)))

    def is_ready(self) -> bool:
        """Whether the server wants traffic."""
        return self._http.get("/readyz").status_code == 200

    def _send(self, request: httpx2.Request) -> httpx2.Response:
        started_at = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            answer, failure = None, None
            try:
                answer = self._http.send(request)
            except (httpx2.ConnectError, httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError) as error:
                failure = error
            if answer is not None and answer.status_code not in _RETRIED_STATUSES:
                return answer
            wait = self._retry.wait_seconds(attempt, time.monotonic() - started_at, answer)
            if wait is None:
                return _last(answer, failure)
            time.sleep(wait)


class AsyncFoveaClient:
    """The same calls for asyncio. Use as an async context manager, or `aclose` it."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_seconds: float = 30.0,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._http = httpx2.AsyncClient(base_url=url.rstrip("/"), timeout=timeout_seconds, headers=_headers(token))
        self._retry = retry or RetryPolicy()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def classify(
        self, model: str, images: Sequence[Image], *, version: int | None = None, top_k: int = 5
    ) -> ClassifyResult:
        """Classify images (bytes, or (name, bytes)) in one request. Raises FoveaApiError, httpx2.TransportError."""
        return _classify_result(await self._send(_classify_request(self._http, model, images, version, top_k)))

    async def models(self) -> dict[str, Any]:
        """The models of the server and their states, as `GET /api/v1/models` documents them."""
        return _json(await self._send(self._http.build_request("GET", "/api/v1/models")))

    async def model(self, name: str) -> dict[str, Any]:
        """One model with all its labels, as `GET /api/v1/models/{model}` documents it. Raises as `classify`."""
        return _json(await self._send(_model_request(self._http, name)))

    async def is_ready(self) -> bool:
        """Whether the server wants traffic."""
        return (await self._http.get("/readyz")).status_code == 200

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        started_at = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            answer, failure = None, None
            try:
                answer = await self._http.send(request)
            except (httpx2.ConnectError, httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError) as error:
                failure = error
            if answer is not None and answer.status_code not in _RETRIED_STATUSES:
                return answer
            wait = self._retry.wait_seconds(attempt, time.monotonic() - started_at, answer)
            if wait is None:
                return _last(answer, failure)
            await asyncio.sleep(wait)


def _headers(token: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"} if token else {}


def _classify_request(
    http: httpx2.Client | httpx2.AsyncClient, model: str, images: Sequence[Image], version: int | None, top_k: int
) -> httpx2.Request:
    given: object = images  # where nobody checks types, bytes and texts are sequences too
    if isinstance(given, bytes | str):
        raise TypeError("images: give a list, of bytes or of (name, bytes)")
    named = [("", image) if isinstance(image, bytes) else image for image in images]
    # a part without a file name would be a text field: unnamed images are named by their place
    files = [
        ("image", (name or f"{place}", data, "application/octet-stream")) for place, (name, data) in enumerate(named)
    ]
    path = f"/api/v1/models/{model}" + ("" if version is None else f"/versions/{version}") + "/classify"
    return http.build_request("POST", path, params={"top_k": top_k}, files=files)


def _model_request(http: httpx2.Client | httpx2.AsyncClient, name: str) -> httpx2.Request:
    return http.build_request("GET", f"/api/v1/models/{name}", params={"labels": True})


def _named_wait(answer: httpx2.Response | None) -> float | None:
    try:
        return max(0.0, float(answer.headers["retry-after"])) if answer is not None else None
    except (KeyError, ValueError):
        return None


def _last(answer: httpx2.Response | None, failure: Exception | None) -> httpx2.Response:
    if answer is not None:
        return answer
    assert failure is not None
    raise failure


def _json(answer: httpx2.Response) -> dict[str, Any]:
    try:
        body: dict[str, Any] = answer.json()
    except ValueError:
        body = {}
    if answer.status_code != 200:
        detail = str(body.get("detail", answer.text[:200]))
        raise FoveaApiError(answer.status_code, str(body.get("code", "")), detail, body.get("request_id"))
    return body


def _classify_result(answer: httpx2.Response) -> ClassifyResult:
    body = _json(answer)
    results = tuple(_image_result(item) for item in body["results"])
    return ClassifyResult(body["model"], body["version"], body["request_id"], results, body["timings_ms"])


def _image_result(item: dict[str, Any]) -> ImageResult:
    predictions = tuple(Prediction(**prediction) for prediction in item.get("predictions") or ())
    error = item.get("error") or {}
    return ImageResult(item.get("name"), predictions, error.get("code"), error.get("detail"))
