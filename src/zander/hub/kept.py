"""Buffers of relays that have gone: each for so long, and so many bytes of them in all."""

from __future__ import annotations

from collections import OrderedDict
from time import monotonic

from zander.hub.interfaces import Peers
from zander.streams.stream import Stream, Streams

STREAM_BYTES = 4096  # of a stream without a buffer, its entries in all tables included; 2.7 KB were measured
FORGOTTEN_AT_ONCE = 500  # in a tick, so that samples do not wait: 9 µs each


class Kept:
    """The streams of relays that have gone, oldest first; beyond `max_bytes` the oldest are evicted.

    A stream that the database has wholly is forgotten. Of another only the buffers are: where a relay that comes back
    goes on is not in the database yet, so the rest of it stays until it is. The journal has its records, and its bound.
    """

    def __init__(self, streams: Streams, peers: Peers, *, max_bytes: int, seconds: float) -> None:
        self.n_bytes = 0
        self.n_evicted = 0
        self._streams = streams
        self._peers = peers
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._n_bytes_of: OrderedDict[Stream, int] = OrderedDict()  # as they went; a dict finds its first slowly
        self._unstored: set[Stream] = set()  # without buffers

    def __len__(self) -> int:
        return len(self._n_bytes_of)

    def add(self, stream: Stream) -> None:
        """Keep the stream of a relay that has gone just now."""
        self._n_bytes_of[stream] = 0
        self.resize(stream)

    def resize(self, stream: Stream) -> None:
        """Count what a stream takes by now, where it is kept, and make room for it."""
        if stream in self._n_bytes_of:
            n_bytes = STREAM_BYTES + stream.nbytes
            self.n_bytes += n_bytes - self._n_bytes_of[stream]
            self._n_bytes_of[stream] = n_bytes
        while self.n_bytes > self._max_bytes:
            self._give_up(next(iter(self._n_bytes_of)))
            self.n_evicted += 1

    def discard(self, stream: Stream) -> None:
        """Keep a stream no more: its relay is back, or another node has it."""
        self.n_bytes -= self._n_bytes_of.pop(stream, 0)
        self._unstored.discard(stream)

    def note_stored(self, stream: Stream) -> None:
        """Forget a stream that has no buffers any more, if the database has all of it by now."""
        if stream in self._unstored and _is_stored(stream):
            self._forget(stream)

    def tick(self) -> None:
        """Give up those whose time is over."""
        for _ in range(FORGOTTEN_AT_ONCE):
            oldest = next(iter(self._n_bytes_of), None)
            if oldest is None or oldest.offline_at is None or monotonic() - oldest.offline_at <= self._seconds:
                return
            self._give_up(oldest)

    def _give_up(self, stream: Stream) -> None:
        self.discard(stream)
        if _is_stored(stream):
            self._forget(stream)
        else:
            stream.drop_buffers()
            self._unstored.add(stream)

    def _forget(self, stream: Stream) -> None:
        self._unstored.discard(stream)
        user_id = stream.session.user_id
        self._streams.remove(user_id)
        self._peers.announce(user_id, None)


def _is_stored(stream: Stream) -> bool:
    """Return whether the database has all of a session."""
    return stream.durable >= stream.session.next_position and stream.lost_from is None
