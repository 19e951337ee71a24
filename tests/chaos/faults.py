"""The faults: each hits one thing for a while, and mends what it broke, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from time import monotonic
from typing import NamedTuple

from chaos.load import Link
from chaos.system import Server, System


class Stage(NamedTuple):
    """What a fault can hit, what it does hit, for how long, and its own chance."""

    system: System
    links: Sequence[Link]
    target: str
    seconds: float
    chance: Random

    @property
    def server(self) -> Server:
        """The node that is hit."""
        return next(server for server in self.system.servers if str(server) == self.target)

    def some_links(self) -> list[Link]:
        """One to all of the lines of relays and consumers."""
        return self.chance.sample(list(self.links), self.chance.randint(1, len(self.links)))


class Fault(NamedTuple):
    """What is done, to which of the targets, for how long."""

    strike: Callable[[Stage], Awaitable[None]]
    targets: tuple[str, ...]
    seconds: tuple[float, float]


FAULTS: dict[str, Fault] = {}
NODES = ("node 0", "node 1")
BOTH, LINKS = ("nodes",), ("links",)

Strike = Callable[[Stage], Awaitable[None]]


def fault(name: str, targets: tuple[str, ...], least_s: float, most_s: float) -> Callable[[Strike], Strike]:
    """Enter a fault in the table."""

    def enter(strike: Strike) -> Strike:
        FAULTS[name] = Fault(strike, targets, (least_s, most_s))
        return strike

    return enter


@fault("kill node", NODES, 0.0, 2.0)
async def _kill_node(stage: Stage) -> None:
    await asyncio.to_thread(stage.server.kill)
    await asyncio.sleep(stage.seconds)
    await asyncio.to_thread(stage.server.start)


@fault("kill both nodes", BOTH, 0.0, 1.0)
async def _kill_nodes(stage: Stage) -> None:
    for server in stage.system.servers:
        await asyncio.to_thread(server.kill)
    await asyncio.sleep(stage.seconds)
    await asyncio.gather(*(asyncio.to_thread(server.start) for server in stage.system.servers))


@fault("freeze node", NODES, 2.0, 6.0)
async def _freeze_node(stage: Stage) -> None:
    """SIGSTOP. Mostly its peers are led to the other node meanwhile, and it comes back as a zombie."""
    stage.server.pause()
    try:
        with _avoided(stage) if stage.chance.random() < 0.7 else _as_it_is():
            await asyncio.sleep(stage.seconds)
    finally:
        stage.server.resume()


@contextmanager
def _avoided(stage: Stage) -> Iterator[None]:
    """Cut everybody off from a node, which does not notice."""
    stage.system.avoided.add(stage.server)
    for link in stage.links:
        if link.server is stage.server:
            link.orphan()
    try:
        yield
    finally:
        stage.system.avoided.discard(stage.server)


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@fault("restart node", NODES, 0.0, 1.0)
async def _restart_node(stage: Stage) -> None:
    await asyncio.to_thread(stage.server.terminate)
    await asyncio.sleep(stage.seconds)
    await asyncio.to_thread(stage.server.start)


@fault("rolling restart", BOTH, 0.2, 0.5)
async def _rolling_restart(stage: Stage) -> None:
    for server in stage.system.servers:
        await asyncio.to_thread(server.terminate)
        await asyncio.to_thread(server.start)
        await stage.system.is_ready()
        await asyncio.sleep(stage.seconds)


@fault("full disk", NODES, 0.5, 3.0)
async def _full_disk(stage: Stage) -> None:
    await asyncio.to_thread(stage.server.disk.fill)
    try:
        await asyncio.sleep(stage.seconds)
    finally:
        stage.server.disk.free()


@fault("kill on a full disk", NODES, 0.5, 2.0)
async def _kill_on_a_full_disk(stage: Stage) -> None:
    await _full_disk(stage._replace(seconds=stage.seconds / 2))
    await asyncio.to_thread(stage.server.disk.fill)
    await asyncio.sleep(stage.seconds / 2)
    await asyncio.to_thread(stage.server.kill)
    stage.server.disk.free()
    await asyncio.to_thread(stage.server.start)


@fault("no way to PostgreSQL", NODES, 0.5, 4.0)
async def _no_way_to_postgres(stage: Stage) -> None:
    stage.server.database.freeze()
    try:
        await asyncio.sleep(stage.seconds)
    finally:
        stage.server.database.thaw()


@fault("no way to Valkey", NODES, 0.5, 5.0)
async def _no_way_to_valkey(stage: Stage) -> None:
    stage.server.redis.freeze()
    try:
        await asyncio.sleep(stage.seconds)
    finally:
        stage.server.redis.thaw()


@fault("cut links", LINKS, 0.5, 3.0)
async def _cut_links(stage: Stage) -> None:
    async for link in _now_and_then(stage, 0.02, 0.3):
        link.cut(reset=stage.chance.random() < 0.5)


@fault("freeze links", LINKS, 0.5, 4.0)
async def _freeze_links(stage: Stage) -> None:
    links = stage.some_links()
    for link in links:
        link.freeze()
    await asyncio.sleep(stage.seconds)
    for link in links:
        link.thaw()


@fault("orphan links", LINKS, 0.5, 2.0)
async def _orphan_links(stage: Stage) -> None:
    """The clients come back while the server still takes their old connections for living ones."""
    async for link in _now_and_then(stage, 0.1, 0.5):
        link.orphan()


@fault("stall links", LINKS, 0.5, 3.0)
async def _stall_links(stage: Stage) -> None:
    """Nothing passes for a while. Some clients give up and come back, and then what they had sent arrives after all."""
    links = stage.some_links()
    for link in links:
        link.stall()
    await asyncio.sleep(stage.seconds / 2)
    for link in links:
        if stage.chance.random() < 0.5:
            link.desert()
    await asyncio.sleep(stage.seconds / 2)
    for link in links:
        link.resume()


@fault("slow links", LINKS, 1.0, 3.0)
async def _slow_links(stage: Stage) -> None:
    links = stage.some_links()
    for link in links:
        link.delay_s = stage.chance.uniform(0.01, 0.3)
    await asyncio.sleep(stage.seconds)
    for link in links:
        link.delay_s = 0


async def _now_and_then(stage: Stage, least_s: float, most_s: float) -> AsyncIterator[Link]:
    """Choose lines, one after the other, for the time of the fault."""
    until_s = monotonic() + stage.seconds
    while monotonic() < until_s:
        yield stage.chance.choice(stage.links)
        await asyncio.sleep(stage.chance.uniform(least_s, most_s))
