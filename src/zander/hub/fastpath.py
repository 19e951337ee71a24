"""Native taking in: what relays sent in one iteration of the event loop, as one batch.

A `FrameReader` is on each connection: it gets the bytes first, and takes the raw messages that simply follow. The
`FastPath` brings what the readers hold into the journal with one write, then into the rings and to the subscribers, in
one go like `Ingest.take_raw`. Everything else goes the standard way, after what came before it.
"""

from __future__ import annotations

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
    from zander._native import FrameReader, Intake

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


class FastPath:
    """Batches of what all relays sent in one iteration of the loop, on their way to the journal and the subscribers.

    `take_in` takes samples the standard way: `Ingest` sees there to what found no room in the journal.
    """

    def __init__(
        self,
        sink: RecordSink,
        subscribers: Subscribers,
        take_in: Callable[[Stream, Gap | None, Chunk], None],
    ) -> None:
        self._readers: set[FrameReader] = set()
        self._take_in = take_in
        self._ended = PathStats()  # of readers that are done
        self.intake: Intake | None = None
        if IS_NATIVE:
            live, followers = subscribers.live, subscribers.followers
            self.intake = Intake(sink.record_frames, self._refuse, self._offer, live, followers)

    @property
    def n_samples(self) -> int:
        """How many samples were taken in here since the start."""
        return self.intake.n_samples if self.intake else 0

    @property
    def n_clamped(self) -> int:
        """How many of them were moved in time."""
        return self.intake.n_clamped if self.intake else 0

    @property
    def n_samples_out(self) -> int:
        """How many samples live consumers were given here."""
        return self.intake.n_given if self.intake else 0

    def begin(self, reader: FrameReader, stream: Stream, relay: Outbox) -> None:
        """Take what a relay sends, where that is possible: its channels have to be known."""
        if stream.session.n_channels:
            reader.intercept(stream, relay.closed, self.intake)
            self._readers.add(reader)

    def end(self, reader: FrameReader) -> None:
        """Take no more of a relay."""
        reader.stop()
        if reader in self._readers:
            self._readers.remove(reader)
            _count(self._ended, reader)

    def stats(self) -> PathStats:
        """Return the counts since the start."""
        stats = structs.replace(self._ended)
        for reader in self._readers:
            _count(stats, reader)
        return stats

    def _offer(self, reader: FrameReader, subscribers: list[Subscriber]) -> None:
        """Give samples to those who do not keep up, or get no JSON."""
        try:
            chunk = _chunk(reader)
            for subscriber in subscribers:
                subscriber.offer(chunk)
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
