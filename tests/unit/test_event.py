"""A flag is an `asyncio.Event`, smaller."""

from __future__ import annotations

import asyncio

from zander.event import Flag


async def waiting(flag: Flag, n: int = 1) -> list[asyncio.Task[None]]:
    """Let some wait."""
    tasks = [asyncio.create_task(flag.wait()) for _ in range(n)]
    await asyncio.sleep(0)
    return tasks


async def test_one_that_is_set_keeps_nobody_waiting() -> None:
    flag = Flag()
    assert not flag.is_set()
    flag.set()
    flag.set()
    assert flag.is_set()
    await flag.wait()
    flag.clear()
    assert not flag.is_set()


async def test_all_who_wait_are_woken_even_when_it_is_cleared_at_once() -> None:
    flag = Flag()
    for _ in range(2):
        tasks = await waiting(flag, 3)
        assert not any(task.done() for task in tasks)
        flag.set()
        flag.clear()
        await asyncio.wait_for(asyncio.gather(*tasks), 5)
    [late] = await waiting(flag)
    assert not late.done()
    late.cancel()


async def test_one_who_gives_up_keeps_nobody_else() -> None:
    flag = Flag()
    first, second = await waiting(flag, 2)
    first.cancel()
    await asyncio.wait({first})
    flag.set()
    await asyncio.wait_for(second, 5)
    assert first.cancelled()
