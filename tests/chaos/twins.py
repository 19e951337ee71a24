"""The relay and the consumer of a round that are Zander's own: `zander.client`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from chaos.damage import Span
from chaos.history import Gap, Samples, Seen, Sent
from chaos.load import Link, Relay, Signal
from zander import client
from zander.client import connection
from zander.client.spool import SPOOL_BYTES

TICK_S = 0.02
DRAIN_SECONDS = 40.0
SMALL_SPOOL_BYTES = 32 << 10


@contextmanager
def impatient() -> Iterator[None]:
    """Let the clients come back at once: a round is short."""
    first_s, most_s = connection.FIRST_PAUSE_S, connection.MAX_PAUSE_S
    connection.FIRST_PAUSE_S, connection.MAX_PAUSE_S = 0.05, 0.4
    try:
        yield
    finally:
        connection.FIRST_PAUSE_S, connection.MAX_PAUSE_S = first_s, most_s


class TwinRelay(Relay):
    """A `client.Relay`; sometimes with a spool that is too small for a long outage."""

    def __init__(self, user_id: str, link: Link, chance: Random) -> None:
        super().__init__(user_id, link, chance)
        self._signal = Signal(chance.choice((1, 3)), chance.choice((128, 256)), chance)
        self._relay: client.Relay | None = None
        self._dropped: list[Span] = []
        self._spool_bytes = SMALL_SPOOL_BYTES if chance.random() < 0.3 else SPOOL_BYTES
        self._binary = chance.random() < 0.5

    @property
    def sent(self) -> list[Sent]:
        if self._relay is None or not self._relay.session_id:
            return []
        sent = Sent(self.user_id, self._relay.session_id, self._signal.values, numbered=True)
        sent.acked, sent.dropped = self._relay.durable, self._dropped
        return [sent]

    async def run(self) -> None:
        relay = self._relay = client.Relay(
            self.link.url,
            self.user_id,
            self._signal.device,
            on_drop=lambda start, end: self._dropped.append((start, end)),
            on_message=lambda message: self.note_error(message) if message["type"] == "error" else None,
            spool_bytes=self._spool_bytes,
        )
        try:
            relay.start()
            await self._send(relay)
            if not await relay.drain(DRAIN_SECONDS):
                self.complain(f"{relay.n_waiting} samples were not durable {DRAIN_SECONDS:g} s after the last")
            await relay.close(0)
        except client.Rejected as error:
            self.complain(f"was rejected: {error}")

    async def _send(self, relay: client.Relay) -> None:
        while not self.stopping.is_set():
            values = self._signal.measure(max(1, round(self._signal.rate_hz * TICK_S)))
            await relay.send_chunk(values, binary=self._binary)
            if relay.durable:
                self.begun.set()
            await asyncio.sleep(TICK_S)


class TwinConsumer:
    """A `client.Consumer`."""

    def __init__(self, user_id: str, link: Link, chance: Random) -> None:
        self.seen = Seen(f"{user_id}/{link.port} (client)", user_id)
        self.link = link
        self.subscribed = asyncio.Event()
        self.complaints: list[str] = []
        self._format = chance.choice(("json", "chunks", "binary"))

    def __str__(self) -> str:
        return f"consumer {self.seen.name}"

    async def run(self) -> None:
        """Read until cancelled."""
        types = ["raw", "gap", "status"]
        async with client.Consumer(self.link.url, self.seen.user_id, types=types, format=self._format) as consumer:
            try:
                async for event in consumer:
                    self._note(event)
            except client.Rejected as error:
                self.complaints.append(f"{self} was rejected: {error}")

    def _note(self, event: client.Raw | connection.Message) -> None:
        if isinstance(event, client.Raw):
            self.seen.events.append(Samples(event.session_id, event.position, event.samples))
        elif event["type"] == "gap":
            self.seen.events.append(Gap(event["session_id"], event["from"], event["to"], event["reason"]))
        else:
            self.subscribed.set()
