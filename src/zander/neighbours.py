"""What the hub needs of its neighbours: whoever stores, and the other nodes. It knows neither."""

from __future__ import annotations

from typing import Literal, Protocol

from zander.chunk import Chunk
from zander.messages import Note
from zander.outbox import Outbox
from zander.pile import PredictionRecord, SessionRecord
from zander.query import Answer, Query
from zander.stream import Stream, StreamSummary

LinkState = Literal["off", "up", "down"]


class Recorder(Protocol):
    """What the hub needs of whoever stores; none of it waits."""

    def record_session(self, record: SessionRecord) -> None: ...
    def record_chunk(self, chunk: Chunk) -> bool: ...
    def record_prediction(self, record: PredictionRecord) -> bool: ...


class Broadcast(Protocol):
    """What the hub needs of the other nodes; `state` tells whether they can be reached."""

    @property
    def state(self) -> LinkState: ...

    @property
    def n_peers(self) -> int: ...

    def announce(self, user_id: str, stream: Stream | None) -> None:
        """Tell the others that this node's stream of the user changed its status, or (None) is no more."""

    def publish(self, stream: Stream, event: Chunk | Note) -> None:
        """Pass an event on to the nodes that follow the user."""

    def unfollow(self, user_id: str) -> None:
        """Nobody here listens to the user any more."""

    async def subscribe(self, outbox: Outbox, last: int) -> None:
        """Call `hub.listen` once what the owning node has buffered is at hand."""

    async def ask(self, query: Query) -> Answer:
        """Let the owning node answer; NotFound without one, Unavailable when it doesn't answer."""

    async def predict(self, user_id: str, text: str, sender: str) -> bool:
        """Let the owning node take a prediction; errors as for `ask`."""

    async def streams(self) -> list[StreamSummary]:
        """Return the streams online on the other nodes."""
