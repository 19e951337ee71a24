"""Who streams, who listens, and the order of events.

Everything between two awaits happens at once: a sample is accepted, buffered, delivered, published and handed to the
recorder in one synchronous call, so whoever subscribes sees it either in the buffer or live, never both or neither.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from time import monotonic, time
from typing import Any
from uuid import uuid4

from zander.chunk import Chunk, RawIn
from zander.errors import CloseCode
from zander.messages import Auth, DeviceInfo, Features, Gap, Note, Status
from zander.neighbours import Broadcast, Recorder
from zander.outbox import Outbox
from zander.pile import PredictionRecord, SessionRecord
from zander.query import Answer, Query, answer
from zander.session import Session
from zander.stream import Stream, StreamSummary
from zander.wire import decode_fields, decode_prediction, dumps, to_us

EDGE_PREDICTION_TYPE = "workload_edge"
EDGE_CLASSIFIER = "edge_relay"


def now_us() -> int:
    """Return the server's clock, µs since 1970."""
    return int(time() * 1e6)


class Hub:
    """The streams this node holds and the consumers connected to it."""

    def __init__(
        self, recorder: Recorder, broadcast: Broadcast, *, buffer_samples: int, buffer_keep_seconds: float
    ) -> None:
        self.recorder = recorder
        self.broadcast = broadcast
        self.buffer_samples = buffer_samples
        self.buffer_keep_seconds = buffer_keep_seconds
        self.holds: dict[str, Stream] = {}
        self.audience: dict[str, set[Outbox]] = {}
        self.n_connections = 0
        self.n_samples_in = 0
        self.n_samples_out = 0
        self.n_bad_messages = 0
        self._gone = asyncio.Event()  # set while nobody is connected
        self._gone.set()

    # Relays.

    def connect(self, auth: Auth, device: DeviceInfo, relay: Outbox) -> Stream:
        """Begin a session. The newest relay of a user wins: the one before is closed."""
        self.supersede(auth.user_id)
        session = Session(auth.user_id, str(uuid4()), now_us(), device, auth.device_info)
        stream = self.holds[auth.user_id] = Stream(session, relay, self.buffer_samples)
        self._record_session(session, None)
        self.broadcast.announce(auth.user_id, stream)
        self.tell_status(stream.status())
        return stream

    def disconnect(self, stream: Stream) -> None:
        """End a session whose relay has gone; what it left in the buffer stays for a while."""
        if stream.relay is None:
            return
        self._end(stream)
        self.broadcast.announce(stream.session.user_id, stream)
        self.tell_status(stream.status())

    def supersede(self, user_id: str) -> None:
        """Give up the user's stream, here, because a newer relay has it."""
        stream = self.holds.pop(user_id, None)
        if stream and stream.relay:
            stream.relay.close(CloseCode.TAKEN_OVER)
            self._end(stream)

    def ingest(self, stream: Stream, raw: RawIn) -> None:
        """Take raw in: positions, buffer, consumers, other nodes, database. BadMessage when it breaks a rule.

        What still comes from a relay whose session has ended is nobody's.
        """
        if not stream.online:
            return
        gap, accepted = stream.session.accept(raw, now_us())
        if gap:
            self._deliver_gap(stream, gap)
        if accepted is None:
            return
        self.n_samples_in += len(accepted)
        for chunk in accepted.pieces():
            stream.write(chunk)
            self.deliver(stream.session.user_id, chunk)
            self.broadcast.publish(stream, chunk)
            self.recorder.record_chunk(chunk)

    def take_features(self, stream: Stream, features: Features, fields: dict[str, Any]) -> None:
        """Take features in; `fields` is the whole message. BadMessage when its time is out of range."""
        if not stream.online:
            return
        session = stream.session
        time_us = session.check_time(to_us(features.timestamp), now_us())
        data = {name: value for name, value in fields.items() if name not in ("type", "timestamp")}
        who = {"user_id": session.user_id, "session_id": session.session_id, "timestamp": time_us / 1e6}
        note = Note("features", time_us, dumps({"type": "features"} | data | who))
        self._share(stream, note)
        what = (EDGE_PREDICTION_TYPE, EDGE_CLASSIFIER, dumps(data), features.confidence, None)
        self.recorder.record_prediction(PredictionRecord(time_us, session.session_id, session.user_id, *what))

    # Consumers.

    async def subscribe(self, outbox: Outbox, last: int) -> None:
        """Begin to deliver to a consumer: its user's status, the last samples, then everything live."""
        if stream := self.holds.get(outbox.user_id):
            self.listen(outbox, stream.status(), stream.last_events(last))
        else:
            await self.broadcast.subscribe(outbox, last)

    def listen(self, outbox: Outbox, status: Status, history: list[Chunk | Note]) -> None:
        """Add a consumer, with what it gets first."""
        outbox.preload([_status_note(status), *history])
        self.audience.setdefault(outbox.user_id, set()).add(outbox)

    def unsubscribe(self, outbox: Outbox) -> None:
        """Forget a consumer that has gone."""
        listeners = self.audience.get(outbox.user_id, set())
        listeners.discard(outbox)
        if not listeners and self.audience.pop(outbox.user_id, None) is not None:
            self.broadcast.unfollow(outbox.user_id)

    def deliver(self, user_id: str, event: Chunk | Note) -> None:
        """Give an event to the consumers on this node."""
        listeners = self.audience.get(user_id)
        if not listeners:
            return
        if isinstance(event, Chunk):
            self.n_samples_out += len(event) * len(listeners)
            for outbox in listeners:
                outbox.offer(event)
        else:
            for outbox in listeners:
                outbox.note(event)

    def tell_status(self, status: Status) -> None:
        """Tell the consumers on this node that a relay came or went."""
        self.deliver(status.user_id, _status_note(status))

    async def predict(self, user_id: str, text: str, sender: str) -> bool:
        """Store a prediction and give it to the user's relay and other consumers; True if a relay got it.

        NotFound when no node has a session of the user, Unavailable when the one that has it does not answer.
        """
        if stream := self.holds.get(user_id):
            return self.take_prediction(stream, text, sender)
        return await self.broadcast.predict(user_id, text, sender)

    def take_prediction(self, stream: Stream, text: str, sender: str) -> bool:
        """Take in a prediction for a stream that this node holds; BadMessage when it is none."""
        prediction = decode_prediction(text)
        session, time_us = stream.session, now_us()
        who = {"user_id": session.user_id, "timestamp": time_us / 1e6}
        note = Note("prediction", time_us, dumps(decode_fields(text) | who), sender)
        if stream.relay:
            stream.relay.say(note.text)
        self._share(stream, note)
        kind, classifier = prediction.prediction_type, prediction.classifier_name
        what = (kind, classifier, dumps(prediction.data), prediction.confidence, prediction.version)
        self.recorder.record_prediction(PredictionRecord(time_us, session.session_id, session.user_id, *what))
        return stream.online

    # Dashboards.

    async def answer(self, query: Query) -> Answer:
        """Answer from the user's buffer, on whichever node it is."""
        if stream := self.holds.get(query.user_id):
            return answer(stream, query)
        return await self.broadcast.ask(query)

    def online(self) -> list[StreamSummary]:
        """Return the streams online on this node."""
        return [stream.summary() for stream in self.holds.values() if stream.online]

    async def streams(self) -> list[StreamSummary]:
        """Return the streams online on all nodes, by user."""
        return sorted(self.online() + await self.broadcast.streams(), key=lambda stream: stream.user_id)

    # Life.

    def tick(self) -> None:
        """Do what is due about every second: rates, buffers nobody will ask for again, consumers that read nothing."""
        for user_id, stream in list(self.holds.items()):
            stream.tick()
            if stream.offline_at is not None and monotonic() - stream.offline_at > self.buffer_keep_seconds:
                del self.holds[user_id]
                self.broadcast.announce(user_id, None)
        for outbox in self._consumers():
            if outbox.stalled():
                outbox.close(CloseCode.TOO_SLOW)

    async def close_all(self, seconds: float) -> None:
        """Close everybody with 1012 and wait for it, not for ever; relays first, so consumers get the last samples."""
        for stream in list(self.holds.values()):
            if stream.relay:
                stream.relay.close(CloseCode.RESTART)
                self.disconnect(stream)
        for outbox in self._consumers():
            outbox.close(CloseCode.RESTART)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), seconds)

    def enter(self) -> int:
        """Count a connection; return how many there are."""
        self.n_connections += 1
        self._gone.clear()
        return self.n_connections

    def leave(self) -> None:
        """Count a connection that has ended."""
        self.n_connections -= 1
        if not self.n_connections:
            self._gone.set()

    def _consumers(self) -> list[Outbox]:
        return [outbox for listeners in self.audience.values() for outbox in listeners]

    def _end(self, stream: Stream) -> None:
        stream.relay = None
        stream.offline_at = monotonic()
        self._record_session(stream.session, now_us())

    def _share(self, stream: Stream, note: Note) -> None:
        stream.note(note)
        self.deliver(stream.session.user_id, note)
        self.broadcast.publish(stream, note)

    def _deliver_gap(self, stream: Stream, gap: tuple[int, int]) -> None:
        self._share(stream, Note("gap", now_us(), dumps(Gap(stream.session.session_id, *gap, "relay"))))

    def _record_session(self, session: Session, end_us: int | None) -> None:
        self.recorder.record_session(
            SessionRecord(session.session_id, session.user_id, session.start_us, end_us, dumps(session.device_info))
        )


def _status_note(status: Status) -> Note:
    return Note("status", now_us(), dumps(status))
