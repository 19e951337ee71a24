"""Questions about the samples of a user, and the answers from a stream's buffers.

The answer is ready for HTTP: it is the same on whichever node the question comes in.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from zander.errors import BadMessage, NotFound
from zander.streams.stream import SampleType, Stream
from zander.wire.bodies import Answer, json_answer, npy_answer
from zander.wire.codec import dumps

What = Literal["latest", "last", "range", "stats"]
AnswerFormat = Literal["json", "npy"]


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
        """Raise BadMessage when the range ends before it starts."""
        if self.end_us < self.start_us:
            raise BadMessage("bad_parameter", "end: expected a time that is not before start")

    def check_format(self) -> None:
        """Raise BadMessage for features or predictions as npy."""
        if self.format == "npy" and self.sample_type != "raw":
            raise BadMessage("bad_format", f"expected sample_type raw for format npy, got {self.sample_type}")


def answer(stream: Stream, query: Query) -> Answer:
    """Answer from the stream's buffers; NotFound when there is nothing, BadMessage for features as npy."""
    if query.what == "stats":
        return Answer(dumps(stream.stats()).encode())
    query.check_format()
    if query.sample_type == "raw":
        return _raw(stream, query)
    history = stream.features if query.sample_type == "features" else stream.predictions
    notes = history.between(query.start_us, query.end_us) if query.what == "range" else history.last(query.n)
    _refuse_empty(len(history), query)
    return _json(query, [note.text for note in notes])


def _raw(stream: Stream, query: Query) -> Answer:
    ring, session = stream.ring, stream.session
    _refuse_empty(len(ring), query)
    runs = ring.between(query.start_us, query.end_us) if query.what == "range" else ring.last(query.n)
    chunks = stream.chunks(runs)
    if query.format == "npy":
        of_session = {"X-Session-Id": session.session_id}
        return npy_answer(chunks, session.n_channels or 0, session.channel_names, of_session)
    return _json(query, [frame for chunk in chunks for frame in chunk.json_frames])


def _refuse_empty(n_held: int, query: Query) -> None:
    if not n_held:
        raise NotFound(f"no {query.sample_type} of user {query.user_id} in the buffer")


def _json(query: Query, texts: list[str]) -> Answer:
    if query.what == "latest":
        return Answer(texts[-1].encode())
    return json_answer(query.user_id, query.sample_type, texts)
