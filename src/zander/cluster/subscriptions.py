"""Users whom this node follows on other nodes, because it has consumers of theirs.

A `Subscription` is there while somebody here subscribes or is about to. It is live from the reply to a Follow on, until
something may have been lost: a link that broke, a node that was silent, a session that moved. Then it catches up from
the cursor of the consumer that is furthest behind; each outbox leaves out what its consumer has.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from zander.cluster import messages
from zander.cluster.directory import Directory, Holding, Owner
from zander.cluster.rpc import Calls
from zander.delivery.outbox import Outbox
from zander.delivery.subscribers import Subscribers, status_note
from zander.errors import ClientError, NotFound
from zander.streams.stream import Stream, Streams
from zander.wire.chunk import Origin
from zander.wire.messages import Item, Note, Status

MAX_TRIES = 20  # to join a subscription, while its user moves
TRY_SECONDS = 0.1
UNHEARD_US = 3_000_000  # a session may be so old before every node has heard of it


class Subscription:
    """One user followed. Each consumer has a cursor over the samples; the notes are counted here."""

    def __init__(self, user_id: str) -> None:
        self.node_id = ""
        self.origin = Origin(user_id, "", 0.0)
        self.n_notes: int | None = None  # taken over of this session; None: nothing yet
        self.live = False
        self.last = 0  # the most that was asked for by a consumer whose owner was not known yet
        self.told: Status | None = None  # what our consumers know of the relay
        self.task: asyncio.Task[None] | None = None

    @property
    def has_all(self) -> bool:
        """Whether the session has ended, and everything of it came before that."""
        told = self.told
        return self.live and told is not None and not told.online and told.session_id == self.origin.session_id

    def follows(self, node_id: str, session_id: str) -> bool:
        """Return whether this is a subscription of the session on that node."""
        return (self.node_id, self.origin.session_id) == (node_id, session_id)

    def move(self, owner: Owner) -> None:
        """Follow another node, or another session."""
        self.live = False
        self.node_id = owner.node_id
        self.origin = Origin(owner.holding.user_id, owner.holding.session_id, 0.0)
        self.n_notes = None

    def reset(self) -> None:
        """Follow nothing, until somebody has the user again; if it is the same session, anew."""
        self.live = False
        self.node_id = ""
        self.origin = Origin(self.origin.user_id, "", 0.0)

    def begin(self, reply: messages.Followed) -> None:
        """Be live from where the reply ends."""
        self.origin.period_us = reply.period_us
        self.n_notes = reply.n_notes
        self.live = True

    def unpack(self, events: list[messages.Event]) -> list[Item]:
        """Unpack what came of this session."""
        return [messages.from_event(event, self.origin) for event in events]

    def count(self, events: list[Item]) -> list[Item]:
        """Count the notes among live events."""
        self.n_notes = (self.n_notes or 0) + sum(isinstance(event, Note) for event in events)
        return events


class Subscriptions:
    """All subscriptions of this node. Consumers of a user are offered every event of a subscription, in order."""

    def __init__(self, calls: Calls, directory: Directory, streams: Streams, subscribers: Subscribers) -> None:
        self._calls = calls
        self._me = calls.link.node_id
        self._directory = directory
        self._streams = streams
        self._subscribers = subscribers
        self._by_user: dict[str, Subscription] = {}
        self._n_joining: Counter[str] = Counter()

    def status(self, user_id: str) -> Status:
        """Return what is known of a user's relay."""
        owner = self._directory.owner(user_id)
        if owner is None:
            return Status(user_id, online=False)
        holding = owner.holding
        return Status(user_id, holding.online, holding.session_id, holding.device_info)

    def reconcile(self, user_id: str) -> None:
        """Follow the user where it is now, and tell our consumers if its relay came or went."""
        if user_id not in self._subscribers or user_id in self._streams:
            return
        subscription = self._by_user.setdefault(user_id, Subscription(user_id))
        owner = self._directory.owner(user_id)
        if subscription.task or (owner and self._has_more(subscription, owner)):
            return
        if not subscription.live and not (owner and _follows(subscription, owner)):
            self._send_all_back(subscription, owner.holding.session_id if owner else "")
            if user_id not in self._subscribers:
                return
        self._tell(subscription, self.status(user_id))
        if owner is None:
            subscription.reset()
            return
        if subscription.live and _follows(subscription, owner):
            return
        if not _follows(subscription, owner):
            self._move(subscription, owner)
        subscription.task = asyncio.create_task(self._catch_up(subscription, owner))

    def suspend(self, node_id: str | None = None) -> None:
        """Count nothing more from a node (None: from any) before it is followed anew: something may be lost."""
        for subscription in self._by_user.values():
            if node_id in (None, subscription.node_id):
                subscription.live = False

    def refollow(self, node_id: str) -> None:
        """Follow anew what a node has."""
        self.suspend(node_id)
        self.reconcile_all()

    def reconcile_all(self) -> None:
        """Attend to every user that somebody here listens to."""
        for user_id in self._subscribers.user_ids:
            self.reconcile(user_id)

    def release(self, user_id: str) -> None:
        """Follow a user no more, if nobody here listens or is about to."""
        if not self._n_joining[user_id] and user_id not in self._subscribers:
            self.leave(user_id)

    def leave(self, user_id: str) -> None:
        """Follow a user no more: nobody listens, or the relay is here now."""
        if subscription := self._by_user.pop(user_id, None):
            if subscription.task:
                subscription.task.cancel()
            if subscription.node_id:
                self._calls.send(messages.Unfollow(self._me, user_id), subscription.node_id)

    def unfollow_held(self, stream: Stream) -> None:
        """Follow a user no more, whose relay is here now; what it had elsewhere and is not here is to be fetched."""
        session = stream.session
        subscription = self._by_user.get(session.user_id)
        if subscription and not subscription.has_all:
            self._send_all_back(subscription, session.session_id, stream.ring.first_position)
        self.leave(session.user_id)

    def take(self, events: messages.Events) -> None:
        """Deliver what happened to a user."""
        subscription = self._by_user.get(events.user_id)
        if subscription is None:
            self._calls.send(messages.Unfollow(self._me, events.user_id), events.node_id)
        elif subscription.live and subscription.follows(events.node_id, events.session_id):
            for event in subscription.count(subscription.unpack(events.events)):
                self._subscribers.deliver(events.user_id, event)

    # A consumer comes.

    async def subscribe(self, outbox: Outbox, last: int) -> None:
        """Let a consumer listen, from the last samples on where the owner of its user can be asked."""
        with self._joining(outbox.user_id):
            try:
                for _ in range(MAX_TRIES):
                    if await self._join(outbox, messages.Follow(self._me, outbox.user_id, last)) is None:
                        return
                    await asyncio.sleep(TRY_SECONDS)
            except ClientError:
                pass
            self._wait(outbox, last)

    async def join(self, outbox: Outbox, at_a_loss: bool) -> int | None:
        """Make a consumer live from its cursor on, if the owner of its user has all from there, or `at_a_loss`.

        Else return from where on the owner has it. Where no node holds the user, the consumer listens at once.
        """
        if self._directory.owner(outbox.user_id):
            with self._joining(outbox.user_id):
                try:
                    follow = messages.Follow(self._me, outbox.user_id, None, outbox.cursor.position)
                    return await self._join(outbox, follow, at_a_loss)
                except ClientError:
                    if not at_a_loss or outbox.user_id in self._streams:
                        return outbox.cursor.position
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
        self.reconcile(user_id)

    async def _join(self, outbox: Outbox, follow: messages.Follow, at_a_loss: bool = False) -> int | None:
        """Ask for what comes first once the subscription is live for those who are; ClientError without an owner."""
        self.reconcile(outbox.user_id)
        subscription = self._by_user.setdefault(outbox.user_id, Subscription(outbox.user_id))
        if subscription.task:
            await asyncio.wait({subscription.task})
        owner = self._directory.owner(outbox.user_id)
        if owner is None:
            raise NotFound(f"no stream of user {outbox.user_id}")
        return await self._calls.ask(
            owner.node_id, follow, lambda reply: self._admit(outbox, follow, reply, owner, at_a_loss)
        )

    def _admit(
        self, outbox: Outbox, follow: messages.Follow, reply: messages.Followed, owner: Owner, at_a_loss: bool
    ) -> int | None:
        """Let a consumer listen from where the reply ends, unless it is not of what we follow by now."""
        subscription = self._ready(outbox.user_id, reply, owner)
        if subscription is None:
            return outbox.cursor.position
        history = subscription.unpack(reply.events)
        if follow.last is not None:
            outbox.seek_before(reply.session_id, history, reply.next_position)
        elif reply.session_id != outbox.cursor.session_id:
            return outbox.cursor.position
        elif reply.first_position > outbox.cursor.position and not at_a_loss:
            return reply.first_position
        subscription.told = self.status(outbox.user_id)
        self._subscribers.add(outbox, subscription.told, history)
        return None

    def _ready(self, user_id: str, reply: messages.Followed, owner: Owner) -> Subscription | None:
        """Return the subscription, if it is live in the session of the reply; for the first consumer it is now."""
        subscription = self._by_user.get(user_id)
        now = self._directory.owner(user_id)
        if (
            subscription is None
            or now is None
            or (now.node_id, now.holding.session_id) != (reply.node_id, reply.session_id)
        ):
            return None
        if user_id not in self._subscribers:
            subscription.move(now)
            subscription.begin(reply)
        return subscription if subscription.live and _follows(subscription, now) else None

    def _wait(self, outbox: Outbox, last: int) -> None:
        """Make a consumer live for what will come; the relay may have come here while we asked elsewhere."""
        user_id = outbox.user_id
        if stream := self._streams.get(user_id):
            outbox.cursor.enter(stream.session.session_id, stream.session.base)
            self._subscribers.add(outbox, stream.status(), stream.items_since(0, 0))
            return
        subscription = self._by_user.setdefault(user_id, Subscription(user_id))
        subscription.live = False  # it may be live for others: all catch up together, from where this one has to begin
        subscription.last = max(subscription.last, last)
        subscription.told = self.status(user_id)
        self._subscribers.add(outbox, subscription.told, [])
        self.reconcile(user_id)

    # A subscription catches up.

    async def _catch_up(self, subscription: Subscription, owner: Owner) -> None:
        follow = self._follow_from_furthest_behind(subscription, owner)
        try:
            await self._calls.ask(owner.node_id, follow, lambda reply: self._caught_up(subscription, owner, reply))
        except ClientError:
            return  # `reconcile_all` comes by every second
        finally:
            subscription.task = None
        if self._by_user.get(owner.holding.user_id) is subscription:
            self.reconcile(owner.holding.user_id)  # it may have moved meanwhile

    def _follow_from_furthest_behind(self, subscription: Subscription, owner: Owner) -> messages.Follow:
        """Ask for all that one of our consumers lacks."""
        user_id = owner.holding.user_id
        consumers = self._subscribers.consumers(user_id)
        owed = [position for outbox in consumers if (position := entitled_from(outbox, owner.holding)) is not None]
        if not owed:
            return messages.Follow(self._me, user_id, subscription.last)
        n_notes = subscription.n_notes
        if n_notes is None and any(is_entitled(outbox, owner.holding) for outbox in consumers):
            n_notes = 0
        return messages.Follow(self._me, user_id, None, min(owed), n_notes)

    def _caught_up(self, subscription: Subscription, owner: Owner, reply: messages.Followed) -> None:
        """Go on live; a consumer whose cursor is before what the owner has in memory is sent back."""
        user_id = owner.holding.user_id
        if (
            self._by_user.get(user_id) is not subscription
            or not subscription.follows(reply.node_id, reply.session_id)
            or subscription.live
        ):
            return
        subscription.begin(reply)
        history = subscription.unpack(reply.events)
        for outbox in list(self._subscribers.consumers(user_id)):
            position = entitled_from(outbox, owner.holding)
            if position is None:
                outbox.seek_before(reply.session_id, history, reply.next_position)
            else:
                outbox.cursor.seek(reply.session_id, position)
                if position < reply.first_position:
                    self._send_back(outbox)
                    continue
            outbox.preload(history)

    def _move(self, subscription: Subscription, owner: Owner) -> None:
        """Follow another node, or another session; the cursors of those entitled to it enter it, samples or not."""
        subscription.move(owner)
        for outbox in self._subscribers.consumers(owner.holding.user_id):
            if (position := entitled_from(outbox, owner.holding)) is not None:
                outbox.cursor.seek(owner.holding.session_id, position)

    def _send_back(self, outbox: Outbox) -> None:
        """Let a consumer that may have missed something catch up from its cursor."""
        if self._subscribers.send_back(outbox):
            self.release(outbox.user_id)

    def _send_all_back(self, subscription: Subscription, session_id: str, memory_from: int = 0) -> None:
        """Send back those whose session may have had more; if it goes on, those before what is in memory now."""
        for outbox in list(self._subscribers.consumers(subscription.origin.user_id)):
            goes_on = outbox.cursor.session_id == session_id and outbox.cursor.position >= memory_from
            if outbox.cursor.session_id == subscription.origin.session_id and not goes_on:
                self._send_back(outbox)

    def _has_more(self, subscription: Subscription, owner: Owner) -> bool:
        """Return whether a node that is to give up the user has not said so: its last samples come before that."""
        user_id, session_id = owner.holding.user_id, subscription.origin.session_id
        return (
            subscription.live
            and not _follows(subscription, owner)
            and self._directory.holds(subscription.node_id, user_id, session_id)
        )

    def _tell(self, subscription: Subscription, status: Status) -> None:
        """Tell of a relay that came or went; that an absent relay's buffer is gone is no news."""
        is_news = subscription.told is None or subscription.told.online or status.online
        if is_news and status != subscription.told:
            self._subscribers.deliver(status.user_id, status_note(status))
        subscription.told = status


def _follows(subscription: Subscription, owner: Owner) -> bool:
    return subscription.follows(owner.node_id, owner.holding.session_id)


def entitled_from(outbox: Outbox, holding: Holding) -> int | None:
    """Return from where on a consumer is to get a session; None: it was on for long when the consumer came."""
    position = outbox.cursor.position_in(holding.session_id)
    if position is None and is_entitled(outbox, holding):
        return holding.base
    return position


def is_entitled(outbox: Outbox, holding: Holding) -> bool:
    """Return whether a consumer was there before the relay came."""
    return outbox.since_us < holding.rank + UNHEARD_US
