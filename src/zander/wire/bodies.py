"""Bodies of answers over REST, as JSON or npy, whether the samples come from memory or from the database.

They are made in pieces of about a millisecond, so that nobody has to wait for a long one, and each is made when the one
before it is on its way, so that one that nobody reads takes no more memory than what it is made of.
"""

from __future__ import annotations

import io
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from zander.wire.chunk import Chunk
from zander.wire.codec import dumps
from zander.wire.messages import Note

JSON_TYPE = "application/json"
NPY_TYPE = "application/octet-stream"
MAX_HEADER_BYTES = 1 << 10  # of one that grows with the data: nginx takes 4 KiB of headers in all, by default
PIECE_SAMPLES = 64  # in a piece
PIECE_BYTES = 1 << 14  # of samples in a piece: there may be 1,024 channels
PIECE_TEXT = 1 << 16  # characters in a piece, of texts that are there already
STRUCT_BYTES = 500  # that a Struct takes, about


class Answer:
    """A response body, in pieces that are made as they are taken, and its headers.

    `nbytes` is the memory that it takes until then.
    """

    headers: dict[str, str]

    def __init__(
        self,
        pieces: Iterable[bytes],
        nbytes: int,
        content_type: str = JSON_TYPE,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.pieces = iter(pieces)
        self.nbytes = nbytes
        self.content_type = content_type
        self.headers = dict(headers or {})


def text_answer(text: str) -> Answer:
    """Write JSON text."""
    return Answer([text.encode()], len(text))


def json_answer(fields: Mapping[str, object], name: str, lists: Iterable[Sequence[str]], nbytes: int) -> Answer:
    """Write an object: its `fields`, and last a list of texts that come in pieces."""
    head = dumps(fields)[:-1] + "," * bool(fields)
    return Answer(_json_pieces(f'{head}"{name}":[', lists), nbytes)


def list_answer(fields: Mapping[str, object], name: str, structs: Sequence[object]) -> Answer:
    """Write an object: its `fields`, and last a list of Structs."""
    return json_answer(fields, name, _struct_texts(structs), STRUCT_BYTES * len(structs))


def samples_answer(user_id: str, sample_type: str, items: Sequence[Chunk | Note], **fields: object) -> Answer:
    """Write samples or notes as JSON; `fields` come before them."""
    n = sum(len(item) if isinstance(item, Chunk) else 1 for item in items)
    head = {"user_id": user_id, "sample_type": sample_type, "n": n, **fields}
    return json_answer(head, "samples", texts(items), sum(map(item_bytes, items)))


def npy_answer(
    chunks: Sequence[Chunk], n_channels: int, channel_names: list[str] | None, headers: Mapping[str, str]
) -> Answer:
    """Write samples as `numpy.load` reads them; without any, the array has the shape `(0, n_channels)`.

    Holes cannot be seen in an array, so `X-Positions` lists the runs without one. What is too long for a header is left
    out, and `X-Omitted` names it.
    """
    described = {"X-Positions": json.dumps(list(_runs(chunks))), "X-Channel-Names": json.dumps(channel_names)}
    described |= headers
    if chunks:
        described["X-Position"] = str(chunks[0].position)
        described["X-Time"] = str(int(chunks[0].times_us[0]) / 1e6)
        described["X-Time-Last"] = str(int(chunks[-1].times_us[-1]) / 1e6)
    head = io.BytesIO()
    shape = sum(map(len, chunks)), chunks[0].samples.shape[1] if chunks else n_channels
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
    pieces = _npy_pieces(head.getvalue(), chunks)
    return Answer(pieces, sum(map(item_bytes, chunks)), NPY_TYPE, _short(described))


def _short(headers: Mapping[str, str]) -> dict[str, str]:
    """Leave out what a proxy would refuse, and name it."""
    found = {name: value for name, value in headers.items() if len(value) <= MAX_HEADER_BYTES}
    omitted = ", ".join(name for name in headers if name not in found)
    return {**found, "X-Omitted": omitted} if omitted else found


def texts(items: Iterable[Chunk | Note]) -> Iterator[list[str]]:
    """Write every sample in the original form, some at a time; nothing is kept of what has been written."""
    waiting = deque(items)
    del items
    while waiting:
        item = waiting.popleft()
        if isinstance(item, Chunk):
            yield from _sample_texts(item)
        else:
            found = [item.text]
            while waiting and len(found) < PIECE_SAMPLES and sum(map(len, found)) < PIECE_TEXT:
                following = waiting[0]
                if isinstance(following, Chunk):
                    break
                found.append(following.text)
                waiting.popleft()
            yield found


def _sample_texts(chunk: Chunk) -> Iterator[list[str]]:
    n = max(1, min(PIECE_SAMPLES, PIECE_BYTES // chunk.samples[0].nbytes))
    pieces = chunk.pieces(n)[::-1]
    while pieces:
        yield pieces.pop().json_frames


def item_bytes(item: Chunk | Note) -> int:
    """Return the memory that a chunk or a note takes, about."""
    return item.samples.nbytes + item.times_us.nbytes if isinstance(item, Chunk) else len(item.text)


def _struct_texts(structs: Iterable[object]) -> Iterator[list[str]]:
    found, n_characters = list[str](), 0
    for struct in structs:
        found.append(dumps(struct))
        n_characters += len(found[-1])
        if len(found) == PIECE_SAMPLES or n_characters > PIECE_TEXT:
            yield found
            found, n_characters = [], 0
    yield found


def _json_pieces(head: str, lists: Iterable[Sequence[str]]) -> Iterator[bytes]:
    before = head
    for found in lists:
        if found:
            yield f"{before}{','.join(found)}".encode()
            before = ","
    yield f"{head}]}}".encode() if before is head else b"]}"


def _npy_pieces(head: bytes, chunks: Iterable[Chunk]) -> Iterator[bytes]:
    waiting = deque(chunks)
    del chunks
    yield head
    while waiting:
        for piece in waiting.popleft().pieces():
            yield piece.samples.astype("<f4", copy=False).tobytes()


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
