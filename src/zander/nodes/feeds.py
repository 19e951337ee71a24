"""The users whom this node follows on other nodes, because it has consumers of theirs.

A feed is there while somebody here listens or is about to. It is live from the reply to a Follow on, until something
may have been lost: a link that broke, a node that was silent, a session that moved. Then it catches up from where it
stands, and what comes meanwhile is not counted: it comes again with the reply.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from zander.chunk import Chunk, Origin
from zander.errors import ClientError, NotFound
from zander.hub import Hub, now_us
from zander.messages import Gap, Note, Status
from zander.nodes import peers
from zander.nodes.calls import Calls
from zander.nodes.directory import Directory, Owner
from zander.outbox import Outbox
from zander.wire import dumps

UNHEARD_US = 3_000_000  # a session may be so old before every node has heard of it


class Feed:
    """One user followed: where, and where we stand in the session there."""

    def __init__(self, user_id: str) -> None:
        self.since_us = now_us()
        self.node_id = ""
        self.origin = Origin(user_id, "", 0.0)
        self.next_position = 0
        self.n_notes = 0
        self.stands = False  # whether anything of this session was taken over
        self.live = False
        self.n_joining = 0
        self.last = 0  # the most that was asked for by a consumer whose owner was not known yet
        self.told: Status | None = None  # what our consumers know of the relay
        self.task: asyncio.Task[None] | None = None

    def follows(self, owner: Owner) -> bool:
        """Say whether this is a feed of the owner's session."""
        return (self.node_id, self.origin.session_id) == (owner.node_id, owner.holding.session_id)

    def move(self, owner: Owner) -> None:
        """Follow another node; in another session, from its start."""
        self.live = False
        self.node_id = owner.node_id
        if self.origin.session_id != owner.holding.session_id:
            self.origin = Origin(owner.holding.user_id, owner.holding.session_id, 0.0)
            self.next_position = self.n_notes = 0
            self.stands = False

    def stand(self, reply: peers.Followed) -> None:
        """Stand where the reply ends; events go on from there."""
        self.origin.period_us = reply.period_us
        self.next_position = reply.next_position
        self.n_notes = reply.n_notes
        self.stands = self.live = True


class Feeds:
    """All feeds of this node. Consumers of a user get every event of a feed once and in order, or a gap `lost`."""

    def __init__(self, calls: Calls, directory: Directory, hub: Hub) -> None:
        self._calls = calls
        self._me = calls.link.node_id
        self._directory = directory
        self._hub = hub
        self._feeds: dict[str, Feed] = {}

    async def subscribe(self, outbox: Outbox, last: int) -> None:
        """Let a consumer listen, from the last samples on where the owner of its user can be asked."""
        user_id = outbox.user_id
        feed = self._feeds.setdefault(user_id, Feed(user_id))
        feed.n_joining += 1
        try:
            await self._join(outbox, last, feed)
        except ClientError:
            feed.last = max(feed.last, last)
            self._listen(outbox, feed, [])
        finally:
            feed.n_joining -= 1
            self.release(user_id)
        self.attend(user_id)

    def attend(self, user_id: str) -> None:
        """Follow the user where it is now, and tell our consumers if its relay came or went."""
        if user_id not in self._hub.audience or user_id in self._hub.holds:
            return
        feed = self._feeds.setdefault(user_id, Feed(user_id))
        self._tell(feed, self._status(user_id))
        owner = self._directory.owner(user_id)
        if owner is None or feed.task or (feed.live and feed.follows(owner)):
            return
        if not feed.follows(owner):
            feed.move(owner)
        feed.task = asyncio.create_task(self._catch_up(feed, owner))

    def suspend(self, node_id: str | None = None) -> None:
        """Count nothing more from a node (None: from any) before it is followed anew: something may be lost."""
        for feed in self._feeds.values():
            if node_id in (None, feed.node_id):
                feed.live = False

    def refollow(self, node_id: str) -> None:
        """Follow anew what a node has."""
        self.suspend(node_id)
        self.attend_all()

    def attend_all(self) -> None:
        """Attend to every user that somebody here listens to."""
        for user_id in list(self._hub.audience):
            self.attend(user_id)

    def release(self, user_id: str) -> None:
        """Follow a user no more, if nobody here listens or is about to."""
        feed = self._feeds.get(user_id)
        if feed and not feed.n_joining and user_id not in self._hub.audience:
            self.leave(user_id)

    def leave(self, user_id: str) -> None:
        """Follow a user no more: nobody listens, or the relay is here now."""
        if feed := self._feeds.pop(user_id, None):
            if feed.task:
                feed.task.cancel()
            if feed.node_id:
                self._calls.send(peers.Unfollow(self._me, user_id), feed.node_id)

    def take(self, events: peers.Events) -> None:
        """Deliver what happened to a user."""
        feed = self._feeds.get(events.user_id)
        if feed is None:
            self._calls.send(peers.Unfollow(self._me, events.user_id), events.node_id)
        elif feed.live and (feed.node_id, feed.origin.session_id) == (events.node_id, events.session_id):
            for event in self._new(feed, events.events):
                self._hub.deliver(events.user_id, event)

    async def _join(self, outbox: Outbox, last: int, feed: Feed) -> None:
        """Ask for the last samples once the feed of those who listen already is live; ClientError without an owner."""
        self.attend(outbox.user_id)
        if feed.task:
            await asyncio.wait({feed.task})
        owner = self._directory.owner(outbox.user_id)
        if owner is None:
            raise NotFound(f"no stream of user {outbox.user_id}")
        if not feed.node_id:
            feed.move(owner)
        follow = peers.Follow(self._me, outbox.user_id, last)
        await self._calls.ask(owner.node_id, follow, lambda reply: self._joined(outbox, feed, owner, reply))

    def _joined(self, outbox: Outbox, feed: Feed, owner: Owner, reply: peers.Followed) -> None:
        """Let a consumer listen from where the reply ends; a feed that has to catch up brings all by itself."""
        alone = outbox.user_id not in self._hub.audience
        if alone and reply.session_id == owner.holding.session_id:
            feed.move(owner)
            feed.stand(reply)
        fits = feed.live and feed.origin.session_id == reply.session_id
        events = [peers.from_event(event, feed.origin) for event in reply.events] if fits else []
        self._listen(outbox, feed, events)

    def _listen(self, outbox: Outbox, feed: Feed, events: list[Chunk | Note]) -> None:
        if stream := self._hub.holds.get(outbox.user_id):  # the relay came here while we asked elsewhere
            self.leave(outbox.user_id)
            self._hub.listen(outbox, stream.status(), stream.events_since(0, 0))
        else:
            feed.told = self._status(outbox.user_id)
            self._hub.listen(outbox, feed.told, events)

    async def _catch_up(self, feed: Feed, owner: Owner) -> None:
        user_id, session_id = owner.holding.user_id, owner.holding.session_id
        if feed.stands or owner.holding.rank > feed.since_us - UNHEARD_US:
            follow = peers.Follow(self._me, user_id, None, session_id, feed.next_position, feed.n_notes)
        else:  # it was on for long when the first consumer here came, who is not owed its beginning
            follow = peers.Follow(self._me, user_id, feed.last)
        try:
            with suppress(ClientError):  # `attend_all` comes by every second
                await self._calls.ask(owner.node_id, follow, lambda reply: self._caught_up(feed, follow, reply))
        finally:
            feed.task = None

    def _caught_up(self, feed: Feed, follow: peers.Follow, reply: peers.Followed) -> None:
        if feed.origin.session_id != reply.session_id or self._feeds.get(follow.user_id) is not feed:
            return
        feed.origin.period_us = reply.period_us
        history: list[Chunk | Note] = []
        if follow.last is None and reply.first_position > feed.next_position:
            gap = Gap(reply.session_id, feed.next_position, reply.first_position, "lost")
            history.append(Note("gap", now_us(), dumps(gap)))
        history += self._new(feed, reply.events)
        for outbox in self._hub.audience.get(follow.user_id, ()):
            outbox.preload(history)
        feed.stand(reply)

    def _new(self, feed: Feed, packed: list[peers.Event]) -> list[Chunk | Note]:
        """Unpack events and leave out samples that came before."""
        events: list[Chunk | Note] = []
        for event in (peers.from_event(event, feed.origin) for event in packed):
            if isinstance(event, Note):
                feed.n_notes += 1
                events.append(event)
            elif event.end > feed.next_position:
                events.append(event.since(feed.next_position))
                feed.next_position = event.end
        return events

    def _tell(self, feed: Feed, status: Status) -> None:
        """Tell of a relay that came or went; that an absent relay's buffer is gone is no news."""
        is_news = feed.told is None or feed.told.online or status.online
        if is_news and status != feed.told:
            self._hub.tell_status(status)
        feed.told = status

    def _status(self, user_id: str) -> Status:
        owner = self._directory.owner(user_id)
        if owner is None:
            return Status(user_id, online=False)
        holding = owner.holding
        return Status(user_id, holding.online, holding.session_id, holding.device_info)
