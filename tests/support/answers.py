"""What an answer of `/api/v1` must look like, good or bad. Takes `httpx2.Response` and `RawAnswer` alike."""

from collections.abc import Mapping
from typing import Any, Protocol

_TRACES = ("Traceback", "site-packages", ".py", "/tmp", "/work", "0x7f")


class Answer(Protocol):
    @property
    def status_code(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def content(self) -> bytes: ...

    def json(self) -> Any: ...


def problem_of(answer: Answer, status: int, code: str | None = None) -> dict[str, Any]:
    """The problem details of an error, checked as RFC 9457 and the contract want them."""
    assert answer.status_code == status, answer.content
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem.keys() == {"type", "title", "status", "detail", "code", "request_id"}
    assert problem["status"] == status
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert all(problem[key] for key in problem)
    assert_gives_nothing_away(answer)
    if code is not None:
        assert problem["code"] == code, problem
    if status == 503:
        assert answer.headers["retry-after"] in ("1", "2", "3")
    return problem


def assert_gives_nothing_away(answer: Answer) -> None:
    """No path, traceback, library or address of ours in an error's text."""
    text = answer.content.decode("utf-8")
    assert not [trace for trace in _TRACES if trace in text], text


def results_of(answer: Answer) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.content
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def predictions_of(answer: Answer) -> list[dict[str, Any]]:
    """The predictions of an answer about one image."""
    (result,) = results_of(answer)
    predictions: list[dict[str, Any]] = result["predictions"]
    return predictions


def assert_same_predictions(got: list[dict[str, Any]], wanted: list[dict[str, Any]], *, tolerance: float) -> None:
    """The same labels in the same order, and every score within `tolerance`."""
    assert [best["label"] for best in got] == [best["label"] for best in wanted]
    assert [best["index"] for best in got] == [best["index"] for best in wanted]
    for one, other in zip(got, wanted, strict=True):
        assert abs(one["score"] - other["score"]) <= tolerance, (one, other)
