"""The bounded queue and its entries."""

import asyncio
import gc

import pytest

from service.batching.request_queue import Entry, RequestQueue
from service.errors import EngineFailed


def make(item: str, queued_at: float = 0.0) -> Entry[str, str]:
    return Entry(item, queued_at, queued_at + 1.0, asyncio.get_running_loop())


async def test_entries_leave_in_the_order_they_came() -> None:
    queue: RequestQueue[str, str] = RequestQueue(10)
    for item in "abc":
        queue.push(make(item))
    assert [queue.pop().item for _ in range(3)] == ["a", "b", "c"]


async def test_a_queue_is_full_at_its_capacity() -> None:
    queue: RequestQueue[str, str] = RequestQueue(2)
    queue.push(make("a"))
    assert not queue.is_full
    queue.push(make("b"))
    assert queue.is_full
    queue.pop()
    assert not queue.is_full


async def test_a_discarded_entry_leaves_the_others_in_order_and_frees_its_place() -> None:
    queue: RequestQueue[str, str] = RequestQueue(3)
    first, second, third = make("first"), make("second"), make("third")
    for entry in (first, second, third):
        queue.push(entry)
    assert queue.discard(second)
    assert len(queue) == 2
    assert not queue.is_full
    assert [queue.pop(), queue.pop()] == [first, third]


async def test_an_entry_that_is_not_queued_cannot_be_discarded() -> None:
    queue: RequestQueue[str, str] = RequestQueue(3)
    entry = make("one")
    assert not queue.discard(entry)
    queue.push(entry)
    assert queue.discard(entry)
    assert not queue.discard(entry)


async def test_two_entries_of_the_same_item_are_two_entries() -> None:
    queue: RequestQueue[str, str] = RequestQueue(3)
    first, second = make("same"), make("same")
    queue.push(first)
    queue.push(second)
    queue.discard(first)
    assert queue.pop() is second


async def test_the_oldest_moment_is_that_of_the_head() -> None:
    queue: RequestQueue[str, str] = RequestQueue(3)
    assert queue.oldest_at == 0.0
    head = make("head", 5.0)
    queue.push(head)
    queue.push(make("tail", 7.0))
    assert queue.oldest_at == 5.0
    queue.discard(head)
    assert queue.oldest_at == 7.0


def test_popping_an_empty_queue_raises() -> None:
    with pytest.raises(KeyError):
        RequestQueue[str, str](1).pop()


async def test_an_entry_ends_once() -> None:
    entry = make("one")
    entry.resolve("first")
    entry.resolve("second")
    entry.fail(EngineFailed("late"))
    assert await entry.future == "first"


async def test_a_failed_entry_cannot_be_resolved_any_more() -> None:
    entry = make("one")
    entry.fail(EngineFailed("first"))
    entry.resolve("late")
    with pytest.raises(EngineFailed, match="first"):
        await entry.future


async def test_a_cancelled_entry_takes_neither_result_nor_fault() -> None:
    entry = make("one")
    entry.future.cancel()
    entry.resolve("late")
    entry.fail(EngineFailed("late"))
    assert entry.is_done
    assert entry.future.cancelled()


async def test_a_fault_that_nobody_reads_is_no_warning() -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    make("one").fail(EngineFailed("unread"))
    gc.collect()
    assert reported == []


async def test_an_entry_can_be_rejected_from_another_thread() -> None:
    entry = make("one")
    await asyncio.to_thread(entry.reject, EngineFailed("from a thread"))
    with pytest.raises(EngineFailed, match="from a thread"):
        await entry.future
