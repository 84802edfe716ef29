"""Calls put off to the next turn: when they come, in which order, and what one that fails does to the others."""

import asyncio
import logging
from contextvars import ContextVar

import pytest

from service.turns import NextTurn


async def test_what_one_turn_asks_for_is_done_in_the_next_in_order_and_in_one_go() -> None:
    done: list[str] = []
    later = NextTurn(done.append)
    later("first")
    asyncio.get_running_loop().call_soon(done.append, "somebody else")
    later("second")
    assert done == []
    await asyncio.sleep(0)
    assert done == ["first", "second", "somebody else"]
    await asyncio.sleep(0)
    assert done == ["first", "second", "somebody else"]


async def test_every_turn_has_its_own() -> None:
    done: list[int] = []
    later = NextTurn(done.append)
    for number in range(3):
        later(number)
        await asyncio.sleep(0)
        assert done == list(range(number + 1))


async def test_what_a_call_asks_for_is_done_a_turn_later() -> None:
    done: list[int] = []

    def count_down(number: int) -> None:
        done.append(number)
        if number:
            later(number - 1)

    later = NextTurn(count_down)
    later(2)
    for expected in ([2], [2, 1], [2, 1, 0], [2, 1, 0]):
        await asyncio.sleep(0)
        assert done == expected


async def test_a_call_that_fails_is_logged_and_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    done: list[float] = []

    def divide(number: int) -> None:
        done.append(1 / number)

    later = NextTurn(divide)
    with caplog.at_level(logging.ERROR):
        for number in (1, 0, 2):
            later(number)
        await asyncio.sleep(0)
    assert done == [1.0, 0.5]
    assert [(record.message, record.exc_info and record.exc_info[0]) for record in caplog.records] == [
        ("deferred_call_failed", ZeroDivisionError)
    ]
    later(4)
    await asyncio.sleep(0)
    assert done == [1.0, 0.5, 0.25]


async def test_a_call_sees_nobodys_context() -> None:
    name: ContextVar[str] = ContextVar("name", default="nobody")
    seen: list[str] = []
    later = NextTurn(lambda: seen.append(name.get()))
    name.set("whoever came first")
    later()
    await asyncio.sleep(0)
    assert seen == ["nobody"]
