"""Records of a stream, and their order: a gap before the samples behind it."""

from __future__ import annotations

from typing import Any

from zander.hub.interfaces import RecordSink
from zander.journal.records import (
    EDGE_CLASSIFIER,
    EDGE_PREDICTION_TYPE,
    GapRecord,
    PredictionRecord,
    SessionRecord,
)
from zander.streams.session import Session
from zander.streams.stream import Stream
from zander.wire.chunk import Chunk
from zander.wire.codec import dumps
from zander.wire.messages import Gap, Prediction


class Recording:
    """Records of what happens to streams, made for a sink; `time_us` is when it happened."""

    def __init__(self, sink: RecordSink) -> None:
        self.sink = sink

    def begin(self, session: Session) -> None:
        """Record that a session is open."""
        self._session(session, None)

    def end(self, stream: Stream, time_us: int) -> None:
        """Record that a session has ended, with what was lost at its end."""
        if stream.lost_from is not None:
            self._gap(stream.session, stream.lost_from, stream.session.next_position, "lost", time_us)
            stream.lost_from = None
        self._session(stream.session, time_us)

    def raw(self, stream: Stream, gap: Gap | None, chunk: Chunk, time_us: int) -> bool:
        """Record samples, and the hole before them; False when there is no room.

        What found no room is one gap, recorded as soon as there is room again.
        """
        session = stream.session
        if stream.lost_from is not None:
            if not self.sink.takes_from(session.user_id):
                self.sink.drop(len(chunk))
                return False
            self._gap(session, stream.lost_from, chunk.position, "lost", time_us)
            stream.lost_from = None
        elif gap:
            self._gap(session, gap.start, gap.end, gap.reason, time_us)
        if self.sink.record_chunk(chunk, session.fence):
            return True
        stream.lost_from = chunk.position
        return False

    def features(self, session: Session, data: dict[str, Any], confidence: float | None, time_us: int) -> bool:
        """Record features as a prediction of the relay's; False when there is no room."""
        what = (EDGE_PREDICTION_TYPE, EDGE_CLASSIFIER, dumps(data), confidence, None)
        return self.sink.record_prediction(PredictionRecord(session.session_id, time_us, session.user_id, *what))

    def prediction(self, session: Session, given: Prediction, time_us: int) -> None:
        """Record a consumer's prediction."""
        what = (given.prediction_type, given.classifier_name, dumps(given.data), given.confidence, given.version)
        self.sink.record_prediction(PredictionRecord(session.session_id, time_us, session.user_id, *what))

    def _session(self, session: Session, end_us: int | None) -> None:
        what = (dumps(session.device_info), session.fence, session.next_position)
        self.sink.record(SessionRecord(session.session_id, session.user_id, session.start_us, end_us, *what))

    def _gap(self, session: Session, start: int, end: int, reason: str, time_us: int) -> None:
        self.sink.record(GapRecord(session.session_id, session.fence, start, end, reason, time_us))
