"""The native hot path: samples of a relay's connection, without a Python object per message; the journal; JSON.

The results are those of `wire`, `streams` and `journal`, to the bit. Whatever is not a raw message
that simply follows the one before it is left to them, and so is every error.
"""

import asyncio
from collections.abc import Callable, Iterable

from zander.delivery.subscribers import Subscriber
from zander.errors import CloseCode
from zander.streams.stream import Stream
from zander.wire.chunk import Samples, Times

DEBUG: bool
"""Whether it was built without optimisation: for no measurement."""

class FrameReader:
    """The frames on one relay's connection, and the samples that were taken from them in this loop iteration."""

    stream: Stream
    user_id: str  # of its session

    def __init__(self, stream: Stream, clock: Callable[[], int] | None = None) -> None:
        """Begin at the boundary of a frame. `clock` is that of the samples that carry no time, µs; None: the system's.

        ValueError unless the session's channels are known.
        """

    def attach(
        self,
        closed: asyncio.Future[CloseCode],
        waiting: list[FrameReader],
        schedule: Callable[[], object],
        pass_on: Callable[[bytes], None],
    ) -> None:
        """Set whom `receive` asks whether the relay is to be closed, and whom it calls.

        A reader that has samples appends itself to `waiting`, and calls `schedule` when it is the first there.
        `pass_on` gets what `feed` returns; once the relay is closed everything is kept, and `pass_on` gets b"".
        """

    def receive(self, data: bytes) -> None:
        """Take what was received, as a protocol's `data_received`. ValueError unless it is attached."""

    def detach(self) -> bytes:
        """End what `attach` began, and return what is kept, for the standard parser."""

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

    def write_direct(self, subscribers: Iterable[Subscriber]) -> list[Subscriber]:
        """Write the samples to subscribers whose cursor is at the first and who can be written to; return the others.

        Each gets what `json` writes, and its cursor moves behind it.
        """

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

def journal_frames(readers: list[FrameReader]) -> tuple[bytes, int, int]:
    """Write the samples of each, which has some, as a frame of the journal, up to about 1 MiB, at least one.

    Return the frames, how many samples they hold, and of how many readers they are.
    """

def split_frames(data: bytes, max_others: int) -> tuple[list[tuple[str, int, int, int, int, bytes] | bytes], int]:
    """Read the whole frames of the journal at the front, and return how many bytes they take too.

    A raw record comes as its fields, joined to the raw before it in its session where it follows; any other as its
    payload. Behind `max_others` payloads nothing more is read.
    """

def commit(readers: list[FrameReader]) -> None:
    """Write the samples of each, which has some, to its ring, and the state behind them to its session."""

def clear(readers: list[FrameReader]) -> None:
    """Forget the samples of each."""

def sample_texts(prefix: str, position: int, times_us: Times, samples: Samples) -> list[str] | None:
    """Write each sample as the original JSON message, which begins with `prefix`.

    None for what the twin has to write: times nearer to 0 than 100 µs, which have an exponent, and arrays that are
    empty, of other types, or not aligned; samples that are not contiguous.
    """

def chunk_text(prefix: str, position: int, times_us: Times, samples: Samples) -> str | None:
    """Write all samples as one JSON message; None as above."""
