"""The other nodes, over Redis, as the hub needs them.

`directory.py` knows which node holds which user, `messages.py` what nodes say. A node that has consumers of a user whom
another node holds follows that user there (`subscriptions.py`): it gets what is buffered and, from then on, everything
that happens, as a subscriber of that node (`followers.py`). Both travel one link in order, so they join without a hole
or a repeat; when a link breaks, everybody follows anew, from the consumers' cursors. `node.py` is the other direction:
what this node does for the others.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Literal

from zander.cluster import messages
from zander.cluster.directory import Directory, Holding
from zander.cluster.followers import Followers
from zander.cluster.link import RedisLink
from zander.cluster.rpc import Calls
from zander.cluster.subscriptions import Subscriptions
from zander.delivery.outbox import Outbox
from zander.delivery.subscribers import Subscribers
from zander.errors import NotFound
from zander.streams.clock import now_us
from zander.streams.query import Found, Query
from zander.streams.stream import Stream, Streams, StreamSummary
from zander.wire.messages import Status


class Cluster:
    """The other nodes. `holdings` is what this node holds, as they know it."""

    def __init__(self, link: RedisLink, streams: Streams, subscribers: Subscribers) -> None:
        self.link = link
        self.calls = Calls(link)
        self.directory = Directory()
        self.holdings: dict[str, Holding] = {}
        self.n_changes = 0
        self.followers = Followers(self.calls, streams, subscribers)
        self.subscriptions = Subscriptions(self.calls, self.directory, streams, subscribers)
        self._me = link.node_id

    @property
    def state(self) -> Literal["up", "down"]:
        return self.link.state

    @property
    def n_peers(self) -> int:
        return len(self.directory.peers)

    async def close(self) -> None:
        """Tell the others that this node stops."""
        self.calls.send(messages.Bye(self._me))
        await self.link.flush(0.5)

    def announce(self, user_id: str, stream: Stream | None) -> None:
        self.followers.flush()  # what happened before this goes before it
        self.n_changes += 1
        if stream:
            self.holdings[user_id] = self._holding(stream)
            self.subscriptions.unfollow_held(stream)
        else:
            self.holdings.pop(user_id, None)
            self.followers.forget(user_id)
        self.calls.send(messages.Changed(self._me, self.n_changes, user_id, self.holdings.get(user_id)))

    def unfollow(self, user_id: str) -> None:
        self.subscriptions.release(user_id)

    def user_of(self, session_id: str) -> str | None:
        return self.directory.user_of(session_id)

    def status(self, user_id: str) -> Status:
        return self.subscriptions.status(user_id)

    async def subscribe(self, outbox: Outbox, last: int) -> None:
        await self.subscriptions.subscribe(outbox, last)

    async def join(self, outbox: Outbox, at_a_loss: bool) -> int | None:
        return await self.subscriptions.join(outbox, at_a_loss)

    async def ask(self, query: Query) -> Found:
        ask = messages.Ask(self._me, query)
        return await self.calls.ask(self._owner(query.user_id), ask, lambda reply: reply.found(query.user_id))

    async def predict(self, user_id: str, text: str, sender: str) -> bool:
        predict = messages.Predict(self._me, user_id, text, sender)
        return await self.calls.ask(self._owner(user_id), predict, lambda reply: reply.delivered)

    async def streams(self) -> list[StreamSummary]:
        questions = [
            self.calls.ask(node_id, messages.AskStreams(self._me), lambda reply: reply.streams)
            for node_id in self.directory.peers
        ]
        answers = await asyncio.gather(*questions, return_exceptions=True)
        return [stream for streams in answers if isinstance(streams, list) for stream in streams]

    def _owner(self, user_id: str) -> str:
        if owner := self.directory.owner(user_id):
            return owner.node_id
        raise NotFound(f"no stream of user {user_id}")

    def _holding(self, stream: Stream) -> Holding:
        """Describe a stream. Its relay ranks by when it came, and above every other that was known of by then.

        Not by when it was let in: that may have been long after, when it was gone and another had come elsewhere.
        """
        session = stream.session
        mine, elsewhere = self.holdings.get(session.user_id), self.directory.owner(session.user_id)
        if stream.relay is None and mine and mine.session_id == session.session_id:
            rank = mine.rank
        else:
            rank = stream.relay.since_us if stream.relay else now_us()
            came_at = monotonic() - (now_us() - rank) / 1e6
            if elsewhere and self.directory.heard_at(elsewhere) <= came_at:  # our clock may be behind the other's
                rank = max(rank, elsewhere.holding.rank + 1)
        return Holding(session.user_id, session.session_id, rank, session.base, stream.online, session.device_info)
