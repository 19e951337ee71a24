"""Giving out: consumers from their first message to live, and answers about streams, on whichever node these are."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from zander.delivery.outbox import Outbox
from zander.delivery.subscribers import Subscribers
from zander.errors import CloseCode
from zander.hub.ingest import Ingest
from zander.hub.interfaces import Peers
from zander.streams.query import Found, Query, find
from zander.streams.stream import Stream, StreamSummary
from zander.wire.codec import PredictionIn
from zander.wire.messages import Status


class Hub:
    """The hub's side of consumers and dashboards, and the life of all connections."""

    def __init__(self, ingest: Ingest, subscribers: Subscribers, peers: Peers) -> None:
        self.ingest = ingest
        self.subscribers = subscribers
        self.peers = peers
        self.n_connections = 0
        self._gone = asyncio.Event()  # set while nobody is connected
        self._gone.set()

    # Consumers.

    async def subscribe(self, outbox: Outbox, last: int) -> None:
        """Make a consumer live, with its user's status and the last samples first."""
        if stream := self.held(outbox.user_id):
            items = stream.last_items(last)
            outbox.seek_before(stream.session.session_id, items, stream.session.next_position)
            self.subscribers.add(outbox, stream.status(), items)
        else:
            await self.peers.subscribe(outbox, last)

    async def join(self, outbox: Outbox, at_a_loss: bool) -> int | None:
        """Make a consumer live if memory reaches back to its cursor, or `at_a_loss`.

        Else return the position from which on the session is in memory, which has one session of a user. While there is
        none, a consumer waits for the next.
        """
        stream = self.held(outbox.user_id)
        if stream is None:
            return await self.peers.join(outbox, at_a_loss)
        if stream.session.session_id != outbox.cursor.session_id:
            return outbox.cursor.position
        if stream.ring.first_position > outbox.cursor.position and not at_a_loss:
            return stream.ring.first_position
        self.subscribers.add(outbox, stream.status(), stream.items_since(outbox.cursor.position, stream.n_notes))
        return None

    def unsubscribe(self, outbox: Outbox) -> None:
        """Forget a consumer that has gone."""
        self.subscribers.preloads.forget(outbox)
        if self.subscribers.remove(outbox):
            self.peers.unfollow(outbox.user_id)

    async def predict(self, user_id: str, incoming: PredictionIn, text: str, sender: str) -> bool:
        """Store a prediction and give it to the user's relay and other consumers; True if a relay got it.

        `text` is the message that `incoming` was read from. NotFound when no node has a session of the user,
        Unavailable when the one that has it does not answer.
        """
        if stream := self.held(user_id):
            return self.ingest.take_prediction(stream, incoming, sender)
        return await self.peers.predict(user_id, text, sender)

    @property
    def n_samples_out(self) -> int:
        """How many samples live consumers were given since the start."""
        return self.subscribers.n_samples_out + self.ingest.fast_path.n_samples_out

    # Dashboards.

    def held(self, user_id: str) -> Stream | None:
        """Return the user's stream if this node holds it."""
        return self.ingest.streams.get(user_id)

    def status(self, user_id: str) -> Status:
        """Return the status of a user's relay, on whichever node it is."""
        stream = self.held(user_id)
        return stream.status() if stream else self.peers.status(user_id)

    async def find(self, query: Query) -> Found:
        """Look into the user's buffers, on whichever node they are."""
        if stream := self.held(query.user_id):
            return find(stream, query)
        return await self.peers.ask(query)

    async def streams(self) -> list[StreamSummary]:
        """Return the streams online on all nodes, by user."""
        return sorted(self.ingest.streams.online() + await self.peers.streams(), key=lambda stream: stream.user_id)

    # Life.

    def tick(self) -> None:
        """Do what is due about every second: rates, buffers nobody will ask for again, consumers that read nothing."""
        for stream in self.ingest.streams.connected.values():
            stream.tick()
        self.ingest.kept.tick()
        self.ingest.rate_limit.tick()
        for outbox in list(self.subscribers):
            if outbox.stalled():
                outbox.close(CloseCode.TOO_SLOW)

    async def close_all(self, seconds: float) -> None:
        """Close everybody with 1012 and wait for it, not for ever; relays first, so consumers get the last samples."""
        for stream in list(self.ingest.streams.connected.values()):
            if stream.relay:
                stream.relay.close(CloseCode.RESTART)
                self.ingest.disconnect(stream, stream.relay)
        for outbox in list(self.subscribers):
            outbox.close(CloseCode.RESTART)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), seconds)

    def enter(self) -> None:
        """Count a connection."""
        self.n_connections += 1
        self._gone.clear()

    def leave(self) -> None:
        """Count a connection that has ended."""
        self.n_connections -= 1
        if not self.n_connections:
            self._gone.set()
