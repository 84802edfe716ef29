"""A small typed client of the REST API. Imports nothing else of the service."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx2


class FoveaApiError(Exception):
    """The server said no. `status` is HTTP's, `code` the stable word of the problem."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"{detail} ({status} {code})")
        self.status = status
        self.code = code


class FoveaClient:
    """Synchronous calls over a kept connection. Use as a context manager."""

    def __init__(self, url: str, *, timeout_seconds: float = 30.0) -> None:
        self._http = httpx2.Client(base_url=url.rstrip("/"), timeout=timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def classify(self, model: str, images: Sequence[tuple[str, bytes]], *, top_k: int = 5) -> dict[str, Any]:
        """Classify named images in one request; returns the answer as the API documents it. Raises FoveaApiError."""
        files = [("image", (name, data, "application/octet-stream")) for name, data in images]
        answer = self._http.post(f"/api/v1/models/{model}/classify", params={"top_k": top_k}, files=files)
        return _checked(answer)

    def models(self) -> dict[str, Any]:
        """The models of the server and their states."""
        return _checked(self._http.get("/api/v1/models"))


def _checked(answer: httpx2.Response) -> dict[str, Any]:
    try:
        body: dict[str, Any] = answer.json()
    except ValueError:
        body = {}
    if answer.status_code != 200:
        raise FoveaApiError(answer.status_code, str(body.get("code", "")), str(body.get("detail", answer.text[:200])))
    return body
