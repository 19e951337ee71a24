"""The native hot path: samples of a relay's connection, without a Python object per message; the journal; JSON.

The results are those of `wire`, `streams` and `journal`, to the bit. Whatever is not a raw message
that simply follows the one before it is left to them, and so is every error.
"""

import asyncio
from collections.abc import Callable

from zander.delivery.outbox import Outbox
from zander.delivery.subscribers import Subscriber
from zander.errors import CloseCode
from zander.streams.stream import Stream
from zander.wire.chunk import Samples, Times

DEBUG: bool
"""Whether it was built without optimisation: for no measurement."""

def now_us() -> int:
    """Return the server's time, µs since 1970."""

def set_clock(now_us: int) -> None:
    """Let the server's clock show another time from now on."""

class Reactor:
    """All connections in one epoll set. The loop watches `fileno` for reading, and calls `turn`."""

    def __init__(self, event_loop: asyncio.AbstractEventLoop) -> None: ...
    def fileno(self) -> int: ...
    def add(self, fd: int, peername: object, protocol: asyncio.Protocol) -> Socket:
        """Take over a connected socket, which must not block and which nobody else uses or closes."""

    def turn(self) -> None:
        """Receive from all who sent, once each; take in what readers found; give the rest to the protocols."""

class Socket(asyncio.Transport):
    """The transport of one connection of a reactor. It never waits: what cannot be sent is kept."""

    def read_frames(self, reader: FrameReader) -> None:
        """Let a reader have what is received first; the protocol gets what it passes on."""

    def limit(self, bytes_per_second: float) -> None:
        """Receive no more than so much in the long run, and no more than that at once."""

    def take_throttled(self) -> bool:
        """Return whether the limit was reached since the last time."""

    def delay(self, seconds: float) -> None:
        """Hold samples that are written past a queue for so long, so that more go in one piece."""

    def write_soon(self, data: bytes) -> None:
        """Write together with what follows in this iteration of the loop, or after it."""

    def send_held(self) -> None:
        """Send what is held."""

    def take_heard(self) -> bool:
        """Return whether something was received since the last time."""

class SessionPosition:
    """Positions of a session, after its last sample."""

    next_position: int
    count: int  # position of the next sample that has none
    last_time_us: int
    n_clamped: int  # samples that were moved in time

    def __init__(self, *arguments: object, **named: object) -> None: ...

class RingPosition:
    """Position of a ring: how much it was written, and where that ended."""

    n_written: int
    next_position: int | None  # after the last sample; None before the first

    def __init__(self, *arguments: object, **named: object) -> None: ...

class CursorPosition:
    """Position of a cursor: the next sample that a subscriber is owed; no session before the first."""

    session_id: str | None
    position: int

    def __init__(self, *arguments: object, **named: object) -> None: ...

class Shortcut:
    """A subscriber's cursor, and the socket to write to past its queue; None while samples have to be offered."""

    cursor: CursorPosition
    through: Socket | None

    def __init__(self, *arguments: object, **named: object) -> None: ...

class Intake:
    """The samples of all relays in one turn, on their way to the journal, the rings and the subscribers.

    `record` appends frames of the journal with so many samples, and returns whether there was room, or None: it is
    called again with the users, and how many bytes are of each. `refuse` is told of a reader for which there was none.
    Consumers in `live` whose cursor is at the first sample and who can be written to get what `json` writes, and their
    cursor moves behind it; `offer` is told of a reader and everybody else.
    """

    n_samples: int  # taken in since the start
    n_clamped: int  # of those, moved in time
    n_given: int  # to consumers

    def __init__(
        self,
        record: Callable[..., bool | None],
        refuse: Callable[[FrameReader], object],
        offer: Callable[[FrameReader, list[Subscriber]], object],
        live: dict[str, set[Outbox]],
        followers: dict[str, Subscriber],
    ) -> None: ...
    def take(self, readers: list[FrameReader]) -> None:
        """Take in the samples of each, which has some."""

class FrameReader:
    """The frames on one connection, and the samples that were taken from them in this loop iteration.

    It begins at the boundary of a frame. Until `intercept` everything passes, but for pongs.
    """

    stream: Stream
    user_id: str  # of its session

    def __init__(self, clock: Callable[[], int] | None = None) -> None:
        """Make one. `clock` is that of the samples that carry no time, µs; None: the server's."""

    def intercept(
        self,
        stream: Stream,
        closed: asyncio.Future[CloseCode] | None = None,
        intake: Intake | None = None,
    ) -> None:
        """Take the samples of a relay until it is closed; a reactor lets `intake` have them.

        ValueError unless the session's channels are known.
        """

    def stop(self) -> None:
        """Let everything pass again."""

    @property
    def is_intercepting(self) -> bool:
        """Whether samples are taken."""

    @property
    def is_between_messages(self) -> bool:
        """Whether a parser that got all that was passed is between two messages."""

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes; None when nothing is left of them but perhaps an unfinished frame, which is kept.

        Else the samples have to be taken away, the bytes returned are for the standard parser, and more is to be fed,
        if only b"".
        """

    @property
    def has_samples(self) -> bool:
        """Whether there are samples."""

    @property
    def position(self) -> int:
        """Position of the first of them."""

    @property
    def end(self) -> int:
        """Position after the last."""

    def json(self) -> bytes | None:
        """Write each as the original JSON message, in a WebSocket frame; None for times that the twin has to write."""

    def samples(self) -> tuple[bytes, bytes]:
        """Return their times, int64 `(n,)` in µs, and the samples, float32 `(n, n_channels)` in µV."""

    def advance_session(self) -> None:
        """Write the state behind the samples to the session, but nothing to the ring."""

    @property
    def n_intercepted(self) -> int:
        """How many messages were taken."""

    @property
    def n_passed(self) -> tuple[int, int, int]:
        """How many frames were left to the standard parser: for the frame itself, the message, or the session."""

def split_frames(data: bytes, max_others: int) -> tuple[list[tuple[str, int, int, int, int, bytes] | bytes], int]:
    """Read the whole frames of the journal at the front, and return how many bytes they take too.

    A raw record comes as its fields, joined to the raw before it in its session where it follows; any other as its
    payload. Behind `max_others` payloads nothing more is read.
    """

def sample_texts(prefix: str, position: int, times_us: Times, samples: Samples) -> list[str] | None:
    """Write each sample as the original JSON message, which begins with `prefix`.

    None for what the twin has to write: times nearer to 0 than 100 µs, which have an exponent, and arrays that are
    empty, of other types, or not aligned; samples that are not contiguous.
    """

def chunk_text(prefix: str, position: int, times_us: Times, samples: Samples) -> str | None:
    """Write all samples as one JSON message; None as above."""
