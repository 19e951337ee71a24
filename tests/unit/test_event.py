"""An `Event` is an `asyncio.Event`, smaller."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress

from zander.event import Event


async def waiting(event: Event, n: int = 1) -> list[asyncio.Task[None]]:
    """Let some wait."""
    tasks = [asyncio.create_task(event.wait()) for _ in range(n)]
    await asyncio.sleep(0)
    return tasks


async def test_one_that_is_set_keeps_nobody_waiting() -> None:
    event = Event()
    assert not event.is_set()
    event.set()
    event.set()
    assert event.is_set()
    await event.wait()
    event.clear()
    assert not event.is_set()


async def test_all_who_wait_are_woken_even_when_it_is_cleared_at_once() -> None:
    event = Event()
    for _ in range(2):
        tasks = await waiting(event, 3)
        assert not any(task.done() for task in tasks)
        event.set()
        event.clear()
        await asyncio.wait_for(asyncio.gather(*tasks), 5)
    [late] = await waiting(event)
    assert not late.done()
    late.cancel()


async def test_one_who_gives_up_keeps_nobody_else() -> None:
    event = Event()
    first, second = await waiting(event, 2)
    first.cancel()
    await asyncio.wait({first})
    event.set()
    await asyncio.wait_for(second, 5)
    assert first.cancelled()


async def test_waiters_that_were_cancelled_are_not_kept() -> None:
    event = Event()
    n_before = n_futures()
    for _ in range(100):
        with suppress(TimeoutError):
            async with asyncio.timeout(0):
                await event.wait()
    assert n_futures() - n_before < 10


def n_futures() -> int:
    gc.collect()
    return sum(isinstance(it, asyncio.Future) for it in gc.get_objects())
