"""Questions to the database: a few of a client run, some wait, and others have their own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request

from zander.errors import TooMany
from zander.routes.questions import MAX_OPEN, MAX_RUNNING, Questions


def of(key: str, host: str = "192.0.2.1") -> Request:
    scope: dict[str, Any] = {"type": "http", "client": (host, 5), "headers": [(b"x-api-key", key.encode())]}
    return Request(scope)


class Asked:
    """Questions that are asked, and run until they are let go."""

    def __init__(self) -> None:
        self.questions = Questions()
        self.n_running = 0
        self.go = asyncio.Event()

    async def ask(self, request: Request) -> None:
        async with self.questions.turn(request):
            self.n_running += 1
            await self.go.wait()

    async def begin(self, request: Request, n: int) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self.ask(request)) for _ in range(n)]
        await asyncio.sleep(0)
        return tasks


async def test_a_client_has_some_questions_that_run_and_the_others_wait() -> None:
    asked = Asked()
    tasks = await asked.begin(of("a"), MAX_OPEN)
    assert asked.n_running == MAX_RUNNING
    with pytest.raises(TooMany):
        await asked.ask(of("a"))
    assert (asked.questions.stats().open, asked.questions.stats().refused) == (MAX_OPEN, 1)
    for request in (of("b"), of("a", "192.0.2.2")):
        tasks += await asked.begin(request, 1)
    assert asked.n_running == MAX_RUNNING + 2
    asked.go.set()
    await asyncio.gather(*tasks)
    assert asked.n_running == MAX_OPEN + 2
    assert asked.questions.stats().open == 0
    await asked.ask(of("a"))


async def test_one_that_is_given_up_while_it_waits_leaves_its_place() -> None:
    asked = Asked()
    tasks = await asked.begin(of("a"), MAX_OPEN)
    tasks[-1].cancel()
    await asyncio.wait({tasks[-1]})
    assert asked.questions.stats().open == MAX_OPEN - 1
    tasks += await asked.begin(of("a"), 1)
    asked.go.set()
    await asyncio.gather(*tasks[:-2], tasks[-1])
