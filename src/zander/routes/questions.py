"""Questions to the database, as many at a time as a client may ask: others are not to wait behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from msgspec import Meta, Struct
from starlette.requests import HTTPConnection, Request

from zander import auth
from zander.errors import TooMany
from zander.wire.connection import Client

MAX_RUNNING = 2  # of one client: half of the connections
MAX_OPEN = 32  # with those that wait


class QuestionStats(Struct):
    """Questions to the database, over REST."""

    open: Annotated[int, Meta(description="how many run or wait")]
    refused: Annotated[int, Meta(description="how many were refused since the start, with 429")]


def client_of(connection: HTTPConnection, key: str | None = None) -> Client:
    """Return who asks, with the key in the headers, or else with the one given."""
    address = connection.client.host if connection.client else ""
    return Client(auth.given_key(connection.headers) or key or "", address)


class _Client:
    """The questions of one client."""

    def __init__(self) -> None:
        self.n_open = 0
        self.running = asyncio.Semaphore(MAX_RUNNING)


class Questions:
    """The questions that are open, by client: a key and where it comes from."""

    def __init__(self) -> None:
        self._clients: dict[Client, _Client] = {}
        self._n_refused = 0

    @asynccontextmanager
    async def turn(self, request: Request) -> AsyncIterator[None]:
        """Wait until a client may ask; TooMany when it has MAX_OPEN questions already."""
        key = client_of(request)
        client = self._clients.setdefault(key, _Client())
        if client.n_open == MAX_OPEN:
            self._n_refused += 1
            raise TooMany(f"expected at most {MAX_OPEN} questions to the database at once: ask again")
        client.n_open += 1
        try:
            async with client.running:
                yield
        finally:
            client.n_open -= 1
            if not client.n_open:
                del self._clients[key]

    def stats(self) -> QuestionStats:
        """Return the counts."""
        return QuestionStats(sum(client.n_open for client in self._clients.values()), self._n_refused)
