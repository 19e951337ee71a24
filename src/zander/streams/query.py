"""Questions about the samples of a user, what a stream's buffers have of them, and the answer that is made of that.

The node that has the stream finds, and the one that was asked makes the answer: it is the same whichever that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from msgspec import Struct

from zander.errors import Conflict, NotFound
from zander.streams.stream import SampleType, Stream
from zander.wire.bodies import Answer, npy_answer, samples_answer, text_answer
from zander.wire.chunk import Chunk
from zander.wire.codec import dumps
from zander.wire.messages import Note

What = Literal["latest", "last", "range", "stats"]
AnswerFormat = Literal["json", "npy"]

MAX_FOUND_BYTES = 32 << 20  # of samples, for one question; a link between nodes carries twice that


class Query(Struct):
    """One question about a user; `range` is from `start_us` (included) to `end_us` (not included).

    The buffer answers it, and a range the database too: at most `n` samples of it.
    """

    user_id: str
    what: What
    sample_type: SampleType = "features"
    n: int = 1
    start_us: int = 0
    end_us: int = 0
    format: AnswerFormat = "json"

    def check_range(self) -> None:
        """Raise Conflict when the range ends before it starts."""
        if self.end_us < self.start_us:
            raise Conflict("bad_parameter", "end: expected a time that is not before start")

    def check_format(self) -> None:
        """Raise Conflict for features or predictions as npy."""
        if self.format == "npy" and self.sample_type != "raw":
            raise Conflict("bad_format", f"expected sample_type raw for format npy, got {self.sample_type}")


class Found(NamedTuple):
    """Copies of the samples or notes that a query asked for, oldest first, and their session; of stats, the text."""

    session_id: str = ""
    n_channels: int = 0
    channel_names: list[str] | None = None
    items: Sequence[Chunk | Note] = ()
    text: str = ""


def find(stream: Stream, query: Query) -> Found:
    """Look into the stream's buffers; NotFound when there is nothing, Conflict for features as npy or too much."""
    session = stream.session
    if query.what == "stats":
        return Found(session.session_id, text=dumps(stream.stats()))
    query.check_format()
    if query.sample_type == "raw":
        return Found(session.session_id, session.n_channels or 0, session.channel_names, _raw(stream, query))
    history = stream.features if query.sample_type == "features" else stream.predictions
    notes = history.between(query.start_us, query.end_us) if query.what == "range" else history.last(query.n)
    _refuse_empty(len(history), query)
    return Found(session.session_id, items=notes)


def answer(query: Query, found: Found) -> Answer:
    """Make the answer to a query of what was found."""
    if query.what == "stats":
        return text_answer(found.text)
    if query.format == "npy":
        chunks = [item for item in found.items if isinstance(item, Chunk)]
        return npy_answer(chunks, found.n_channels, found.channel_names, {"X-Session-Id": found.session_id})
    if query.what == "latest":
        last = found.items[-1]
        return text_answer(last.json_frames[-1] if isinstance(last, Chunk) else last.text)
    return samples_answer(query.user_id, query.sample_type, found.items)


def _raw(stream: Stream, query: Query) -> list[Chunk]:
    ring, is_range = stream.ring, query.what == "range"
    _refuse_empty(len(ring), query)
    n = ring.n_between(query.start_us, query.end_us) if is_range else min(query.n, len(ring))
    n_most = MAX_FOUND_BYTES // (ring.nbytes // ring.capacity)
    if n > n_most:
        raise Conflict("too_large", f"expected a question for at most {n_most} samples of that size, got {n}")
    return stream.chunks(ring.between(query.start_us, query.end_us) if is_range else ring.last(query.n))


def _refuse_empty(n_held: int, query: Query) -> None:
    if not n_held:
        raise NotFound(f"no {query.sample_type} of user {query.user_id} in the buffer")
