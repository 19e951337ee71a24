"""The native hot path: what comes on a relay's connection, peeled off without a Python object per message; and JSON.

The results are those of `wire`, `session`, `ring`, `journal` and `chunk`, to the bit. Whatever is not a raw message
that simply follows the one before it is left to them, and so is every error.
"""

import asyncio
from collections.abc import Callable, Iterable

from zander.delivery.outbox import Outbox
from zander.errors import CloseCode
from zander.streams.stream import Stream
from zander.wire.chunk import Samples, Times

DEBUG: bool
"""Whether it was built without optimisation: for no measurement."""

class Lane:
    """One relay's connection, and the samples that were peeled off it in this turn of the loop."""

    stream: Stream
    user_id: str  # of its session

    def __init__(self, stream: Stream, clock: Callable[[], int] | None = None) -> None:
        """Begin at the boundary of a frame. `clock` is that of the samples that carry no time, µs; None: the system's.

        ValueError unless the session's channels are known.
        """

    def open(
        self,
        closed: asyncio.Future[CloseCode],
        waiting: list[Lane],
        wake: Callable[[], object],
        leave: Callable[[bytes], None],
    ) -> None:
        """Say whom `receive` asks whether the relay is to be closed, and whom it tells.

        A lane that has samples puts itself into `waiting`, and calls `wake` when it is the first there. `leave` gets
        what `feed` returns; once the relay is closed everything is kept, and `leave` gets b"".
        """

    def receive(self, data: bytes) -> None:
        """Take what was received, as a protocol's `data_received`. ValueError unless it is open."""

    def shut(self) -> bytes:
        """End what `open` began, and return what is kept, for the standard parser."""

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes; None when nothing is left of them but perhaps an unfinished frame, which is kept.

        Else what waits has to be taken away, the bytes returned are for the standard parser, and more is to be fed, if
        only b"".
        """

    @property
    def waits(self) -> bool:
        """Whether there are samples."""

    @property
    def position(self) -> int:
        """Position of the first of them."""

    @property
    def end(self) -> int:
        """Position after the last."""

    def json(self) -> bytes | None:
        """Write each as the original JSON message, in a WebSocket frame; None for times that the twin has to write."""

    def give(self, outboxes: Iterable[Outbox]) -> list[Outbox]:
        """Write the samples past the queue of those that stand before them, and take it; return the others.

        Each gets what `json` writes, and stands behind it then.
        """

    def samples(self) -> tuple[bytes, bytes]:
        """Return their times, int64 `(n,)` in µs, and the samples, float32 `(n, n_channels)` in µV."""

    def settle(self) -> None:
        """Write where they end to the session; the ring is somebody else's to write."""

    @property
    def n_peeled(self) -> int:
        """How many messages were peeled off."""

    @property
    def n_passed(self) -> tuple[int, int, int]:
        """How many frames were left to the standard parser: for the frame itself, the message, or the session."""

def journal_frames(lanes: list[Lane]) -> tuple[bytes, int, int]:
    """Write what waits in each, which is not nothing, as a frame of the journal, up to about 1 MiB, at least one.

    Return the frames, how many samples they hold, and of how many lanes they are.
    """

def split_frames(data: bytes, max_others: int) -> tuple[list[tuple[str, int, int, int, int, bytes] | bytes], int]:
    """Read the whole frames of the journal at the front, and return how many bytes they take too.

    A raw record comes as its fields, joined to the raw before it in its session where it follows; any other as its
    payload. Behind `max_others` payloads nothing more is read.
    """

def commit(lanes: list[Lane]) -> None:
    """Write what waits in each, which is not nothing, to its ring, and where it ends to its session."""

def clear(lanes: list[Lane]) -> None:
    """Forget what waits in each."""

def sample_texts(prefix: str, position: int, times_us: Times, samples: Samples) -> list[str] | None:
    """Write each sample as the original JSON message, which begins with `prefix`.

    None for what the twin has to write: times nearer to 0 than 100 µs, which have an exponent, and arrays that are
    empty, of other types, or not aligned; samples that are not contiguous.
    """

def chunk_text(prefix: str, position: int, times_us: Times, samples: Samples) -> str | None:
    """Write all samples as one JSON message; None as above."""
