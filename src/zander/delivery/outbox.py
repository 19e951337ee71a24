"""Outbox of one client: its cursor, and the bounded queue of what waits for it.

Whatever is offered, a consumer gets samples in position order, none twice, and every hole as a gap: what lies before
its cursor is cut off, so whoever offers may do so again.

When the outbox is full, the oldest raw makes room and a gap is announced in its place; everything else is kept, until
it alone is more than the bound: then the consumer is closed. One note never is that, however large.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from time import monotonic, time
from typing import TYPE_CHECKING

from zander.delivery.cursor import Cursor
from zander.delivery.preloads import Preloads
from zander.delivery.queue import Format, SendQueue
from zander.errors import CloseCode
from zander.event import Event
from zander.positions import Shortcut
from zander.wire.chunk import Chunk
from zander.wire.codec import dumps
from zander.wire.messages import KINDS, Gap, Item, Kind, Reason

if TYPE_CHECKING:
    from zander._native import Socket

STALLED_SECONDS = 60.0


class Outbox(Shortcut):
    """Everything that waits for one client. Offering never waits; one task takes. `since_us`: when the client came.

    `through` is the native socket while nothing waits: JSON may be written to it past the queue. It is None otherwise.
    Whoever uses it moves the cursor.
    """

    cursor: Cursor

    def __init__(
        self,
        user_id: str,
        consumer_id: str = "",
        format: Format = "json",
        types: Collection[Kind] = KINDS,
        max_bytes: int = 1 << 20,
        *,
        preloads: Preloads | None = None,
    ) -> None:
        self.user_id = user_id
        self.consumer_id = consumer_id
        self.types = tuple(kind for kind in KINDS if kind in types)
        self.max_bytes = max_bytes
        self.since_us = int(time() * 1e6)
        self.cursor = Cursor()
        self.queue = SendQueue(format, announces_gaps="gap" in self.types)
        self._preloads = preloads or Preloads()  # of all consumers, else of this one alone
        self.through = None
        self.ready = Event()
        self.closed: asyncio.Future[CloseCode] = asyncio.get_running_loop().create_future()
        self._socket: Socket | None = None
        self._unread_since = monotonic()  # when the client last took something, or something began to wait
        self._emptied: Event | None = None  # while somebody waits for it

    @property
    def waits(self) -> bool:
        """Whether there is something to take."""
        return bool(self.queue)

    def seek_before(self, session_id: str, items: Iterable[Item], end: int) -> None:
        """Move the cursor to the first samples of `items`, or to `end` where there are none."""
        self.cursor.seek(session_id, next((item.position for item in items if isinstance(item, Chunk)), end))

    def offer(self, item: Item) -> None:
        """Queue an item, if this consumer wants it and has not got it; announce what is missing before it."""
        if self.closed.done():
            return  # nothing bounds what would come until its connection has ended
        if isinstance(item, Chunk):
            self._offer_chunk(item)
        elif isinstance(item, Gap):
            self._offer_gap(item, counts=True)
        elif item.kind in self.types and not (item.sender and item.sender == self.consumer_id):
            self.say(item.text)

    def skip(self, end: int, reason: Reason, *, counts: bool = True) -> None:
        """Announce that there is nothing before `end`, if the cursor is before it."""
        cursor = self.cursor
        if end <= cursor.position:
            return
        start, cursor.position = cursor.position, end
        if "gap" in self.types:
            self.queue.push_text(dumps(Gap(str(cursor.session_id), start, end, reason)), counts=counts)
            self._bound()

    def say(self, text: str) -> None:
        """Queue an answer that is for this client alone."""
        if not self.closed.done():
            self.queue.push_text(text)
            self._bound()

    def preload(self, items: Iterable[Item]) -> None:
        """Queue what was buffered before, in its order. It does not count here, but in what all consumers hold."""
        for item in items:
            if isinstance(item, Chunk):
                self._preload_chunk(item)
            elif isinstance(item, Gap):
                self._offer_gap(item, counts=False)
            elif item.kind in self.types:
                self.queue.push_text(item.text, counts=False)
        if self.queue:
            self._wake()
        self._preloads.add(self)

    def count_preload(self) -> None:
        """Let what was preloaded count from now on, as if it had come live."""
        self.queue.count_preloaded()
        self._bound()

    def open_through(self, socket: Socket) -> None:
        """Set the way past the queue, for raw in JSON."""
        if self.queue.format == "json" and "raw" in self.types:
            self._socket = socket
            self._reopen()

    def close_through(self) -> None:
        """Forget the way past the queue: the connection has ended."""
        self.through = self._socket = None

    def take(self) -> list[str | bytes]:
        """Take frames for about 8 KiB, in order; none when nothing waits."""
        self._unread_since = monotonic()
        is_preload = self.queue.preloaded_bytes > 0
        frames = self.queue.take()
        if is_preload:
            self._preloads.note(self)
        self._reopen()
        return frames

    async def emptied(self) -> None:
        """Wait until all that waits was taken."""
        while self.queue:
            self._emptied = self._emptied or Event()
            await self._emptied.wait()

    def stalled(self) -> bool:
        """Return whether something has waited for STALLED_SECONDS and nothing was taken."""
        return self.ready.is_set() and monotonic() - self._unread_since > STALLED_SECONDS

    def close(self, code: CloseCode) -> None:
        """Tell the endpoint to close the connection, after what waits; nothing more is queued."""
        if not self.closed.done():
            self.closed.set_result(code)
            self._wake()

    def _offer_chunk(self, chunk: Chunk) -> None:
        cursor = self.cursor
        if chunk.position != cursor.position or chunk.origin.session_id != cursor.session_id:
            self._go_to(chunk, counts=True)
            if chunk.end <= cursor.position:
                return
            chunk = chunk.since(cursor.position)
        cursor.position = chunk.end
        if "raw" in self.types:
            self.queue.push_chunk(chunk)
            self._bound()

    def _preload_chunk(self, chunk: Chunk) -> None:
        self._go_to(chunk, counts=False)
        if chunk.end > self.cursor.position:
            chunk, self.cursor.position = chunk.since(self.cursor.position), chunk.end
            if "raw" in self.types:
                self.queue.push_chunk(chunk, counts=False)

    def _go_to(self, chunk: Chunk, *, counts: bool) -> None:
        """Move the cursor to where a chunk begins, or leave it behind that."""
        self.cursor.enter(chunk.origin.session_id, chunk.position)
        self.skip(chunk.position, "lost", counts=counts)

    def _offer_gap(self, gap: Gap, *, counts: bool) -> None:
        self.cursor.enter(gap.session_id, gap.start)
        self.skip(gap.start, "lost", counts=counts)
        self.skip(gap.end, gap.reason, counts=counts)

    def _bound(self) -> None:
        """Keep the bound, after something was added."""
        is_preload = self.queue.preloaded_bytes > 0
        if not self.queue.shrink(self.max_bytes):
            self.close(CloseCode.TOO_SLOW)
        if is_preload:
            self._preloads.note(self)
        self._wake()

    def _wake(self) -> None:
        self.through = None
        if not self.ready.is_set():
            self._unread_since = monotonic()
            self.ready.set()

    def _reopen(self) -> None:
        """Open the way past the queue again, if nothing waits any more."""
        if not self.queue:
            if self._emptied:
                self._emptied.set()
                self._emptied = None
            if not self.closed.done():
                self.ready.clear()
                self.through = self._socket
