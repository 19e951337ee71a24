"""The users whom this node follows on other nodes, because it has consumers of theirs."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from zander.chunk import Chunk, Origin
from zander.errors import ClientError
from zander.hub import Hub, now_us
from zander.messages import Gap, Note, Status
from zander.nodes import peers
from zander.nodes.calls import Calls
from zander.nodes.directory import Directory, Owner
from zander.outbox import Outbox
from zander.wire import dumps


class Feed:
    """One user followed: at which node, where we stand, and whether events go on from there."""

    def __init__(self, owner: Owner, before: Feed | None = None) -> None:
        """Begin at the start of the owner's session, or where `before` stands if that was the same session."""
        user_id, session_id = owner.holding.user_id, owner.holding.session_id
        self.node_id = owner.node_id
        self.origin = Origin(user_id, session_id, 0.0)  # the owner tells the period
        self.next_position = 0
        self.n_notes = 0
        self.synced = False
        if before and before.origin.session_id == session_id:
            self.origin, self.next_position, self.n_notes = before.origin, before.next_position, before.n_notes

    def follows(self, owner: Owner) -> bool:
        """Say whether this is a feed of the owner's session."""
        return (self.node_id, self.origin.session_id) == (owner.node_id, owner.holding.session_id)

    def stand(self, reply: peers.Followed) -> None:
        """Stand where the reply ends; events go on from there."""
        self.next_position = reply.next_position
        self.n_notes = reply.n_notes
        self.synced = True


class Feeds:
    """All feeds of this node. Consumers of a user get every event of a feed once and in order, or a gap `lost`."""

    def __init__(self, calls: Calls, directory: Directory, hub: Hub) -> None:
        self._calls = calls
        self._me = calls.link.node_id
        self._directory = directory
        self._hub = hub
        self._feeds: dict[str, Feed] = {}
        self._told: dict[str, Status] = {}  # what our consumers of a user know of the relay
        self._catching_up: dict[str, asyncio.Task[None]] = {}

    async def subscribe(self, outbox: Outbox, last: int) -> None:
        """Let a consumer listen, from the last samples on where the owner of its user can be asked."""
        user_id = outbox.user_id
        owner = self._directory.owner(user_id)
        if owner:
            with suppress(ClientError):
                await self._ready(user_id)
                follow = peers.Follow(self._me, user_id, last)
                await self._calls.ask(owner.node_id, follow, lambda reply: self._join(outbox, owner, reply))
                return
        self._listen(outbox, [], [])
        self.attend(user_id)

    def attend(self, user_id: str) -> None:
        """Follow the user where it is now, and tell our consumers if its relay came or went."""
        if user_id not in self._hub.audience or user_id in self._hub.holds:
            return
        told, status = self._told.get(user_id), self._status(user_id)
        self._told[user_id] = status
        if status != told and (told is None or told.online or status.online):
            self._hub.tell_status(status)
        feed, owner = self._feeds.get(user_id), self._directory.owner(user_id)
        if owner is None or (feed and feed.synced and feed.follows(owner)):
            return
        if user_id not in self._catching_up:
            task = self._catching_up[user_id] = asyncio.create_task(self._catch_up(user_id, owner))
            task.add_done_callback(lambda _: self._catching_up.pop(user_id, None))

    def refollow(self, node_id: str) -> None:
        """Follow anew what a node has: events of it may have been lost."""
        for user_id, feed in self._feeds.items():
            if feed.node_id == node_id:
                feed.synced = False
                self.attend(user_id)

    def retry(self) -> None:
        """Attend to every feed that does not run."""
        for user_id in list(self._hub.audience):
            self.attend(user_id)

    def leave(self, user_id: str) -> None:
        """Follow a user no more."""
        self._told.pop(user_id, None)
        if feed := self._feeds.pop(user_id, None):
            self._calls.send(peers.Unfollow(self._me, user_id), feed.node_id)

    def take(self, events: peers.Events) -> None:
        """Deliver what happened to a user, unless it will come again with what we asked for."""
        feed = self._feeds.get(events.user_id)
        if feed is None and events.user_id not in self._catching_up:
            self._calls.send(peers.Unfollow(self._me, events.user_id), events.node_id)
        elif feed and feed.synced and (feed.node_id, feed.origin.session_id) == (events.node_id, events.session_id):
            for event in events.events:
                self._deliver(feed, event)

    async def _ready(self, user_id: str) -> None:
        """Wait until a feed that is catching up runs: what it still has to deliver must not come twice."""
        self.attend(user_id)
        if task := self._catching_up.get(user_id):
            await asyncio.wait({task})

    async def _catch_up(self, user_id: str, owner: Owner) -> None:
        feed = self._feeds.get(user_id)
        if feed is None or not feed.follows(owner):
            feed = self._feeds[user_id] = Feed(owner, feed)
        follow = peers.Follow(
            self._me,
            user_id,
            session_id=feed.origin.session_id,
            position=feed.next_position,
            n_notes=feed.n_notes,
        )
        with suppress(ClientError):  # `retry` comes by every second
            await self._calls.ask(owner.node_id, follow, lambda reply: self._caught_up(feed, reply))

    def _caught_up(self, feed: Feed, reply: peers.Followed) -> None:
        if self._feeds.get(feed.origin.user_id) is not feed or feed.origin.session_id != reply.session_id:
            return
        feed.origin.period_us = reply.period_us
        if reply.first_position > feed.next_position:
            gap = Gap(reply.session_id, feed.next_position, reply.first_position, "lost")
            self._hub.deliver(feed.origin.user_id, Note("gap", now_us(), dumps(gap)))
        for event in reply.events:
            self._deliver(feed, event)
        feed.stand(reply)

    def _join(self, outbox: Outbox, owner: Owner, reply: peers.Followed) -> None:
        """Let a consumer listen from where the reply ends; a feed that is not there yet brings it all by itself."""
        user_id = outbox.user_id
        feed = self._feeds.get(user_id)
        if feed is None:
            feed = self._feeds[user_id] = Feed(owner)
            feed.origin = Origin(user_id, reply.session_id, reply.period_us)
            feed.stand(reply)
        will_come = not feed.synced or feed.origin.session_id != reply.session_id
        events = [] if will_come else [peers.from_event(event, feed.origin) for event in reply.events]
        notes = [event for event in events if isinstance(event, Note)]
        self._listen(outbox, notes, [event for event in events if isinstance(event, Chunk)])

    def _listen(self, outbox: Outbox, notes: list[Note], chunks: list[Chunk]) -> None:
        user_id = outbox.user_id
        if stream := self._hub.holds.get(user_id):  # the relay came here while we asked elsewhere
            self.leave(user_id)
            status, notes, chunks = stream.status(), stream.notes_since(0), stream.chunks(stream.ring.since(0))
        else:
            status = self._told[user_id] = self._status(user_id)
        self._hub.listen(outbox, status, notes, chunks)

    def _deliver(self, feed: Feed, packed: peers.Event) -> None:
        event = peers.from_event(packed, feed.origin)
        if isinstance(event, Chunk):
            if event.end <= feed.next_position:
                return
            event = event.since(feed.next_position)
            feed.next_position = event.end
        else:
            feed.n_notes += 1
        self._hub.deliver(feed.origin.user_id, event)

    def _status(self, user_id: str) -> Status:
        owner = self._directory.owner(user_id)
        if owner is None:
            return Status(user_id, online=False)
        holding = owner.holding
        return Status(user_id, holding.online, holding.session_id, holding.device_info)
