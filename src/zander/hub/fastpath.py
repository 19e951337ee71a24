"""Native taking in: what relays sent in one iteration of the event loop, as one batch.

An `Interceptor` is before a relay's standard parser: its `FrameReader` gets the bytes, and takes what it can. The
`FastPath` brings what the readers hold into the journal with one write, then into the rings and to the subscribers, in
one go like `Ingest.take_raw`. What is not a raw message that simply follows goes the standard way, after what came
before it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct, structs

from zander.delivery.outbox import Outbox
from zander.delivery.subscribers import Subscriber, Subscribers
from zander.hub.interfaces import RecordSink
from zander.native import IS_NATIVE
from zander.streams.stream import Stream
from zander.wire.chunk import Chunk
from zander.wire.messages import Gap

if IS_NATIVE:
    from zander._native import FrameReader, clear, commit, journal_frames

log = logging.getLogger(__name__)


class PathStats(Struct):
    """Counts of messages that took the native path, and of frames that did not, by reason."""

    native: Annotated[bool, Meta(description="whether the native path is there")] = IS_NATIVE
    intercepted: Annotated[int, Meta(description="raw messages that took it")] = 0
    passed_frames: Annotated[
        int, Meta(description="frames that did not, for what they are: control frames, fragments, errors")
    ] = 0
    passed_messages: Annotated[
        int,
        Meta(description="messages that did not: features, pings, and raw that is wrong or in an unusual form"),
    ] = 0
    passed_sessions: Annotated[
        int, Meta(description="raw that did not, since it does not simply follow: the first, gaps, repeats")
    ] = 0


class Interceptor:
    """One relay's bytes on their way to its standard parser; the native path takes messages out of them."""

    def __init__(self, fast_path: FastPath, stream: Stream, relay: Outbox) -> None:
        self._fast_path = fast_path
        self._relay = relay
        self._parse: Callable[[bytes], bool] = _ended
        self._stop: Callable[[], None] | None = None  # while it gets the bytes
        self.reader = FrameReader(stream)
        fast_path.interceptors.add(self)

    @property
    def is_over(self) -> bool:
        """Whether the relay is to be closed, and nothing counts any more that it sends."""
        return self._relay.closed.done()

    def begin(self, parse: Callable[[bytes], bool], stop: Callable[[], None]) -> Callable[[bytes], None]:
        """Begin between two messages; return what gets the bytes from now on.

        `parse` gets what is not taken, until it returns False, or nothing counts any more; then `stop` is called, and
        `parse` gets all the rest.
        """
        self._parse, self._stop = parse, stop
        self.reader.attach(self._relay.closed, self._fast_path.waiting, self._fast_path.schedule, self._pass_on)
        return self.reader.receive

    def end(self) -> None:
        """Intercept no more."""
        self._fast_path.forget(self)
        rest, stop, parse = self.reader.detach(), self._stop, self._parse
        self._stop, self._parse = None, _ended  # and no circle is left: it would keep stream and ring for long
        if stop:
            stop()
            parse(rest)

    def _pass_on(self, passed: bytes) -> None:
        """Leave bytes to the parser, after what came before them, and go on with what came behind."""
        more: bytes | None = passed
        while more is not None:
            self._fast_path.flush()
            if not self._parse(more) or self.is_over:
                self.end()
                return
            more = self.reader.feed(b"")
            if self.reader.has_samples:
                self._fast_path.add(self.reader)


class FastPath:
    """The batch of one loop iteration: readers that have samples, in the order in which these came.

    `take_in` takes samples the standard way: `Ingest` sees there to what found no room in the journal.
    """

    def __init__(
        self,
        sink: RecordSink,
        subscribers: Subscribers,
        take_in: Callable[[Stream, Gap | None, Chunk], None],
    ) -> None:
        self.n_samples = 0  # taken in here since the start
        self.interceptors: set[Interceptor] = set()
        self.waiting: list[FrameReader] = []  # readers append themselves
        self._sink = sink
        self._subscribers = subscribers
        self._take_in = take_in
        self._ended = PathStats()  # of interceptors that are over

    def interceptor(self, stream: Stream, relay: Outbox) -> Interceptor | None:
        """Return an interceptor for a relay, where that is possible: its channels have to be known."""
        return Interceptor(self, stream, relay) if IS_NATIVE and stream.session.n_channels else None

    def add(self, reader: FrameReader) -> None:
        """Take in what a reader holds at the end of this iteration."""
        self.waiting.append(reader)
        if len(self.waiting) == 1:
            self.schedule()

    def schedule(self) -> None:
        """Take in what all readers hold at the end of this iteration."""
        asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Take in what all readers hold, now."""
        readers = self.waiting[:]
        self.waiting.clear()
        while readers:
            frames, n_samples, n_readers = journal_frames(readers)
            self._flush(readers[:n_readers], frames, n_samples)
            readers = readers[n_readers:]

    def forget(self, interceptor: Interceptor) -> None:
        """Add an interceptor that is over to the counts."""
        if interceptor in self.interceptors:
            self.interceptors.remove(interceptor)
            _count(self._ended, interceptor.reader)

    def stats(self) -> PathStats:
        """Return the counts since the start."""
        stats = structs.replace(self._ended)
        for interceptor in self.interceptors:
            _count(stats, interceptor.reader)
        return stats

    def _flush(self, readers: list[FrameReader], frames: bytes, n_samples: int) -> None:
        try:
            if self._sink.record_frames(frames, n_samples):
                commit(readers)
                self.n_samples += n_samples
                self._deliver(readers)
            else:
                for reader in readers:
                    self._refuse(reader)
        finally:
            clear(readers)

    def _deliver(self, readers: list[FrameReader]) -> None:
        """Give samples to subscribers: those who keep up get the very bytes, the others a chunk."""
        for reader in readers:
            subscribers = self._subscribers.of(reader.user_id)
            if not subscribers:
                continue
            self._subscribers.count(reader.user_id, reader.end - reader.position)
            try:
                if others := reader.write_direct(subscribers):
                    _offer(_chunk(reader), others)
            except Exception:  # of one must not hold up the others
                log.exception("not all got the samples of %s", reader.user_id)

    def _refuse(self, reader: FrameReader) -> None:
        """Take in the standard way what found no room."""
        chunk = _chunk(reader)
        reader.advance_session()
        try:
            self._take_in(reader.stream, None, chunk)
        except Exception:
            log.exception("not all got the samples of %s", reader.user_id)


def _ended(_: bytes) -> bool:
    return False


def _offer(chunk: Chunk, subscribers: list[Subscriber]) -> None:
    for subscriber in subscribers:
        subscriber.offer(chunk)


def _chunk(reader: FrameReader) -> Chunk:
    times, values = reader.samples()
    times_us = np.frombuffer(times, np.int64)
    samples = np.frombuffer(values, np.float32).reshape(len(times_us), -1)
    return Chunk(reader.stream.session.origin, reader.position, times_us, samples)


def _count(stats: PathStats, reader: FrameReader) -> None:
    n_frames, n_messages, n_sessions = reader.n_passed
    stats.intercepted += reader.n_intercepted
    stats.passed_frames += n_frames
    stats.passed_messages += n_messages
    stats.passed_sessions += n_sessions
