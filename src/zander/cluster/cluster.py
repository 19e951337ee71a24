"""Several nodes as one: the hub's Broadcast over a RedisLink.

Who holds which user is in `directory.py`, what nodes say in `messages.py`. A node that has consumers of a user whom
another node holds follows that user there (`subscriptions.py`): it gets what is buffered and, from then on, every
event. Both travel one link in order, so they join without a hole or a repeat; when a link breaks, everybody follows
anew from where they stood.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import assert_never

from zander.cluster import messages as peers
from zander.cluster.directory import Directory, Holding, Owner, Peer
from zander.cluster.link import RedisLink
from zander.cluster.rpc import Calls
from zander.cluster.subscriptions import Feeds
from zander.delivery.outbox import Outbox
from zander.errors import NotFound
from zander.hub.hub import Hub, now_us
from zander.hub.interfaces import LinkState
from zander.streams.query import Answer, Query, answer
from zander.streams.stream import Stream, StreamSummary
from zander.wire.chunk import Chunk
from zander.wire.messages import Note, Status

BEAT_SECONDS = 1.0

log = logging.getLogger(__name__)


class Cluster:
    """This node among the others."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._me = link.node_id
        self._calls = Calls(link)
        self._directory = Directory()
        self._mine: dict[str, Holding] = {}
        self._link_n = 0
        self._n_changes = 0
        self._heard_nonsense = False  # logged once
        self.followed: dict[str, set[str]] = {}  # by user held here, the nodes that follow
        self._outgoing: dict[Stream, list[Chunk | Note]] = {}  # what happened in this turn of the loop

    @property
    def state(self) -> LinkState:
        """Whether Redis is there."""
        return self._link.state

    @property
    def n_peers(self) -> int:
        """How many other nodes are known."""
        return len(self._directory.peers)

    def attach(self, hub: Hub) -> None:
        self._hub = hub
        self._feeds = Feeds(self._calls, self._directory, hub)

    async def run(self) -> None:
        """Talk to the others until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._link.run(self._opened, self._receive))
            tasks.create_task(self._beat())

    async def close(self) -> None:
        """Take leave of the others."""
        self._calls.send(peers.Bye(self._me))
        await self._link.flush(0.5)

    # What the hub asks for.

    def announce(self, user_id: str, stream: Stream | None) -> None:
        self._flush()  # what happened before this goes before it
        self._n_changes += 1
        if stream:
            self._mine[user_id] = self._holding(stream)
            self._feeds.come_home(stream)
        else:
            self._mine.pop(user_id, None)
            self.followed.pop(user_id, None)
        self._calls.send(peers.Changed(self._me, self._n_changes, user_id, self._mine.get(user_id)))

    def publish(self, stream: Stream, event: Chunk | Note) -> None:
        if stream.session.user_id in self.followed:
            if not self._outgoing:
                asyncio.get_running_loop().call_soon(self._flush)
            self._outgoing.setdefault(stream, []).append(event)

    def unfollow(self, user_id: str) -> None:
        self._feeds.release(user_id)

    def status(self, user_id: str) -> Status:
        return self._feeds.status(user_id)

    async def subscribe(self, outbox: Outbox, last: int) -> None:
        await self._feeds.subscribe(outbox, last)

    async def join(self, outbox: Outbox, at_a_loss: bool) -> int | None:
        return await self._feeds.join(outbox, at_a_loss)

    async def ask(self, query: Query) -> Answer:
        ask = peers.Ask(self._me, query)
        return await self._calls.ask(self._owner(query.user_id), ask, lambda reply: reply.answer)

    async def predict(self, user_id: str, text: str, sender: str) -> bool:
        predict = peers.Predict(self._me, user_id, text, sender)
        return await self._calls.ask(self._owner(user_id), predict, lambda reply: reply.delivered)

    async def streams(self) -> list[StreamSummary]:
        questions = [
            self._calls.ask(node_id, peers.AskStreams(self._me), lambda reply: reply.streams)
            for node_id in self._directory.peers
        ]
        answers = await asyncio.gather(*questions, return_exceptions=True)
        return [stream for streams in answers if isinstance(streams, list) for stream in streams]

    def _owner(self, user_id: str) -> str:
        if owner := self._directory.owner(user_id):
            return owner.node_id
        raise NotFound(f"no stream of user {user_id}")

    def _holding(self, stream: Stream) -> Holding:
        """Describe a stream. Its relay ranks by when it came, and above every other that we had heard of by then.

        Not by when it was let in: that may have been long after, when it was gone and another had come elsewhere.
        """
        session = stream.session
        mine, elsewhere = self._mine.get(session.user_id), self._directory.owner(session.user_id)
        if stream.relay is None and mine and mine.session_id == session.session_id:
            rank = mine.rank
        else:
            rank = stream.relay.since_us if stream.relay else now_us()
            came_at = monotonic() - (now_us() - rank) / 1e6
            if elsewhere and self._directory.heard_at(elsewhere) <= came_at:  # our clock may be behind the other's
                rank = max(rank, elsewhere.holding.rank + 1)
        return Holding(
            session.user_id, session.session_id, rank, session.origin.base, stream.online, session.device_info
        )

    # What the others say.

    def _receive(self, data: bytes) -> None:
        """Take what came; nothing on the channel may end this node: one of another version may be there."""
        try:
            self._take(peers.decode(data))
        except Exception as error:
            if not self._heard_nonsense:
                log.error("something on Redis is not for us, is a node of another version there?", exc_info=error)
            self._heard_nonsense = True

    def _take(self, message: peers.Message) -> None:
        if message.node_id == self._me:
            return
        match message:
            case peers.Events():
                self._feeds.take(message)
            case peers.Followed() | peers.Answered() | peers.Failed():
                self._calls.resolve(message)
            case peers.Follow() | peers.Ask() | peers.Predict() | peers.AskStreams():
                self._calls.answer(message, lambda: self._reply(message))
            case peers.Unfollow():
                self._unfollow(message.user_id, message.node_id)
            case _:
                self._learn(message)

    def _learn(self, news: peers.News) -> None:
        node_id, now = news.node_id, monotonic()
        match news:
            case peers.Beat():
                if not self._directory.beat(node_id, news.link_n, news.n_changes, now):
                    self._calls.send(peers.Hello(self._me), node_id)
            case peers.Changed():
                if self._directory.change(node_id, news.n_changes, news.user_id, news.holding, now):
                    self._moved(news.user_id)
                else:
                    self._calls.send(peers.Hello(self._me), node_id)
            case peers.Hello():
                self._calls.send(self._state(), node_id)
                self._feeds.refollow(node_id)
            case peers.State():
                peer = Peer(news.link_n, news.n_changes, news.holdings, now)
                for user_id in self._directory.replace(node_id, peer):
                    self._moved(user_id)
                self._feeds.refollow(node_id)
            case peers.Bye():
                self._lose(node_id)
            case _:
                assert_never(news)

    def _moved(self, user_id: str) -> None:
        """Act on what another node now holds, or holds no more."""
        mine, owner = self._mine.get(user_id), self._directory.owner(user_id)
        if mine and owner:
            if owner.order > Owner(self._me, mine).order:
                self._hub.supersede(user_id)
                self.announce(user_id, None)
            else:
                self._calls.send(self._state(), owner.node_id)  # it does not know yet that ours is newer
        self._feeds.attend(user_id)

    def _lose(self, node_id: str) -> None:
        """Forget a node; one that took its leave has sent everything before."""
        for user_id in list(self.followed):
            self._unfollow(user_id, node_id)
        for user_id in self._directory.remove(node_id):
            self._moved(user_id)

    def _opened(self) -> None:
        self._link_n += 1
        self._feeds.suspend()
        self._calls.send(peers.Hello(self._me))
        self._calls.send(self._state())

    def _state(self) -> peers.State:
        return peers.State(self._me, self._link_n, self._n_changes, list(self._mine.values()))

    async def _beat(self) -> None:
        while True:
            self._calls.send(peers.Beat(self._me, self._link_n, self._n_changes))
            for node_id in self._directory.silent(monotonic()):
                self._feeds.suspend(node_id)
                self._lose(node_id)
            self._feeds.attend_all()
            await asyncio.sleep(BEAT_SECONDS)

    # What we do for the others.

    def _reply(self, question: peers.Call) -> peers.Reply:
        """Answer another node; NotFound when this one does not hold the user any more."""
        match question:
            case peers.Ask():
                return peers.Answered(self._me, answer(self._held(question.query.user_id), question.query))
            case peers.Predict():
                stream = self._held(question.user_id)
                delivered = self._hub.take_prediction(stream, question.text, question.sender)
                return peers.Answered(self._me, delivered=delivered)
            case peers.AskStreams():
                return peers.Answered(self._me, streams=self._hub.online())
            case peers.Follow():
                return self._follow(question)

    def _held(self, user_id: str) -> Stream:
        if stream := self._hub.holds.get(user_id):
            return stream
        raise NotFound(f"no stream of user {user_id}")

    def _follow(self, question: peers.Follow) -> peers.Followed:
        stream = self._held(question.user_id)
        self._flush()  # to those who follow already; the new one gets it with what is buffered
        self.followed.setdefault(question.user_id, set()).add(question.node_id)
        session = stream.session
        if question.last is not None:
            events = stream.last_events(question.last)
        else:
            n_notes = stream.n_notes if question.n_notes is None else question.n_notes
            events = stream.events_since(question.position, n_notes)
        return peers.Followed(
            self._me,
            session_id=session.session_id,
            period_us=session.origin.period_us,
            first_position=stream.ring.first_position,
            next_position=session.next_position,
            n_notes=stream.n_notes,
            events=[peers.to_event(event) for event in events],
        )

    def _unfollow(self, user_id: str, node_id: str) -> None:
        followers = self.followed.get(user_id, set())
        followers.discard(node_id)
        if not followers:
            self.followed.pop(user_id, None)

    def _flush(self) -> None:
        """Send what happened in this turn, a message per stream."""
        outgoing, self._outgoing = self._outgoing, {}
        for stream, events in outgoing.items():
            session, packed = stream.session, [peers.to_event(event) for event in events]
            message = peers.Events(self._me, session.user_id, session.session_id, packed)
            for node_id in self.followed.get(session.user_id, ()):
                self._calls.send(message, node_id)
