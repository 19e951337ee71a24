"""Preloads: what consumers were given of before and have not taken yet, bounded in all.

It does not count for an outbox, which is for what is live: it may be as long as the buffers. Where all of this process
take too much, the oldest samples make room of the consumer that has taken nothing for longest. Its notes count then, as
if they had come live.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct

if TYPE_CHECKING:
    from zander.delivery.outbox import Outbox

MAX_BYTES = 64 << 20


class PreloadStats(Struct):
    """Samples of before that consumers have not taken yet."""

    consumers: Annotated[int, Meta(description="who have not taken all of theirs")]
    bytes: Annotated[int, Meta(description="memory taken by them")]
    cut: Annotated[int, Meta(description="consumers whose oldest samples made room for others', as a gap `slow`")]


class Preloads:
    """The preloads of all consumers of this process."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._by_outbox: dict[Outbox, int] = {}  # the one that has taken something longest ago first
        self._n_bytes = 0
        self._n_cut = 0
        self._cut: Outbox | None = None  # the last one that made room

    def add(self, outbox: Outbox) -> None:
        """Count what an outbox was given, and keep the bound."""
        self.note(outbox)
        while self._n_bytes > self._max_bytes:
            self._make_room(next(iter(self._by_outbox)))

    def note(self, outbox: Outbox) -> None:
        """Note how much an outbox holds by now; it has got on."""
        self._n_bytes -= self._by_outbox.pop(outbox, 0)
        if n_bytes := outbox.queue.preloaded_bytes:
            self._by_outbox[outbox] = n_bytes
            self._n_bytes += n_bytes

    def forget(self, outbox: Outbox) -> None:
        """Count an outbox no more, whose consumer has gone."""
        self._n_bytes -= self._by_outbox.pop(outbox, 0)
        if self._cut is outbox:
            self._cut = None

    def _make_room(self, oldest: Outbox) -> None:
        if self._cut is not oldest:
            self._cut = oldest
            self._n_cut += 1
        if n_bytes := oldest.queue.drop_preloaded():
            self._by_outbox[oldest] -= n_bytes
            self._n_bytes -= n_bytes
        else:
            oldest.count_preload()
        if not oldest.queue.preloaded_bytes:
            self.forget(oldest)

    def stats(self) -> PreloadStats:
        """Return the counts."""
        return PreloadStats(len(self._by_outbox), self._n_bytes, self._n_cut)
