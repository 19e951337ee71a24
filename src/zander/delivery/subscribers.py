"""The subscribers of this node: consumers connected here, and other nodes that follow a user."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence
from time import time
from typing import Protocol

from zander.delivery.outbox import Outbox
from zander.delivery.preloads import Preloads
from zander.wire.chunk import Chunk
from zander.wire.codec import dumps
from zander.wire.messages import Item, Note, Status


class Subscriber(Protocol):
    """Anybody who gets what happens to a user; a call never waits."""

    def offer(self, item: Item) -> None:
        """Take an item, in the order in which it happened."""


def status_note(status: Status) -> Note:
    """Encode a status for consumers."""
    return Note("status", int(time() * 1e6), dumps(status))


class Subscribers:
    """Consumers and followers, by user. A consumer is either live or behind: behind it gets nothing from here.

    `n_samples_out` counts what live consumers were given from here; the native path gives to those in `live` by itself.
    """

    def __init__(self) -> None:
        self.n_samples_out = 0
        self.preloads = Preloads()
        self.behind: set[Outbox] = set()
        self.sent_back: asyncio.Queue[Outbox] = asyncio.Queue()  # for `Replays`, which lets them catch up
        self.live: dict[str, set[Outbox]] = {}
        self.followers: dict[str, Subscriber] = {}

    def __contains__(self, user_id: str) -> bool:
        return user_id in self.live

    def __iter__(self) -> Iterator[Outbox]:
        yield from self.behind
        for live in self.live.values():
            yield from live

    def __len__(self) -> int:
        return len(self.behind) + sum(map(len, self.live.values()))

    @property
    def user_ids(self) -> list[str]:
        """The users who have a live consumer."""
        return list(self.live)

    def consumers(self, user_id: str) -> Collection[Outbox]:
        """Return the live consumers of a user."""
        return self.live.get(user_id, ())

    def of(self, user_id: str) -> Collection[Subscriber]:
        """Return all subscribers of a user."""
        live, follower = self.live.get(user_id, ()), self.followers.get(user_id)
        return (follower, *live) if follower else live

    def add(self, outbox: Outbox, status: Status, items: Sequence[Item]) -> None:
        """Make a consumer live, with the status of its user's relay and what it gets first."""
        self.behind.discard(outbox)
        outbox.preload([status_note(status), *items])
        self.live.setdefault(outbox.user_id, set()).add(outbox)

    def remove(self, outbox: Outbox) -> bool:
        """Forget a consumer; True when its user has no live one any more."""
        self.behind.discard(outbox)
        live = self.live.get(outbox.user_id, set())
        live.discard(outbox)
        return not live and self.live.pop(outbox.user_id, None) is not None

    def send_back(self, outbox: Outbox) -> bool:
        """Let a live consumer that may have missed something catch up from its cursor; return as `remove` does."""
        was_last = self.remove(outbox)
        self.behind.add(outbox)
        self.sent_back.put_nowait(outbox)
        return was_last

    def follow(self, user_id: str, follower: Subscriber) -> None:
        """Give a follower what happens to a user; a user has one at most, which serves all nodes."""
        self.followers[user_id] = follower

    def unfollow(self, user_id: str) -> None:
        """Forget the follower of a user."""
        self.followers.pop(user_id, None)

    def count(self, user_id: str, n_samples: int) -> None:
        """Count samples that the live consumers of a user are given."""
        self.n_samples_out += n_samples * len(self.consumers(user_id))

    def enter(self, user_id: str, session_id: str, position: int) -> None:
        """Move the cursors of the live consumers of a user to a session that begins or goes on at `position`."""
        for outbox in self.consumers(user_id):
            outbox.cursor.enter(session_id, position)

    def deliver(self, user_id: str, item: Item) -> None:
        """Give an item to all subscribers of a user."""
        if isinstance(item, Chunk):
            self.count(user_id, len(item))
        for subscriber in self.of(user_id):
            subscriber.offer(item)
