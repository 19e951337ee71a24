"""Nodes that follow a user held here: each user's follower is a subscriber, and sends what it gets to those nodes."""

from __future__ import annotations

import asyncio
import logging

from zander.cluster import messages
from zander.cluster.rpc import Calls
from zander.delivery.subscribers import Subscribers
from zander.streams.stream import Streams
from zander.wire.messages import Item, Note

log = logging.getLogger(__name__)


class Follower:
    """The nodes that follow one user. What happens in one loop iteration goes in one message."""

    def __init__(self, user_id: str, followers: Followers) -> None:
        self.user_id = user_id
        self.node_ids: set[str] = set()
        self.session_id = ""  # of the items
        self.items: list[Item] = []
        self._followers = followers

    def take(self) -> list[Item]:
        """Return the items, and keep none."""
        items, self.items = self.items, []
        return items

    def offer(self, item: Item) -> None:
        """Take an item; a status is not passed on, nodes tell each other who is online."""
        if not (isinstance(item, Note) and item.kind == "status"):
            self._followers.add(self, item)


class Followers:
    """All followers of this node's users."""

    def __init__(self, calls: Calls, streams: Streams, subscribers: Subscribers) -> None:
        self._calls = calls
        self._streams = streams
        self._subscribers = subscribers
        self._by_user: dict[str, Follower] = {}
        self._pending: list[Follower] = []  # that have items

    def follow(self, user_id: str, node_id: str) -> None:
        """Send a node what happens to a user from now on."""
        self.flush()  # to those who follow already; the new one gets it with what is buffered
        follower = self._by_user.get(user_id)
        if follower is None:
            follower = self._by_user[user_id] = Follower(user_id, self)
            self._subscribers.follow(user_id, follower)
        follower.node_ids.add(node_id)

    def unfollow(self, user_id: str, node_id: str) -> None:
        """Send a node no more of a user."""
        if follower := self._by_user.get(user_id):
            follower.node_ids.discard(node_id)
            if not follower.node_ids:
                self.forget(user_id)

    def forget(self, user_id: str) -> None:
        """Send nobody more of a user, who is not held here any more."""
        if self._by_user.pop(user_id, None):
            self._subscribers.unfollow(user_id)

    def lose(self, node_id: str) -> None:
        """Send a node no more of anybody."""
        for user_id in list(self._by_user):
            self.unfollow(user_id, node_id)

    def add(self, follower: Follower, item: Item) -> None:
        """Keep an item for the end of this loop iteration."""
        stream = self._streams.get(follower.user_id)
        if stream is None:  # given up in this very moment
            return
        session_id = stream.session.session_id
        if follower.items and follower.session_id != session_id:
            self.flush()
        if not self._pending:
            asyncio.get_running_loop().call_soon(self.flush)
        if not follower.items:
            self._pending.append(follower)
        follower.session_id = session_id
        follower.items.append(item)

    def flush(self) -> None:
        """Send what has happened so far, a message per user."""
        pending, self._pending = self._pending, []
        taken = [(follower, follower.take()) for follower in pending]
        for follower, items in taken:
            try:
                self._send(follower, items)
            except Exception:  # of one must not hold up the others
                log.exception("other nodes did not get what happened to %s", follower.user_id)

    def _send(self, follower: Follower, items: list[Item]) -> None:
        packed = [messages.to_event(item) for item in items]
        message = messages.Events(self._calls.link.node_id, follower.user_id, follower.session_id, packed)
        for node_id in follower.node_ids:
            self._calls.send(message, node_id)
