"""Bounded work in flight."""

import pytest

from service.admission import Admission
from service.errors import Draining, Overloaded


def test_requests_up_to_the_bound_are_admitted_and_one_more_is_refused() -> None:
    admission = Admission(max_requests=2, max_bytes=100)
    with admission.slot(), admission.slot():
        assert admission.requests == 2
        with pytest.raises(Overloaded) as caught, admission.slot():
            pytest.fail("a third was let in")
        assert caught.value.reason == "inflight_requests"
        assert 1 <= caught.value.retry_after_seconds <= 3
        assert admission.requests == 2


def test_a_place_is_free_again_when_its_request_ends() -> None:
    admission = Admission(max_requests=1, max_bytes=100)
    for _ in range(3):
        with admission.slot():
            assert admission.requests == 1
    assert admission.requests == 0


def test_a_request_that_fails_gives_back_its_place_and_its_bytes() -> None:
    admission = Admission(max_requests=1, max_bytes=100)
    with pytest.raises(ValueError, match="broken"), admission.slot() as slot:
        slot.grow(70)
        raise ValueError("broken")
    assert (admission.requests, admission.bytes) == (0, 0)


def test_bytes_are_bounded_over_all_requests() -> None:
    admission = Admission(max_requests=5, max_bytes=100)
    with admission.slot() as first:
        first.grow(60)
        with admission.slot() as second:
            second.grow(40)
            with pytest.raises(Overloaded) as caught:
                second.grow(1)
            assert caught.value.reason == "inflight_bytes"
            assert 1 <= caught.value.retry_after_seconds <= 3
            assert admission.bytes == 100
        assert admission.bytes == 60
        first.grow(40)
    assert admission.bytes == 0


def test_bytes_that_were_refused_are_not_given_back_twice() -> None:
    admission = Admission(max_requests=5, max_bytes=100)
    with admission.slot() as slot:
        slot.grow(90)
        for _ in range(3):
            with pytest.raises(Overloaded):
                slot.grow(20)
        assert slot.held_bytes == 90
    assert admission.bytes == 0


def test_after_close_nothing_is_admitted() -> None:
    admission = Admission(max_requests=5, max_bytes=100)
    admission.close()
    with pytest.raises(Draining) as caught, admission.slot():
        pytest.fail("let in after close")
    assert caught.value.reason == "draining"
    assert admission.requests == 0


def test_what_was_admitted_before_close_goes_on() -> None:
    admission = Admission(max_requests=5, max_bytes=100)
    with admission.slot() as slot:
        admission.close()
        slot.grow(10)
        assert (admission.requests, admission.bytes) == (1, 10)
    assert (admission.requests, admission.bytes) == (0, 0)


def test_a_share_of_the_bounds_is_refused_first() -> None:
    admission = Admission(max_requests=4, max_bytes=100)
    with admission.slot(0.5) as first, admission.slot(0.5):
        first.grow(50)
        with pytest.raises(Overloaded) as caught:
            first.grow(1)
        assert caught.value.reason == "inflight_bytes"
        with pytest.raises(Overloaded) as caught, admission.slot(0.5):
            pytest.fail("a third of low priority was let in")
        assert caught.value.reason == "inflight_requests"
        with admission.slot() as whole:
            whole.grow(50)
    assert (admission.requests, admission.bytes) == (0, 0)
