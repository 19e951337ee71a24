"""What a dashboard asks of a stream, and the whole answer, ready for HTTP: the same on whichever node it lands."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from zander.errors import BadMessage, NotFound
from zander.streams.stream import SampleType, Stream
from zander.wire.bodies import NPY_TYPE, npy, npy_headers, samples_json
from zander.wire.chunk import Chunk
from zander.wire.codec import dumps

What = Literal["latest", "last", "range", "stats"]
AnswerFormat = Literal["json", "npy"]


class Query(Struct):
    """One question about the buffer of one user."""

    user_id: str
    what: What
    sample_type: SampleType = "features"
    n: int = 1
    start_us: int = 0
    end_us: int = 0
    format: AnswerFormat = "json"


class Answer(Struct):
    """A response body and its headers."""

    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = {}


def answer(stream: Stream, query: Query) -> Answer:
    """Answer from the stream's buffers; NotFound when there is nothing, BadMessage for features as npy."""
    if query.what == "stats":
        return Answer(dumps(stream.stats()).encode())
    if query.sample_type == "raw":
        return _raw(stream, query)
    if query.format == "npy":
        raise BadMessage("bad_format", f"expected sample_type raw for format npy, got {query.sample_type}")
    history = stream.features if query.sample_type == "features" else stream.predictions
    notes = history.between(query.start_us, query.end_us) if query.what == "range" else history.last(query.n)
    _refuse_empty(len(history), query)
    return _json(query, [note.text for note in notes])


def _raw(stream: Stream, query: Query) -> Answer:
    ring = stream.ring
    _refuse_empty(len(ring), query)
    runs = ring.between(query.start_us, query.end_us) if query.what == "range" else ring.last(query.n)
    chunks = stream.chunks(runs)
    if query.format == "npy":
        return _npy(stream, chunks)
    return _json(query, [frame for chunk in chunks for frame in chunk.json_frames])


def _refuse_empty(n_held: int, query: Query) -> None:
    if not n_held:
        raise NotFound(f"no {query.sample_type} of user {query.user_id} in the buffer")


def _json(query: Query, texts: list[str]) -> Answer:
    if query.what == "latest":
        return Answer(texts[-1].encode())
    head = {"user_id": query.user_id, "sample_type": query.sample_type, "n": len(texts)}
    return Answer(samples_json(head, texts))


def _npy(stream: Stream, chunks: list[Chunk]) -> Answer:
    session = stream.session
    headers = {"X-Session-Id": session.session_id} | npy_headers(chunks, session.channel_names)
    return Answer(npy(chunks, session.n_channels or 0), NPY_TYPE, headers)
