"""All that waits for the database on this machine: this process' journal, and those of dead ones before it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID

from zander.journal.batch import Batch
from zander.journal.journal import Journal, orphans
from zander.journal.pgcopy import decode_rows, row_encoder
from zander.journal.reader import split_records
from zander.journal.records import GapRecord, RawRecord, Record
from zander.native import IS_NATIVE
from zander.wire.chunk import Chunk, Origin
from zander.wire.messages import Gap

BATCH_BYTES = 8 << 20  # what waits after an outage is written in such pieces
# Sorted in 2 ms, if they are records of one sample; then the event loop gets its turn.
READ_BYTES = (2 << 20) if IS_NATIVE else (256 << 10)

log = logging.getLogger(__name__)


class Journals:
    """`own` takes what comes; `orphans` only have to be written, and go first."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Open the folder; OSError when it cannot be had."""
        self.own = Journal.create(folder, max_bytes)
        self.orphans = deque(orphans(folder))
        self._ahead: asyncio.Task[Batch] | None = None
        self._ahead_of: tuple[UUID, int] | None = None  # the journal it reads, and from where

    @property
    def n_bytes(self) -> int:
        """What they take on disk."""
        return self.own.log.n_bytes + self.n_orphan_bytes

    @property
    def n_orphan_bytes(self) -> int:
        """What the orphans take of it."""
        return sum(orphan.log.n_bytes for orphan in self.orphans)

    @property
    def n_pending_bytes(self) -> int:
        """What is not in the database yet."""
        return sum(journal.n_pending_bytes for journal in (*self.orphans, self.own))

    def of(self, batch: Batch) -> Journal:
        """Return the journal that a batch was read from: it is the first, or our own."""
        return self.own if batch.writer_id == self.own.writer_id else self.orphans[0]

    async def read(self, journal: Journal) -> Batch:
        """Return what comes next in a journal, about BATCH_BYTES; without records at its end."""
        start = journal.offset or 0
        ahead, is_next = self._ahead, self._ahead_of == (journal.writer_id, start)
        self._ahead = self._ahead_of = None
        if ahead and is_next:
            return await ahead
        if ahead:
            ahead.cancel()
        return await self._read(journal, start)

    def read_ahead(self, batch: Batch) -> None:
        """Begin to read what comes behind a batch that is being written, if it is as much."""
        journal = self.of(batch)
        if not self._ahead and journal.log.end - batch.end >= BATCH_BYTES:
            self._ahead_of = (journal.writer_id, batch.end)
            self._ahead = asyncio.create_task(self._read(journal, batch.end))

    async def _read(self, journal: Journal, start: int) -> Batch:
        batch = Batch(journal.writer_id, start)
        async for records, offset in _pieces(journal, batch.start):
            for record in records:
                batch.add(record)
            batch.end = offset
            if offset - batch.start >= BATCH_BYTES:
                break
        return batch

    async def pending(self, origin: Origin, start: int, end: int) -> list[Chunk | Gap]:
        """Return what is held of a session from position `start` to `end`, in order."""
        items: list[Chunk | Gap] = []
        for journal in (*self.orphans, self.own):
            async for records, _ in _pieces(journal, journal.offset or 0):
                items += _items(records, origin, start, end)
        return items

    async def keep_synced(self, seconds: float | None) -> None:
        """Force what is taken in to the disk, every so many seconds; None: never. A failure is logged once."""
        failed = False
        while seconds is not None:
            await asyncio.sleep(seconds)
            try:
                await asyncio.to_thread(self.own.log.sync)
            except OSError as error:
                if not failed:
                    log.error("the journal cannot be forced to the disk: %s", error.strerror)
                failed = True
            else:
                failed = False

    def close(self) -> None:
        """Let go; what is not in the database stays for the next process."""
        if self._ahead:
            self._ahead.cancel()
        for journal in (*self.orphans, self.own):
            journal.close()


def raw_record(chunk: Chunk, fence: int) -> RawRecord:
    """Make a record of samples."""
    origin, position, times_us = chunk.origin, chunk.position, chunk.times_us
    rows = row_encoder(origin, chunk.samples.shape[1]).encode(position, times_us, chunk.samples)
    return RawRecord(origin.session_id, fence, position, chunk.end, times_us.item(-1), rows)


def _items(records: list[Record], origin: Origin, start: int, end: int) -> Iterator[Chunk | Gap]:
    """Yield the samples of a session from position `start` to `end`, and what its relay skipped there."""
    for record in records:
        if record.session_id != origin.session_id:
            continue
        if isinstance(record, RawRecord) and record.position < end and record.end > start:
            yield Chunk(origin, record.position, *decode_rows(record.rows, record.end - record.position))
        elif isinstance(record, GapRecord) and record.reason == "relay" and record.start < end and record.end > start:
            yield Gap(origin.session_id, record.start, record.end, "relay")


async def _pieces(journal: Journal, offset: int) -> AsyncIterator[tuple[list[Record], int]]:
    """Yield the records from `offset` on in pieces, and the offset after each, up to where the journal ends now.

    Not in a thread: every write of the hot path would wait for it to give the interpreter back, up to 5 ms. What was
    written lately is in memory, and what was not, the system reads ahead.
    """
    if not journal.is_open:  # while we looked through another, this one was done
        return
    end = journal.log.end  # on a busy machine it would run ahead of us
    while offset < end and journal.is_open:
        records, behind = journal.log.read_by(split_records, offset, READ_BYTES)
        if behind == offset:
            return
        offset = behind  # beyond what is damaged, if there are none
        yield records, offset
        await asyncio.sleep(0)
