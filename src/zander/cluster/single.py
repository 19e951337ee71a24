"""A node that has no Redis: the null object in the place of the others."""

from __future__ import annotations

from zander.delivery.outbox import Outbox
from zander.errors import NotFound
from zander.hub.hub import Hub
from zander.hub.interfaces import LinkState
from zander.streams.query import Answer, Query
from zander.streams.stream import Stream, StreamSummary
from zander.wire.chunk import Chunk
from zander.wire.messages import Note, Status


class Alone:
    """The Broadcast of a node that has no Redis."""

    state: LinkState = "off"
    n_peers = 0
    followed: frozenset[str] = frozenset()

    def attach(self, hub: Hub) -> None:
        self._hub = hub

    async def run(self) -> None:
        """Have nobody to talk to."""

    async def close(self) -> None:
        """Have nobody to take leave of."""

    def announce(self, user_id: str, stream: Stream | None) -> None:
        pass

    def publish(self, stream: Stream, event: Chunk | Note) -> None:
        pass

    def unfollow(self, user_id: str) -> None:
        pass

    def status(self, user_id: str) -> Status:
        return Status(user_id, online=False)

    async def subscribe(self, outbox: Outbox, last: int) -> None:
        self._hub.listen(outbox, self.status(outbox.user_id), [])

    async def join(self, outbox: Outbox, at_a_loss: bool) -> int | None:
        self._hub.listen(outbox, self.status(outbox.user_id), [])
        return None

    async def ask(self, query: Query) -> Answer:
        raise NotFound(f"no stream of user {query.user_id}")

    async def predict(self, user_id: str, text: str, sender: str) -> bool:
        raise NotFound(f"no stream of user {user_id}")

    async def streams(self) -> list[StreamSummary]:
        return []
