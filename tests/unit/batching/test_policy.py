"""FairShare's decisions, numbers in and decisions out. What must hold for every policy is in tests/contract."""

import pytest

from service.batching.policy import Dispatch, FairShare, Idle, QueueView, WaitUntil
from service.batching.spec import BatchingSpec


def decide(
    waiting: int, *, free: int = 1, instances: int = 1, oldest_at: float = 0.0, now: float = 0.0, **knobs: object
):
    policy = FairShare(BatchingSpec(**knobs))
    return policy.decide(QueueView(waiting, oldest_at, free, instances), now)


def test_an_empty_queue_is_left_alone() -> None:
    assert isinstance(decide(0), Idle)


def test_with_no_instance_free_everything_waits() -> None:
    assert isinstance(decide(100, free=0, instances=2), Idle)


@pytest.mark.parametrize(
    ("waiting", "instances", "size"),
    [(1, 1, 1), (5, 1, 5), (20, 1, 8), (1, 2, 1), (2, 2, 1), (3, 2, 2), (8, 2, 4), (100, 2, 8), (5, 4, 2)],
)
def test_a_batch_is_the_queues_fair_share_of_one_instance(waiting: int, instances: int, size: int) -> None:
    assert decide(waiting, free=1, instances=instances) == Dispatch(size)


@pytest.mark.parametrize(("waiting", "size"), [(1, 1), (2, 2), (3, 2), (4, 4), (7, 4), (8, 8), (9, 8)])
def test_the_largest_preferred_size_that_fits_is_taken(waiting: int, size: int) -> None:
    assert decide(waiting, preferred_batch_sizes=(4, 8, 2)) == Dispatch(size)


def test_a_preferred_size_above_the_largest_batch_is_not_taken() -> None:
    assert decide(40, max_batch_size=6, preferred_batch_sizes=(32,)) == Dispatch(6)


def test_below_the_smallest_preferred_size_what_there_is_leaves() -> None:
    assert decide(3, preferred_batch_sizes=(4,)) == Dispatch(3)


def test_a_delay_is_counted_from_the_oldest_entry() -> None:
    knobs = {"max_queue_delay_ms": 20.0, "oldest_at": 10.0}
    assert decide(3, now=10.0, **knobs) == WaitUntil(10.02)
    assert decide(3, now=10.019, **knobs) == WaitUntil(10.02)
    assert decide(3, now=10.02, **knobs) == Dispatch(3)


def test_a_full_batch_leaves_before_its_delay() -> None:
    assert decide(8, max_queue_delay_ms=20.0) == Dispatch(8)
    assert decide(7, max_queue_delay_ms=20.0) == WaitUntil(0.02)


def test_with_a_delay_a_batch_is_not_split_between_instances() -> None:
    assert decide(6, free=3, instances=3, max_queue_delay_ms=20.0, now=1.0) == Dispatch(6)
