"""Every error code has a row in every front-end's table, and every row has a code."""

import pytest
from starlette.requests import Request

from service.errors import FoveaError, InvalidParameter, Outcome, all_codes
from service.rest.context import RequestContext
from service.rest.errors import STATUS, error_response

CONTRACT = {  # contract.md section 3: the status of /api/v1
    "malformed_request": 400,
    "empty_body": 400,
    "model_not_found": 404,
    "no_image_signature": 409,
    "body_timeout": 408,
    "payload_too_large": 413,
    "unsupported_media_type": 415,
    "media_type_mismatch": 415,
    "invalid_image": 422,
    "image_too_large": 422,
    "invalid_parameter": 422,
    "overloaded": 503,
    "draining": 503,
    "out_of_memory": 503,
    "model_not_ready": 503,
    "deadline_exceeded": 504,
    "engine_error": 500,
    "internal_error": 500,
}


def every_error() -> list[type[FoveaError]]:
    """Classes of this service, with those that share a code; not those that a test made."""
    found, pending = [], [FoveaError]
    while pending:
        cls = pending.pop()
        pending.extend(cls.__subclasses__())
        if cls.__module__.startswith("service."):
            found.append(cls)
    return found


def test_every_code_has_a_row_in_the_rest_table_and_every_row_a_code() -> None:
    assert set(STATUS) == set(all_codes())


@pytest.mark.parametrize(("code", "status"), sorted(CONTRACT.items()))
def test_a_code_has_the_status_of_the_contract(code: str, status: int) -> None:
    assert STATUS[code][0] == status


@pytest.mark.parametrize(("path", "status"), [("/v2/x", 400), ("/v1/x", 400), ("/api/v1/x", 422)])
def test_the_tensor_protocols_have_one_status_for_bad_data(path: str, status: int) -> None:
    scope = {"type": "http", "path": path, "root_path": "", "headers": [], "fovea": RequestContext([])}
    assert error_response(Request(scope), InvalidParameter("out of range")).status_code == status


def test_every_row_has_a_title() -> None:
    assert all(title and title == title.strip() for _, title in STATUS.values())


@pytest.mark.parametrize("cls", every_error(), ids=lambda cls: cls.__name__)
def test_a_fault_of_the_caller_is_a_4xx_and_only_a_fault_of_ours_a_500(cls: type[FoveaError]) -> None:
    status = STATUS[cls.code][0]
    allowed = {
        Outcome.CLIENT_ERROR: range(400, 500),
        Outcome.CANCELLED: range(400, 500),
        Outcome.REJECTED: range(503, 504),
        Outcome.TIMEOUT: range(504, 505),
        Outcome.ERROR: range(500, 501),
    }
    assert status in allowed[cls.outcome]


@pytest.mark.parametrize("cls", every_error(), ids=lambda cls: cls.__name__)
def test_codes_are_stable_words(cls: type[FoveaError]) -> None:
    assert cls.code.isascii()
    assert cls.code.replace("_", "").islower()


def test_outcomes_are_those_of_the_contract() -> None:
    assert [outcome.value for outcome in Outcome] == [
        "ok",
        "client_error",
        "rejected",
        "timeout",
        "cancelled",
        "error",
    ]
