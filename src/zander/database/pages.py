"""A page of a user's past: read, and turned into text, in pieces small enough that nothing else has to wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Literal
from uuid import UUID

from zander.database.history import NoteMark, Past, RawMark
from zander.wire.chunk import Chunk
from zander.wire.messages import Note

PIECE_SAMPLES = 256
PIECE_NOTES = 64
TURN_SAMPLES = 64  # turned into text before the event loop gets its turn

# A page ends early rather than grow beyond this: there may be 1,024 channels, and a prediction may have a megabyte.
MAX_RAW_BYTES = 1 << 20
MAX_TEXT_CHARACTERS = 4 << 20
MAX_RUNS = 256  # they are listed in a header


async def raw_page(
    past: Past, user_id: str, mark: RawMark, end_us: int, *, limit: int
) -> tuple[list[Chunk], RawMark | None]:
    """Read up to `limit` samples behind the mark; return them and the mark of the next page, None at the end."""
    chunks: list[Chunk] = []
    n, nbytes = 0, 0
    while n < limit and nbytes < MAX_RAW_BYTES and len(chunks) < MAX_RUNS:
        found = await past.raw(user_id, mark, end_us, min(PIECE_SAMPLES, limit - n))
        if not found:
            return chunks, None
        chunks += found
        n += sum(map(len, found))
        nbytes += sum(chunk.samples.nbytes for chunk in found)
        last = found[-1]
        mark = RawMark(int(last.times_us[-1]), UUID(last.origin.session_id), last.end - 1)
    return chunks, mark if await past.raw(user_id, mark, end_us, 1) else None


async def notes_page(
    past: Past, user_id: str, kind: Literal["features", "prediction"], mark: NoteMark, end_us: int, *, limit: int
) -> tuple[list[Note], NoteMark | None]:
    """Read up to `limit` features or predictions behind the mark; return them and the mark of the next page."""
    notes: list[Note] = []
    n_characters = 0
    while len(notes) < limit and n_characters < MAX_TEXT_CHARACTERS:
        found = await past.notes(user_id, kind, mark, end_us, min(PIECE_NOTES, limit - len(notes)))
        if not found:
            return notes, None
        notes += found
        n_characters += sum(len(note.text) for note in found)
        mark = mark.behind(found)
    return notes, mark if await past.notes(user_id, kind, mark, end_us, 1) else None


async def frames(chunks: Iterable[Chunk]) -> list[str]:
    """Write every sample in the original form."""
    texts: list[str] = []
    n_before = 0
    for chunk in chunks:
        for piece in chunk.pieces(TURN_SAMPLES):
            texts += piece.json_frames
            if len(texts) - n_before >= TURN_SAMPLES or piece.samples.nbytes > 1 << 14:
                n_before = len(texts)
                await asyncio.sleep(0)
    return texts
