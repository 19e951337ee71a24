"""What an answer over REST is made of, whether it comes from memory or from the database."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from zander.wire.chunk import Chunk
from zander.wire.codec import dumps

NPY_TYPE = "application/octet-stream"


def samples_json(head: Mapping[str, object], texts: Sequence[str]) -> bytes:
    """Write an object with the fields of `head`, and `samples` that are JSON already."""
    return f'{dumps(head)[:-1]},"samples":[{",".join(texts)}]}}'.encode()


def npy(chunks: Sequence[Chunk], n_channels: int) -> bytes:
    """Write what `numpy.load` reads; `n_channels` is for no samples at all."""
    samples = np.concatenate([chunk.samples for chunk in chunks] or [np.empty((0, n_channels), np.float32)])
    file = io.BytesIO()
    np.save(file, samples, allow_pickle=False)
    return file.getvalue()


def npy_headers(chunks: Sequence[Chunk], channel_names: list[str] | None) -> dict[str, str]:
    """Say what is in the array; holes cannot be seen in it, so `X-Positions` lists the runs."""
    headers = {
        "X-Positions": json.dumps(list(_runs(chunks))),
        "X-Channel-Names": json.dumps(channel_names),
    }
    if chunks:
        headers["X-Position"] = str(chunks[0].position)
        headers["X-Time"] = str(int(chunks[0].times_us[0]) / 1e6)
        headers["X-Time-Last"] = str(int(chunks[-1].times_us[-1]) / 1e6)
    return headers


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
