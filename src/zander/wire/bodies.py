"""Bodies of answers over REST, as JSON or npy, whether the samples come from memory or from the database."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from msgspec import Struct

from zander.wire.chunk import Chunk
from zander.wire.codec import dumps

JSON_TYPE = "application/json"
NPY_TYPE = "application/octet-stream"
ITERATION_SAMPLES = 64  # turned into text in one iteration of the event loop
ITERATION_BYTES = 1 << 14  # of samples: there may be 1,024 channels


class Answer(Struct):
    """A response body and its headers."""

    body: bytes
    content_type: str = JSON_TYPE
    headers: dict[str, str] = {}


def json_answer(user_id: str, sample_type: str, texts: Sequence[str], **fields: object) -> Answer:
    """Write samples that are JSON text already; `fields` come before them."""
    head = dumps({"user_id": user_id, "sample_type": sample_type, "n": len(texts), **fields})
    return Answer(f'{head[:-1]},"samples":[{",".join(texts)}]}}'.encode())


def npy_answer(
    chunks: Sequence[Chunk], n_channels: int, channel_names: list[str] | None, headers: Mapping[str, str]
) -> Answer:
    """Write samples as `numpy.load` reads them; without any, the array has the shape `(0, n_channels)`.

    Holes cannot be seen in an array, so `X-Positions` lists the runs without one.
    """
    samples = np.concatenate([chunk.samples for chunk in chunks] or [np.empty((0, n_channels), np.float32)])
    file = io.BytesIO()
    np.save(file, samples, allow_pickle=False)
    described = {"X-Positions": json.dumps(list(_runs(chunks))), "X-Channel-Names": json.dumps(channel_names)}
    if chunks:
        described["X-Position"] = str(chunks[0].position)
        described["X-Time"] = str(int(chunks[0].times_us[0]) / 1e6)
        described["X-Time-Last"] = str(int(chunks[-1].times_us[-1]) / 1e6)
    return Answer(file.getvalue(), NPY_TYPE, {**described, **headers})


async def json_frames(chunks: Iterable[Chunk]) -> list[str]:
    """Write every sample in the original form, with an iteration of the event loop in between for the others."""
    texts: list[str] = []
    n_before = 0
    for chunk in chunks:
        for piece in chunk.pieces(ITERATION_SAMPLES):
            texts += piece.json_frames
            if len(texts) - n_before >= ITERATION_SAMPLES or piece.samples.nbytes > ITERATION_BYTES:
                n_before = len(texts)
                await asyncio.sleep(0)
    return texts


def _runs(chunks: Iterable[Chunk]) -> Iterator[tuple[int, int]]:
    """Yield the half-open position ranges without a hole, session by session."""
    first: Chunk | None = None
    end = ("", 0)
    for chunk in chunks:
        if first and end != (chunk.origin.session_id, chunk.position):
            yield first.position, end[1]
            first = None
        first, end = first or chunk, (chunk.origin.session_id, chunk.end)
    if first:
        yield first.position, end[1]
