"""One round: relays and consumers at work, some faults, everything mended, and then the checker."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from random import Random
from time import monotonic
from typing import Any, NamedTuple

from chaos import database
from chaos.checker import check, n_announced_though_there, n_lost, n_missed
from chaos.consumers import Bare
from chaos.faults import Stage
from chaos.history import History
from chaos.load import Link, Relay
from chaos.relays import Numbered, Original
from chaos.setbacks import FAULTS
from chaos.spooled import SpooledRelay
from chaos.system import PATIENCE_S, System
from chaos.twins import TwinConsumer, TwinRelay
from support.databases import connected

BEGIN_SECONDS = 15.0
CALM_SECONDS = 0.5  # of load after everything is mended
FINISH_SECONDS = 45.0  # for relays to be rid of what they hold, and for consumers to catch up
POLL_SECONDS = 0.3

KINDS = ((Original, 2), (Numbered, 2), (TwinRelay, 2), (SpooledRelay, 1))

LOSES = {"full disk", "kill on a full disk"}
FORGETS = {"kill on a full disk"}
REFUSES = {"poison"}
AWAY = {"kill node", "kill both nodes", "freeze node", "damaged journal", "missing segment"}
GAPLESS = {"rolling restart", "cut links", "orphan links"}


class Broken(Exception):
    """A round that could not be played to its end; says what did not happen."""


class Strike(NamedTuple):
    """A fault of a round: when it begins, what it hits, how long it lasts."""

    at_s: float
    name: str
    target: str
    seconds: float
    seed: int

    def __str__(self) -> str:
        what = self.name
        if self.target.startswith("node "):
            what = what.replace("node", self.target) if "node" in what else f"{what}, {self.target}"
        return f"{self.at_s:.1f} s: {what} for {self.seconds:.1f} s"


@dataclass
class Outcome:
    """What a round came to; `sentences` say what was wrong."""

    seed: int
    strikes: list[Strike]
    sentences: list[str] = field(default_factory=list)
    n_samples: int = 0
    n_acked: int = 0
    n_delivered: int = 0
    n_lost: int = 0  # in gaps, since faults destroyed them
    n_spared: int = 0  # announced to consumers as a gap, though the database has them
    n_missed: int = 0  # in sessions that ended before anybody but a node that was away had heard of them
    latencies_s: list[float] = field(default_factory=list)
    seconds: float = 0.0


def plan(seed: int, only: Sequence[str] = ()) -> list[Strike]:
    """Choose one to three faults; of the kinds given, if any are."""
    chance = Random(seed)
    strikes = []
    for _ in range(chance.choice((1, 2, 2, 3))):
        name = chance.choice(list(only or FAULTS))
        fault = FAULTS[name]
        at_s, target = chance.uniform(0.0, 2.0), chance.choice(fault.targets)
        strikes.append(Strike(at_s, name, target, chance.uniform(*fault.seconds), chance.randrange(1 << 32)))
    return sorted(strikes)


async def play(system: System, seed: int, strikes: list[Strike]) -> Outcome:
    """Play a round to its end."""
    began_s = monotonic()
    outcome = Outcome(seed, strikes)
    await system.begin()
    async with AsyncExitStack() as stack:
        cast = await Cast.enter(stack, system, seed)
        try:
            history = await _play(system, cast, strikes)
        except Broken as broken:
            outcome.sentences.append(str(broken))
        else:
            outcome.sentences += check(history)
            _count(outcome, history, cast)
    outcome.sentences += cast.complaints + system.complaints()
    outcome.seconds = monotonic() - began_s
    return outcome


async def _play(system: System, cast: Cast, strikes: list[Strike]) -> History:
    await cast.begin()
    async with asyncio.TaskGroup() as tasks:
        for strike in strikes:
            tasks.create_task(_strike(system, cast.links, strike))
        tasks.create_task(cast.lose_one(max(strike.at_s + strike.seconds for strike in strikes)))
    if not await system.is_ready():
        raise Broken(f"not all nodes are ready {PATIENCE_S:g} s after everything was mended")
    await asyncio.sleep(CALM_SECONDS)
    await cast.finish()
    return await _settled(system, cast, strikes)


async def _strike(system: System, links: list[Link], strike: Strike) -> None:
    await asyncio.sleep(strike.at_s)
    async with system.held(strike.target):
        await FAULTS[strike.name].strike(Stage(system, links, strike.target, strike.seconds, Random(strike.seed)))


async def _settled(system: System, cast: Cast, strikes: list[Strike]) -> History:
    """Look until nothing is missing any more, or for so long that it will be missing for ever."""
    until_s = monotonic() + FINISH_SECONDS
    n_clean = 0
    while True:
        history = await _history(system, cast, {strike.name for strike in strikes})
        n_clean = 0 if check(history) else n_clean + 1
        if n_clean == 2 or monotonic() > until_s:  # the second time: what came too late to be true
            return history
        await asyncio.sleep(POLL_SECONDS)


async def _history(system: System, cast: Cast, names: set[str]) -> History:
    sent = [session for relay in cast.relays for session in relay.sent]
    async with connected(system.dsn) as connection:
        stored = await database.read(connection, [session.session_id for session in sent])
    seen = [consumer.seen for consumer in cast.consumers]
    return History(
        sent,
        stored,
        seen,
        may_lose=bool(names & LOSES),
        may_forget=bool(names & FORGETS),
        may_refuse=bool(names & REFUSES),
        may_miss=bool(names & AWAY),
        damage=system.damage,
        gapless=names <= GAPLESS,
    )


def _count(outcome: Outcome, history: History, cast: Cast) -> None:
    outcome.n_samples = sum(len(stored.positions) for stored in history.stored.values())
    outcome.n_acked = sum(sent.acked for sent in history.sent)
    outcome.n_lost = n_lost(history)
    outcome.n_delivered = sum(len(getattr(event, "values", ())) for seen in history.seen for event in seen.events)
    outcome.n_spared = n_announced_though_there(history)
    outcome.n_missed = n_missed(history)
    outcome.latencies_s = [s for relay in cast.relays if isinstance(relay, Numbered) for s in relay.latencies_s]


class Cast:
    """The relays and consumers of a round, each with a line of its own."""

    def __init__(self, seed: int) -> None:
        self.relays: list[Relay] = []
        self.consumers: list[Bare | TwinConsumer] = []
        self._seed = seed
        self._tasks: dict[object, asyncio.Task[None]] = {}

    @classmethod
    async def enter(cls, stack: AsyncExitStack, system: System, seed: int) -> Cast:
        """Bring all of them on, each user with two consumers; at the end of the stack they leave."""
        cast = cls(seed)
        for kind, n in KINDS:
            for i in range(n):
                name = f"{kind.__name__.lower()}-{i}"
                user_id = f"{name}-{seed}-{secrets.token_hex(3)}"  # a seed may be played twice
                chances = [cast.chance(f"{name} {role}") for role in ("relay", "bare", "twin")]
                links = [await stack.enter_async_context(Link(system, chance)) for chance in chances]
                cast.relays.append(kind(user_id, links[0], chances[0]))
                cast.consumers.append(Bare(user_id, links[1], chances[1]))
                cast.consumers.append(TwinConsumer(user_id, links[2], chances[2]))
        stack.push_async_callback(cast.leave)
        return cast

    def chance(self, who: str) -> Random:
        """Return somebody's own chance: what one draws does not depend on when the others draw."""
        return Random(f"{self._seed} {who}")

    @property
    def links(self) -> list[Link]:
        return [one.link for one in (*self.relays, *self.consumers)]

    @property
    def complaints(self) -> list[str]:
        return [complaint for one in (*self.relays, *self.consumers) for complaint in one.complaints]

    async def begin(self) -> None:
        """Start the consumers and then the relays, and wait until something of each has come through."""
        for consumer in self.consumers:
            self._start(consumer, consumer.run())
        await self._until(lambda one: one.subscribed.is_set(), self.consumers, "has not heard of its status")
        for relay in self.relays:
            self._start(relay, relay.run())
        await self._until(lambda one: one.begun.is_set(), self.relays, "got no ack or pong")
        await self._until(lambda one: bool(one.seen.events), self.consumers, "has got no sample")

    async def _until(self, condition: Callable[[Any], bool], ones: Sequence[Any], what: str) -> None:
        """Wait for all of them, but not for ever."""
        until_s = monotonic() + BEGIN_SECONDS
        while late := [one for one in ones if not condition(one)]:
            self._look()
            if monotonic() > until_s:
                raise Broken(f"{', '.join(map(str, late))} {what} after {BEGIN_SECONDS:g} s")
            await asyncio.sleep(0.01)

    def _look(self) -> None:
        """Raise what ended a relay or a consumer."""
        for task in self._tasks.values():
            if task.done():
                task.result()

    async def lose_one(self, seconds: float) -> None:
        """Now and then, a numbered relay dies for good within that time."""
        chance = self.chance("death")
        if chance.random() < 0.3:
            await asyncio.sleep(chance.uniform(0, seconds))
            relay = next(relay for relay in self.relays if isinstance(relay, Numbered))
            relay.lived = False
            relay.link.cut()
            await self._stop(relay)

    async def finish(self) -> None:
        """Let the relays stop measuring, and wait until they are rid of everything."""
        for relay in self.relays:
            relay.stopping.set()
        working = {relay: task for relay in self.relays if (task := self._tasks.get(relay))}
        done, _ = await asyncio.wait(working.values(), timeout=FINISH_SECONDS)
        for relay, task in working.items():
            if task in done:
                task.result()
            else:
                relay.complain(f"not done {FINISH_SECONDS:g} s after everything was mended")

    async def leave(self) -> None:
        for one in list(self._tasks):
            await self._stop(one)

    def _start(self, one: object, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[one] = asyncio.create_task(work)

    async def _stop(self, one: object) -> None:
        task = self._tasks.pop(one)
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()
