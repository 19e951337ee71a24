"""What relays sent in one turn of the event loop, taken in at its end, all at once: the native path.

A `Peel` stands before a relay's standard parser: its `Lane` gets the bytes, and takes what it can. The Turn brings what
the lanes hold into the journal with one write, and then into the rings, to the consumers and to the other nodes, in one
go like `Hub.ingest`. What is not a raw message that simply follows goes the standard way, after what came before it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import numpy as np
from msgspec import Struct, structs

from zander.delivery.outbox import Outbox
from zander.delivery.subscribers import Audience
from zander.hub.interfaces import Broadcast
from zander.hub.recording import Recorder
from zander.native import IS_NATIVE
from zander.streams.stream import Stream
from zander.wire.chunk import Chunk

if IS_NATIVE:
    from zander._native import Lane, clear, commit, journal_frames

log = logging.getLogger(__name__)


class PathStats(Struct):
    """How many messages took the native path, and why the other frames did not."""

    native: bool = IS_NATIVE
    peeled: int = 0
    passed_frames: int = 0
    passed_messages: int = 0
    passed_sessions: int = 0


class Peel:
    """What is taken off one relay's bytes before its standard parser gets the rest."""

    def __init__(self, turn: Turn, stream: Stream, relay: Outbox) -> None:
        self._turn = turn
        self._relay = relay
        self._stop: Callable[[], None] | None = None  # while it gets the bytes
        self.lane = Lane(stream)
        turn.peels.add(self)

    @property
    def is_over(self) -> bool:
        """Whether the relay is to be closed, and nothing counts any more that it sends."""
        return self._relay.closed.done()

    def begin(self, parse: Callable[[bytes], bool], stop: Callable[[], None]) -> Callable[[bytes], None]:
        """Begin between two messages; return what gets the bytes from now on.

        `parse` gets what is not peeled off, until it says False, or nothing counts any more; then `stop` is called, and
        `parse` gets all the rest.
        """
        self._parse, self._stop = parse, stop
        self.lane.open(self._relay.closed, self._turn.waiting, self._turn.wake, self._leave)
        return self.lane.receive

    def end(self) -> None:
        """Peel no more."""
        self._turn.forget(self)
        rest, stop, self._stop = self.lane.shut(), self._stop, None
        if stop:
            stop()
            self._parse(rest)

    def _leave(self, passed: bytes) -> None:
        """Leave to the parser what is its, after what came before, and go on with what came behind."""
        more: bytes | None = passed
        while more is not None:
            self._turn.flush()
            if not self._parse(more) or self.is_over:
                self.end()
                return
            more = self.lane.feed(b"")
            if self.lane.waits:
                self._turn.add(self.lane)


class Turn:
    """The lanes that have something, in the order in which it came. `take_in` is the hub's."""

    def __init__(
        self,
        recorder: Recorder,
        audience: Audience,
        broadcast: Broadcast,
        take_in: Callable[[Stream, tuple[int, int] | None, Chunk], None],
    ) -> None:
        self.n_samples = 0  # taken in since the start, whichever way
        self.peels: set[Peel] = set()
        self._recorder = recorder
        self._audience = audience
        self._broadcast = broadcast
        self._take_in = take_in
        self.waiting: list[Lane] = []  # which put themselves there
        self._ended = PathStats()  # of peels that are over

    def peel(self, stream: Stream, relay: Outbox) -> Peel | None:
        """Return what peels off a relay's messages, where that is possible: its channels have to be known."""
        return Peel(self, stream, relay) if IS_NATIVE and stream.session.n_channels else None

    def add(self, lane: Lane) -> None:
        """Take in what a lane holds at the end of this turn."""
        self.waiting.append(lane)
        if len(self.waiting) == 1:
            self.wake()

    def wake(self) -> None:
        """Take in what all lanes hold at the end of this turn."""
        asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Take in what all lanes hold, now."""
        lanes = self.waiting[:]
        self.waiting.clear()
        while lanes:
            frames, n_samples, n_lanes = journal_frames(lanes)
            self._flush(lanes[:n_lanes], frames, n_samples)
            lanes = lanes[n_lanes:]

    def forget(self, peel: Peel) -> None:
        """Add a peel that is over to the count."""
        if peel in self.peels:
            self.peels.remove(peel)
            _count(self._ended, peel.lane)

    def stats(self) -> PathStats:
        """Return the counts since the start."""
        stats = structs.replace(self._ended)
        for peel in self.peels:
            _count(stats, peel.lane)
        return stats

    def _flush(self, lanes: list[Lane], frames: bytes, n_samples: int) -> None:
        try:
            if self._recorder.record_frames(frames, n_samples):
                commit(lanes)
                self.n_samples += n_samples
                self._deliver(lanes)
            else:
                for lane in lanes:
                    self._refuse(lane)
        finally:
            clear(lanes)

    def _deliver(self, lanes: list[Lane]) -> None:
        """Give samples to who listens: those who keep up get the very bytes, the others a chunk in their outbox."""
        audience, followed = self._audience, self._broadcast.followed
        for lane in lanes:
            user_id = lane.user_id
            listeners = audience.of(user_id)
            if not listeners and user_id not in followed:
                continue
            audience.n_samples_out += (lane.end - lane.position) * len(listeners)
            try:
                others = lane.give(listeners)
                if others or user_id in followed:
                    self._offer(lane, others)
            except Exception:  # of one must not hold up the others
                log.exception("not all got the samples of %s", lane.user_id)

    def _offer(self, lane: Lane, outboxes: list[Outbox]) -> None:
        chunk = _chunk(lane)
        self._broadcast.publish(lane.stream, chunk)
        for outbox in outboxes:
            outbox.offer(chunk)

    def _refuse(self, lane: Lane) -> None:
        """Let the hub see to what found no room."""
        chunk = _chunk(lane)
        lane.settle()
        try:
            self._take_in(lane.stream, None, chunk)
        except Exception:
            log.exception("not all got the samples of %s", lane.user_id)


def _chunk(lane: Lane) -> Chunk:
    times, values = lane.samples()
    times_us = np.frombuffer(times, np.int64)
    samples = np.frombuffer(values, np.float32).reshape(len(times_us), -1)
    return Chunk(lane.stream.session.origin, lane.position, times_us, samples)


def _count(stats: PathStats, lane: Lane) -> None:
    n_frames, n_messages, n_sessions = lane.n_passed
    stats.peeled += lane.n_peeled
    stats.passed_frames += n_frames
    stats.passed_messages += n_messages
    stats.passed_sessions += n_sessions
