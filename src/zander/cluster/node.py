"""This node among the others: what it hears from them, and what it does for them."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import Protocol, assert_never

from zander.cluster import messages
from zander.cluster.cluster import Cluster
from zander.cluster.directory import Owner, Peer
from zander.errors import NotFound
from zander.streams.query import find
from zander.streams.stream import Stream, Streams
from zander.wire.codec import PredictionIn, decode_prediction

BEAT_SECONDS = 1.0

log = logging.getLogger(__name__)


class StreamHolder(Protocol):
    """The part of the hub that other nodes reach."""

    @property
    def streams(self) -> Streams:
        """The streams that this node holds."""

    def supersede(self, user_id: str) -> None:
        """Give up a user's stream, because a newer relay has it."""

    def take_prediction(self, stream: Stream, incoming: PredictionIn, sender: str) -> bool:
        """Take in a consumer's prediction; True if a relay got it."""


class Node:
    """This node, as the others know it."""

    def __init__(self, cluster: Cluster, holder: StreamHolder) -> None:
        self._cluster = cluster
        self._holder = holder
        self._calls = cluster.calls
        self._directory = cluster.directory
        self._subscriptions = cluster.subscriptions
        self._me = cluster.link.node_id
        self._link_n = 0
        self._heard_nonsense = False  # logged once

    async def run(self) -> None:
        """Talk to the others until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._cluster.link.run(self._opened, self._receive))
            tasks.create_task(self._beat())

    # What the others say.

    def _receive(self, data: bytes) -> None:
        """Take what came; nothing on the channel may end this node: one of another version may be there."""
        try:
            self._take(messages.decode(data))
        except Exception as error:
            if not self._heard_nonsense:
                log.error("something on Redis is not for us, is a node of another version there?", exc_info=error)
            self._heard_nonsense = True

    def _take(self, message: messages.Message) -> None:
        if message.node_id == self._me:
            return
        match message:
            case messages.Events():
                self._subscriptions.take(message)
            case messages.Followed() | messages.HasFound() | messages.Answered() | messages.Failed():
                self._calls.resolve(message)
            case messages.Follow() | messages.Ask() | messages.Predict() | messages.AskStreams():
                self._calls.answer(message, lambda: self._reply(message))
            case messages.Unfollow():
                self._cluster.followers.unfollow(message.user_id, message.node_id)
            case _:
                self._learn(message)

    def _learn(self, news: messages.News) -> None:
        node_id, now = news.node_id, monotonic()
        match news:
            case messages.Beat():
                if not self._directory.beat(node_id, news.link_n, news.n_changes, now):
                    self._calls.send(messages.Hello(self._me), node_id)
            case messages.Changed():
                if self._directory.change(node_id, news.n_changes, news.user_id, news.holding, now):
                    self._moved(news.user_id)
                else:
                    self._calls.send(messages.Hello(self._me), node_id)
            case messages.Hello():
                self._calls.send(self._state(), node_id)
                self._subscriptions.refollow(node_id)
            case messages.State():
                peer = Peer(news.link_n, news.n_changes, news.holdings, now)
                for user_id in self._directory.replace(node_id, peer):
                    self._moved(user_id)
                self._subscriptions.refollow(node_id)
            case messages.Bye():
                self._lose(node_id)
            case _:
                assert_never(news)

    def _moved(self, user_id: str) -> None:
        """Act on what another node now holds, or holds no more."""
        mine, owner = self._cluster.holdings.get(user_id), self._directory.owner(user_id)
        if mine and owner:
            if owner.order > Owner(self._me, mine).order:
                self._holder.supersede(user_id)
                self._cluster.announce(user_id, None)
            else:
                self._calls.send(self._state(), owner.node_id)  # it does not know yet that ours is newer
        self._subscriptions.reconcile(user_id)

    def _lose(self, node_id: str) -> None:
        """Forget a node; one that said that it stops has sent everything before."""
        self._cluster.followers.lose(node_id)
        for user_id in self._directory.remove(node_id):
            self._moved(user_id)

    def _opened(self) -> None:
        self._link_n += 1
        self._subscriptions.suspend()
        self._calls.send(messages.Hello(self._me))
        self._calls.send(self._state())

    def _state(self) -> messages.State:
        cluster = self._cluster
        return messages.State(self._me, self._link_n, cluster.n_changes, list(cluster.holdings.values()))

    async def _beat(self) -> None:
        while True:
            self._calls.send(messages.Beat(self._me, self._link_n, self._cluster.n_changes))
            for node_id in self._directory.silent(monotonic()):
                self._subscriptions.suspend(node_id)
                self._lose(node_id)
            self._subscriptions.reconcile_all()
            await asyncio.sleep(BEAT_SECONDS)

    # What this node does for the others.

    def _reply(self, question: messages.Call) -> messages.Reply:
        """Answer another node; NotFound when this one does not hold the user any more."""
        match question:
            case messages.Ask():
                return messages.HasFound.of(self._me, find(self._held(question.query.user_id), question.query))
            case messages.Predict():
                stream = self._held(question.user_id)
                delivered = self._holder.take_prediction(stream, decode_prediction(question.text), question.sender)
                return messages.Answered(self._me, delivered=delivered)
            case messages.AskStreams():
                return messages.Answered(self._me, streams=self._holder.streams.online())
            case messages.Follow():
                return self._follow(question)

    def _held(self, user_id: str) -> Stream:
        if stream := self._holder.streams.get(user_id):
            return stream
        raise NotFound(f"no stream of user {user_id}")

    def _follow(self, question: messages.Follow) -> messages.Followed:
        stream = self._held(question.user_id)
        self._cluster.followers.follow(question.user_id, question.node_id)
        session = stream.session
        if question.last is not None:
            items = stream.last_items(question.last)
        else:
            n_notes = stream.n_notes if question.n_notes is None else question.n_notes
            items = stream.items_since(question.position, n_notes)
        return messages.Followed(
            self._me,
            session_id=session.session_id,
            period_us=session.origin.period_us,
            first_position=stream.ring.first_position,
            next_position=session.next_position,
            n_notes=stream.n_notes,
            events=[messages.to_event(item) for item in items],
        )
