"""Messages between nodes, as msgpack. Only nodes of one VERSION hear each other: the format is no promise."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from zander.cluster.directory import Holding
from zander.errors import ClientError
from zander.streams.query import Found, Query
from zander.streams.stream import StreamSummary
from zander.wire.chunk import Chunk, Origin
from zander.wire.messages import Gap, Item, Kind, Note, Reason

VERSION = 1  # raised with every change of a message below or of what is in it; a test holds it against the Structs


class _Message(Struct, tag=True, array_like=True):
    node_id: str  # of the sender


class _Call(_Message, kw_only=True):
    call: int = 0  # the reply carries it too


# Who is there, and what they hold.


class Beat(_Message):
    """I am alive; my link opened `link_n` times and what I hold changed `n_changes` times."""

    link_n: int
    n_changes: int


class Hello(_Message):
    """Tell me all you hold."""


class State(_Message):
    """All I hold."""

    link_n: int
    n_changes: int
    holdings: list[Holding]


class Changed(_Message):
    """My stream of a user is new, or online or not; None: it is no more."""

    n_changes: int
    user_id: str
    holding: Holding | None


class Bye(_Message):
    """I stop."""


# Following a user.


class RawEvent(Struct, tag=0, array_like=True):
    """A chunk: `times_us` int64 and `samples` float32, little-endian."""

    position: int
    times_us: bytes
    samples: bytes


class NoteEvent(Struct, tag=1, array_like=True):
    """Anything but raw."""

    kind: Kind
    time_us: int
    text: str
    sender: str


class GapEvent(Struct, tag=2, array_like=True):
    """A gap."""

    start: int
    end: int
    reason: Reason


Event = RawEvent | NoteEvent | GapEvent


class Follow(_Call):
    """Send me what happens to a user. First the `last` samples, or all since `position` and `n_notes`.

    Without `n_notes`, none that was before.
    """

    user_id: str
    last: int | None = None
    position: int = 0
    n_notes: int | None = None


class Unfollow(_Message):
    """Send me no more of a user."""

    user_id: str


class Followed(_Call):
    """The answer to Follow: all that follows is sent. What came before is in it, whole from `first_position` on."""

    session_id: str
    period_us: float
    first_position: int
    next_position: int
    n_notes: int
    events: list[Event]


class Events(_Message):
    """Items of a user you follow."""

    user_id: str
    session_id: str
    events: list[Event]


# Asking for an answer.


class Ask(_Call):
    """Answer a dashboard's query."""

    query: Query


class Predict(_Call):
    """Take a consumer's prediction."""

    user_id: str
    text: str
    sender: str


class AskStreams(_Call):
    """List your streams."""


class Answered(_Call):
    """The answer to a prediction (delivered or not) or to AskStreams."""

    delivered: bool = False
    streams: list[StreamSummary] = []


class HasFound(_Call):
    """The answer to a query: what is in the buffers."""

    session_id: str
    n_channels: int
    channel_names: list[str] | None
    events: list[Event]
    text: str

    @classmethod
    def of(cls, node_id: str, found: Found) -> HasFound:
        """Pack what was found."""
        session_id, n_channels, channel_names, items, text = found
        return cls(node_id, session_id, n_channels, channel_names, [to_event(item) for item in items], text)

    def found(self, user_id: str) -> Found:
        """Unpack it again."""
        origin = Origin(user_id, self.session_id, 0.0)
        items: Any = [from_event(event, origin) for event in self.events]
        return Found(self.session_id, self.n_channels, self.channel_names, items, self.text)


class Failed(_Call):
    """A call that could not be answered: what a ClientError says."""

    status: int
    code: str
    message: str

    def error(self) -> ClientError:
        """Return it as the error it was."""
        error = ClientError(self.code, self.message)
        error.status = self.status
        return error


News = Beat | Hello | State | Changed | Bye
Call = Follow | Ask | Predict | AskStreams
Reply = Followed | HasFound | Answered | Failed
Message = News | Call | Reply | Unfollow | Events

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Write a message."""
    return _encoder.encode(message)


def decode(data: bytes) -> Message:
    """Read a message; msgspec.DecodeError when it is none."""
    try:
        return _decoder.decode(data)
    except (UnicodeError, RecursionError) as error:  # msgspec leaves these as they are
        raise msgspec.DecodeError(str(error)) from None


def to_event(item: Item) -> Event:
    """Pack an item of a stream."""
    if isinstance(item, Chunk):
        times_us = item.times_us.astype("<i8", copy=False).tobytes()
        return RawEvent(item.position, times_us, item.samples.astype("<f4", copy=False).tobytes())
    if isinstance(item, Gap):
        return GapEvent(item.start, item.end, item.reason)
    return NoteEvent(*item)


def from_event(event: Event, origin: Origin) -> Item:
    """Unpack it again."""
    if isinstance(event, NoteEvent):
        return Note(event.kind, event.time_us, event.text, event.sender)
    if isinstance(event, GapEvent):
        return Gap(origin.session_id, event.start, event.end, event.reason)
    times_us = np.frombuffer(event.times_us, "<i8")
    samples = np.frombuffer(event.samples, "<f4").reshape(len(times_us), -1)
    return Chunk(origin, event.position, times_us, samples)
