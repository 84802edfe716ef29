"""The abuse matrix, case by case. Whatever came is answered as its row says, never with a 5xx, at a bounded price, with
one line in the log; the error gives nothing of ours away; and straight after it the server lives, gives the golden
answer, and holds nothing more than before.
"""

import time
import uuid
from collections.abc import Iterator

import pytest

from tests.abuse import rows_of_admin, rows_of_bodies, rows_of_http, rows_of_images, rows_of_tensors
from tests.abuse.cases import Case
from tests.abuse.conftest import Report
from tests.abuse.standing import Baseline, OwedLine, assert_error_is_documented
from tests.support import raw_http
from tests.support.answers import assert_same_predictions, predictions_of
from tests.support.raw_http import IncompleteAnswer, RawAnswer
from tests.support.server_process import ServerProcess

TABLES = (rows_of_bodies, rows_of_images, rows_of_http, rows_of_tensors, rows_of_admin)
CASES: list[Case] = [case for table in TABLES for case in table.CASES]
ROWS_THAT_ARE_TESTS = {28, 37, 81}  # more than one request, or more than an answer: test_rows.py
_MOST_SECONDS = 1.0  # beside what the case allows of CPU
_CLOCK_SECONDS = 0.03  # the kernel counts CPU time in hundredths

each_case = pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.id, marks=[pytest.mark.thorough] if case.thorough else []) for case in CASES]
)


@pytest.fixture(scope="module", autouse=True)
def lines(baseline: Baseline) -> Iterator[None]:
    """Holds the log to account once all cases are through; a failure here names them."""
    yield
    baseline.assert_lines()


@each_case
def test_case(server: ServerProcess, baseline: Baseline, report: Report, case: Case) -> None:
    request = case.request(uuid.uuid4().hex)
    before, started_at = baseline.cpu_seconds(), time.monotonic()
    answer = send(server, request, case)
    seconds, cpu_seconds = time.monotonic() - started_at, baseline.cpu_seconds() - before
    status = answer.status_code if answer else "closed"
    figures = {"status": status, "seconds": seconds, "cpu_seconds": cpu_seconds}
    try:
        judge(server, baseline, case, answer)
        assert seconds <= _MOST_SECONDS + case.cpu_seconds, f"{seconds:.2f} s"
        assert cpu_seconds <= case.cpu_seconds + _CLOCK_SECONDS, f"{cpu_seconds:.2f} s of CPU"
        baseline.assert_golden()
        baseline.assert_nothing_left()
    except BaseException:
        report.note(case.row, passed=False, **figures)
        raise
    report.note(case.row, passed=True, **figures)


def send(server: ServerProcess, request: bytes, case: Case) -> RawAnswer | None:
    """The answer; None where the connection ended without one and the case allows that."""
    try:
        return raw_http.exchange(server.port, request, method=case.method)
    except (IncompleteAnswer, ConnectionError):
        if case.may_be_closed:
            return None
        raise


def judge(server: ServerProcess, baseline: Baseline, case: Case, answer: RawAnswer | None) -> None:
    if answer is None:
        return
    assert answer.status_code in case.statuses, answer.content[:500]
    if answer.status_code == 405:
        assert answer.headers["allow"]
    if case.method == "HEAD":
        return
    if answer.status_code == 200:
        if case.check is not None:
            case.check(answer)
        if case.twin is not None:
            data, media_type = case.twin
            plain = raw_http.exchange(
                server.port, raw_http.request("POST", case.path, {"Content-Type": media_type}, data)
            )
            assert_same_predictions(predictions_of(answer)[:1], predictions_of(plain)[:1], tolerance=case.tolerance)
    else:
        assert_error_is_documented(answer, case.path, case.code)
        baseline.owe_line(OwedLine(case.id, answer.headers["x-request-id"], answer.status_code, case.canary))


def test_every_row_of_the_matrix_is_here() -> None:
    assert {case.row for case in CASES} | ROWS_THAT_ARE_TESTS == set(range(1, 85))


def test_no_two_cases_have_one_name() -> None:
    assert len({case.id for case in CASES}) == len(CASES)


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_a_hundred_of_each_leave_the_memory_as_it_was(server: ServerProcess, baseline: Baseline) -> None:
    """Standing criterion (g), over every case that is quick to send."""
    small = [case for case in CASES if case.is_small and case.cpu_seconds <= 1.0 and not case.may_be_closed]
    for case in small:  # once each, so that what is loaded late is loaded
        send(server, case.request("warm"), case)
    before = baseline.rss_bytes()
    for case in small:
        for _ in range(100 if case.statuses != {200} else 10):
            send(server, case.request("again"), case)
    grown = baseline.rss_bytes() - before
    print(f"{len(small)} cases, RSS grown by {grown / 2**20:.1f} MiB of 32 allowed")
    assert grown < 32 * 2**20
    baseline.assert_golden()
    baseline.assert_nothing_left()
