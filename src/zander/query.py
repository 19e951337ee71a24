"""What a dashboard asks of a stream, and the whole answer, ready for HTTP: the same on whichever node it lands."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Literal

import numpy as np
from msgspec import Struct

from zander.chunk import Chunk
from zander.errors import BadMessage, NotFound
from zander.stream import SampleType, Stream
from zander.wire import dumps

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
    head = dumps({"user_id": query.user_id, "sample_type": query.sample_type, "n": len(texts)})
    return Answer(f'{head[:-1]},"samples":[{",".join(texts)}]}}'.encode())


def _npy(stream: Stream, chunks: list[Chunk]) -> Answer:
    """Write what `numpy.load` reads; holes cannot be seen in an array, so `X-Positions` lists the runs."""
    n_channels = stream.session.n_channels or 0
    samples = np.concatenate([chunk.samples for chunk in chunks] or [np.empty((0, n_channels), np.float32)])
    file = io.BytesIO()
    np.save(file, samples, allow_pickle=False)
    headers = {
        "X-Session-Id": stream.session.session_id,
        "X-Positions": json.dumps(list(_runs(chunks))),
        "X-Channel-Names": json.dumps(stream.session.channel_names),
    }
    if chunks:
        headers["X-Position"] = str(chunks[0].position)
        headers["X-Time"] = str(int(chunks[0].times_us[0]) / 1e6)
        headers["X-Time-Last"] = str(int(chunks[-1].times_us[-1]) / 1e6)
    return Answer(file.getvalue(), "application/octet-stream", headers)


def _runs(chunks: Iterable[Chunk]) -> Iterable[tuple[int, int]]:
    """Yield the half-open position ranges without a hole."""
    run: tuple[int, int] | None = None
    for chunk in chunks:
        if run and run[1] == chunk.position:
            run = (run[0], chunk.end)
            continue
        if run:
            yield run
        run = (chunk.position, chunk.end)
    if run:
        yield run
