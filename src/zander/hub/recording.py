"""What is recorded of a stream, and in which order: a gap before the samples behind it."""

from __future__ import annotations

from typing import Any, Protocol

from zander.journal.records import GapRecord, PredictionRecord, SessionRecord
from zander.streams.session import Session
from zander.streams.stream import Stream
from zander.wire.chunk import Chunk, Origin
from zander.wire.codec import dumps
from zander.wire.messages import Prediction

EDGE_PREDICTION_TYPE = "workload_edge"
EDGE_CLASSIFIER = "edge_relay"


class Recorder(Protocol):
    """What is needed of whoever stores; none of it waits."""

    @property
    def takes(self) -> bool:
        """Whether there is room."""

    def record(self, record: SessionRecord | GapRecord) -> None:
        """Keep what must not be missed."""

    def record_chunk(self, chunk: Chunk, fence: int) -> bool:
        """Keep samples; False when there is no room."""

    def record_frames(self, frames: bytes, n_samples: int) -> bool:
        """Keep samples that are frames of the journal already; False when there is no room."""

    def drop(self, n_records: int) -> None:
        """Count what was not even offered."""

    def record_prediction(self, record: PredictionRecord) -> bool:
        """Keep a prediction or features; False when there is no room."""

    async def pending(self, origin: Origin, start: int, end: int) -> list[Chunk]:
        """Return what is kept of a session from position `start` to `end`, and not in the database yet, in order."""


class Ledger:
    """Tells a Recorder what happens to streams; `time_us` is when."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def begin(self, session: Session) -> None:
        """Record that a session is open."""
        self._session(session, None)

    def end(self, stream: Stream, time_us: int) -> None:
        """Record that a session has ended, with what was lost at its end."""
        if stream.lost_from is not None:
            self._gap(stream.session, (stream.lost_from, stream.session.next_position), "lost", time_us)
            stream.lost_from = None
        self._session(stream.session, time_us)

    def raw(self, stream: Stream, gap: tuple[int, int] | None, chunk: Chunk, time_us: int) -> bool:
        """Record samples, and the hole before them; False when there is no room.

        What found no room is one gap, recorded as soon as there is room again.
        """
        session = stream.session
        if stream.lost_from is not None:
            if not self.recorder.takes:
                self.recorder.drop(len(chunk))
                return False
            self._gap(session, (stream.lost_from, chunk.position), "lost", time_us)
            stream.lost_from = None
        elif gap:
            self._gap(session, gap, "relay", time_us)
        if self.recorder.record_chunk(chunk, session.fence):
            return True
        stream.lost_from = chunk.position
        return False

    def features(self, session: Session, data: dict[str, Any], confidence: float | None, time_us: int) -> None:
        """Record features as a prediction of the relay's."""
        what = (EDGE_PREDICTION_TYPE, EDGE_CLASSIFIER, dumps(data), confidence, None)
        self.recorder.record_prediction(PredictionRecord(session.session_id, time_us, session.user_id, *what))

    def prediction(self, session: Session, given: Prediction, time_us: int) -> None:
        """Record a consumer's prediction."""
        what = (given.prediction_type, given.classifier_name, dumps(given.data), given.confidence, given.version)
        self.recorder.record_prediction(PredictionRecord(session.session_id, time_us, session.user_id, *what))

    def _session(self, session: Session, end_us: int | None) -> None:
        device_info = dumps(session.device_info)
        self.recorder.record(
            SessionRecord(session.session_id, session.user_id, session.start_us, end_us, device_info, session.fence)
        )

    def _gap(self, session: Session, gap: tuple[int, int], reason: str, time_us: int) -> None:
        self.recorder.record(GapRecord(session.session_id, session.fence, *gap, reason, time_us))
