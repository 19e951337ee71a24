"""Counts of a recorder, as `/stats` shows them."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class RecorderStats(Struct):
    """Counts since the start; a record is a sample, a prediction, a gap, or the start or end of a session."""

    online: Annotated[bool, Meta(description="whether the database can be written to")] = False
    taking: Annotated[bool, Meta(description="whether the journal has room")] = True
    pending_records: Annotated[int, Meta(description="of this process, waiting to be written")] = 0
    pending_bytes: Annotated[
        int, Meta(description="in the journal and not yet committed, what dead processes left included")
    ] = 0
    oldest_pending_seconds: Annotated[float, Meta(description="how long the oldest has waited")] = 0.0
    journal_bytes: Annotated[int, Meta(description="what the journal takes on the disk")] = 0
    written_records: Annotated[int, Meta(description="committed")] = 0
    written_batches: Annotated[int, Meta(description="commits")] = 0
    dropped_records: Annotated[int, Meta(description="found no room in the journal")] = 0
    dead_letters: Annotated[
        int, Meta(description="the database would never take them; they are in its table `dead_letters`")
    ] = 0
    last_batch_records: Annotated[int, Meta(description="size of the last batch")] = 0
    last_batch_seconds: Annotated[float, Meta(description="how long the last batch took")] = 0.0
    last_error: Annotated[str | None, Meta(description="why the last batch failed, null once one has succeeded")] = None
