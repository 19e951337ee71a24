"""Taking in: sessions of relays, their samples and features, and predictions for them.

Everything between two awaits happens at once: a sample is accepted, recorded, buffered and delivered in one synchronous
call. So whoever subscribes gets it either from the buffer or live, never both or neither.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

from zander.delivery.outbox import Outbox
from zander.delivery.subscribers import Subscribers, status_note
from zander.errors import CloseCode, Unavailable
from zander.hub.fastpath import FastPath
from zander.hub.interfaces import Peers, RecordSink, SessionStore
from zander.hub.kept import Kept
from zander.hub.ratelimit import RateLimit
from zander.hub.recording import Recording
from zander.hub.session_lookup import SessionLookup
from zander.journal.batch import Written
from zander.streams.clock import now_us
from zander.streams.session import JUMP_US, MAX_AGE_US
from zander.streams.stream import Stream, Streams
from zander.wire.chunk import Chunk, RawIn
from zander.wire.codec import PredictionIn, dumps_note, refuse_deep, to_us
from zander.wire.connection import Client
from zander.wire.messages import Auth, DeviceInfo, Features, Gap, Note, Status

NOT_STORED = (
    "the journal is full, or this user's or client's share of it: {} are given to consumers, but not stored, for now"
)
NOT_KEPT = "the journal is full, or this user's or client's share of it: what you send could not be kept"
CLAMPED = "a time {:.1f} s before the one before it: it is moved and counted as clamped, and so is what follows"

log = logging.getLogger(__name__)


class Ingest:
    """The hub's side of relays. `streams` are those that this node holds, by user."""

    def __init__(
        self,
        streams: Streams,
        subscribers: Subscribers,
        sink: RecordSink,
        store: SessionStore,
        peers: Peers,
        *,
        kept: Kept,
        buffer_samples: int,
        max_bytes_per_second: int = 8 << 20,
        max_age_us: int = MAX_AGE_US,
    ) -> None:
        self.streams = streams
        self.kept = kept
        self.rate_limit = RateLimit(max_bytes_per_second)
        self.n_bad_messages = 0
        self.n_turned_away = 0  # relays, as what they send could not be kept
        self.fast_path = FastPath(sink, subscribers, self._take_in)
        self._n_samples = 0
        self._n_clamped = 0
        self._subscribers = subscribers
        self._sink = sink
        self._recording = Recording(sink)
        self._lookup = SessionLookup(streams, store, peers, max_age_us)
        self._peers = peers
        self._buffer_samples = buffer_samples

    @property
    def n_samples(self) -> int:
        """How many samples were taken in since the start."""
        return self._n_samples + self.fast_path.n_samples

    @property
    def n_clamped(self) -> int:
        """How many of them ran backwards in time and were moved."""
        return self._n_clamped + self.fast_path.n_clamped

    async def connect(self, auth: Auth, device: DeviceInfo, relay: Outbox, client: Client) -> Stream:
        """Begin a session or go on with one. The newest relay of a user wins: the one before is closed.

        Unavailable when what it sends could not be kept, or when only the database knows its session and is away.
        """
        self._require_room(auth.user_id, client)
        session = await self._lookup.session(auth, device, now_us(), relay)
        self._require_room(auth.user_id, client)  # as many as came meanwhile may have begun theirs
        stream = self.streams.get(auth.user_id)
        if stream and stream.session is session:
            stream.reconnect(relay, device)
            self.kept.discard(stream)
        else:
            self.supersede(auth.user_id)
            stream = Stream(session, relay, self._buffer_samples)
        self.streams.enter(stream)
        stream.acks, stream.client = auth.ack, client
        self._recording.begin(session)
        self._peers.announce(auth.user_id, stream)
        self._subscribers.enter(auth.user_id, session.session_id, session.next_position)
        self._tell(stream.status())
        return stream

    def disconnect(self, stream: Stream, relay: Outbox) -> None:
        """End a session whose relay has gone; what it left in the buffer stays for a while."""
        if stream.relay is not relay:
            return  # it has another by now, or none
        self._end(stream)
        self._peers.announce(stream.session.user_id, stream)
        self._tell(stream.status())
        self.kept.add(stream)

    def supersede(self, user_id: str, code: CloseCode = CloseCode.TAKEN_OVER) -> None:
        """Give up the user's stream on this node, because a newer relay has it."""
        stream = self.streams.get(user_id)
        if stream:
            self.kept.discard(stream)
        if stream and stream.relay:
            stream.relay.close(code)
            self._end(stream)
        self.streams.remove(user_id)  # only now: the end of its session is its client's

    def take_raw(self, stream: Stream, raw: RawIn) -> None:
        """Take raw in; BadMessage when it breaks a rule.

        What still comes from a relay whose session has ended is dropped.
        """
        if not stream.online:
            return
        session, n_before = stream.session, stream.session.n_clamped
        gap, accepted, back_us = session.accept(raw, now_us())
        self._n_clamped += session.n_clamped - n_before
        if back_us >= JUMP_US and stream.tell_once("clamped", what := CLAMPED.format(back_us / 1e6)):
            log.warning("session %s of user %s: %s", session.session_id, session.user_id, what)
        if accepted:
            self._take_in(stream, gap, accepted)

    def take_features(self, stream: Stream, features: Features, fields: dict[str, Any]) -> None:
        """Take features in; `fields` is the whole message. BadMessage: their time is out of range, or too large."""
        if not stream.online:
            return
        session = stream.session
        time_us = session.check_time(to_us(features.timestamp), now_us())
        data = {name: value for name, value in fields.items() if name not in ("type", "timestamp")}
        who = {"user_id": session.user_id, "session_id": session.session_id, "timestamp": time_us / 1e6}
        self._share(stream, Note("features", time_us, dumps_note({"type": "features"} | data | who)))
        if not self._recording.features(session, data, features.confidence, time_us):
            stream.tell_once("not_stored", NOT_STORED.format("features"))

    def take_prediction(self, stream: Stream, incoming: PredictionIn, sender: str) -> bool:
        """Take in a consumer's prediction and give it to the relay; True if there is one.

        BadMessage: too deep or too large.
        """
        refuse_deep(incoming.fields)
        session, time_us = stream.session, now_us()
        who = {"user_id": session.user_id, "timestamp": time_us / 1e6}
        note = Note("prediction", time_us, dumps_note(incoming.fields | who), sender)
        if stream.relay:
            stream.relay.say(note.text)
        self._share(stream, note)
        self._recording.prediction(session, incoming.prediction, time_us)
        return stream.online

    def on_written(self, written: Written) -> None:
        """Tell relays what is durable by now; give up sessions that another node has taken over in the database.

        A session whose row was gone is recorded once more: its samples did not say with which device.
        """
        for session_id in written.restored:
            stream = self.streams.of_session(session_id)
            if stream and stream.online:
                self._recording.begin(stream.session)
        for session_id, durable in written.durable.items():
            if stream := self.streams.of_session(session_id):
                stream.acknowledge(durable)
                self.kept.note_stored(stream)
        for session_id, fence in written.fenced:
            stream = self.streams.of_session(session_id)
            if stream and stream.session.fence == fence and session_id not in written.durable:
                user_id = stream.session.user_id
                self.supersede(user_id, CloseCode.TRY_LATER)  # the relay may well be the newest: it is to ask again
                self._peers.announce(user_id, None)
                self._tell(stream.status())

    def _require_room(self, user_id: str, client: Client) -> None:
        takes_from = self._sink.takes_from
        if not takes_from(user_id, "samples", client) or not takes_from(user_id, "sessions", client):
            self.n_turned_away += 1
            raise Unavailable(NOT_KEPT)

    def _take_in(self, stream: Stream, gap: Gap | None, accepted: Chunk) -> None:
        self._n_samples += len(accepted)
        for chunk in accepted.pieces():
            if not self._recording.raw(stream, gap, chunk, now_us()):
                if stream.acks:
                    self._turn_away(stream)
                    return
                stream.tell_once("not_stored", NOT_STORED.format("samples"))
            stream.write(chunk)
            if gap:
                self._subscribers.deliver(stream.session.user_id, gap)
            self._subscribers.deliver(stream.session.user_id, chunk)
            gap = None

    def _turn_away(self, stream: Stream) -> None:
        """Close a relay that keeps what is not durable: it comes back with it.

        The stream is forgotten, so that it goes on from what the database has, not from what found no room here.
        """
        assert stream.relay
        self.n_turned_away += 1
        stream.relay.close(CloseCode.TRY_LATER)
        assert stream.lost_from is not None
        stream.session.next_position, stream.lost_from = stream.lost_from, None
        self._end(stream)
        self.streams.remove(stream.session.user_id)
        self._peers.announce(stream.session.user_id, None)
        self._tell(stream.status())

    def _end(self, stream: Stream) -> None:
        stream.relay = None
        stream.offline_at = monotonic()
        self.streams.leave(stream)
        self._recording.end(stream, now_us())

    def _share(self, stream: Stream, note: Note) -> None:
        stream.note(note)
        if not stream.online:
            self.kept.resize(stream)
        self._subscribers.deliver(stream.session.user_id, note)

    def _tell(self, status: Status) -> None:
        self._subscribers.deliver(status.user_id, status_note(status))
