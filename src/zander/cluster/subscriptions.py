"""The users whom this node follows on other nodes, because it has consumers of theirs.

A feed is there while somebody here listens or is about to. It is live from the reply to a Follow on, until something
may have been lost: a link that broke, a node that was silent, a session that moved. Then it catches up from where the
consumer stands that is furthest behind; each outbox leaves out what its consumer has.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from zander.cluster import messages as peers
from zander.cluster.directory import Directory, Owner
from zander.cluster.feed import Feed, is_owed, owed_from
from zander.cluster.rpc import Calls
from zander.delivery.outbox import Outbox
from zander.errors import ClientError, NotFound
from zander.hub.hub import Hub
from zander.streams.stream import Stream
from zander.wire.messages import Status

MAX_TRIES = 20  # to join a feed, while its user moves
TRY_SECONDS = 0.1


class Feeds:
    """All feeds of this node. Consumers of a user are offered every event of a feed, in order."""

    def __init__(self, calls: Calls, directory: Directory, hub: Hub) -> None:
        self._calls = calls
        self._me = calls.link.node_id
        self._directory = directory
        self._hub = hub
        self._feeds: dict[str, Feed] = {}
        self._n_joining: Counter[str] = Counter()

    def status(self, user_id: str) -> Status:
        """Say what is known of a user's relay."""
        owner = self._directory.owner(user_id)
        if owner is None:
            return Status(user_id, online=False)
        holding = owner.holding
        return Status(user_id, holding.online, holding.session_id, holding.device_info)

    def attend(self, user_id: str) -> None:
        """Follow the user where it is now, and tell our consumers if its relay came or went."""
        if user_id not in self._hub.audience or user_id in self._hub.holds:
            return
        feed = self._feeds.setdefault(user_id, Feed(user_id))
        owner = self._directory.owner(user_id)
        if feed.task or (owner and self._has_more(feed, owner)):
            return
        if not feed.live and not (owner and _follows(feed, owner)):
            self._send_back(feed, owner.holding.session_id if owner else "")
            if user_id not in self._hub.audience:
                return
        self._tell(feed, self.status(user_id))
        if owner is None:
            feed.reset()
            return
        if feed.live and _follows(feed, owner):
            return
        if not _follows(feed, owner):
            self._move(feed, owner)
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
        for user_id in self._hub.audience.user_ids:
            self.attend(user_id)

    def release(self, user_id: str) -> None:
        """Follow a user no more, if nobody here listens or is about to."""
        if not self._n_joining[user_id] and user_id not in self._hub.audience:
            self.leave(user_id)

    def leave(self, user_id: str) -> None:
        """Follow a user no more: nobody listens, or the relay is here now."""
        if feed := self._feeds.pop(user_id, None):
            if feed.task:
                feed.task.cancel()
            if feed.node_id:
                self._calls.send(peers.Unfollow(self._me, user_id), feed.node_id)

    def come_home(self, stream: Stream) -> None:
        """Follow a user no more, whose relay is here now; what it had elsewhere and is not here is to be fetched."""
        session = stream.session
        feed = self._feeds.get(session.user_id)
        if feed and not feed.has_all:
            self._send_back(feed, session.session_id, stream.ring.first_position)
        self.leave(session.user_id)

    def take(self, events: peers.Events) -> None:
        """Deliver what happened to a user."""
        feed = self._feeds.get(events.user_id)
        if feed is None:
            self._calls.send(peers.Unfollow(self._me, events.user_id), events.node_id)
        elif feed.live and feed.follows(events.node_id, events.session_id):
            for event in feed.count(feed.unpack(events.events)):
                self._hub.audience.deliver(events.user_id, event)

    # A consumer comes.

    async def subscribe(self, outbox: Outbox, last: int) -> None:
        """Let a consumer listen, from the last samples on where the owner of its user can be asked."""
        with self._joining(outbox.user_id):
            try:
                for _ in range(MAX_TRIES):
                    if await self._join(outbox, peers.Follow(self._me, outbox.user_id, last)) is None:
                        return
                    await asyncio.sleep(TRY_SECONDS)
            except ClientError:
                pass
            self._wait(outbox, last)

    async def join(self, outbox: Outbox, at_a_loss: bool) -> int | None:
        """Let a consumer listen from where it stands, if the owner of its user has all from there, or `at_a_loss`.

        Else return from where on the owner has it. Where no node holds the user, the consumer listens at once.
        """
        if self._directory.owner(outbox.user_id):
            with self._joining(outbox.user_id):
                try:
                    follow = peers.Follow(self._me, outbox.user_id, None, outbox.position)
                    return await self._join(outbox, follow, at_a_loss)
                except ClientError:
                    if not at_a_loss or outbox.user_id in self._hub.holds:
                        return outbox.position
        self._wait(outbox, 0)
        return None

    @contextmanager
    def _joining(self, user_id: str) -> Iterator[None]:
        self._n_joining[user_id] += 1
        try:
            yield
        finally:
            self._n_joining -= Counter({user_id: 1})  # which forgets a count of 0
            self.release(user_id)
        self.attend(user_id)

    async def _join(self, outbox: Outbox, follow: peers.Follow, at_a_loss: bool = False) -> int | None:
        """Ask for what comes first once the feed of those who listen already is live; ClientError without an owner."""
        self.attend(outbox.user_id)
        feed = self._feeds.setdefault(outbox.user_id, Feed(outbox.user_id))
        if feed.task:
            await asyncio.wait({feed.task})
        owner = self._directory.owner(outbox.user_id)
        if owner is None:
            raise NotFound(f"no stream of user {outbox.user_id}")
        return await self._calls.ask(
            owner.node_id, follow, lambda reply: self._admit(outbox, follow, reply, owner, at_a_loss)
        )

    def _admit(
        self, outbox: Outbox, follow: peers.Follow, reply: peers.Followed, owner: Owner, at_a_loss: bool
    ) -> int | None:
        """Let a consumer listen from where the reply ends, unless it is not of what we follow by now."""
        feed = self._ready(outbox.user_id, reply, owner)
        if feed is None:
            return outbox.position
        history = feed.unpack(reply.events)
        if follow.last is not None:
            outbox.stand_before(reply.session_id, history, reply.next_position)
        elif reply.session_id != outbox.session_id:
            return outbox.position
        elif reply.first_position > outbox.position and not at_a_loss:
            return reply.first_position
        feed.told = self.status(outbox.user_id)
        self._hub.listen(outbox, feed.told, history)
        return None

    def _ready(self, user_id: str, reply: peers.Followed, owner: Owner) -> Feed | None:
        """Return the user's feed, if it is live in the session of the reply; for the first to listen, it is now."""
        feed = self._feeds.get(user_id)
        now = self._directory.owner(user_id)
        if feed is None or now is None or (now.node_id, now.holding.session_id) != (reply.node_id, reply.session_id):
            return None
        if user_id not in self._hub.audience:
            feed.move(now)
            feed.stand(reply)
        return feed if feed.live and _follows(feed, now) else None

    def _wait(self, outbox: Outbox, last: int) -> None:
        """Let a consumer listen to what will come; the relay may have come here while we asked elsewhere."""
        user_id = outbox.user_id
        if stream := self._hub.holds.get(user_id):
            self._hub.listen(outbox, stream.status(), stream.events_since(0, 0))
            return
        feed = self._feeds.setdefault(user_id, Feed(user_id))
        feed.last = max(feed.last, last)
        feed.told = self.status(user_id)
        self._hub.listen(outbox, feed.told, [])

    # A feed catches up.

    async def _catch_up(self, feed: Feed, owner: Owner) -> None:
        follow = self._all_that_is_owed(feed, owner)
        try:
            await self._calls.ask(owner.node_id, follow, lambda reply: self._caught_up(feed, owner, reply))
        except ClientError:
            return  # `attend_all` comes by every second
        finally:
            feed.task = None
        if self._feeds.get(owner.holding.user_id) is feed:
            self.attend(owner.holding.user_id)  # it may have moved meanwhile

    def _all_that_is_owed(self, feed: Feed, owner: Owner) -> peers.Follow:
        """Ask for all that one of our consumers lacks."""
        user_id = owner.holding.user_id
        listeners = self._hub.audience.of(user_id)
        owed = [position for outbox in listeners if (position := owed_from(outbox, owner.holding)) is not None]
        if not owed:
            return peers.Follow(self._me, user_id, feed.last)
        n_notes = feed.n_notes
        if n_notes is None and any(is_owed(outbox, owner.holding) for outbox in listeners):
            n_notes = 0
        return peers.Follow(self._me, user_id, None, min(owed), n_notes)

    def _caught_up(self, feed: Feed, owner: Owner, reply: peers.Followed) -> None:
        """Go on live; who stands before what the owner has in memory is sent back."""
        user_id = owner.holding.user_id
        if self._feeds.get(user_id) is not feed or not feed.follows(reply.node_id, reply.session_id) or feed.live:
            return
        feed.stand(reply)
        history = feed.unpack(reply.events)
        for outbox in list(self._hub.audience.of(user_id)):
            position = owed_from(outbox, owner.holding)
            if position is None:
                outbox.stand_before(reply.session_id, history, reply.next_position)
            else:
                outbox.stand(reply.session_id, position)
                if position < reply.first_position:
                    self._hub.send_back(outbox)
                    continue
            outbox.preload(history)

    def _move(self, feed: Feed, owner: Owner) -> None:
        """Follow another node, or another session; who is owed it stands in it from now on, samples or not."""
        feed.move(owner)
        for outbox in self._hub.audience.of(owner.holding.user_id):
            if (position := owed_from(outbox, owner.holding)) is not None:
                outbox.stand(owner.holding.session_id, position)

    def _send_back(self, feed: Feed, session_id: str, memory_from: int = 0) -> None:
        """Send back those whose session may have had more; if it goes on, those before what is in memory now."""
        for outbox in list(self._hub.audience.of(feed.origin.user_id)):
            goes_on = outbox.session_id == session_id and outbox.position >= memory_from
            if outbox.session_id == feed.origin.session_id and not goes_on:
                self._hub.send_back(outbox)

    def _has_more(self, feed: Feed, owner: Owner) -> bool:
        """Say whether a node that is to give up the user has not said so: its last samples come before that."""
        user_id, session_id = owner.holding.user_id, feed.origin.session_id
        return feed.live and not _follows(feed, owner) and self._directory.holds(feed.node_id, user_id, session_id)

    def _tell(self, feed: Feed, status: Status) -> None:
        """Tell of a relay that came or went; that an absent relay's buffer is gone is no news."""
        is_news = feed.told is None or feed.told.online or status.online
        if is_news and status != feed.told:
            self._hub.tell_status(status)
        feed.told = status


def _follows(feed: Feed, owner: Owner) -> bool:
    return feed.follows(owner.node_id, owner.holding.session_id)
