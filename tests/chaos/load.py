"""What relays and consumers of a round share: the line they connect over, the samples they send, how they come back."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from random import Random
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from chaos.damage import Span
from chaos.history import Sent, Values
from chaos.proxy import Proxy
from chaos.system import Server, System

OPEN_SECONDS = 3.0
LOST = (OSError, WebSocketException, TimeoutError)


class Link(Proxy):
    """The line of one relay or consumer: each connection goes to one of the nodes, as a load balancer has it."""

    def __init__(self, system: System, chance: Random) -> None:
        super().__init__(self._choose)
        self.server: Server | None = None  # where the latest connection went
        self._system = system
        self._chance = chance

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @property
    def may_go_back(self) -> bool:
        """Whether the database went back in this round."""
        return self._system.damage.went_back

    def _choose(self) -> int:
        servers = [server for server in self._system.servers if server not in self._system.avoided]
        self.server = self._chance.choice(servers or self._system.servers)
        return self.server.port


class Signal:
    """The samples of one session, made as they are measured: the index in channel 0, any float32 in the others."""

    def __init__(self, n_channels: int, rate_hz: int, chance: Random) -> None:
        self.n_channels = n_channels
        self.rate_hz = rate_hz
        self._numpy = np.random.default_rng(chance.randrange(1 << 32))
        self._blocks: list[Values] = []
        self.n = 0

    @property
    def device(self) -> dict[str, Any]:
        return {"device_type": "chaos", "sampling_rate": self.rate_hz, "channel_count": self.n_channels}

    @property
    def values(self) -> Values:
        """All so far."""
        self._blocks = [np.concatenate([np.empty((0, self.n_channels), np.float32), *self._blocks])]
        return self._blocks[0]

    def measure(self, n: int) -> Values:
        """Make n more: of every size, and now and then a missing one."""
        values = self._numpy.normal(0, 1, (n, self.n_channels)) * 10.0 ** self._numpy.integers(-30, 30, (n, 1))
        values[self._numpy.random((n, self.n_channels)) < 0.01] = np.nan
        values[:, 0] = np.arange(self.n, self.n + n)
        self._blocks.append(values.astype(np.float32))
        self.n += n
        return self._blocks[-1]


class Relay:
    """A relay of a round: `run` sends, and comes back, until it is stopped. `begun`: the server took something."""

    def __init__(self, user_id: str, link: Link, chance: Random) -> None:
        self.user_id = user_id
        self.link = link
        self.chance = chance
        self.begun = asyncio.Event()
        self.stopping = asyncio.Event()
        self.complaints: list[str] = []

    def __str__(self) -> str:
        return f"relay of {self.user_id}"

    @property
    def sent(self) -> list[Sent]:
        """What it did, session by session."""
        raise NotImplementedError

    async def run(self) -> None:
        """Send until `stopping`, and then until all is done."""
        while not self.is_done():
            with suppress(*LOST):
                await self._live()
            await asyncio.sleep(self.chance.uniform(0.02, 0.2))

    def is_done(self) -> bool:
        raise NotImplementedError

    async def _live(self) -> None:
        """One connection, from its opening to its end."""
        raise NotImplementedError

    def complain(self, what: str) -> None:
        self.complaints.append(f"{self}: {what}")

    def note_error(self, message: dict[str, Any]) -> None:
        """The only errors it may hear of are that the server can take nothing now, or keep nothing."""
        if message["code"] not in ("unavailable", "not_stored"):
            self.complain(f"was told {message}")

    def note_close(self, error: ConnectionClosed) -> None:
        """A relay that does nothing wrong is never told to change."""
        if error.rcvd is not None and error.rcvd.code >= 4500:
            self.complain(f"was closed with {error.rcvd.code} {error.rcvd.reason}")


def opening(url: str) -> connect:
    """Open a WebSocket, without the patience of a browser."""
    return connect(url, open_timeout=OPEN_SECONDS, close_timeout=1, compression=None)


async def first(*tasks: asyncio.Task[None]) -> None:
    """Wait until one has ended, and end the others."""
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception) and not isinstance(result, LOST):
                raise result


async def receive(socket: ClientConnection, seconds: float | None = None) -> dict[str, Any]:
    """Return the next message; TimeoutError when none comes in time."""
    async with asyncio.timeout(seconds):
        message: dict[str, Any] = json.loads(await socket.recv())
    return message


def rows(values: Values) -> list[list[float | None]]:
    """Write samples as JSON takes them."""
    return [[None if value != value else value for value in row] for row in values.tolist()]  # noqa: PLR0124 - NaN


def outside(spans: list[Span], position: int) -> int:
    """Return the first position from here on that lies in none of the spans."""
    for start, end in sorted(spans):
        if start <= position < end:
            position = end
    return position
