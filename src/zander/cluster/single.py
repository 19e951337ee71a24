"""No other nodes: the null object in the place of a `Cluster`, where there is no Redis."""

from __future__ import annotations

from typing import Literal

from zander.delivery.outbox import Outbox
from zander.delivery.subscribers import Subscribers
from zander.errors import NotFound
from zander.streams.query import Found, Query
from zander.streams.stream import Stream, StreamSummary
from zander.wire.messages import Status


class NoPeers:
    """The peers of a node that is alone."""

    state: Literal["off"] = "off"
    n_peers = 0

    def __init__(self, subscribers: Subscribers) -> None:
        self._subscribers = subscribers

    def announce(self, user_id: str, stream: Stream | None) -> None:
        pass

    def unfollow(self, user_id: str) -> None:
        pass

    def user_of(self, session_id: str) -> str | None:
        return None

    def status(self, user_id: str) -> Status:
        return Status(user_id, online=False)

    async def subscribe(self, outbox: Outbox, last: int) -> None:
        self._subscribers.add(outbox, self.status(outbox.user_id), [])

    async def join(self, outbox: Outbox, at_a_loss: bool) -> int | None:
        self._subscribers.add(outbox, self.status(outbox.user_id), [])
        return None

    async def ask(self, query: Query) -> Found:
        raise NotFound(f"no stream of user {query.user_id}")

    async def predict(self, user_id: str, text: str, sender: str) -> bool:
        raise NotFound(f"no stream of user {user_id}")

    async def streams(self) -> list[StreamSummary]:
        return []
