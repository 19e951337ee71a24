"""Who streams, who listens, and the order of events.

Everything between two awaits happens at once: a sample is accepted, buffered, delivered, published and handed to the
recorder in one synchronous call, so whoever subscribes sees it either in the buffer or live, never both or neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic, time
from typing import Any

from zander.delivery.outbox import Outbox
from zander.delivery.subscribers import Audience, status_note
from zander.errors import CloseCode, Unavailable
from zander.hub.fastpath import Turn
from zander.hub.interfaces import Archive, Broadcast
from zander.hub.recording import Ledger, Recorder
from zander.hub.takeover import Admission
from zander.journal.batch import Written
from zander.streams.query import Answer, Query, answer
from zander.streams.stream import Stream, StreamSummary
from zander.wire.chunk import Chunk, RawIn
from zander.wire.codec import decode_fields, decode_prediction, dumps, to_us
from zander.wire.messages import Auth, DeviceInfo, Features, Note, Status


def now_us() -> int:
    """Return the server's clock, µs since 1970."""
    return int(time() * 1e6)


class Hub:
    """The streams this node holds and the consumers connected to it."""

    def __init__(
        self,
        recorder: Recorder,
        archive: Archive,
        broadcast: Broadcast,
        *,
        buffer_samples: int,
        buffer_keep_seconds: float,
    ) -> None:
        self.recorder = recorder
        self.archive = archive
        self._admission = Admission(archive, broadcast)
        self.broadcast = broadcast
        self.buffer_samples = buffer_samples
        self.buffer_keep_seconds = buffer_keep_seconds
        self.holds: dict[str, Stream] = {}
        self.audience = Audience()
        self.n_connections = 0
        self.n_bad_messages = 0
        self._ledger = Ledger(recorder)
        self.turn = Turn(recorder, self.audience, broadcast, self._take_in)
        self.go_back: Callable[[Outbox], None] = lambda outbox: None
        self._gone = asyncio.Event()  # set while nobody is connected
        self._gone.set()

    # Relays.

    async def connect(self, auth: Auth, device: DeviceInfo, relay: Outbox) -> Stream:
        """Begin a session or go on with one. The newest relay of a user wins: the one before is closed.

        Unavailable when what it sends could not be kept, or when only the database knows its session and is away.
        """
        if not self.recorder.takes:
            raise Unavailable("the journal is full: what you send could not be kept")
        session = await self._admission.session(auth, device, lambda: self._held(auth.user_id), now_us(), relay)
        stream = self.holds.get(auth.user_id)
        if stream and stream.session is session:
            stream.take_back(relay, device)
        else:
            self.supersede(auth.user_id)
            stream = self.holds[auth.user_id] = Stream(session, relay, self.buffer_samples)
        stream.acks = auth.ack
        self._ledger.begin(session)
        self.broadcast.announce(auth.user_id, stream)
        self.tell_status(stream.status())
        return stream

    def disconnect(self, stream: Stream, relay: Outbox) -> None:
        """End a session whose relay has gone; what it left in the buffer stays for a while."""
        self.turn.flush()
        if stream.relay is not relay:
            return  # it has another by now, or none
        self._end(stream)
        self.broadcast.announce(stream.session.user_id, stream)
        self.tell_status(stream.status())

    def supersede(self, user_id: str, code: CloseCode = CloseCode.TAKEN_OVER) -> None:
        """Give up the user's stream, here, because a newer relay has it."""
        self.turn.flush()  # which may turn the relay away
        stream = self.holds.pop(user_id, None)
        if stream and stream.relay:
            stream.relay.close(code)
            self._end(stream)

    def ingest(self, stream: Stream, raw: RawIn) -> None:
        """Take raw in: positions, buffer, consumers, other nodes, database. BadMessage when it breaks a rule.

        What still comes from a relay whose session has ended is nobody's.
        """
        if not stream.online:
            return
        gap, accepted = stream.session.accept(raw, now_us())
        if accepted:
            self._take_in(stream, gap, accepted)

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
        self._ledger.features(session, data, features.confidence, time_us)

    def written(self, written: Written) -> None:
        """Tell relays what is durable by now; give up sessions that another node has taken over in the database."""
        for user_id, stream in list(self.holds.items()):
            session = stream.session
            durable = written.durable.get(session.session_id)
            if durable is not None:
                stream.reach(durable)
            elif (session.session_id, session.fence) in written.fenced:
                self.supersede(user_id, CloseCode.TRY_LATER)  # the relay may well be the newest: it is to ask again
                self.broadcast.announce(user_id, None)
                self.tell_status(stream.status())

    # Consumers.

    async def subscribe(self, outbox: Outbox, last: int) -> None:
        """Begin to deliver to a consumer: its user's status, the last samples, then everything live."""
        if stream := self.holds.get(outbox.user_id):
            history = stream.last_events(last)
            outbox.stand_before(stream.session.session_id, history, stream.session.next_position)
            self.listen(outbox, stream.status(), history)
        else:
            await self.broadcast.subscribe(outbox, last)

    async def join(self, outbox: Outbox, at_a_loss: bool) -> int | None:
        """Deliver to a consumer from where it stands, if memory reaches back there or `at_a_loss`.

        Else return from where on the session is in memory, which has one of a user. While there is none, a consumer
        waits for the next.
        """
        stream = self.holds.get(outbox.user_id)
        if stream is None:
            return await self.broadcast.join(outbox, at_a_loss)
        if stream.session.session_id != outbox.session_id:
            return outbox.position
        if stream.ring.first_position > outbox.position and not at_a_loss:
            return stream.ring.first_position
        self.listen(outbox, stream.status(), stream.events_since(outbox.position, stream.n_notes))
        return None

    def status(self, user_id: str) -> Status:
        """Say what is known of a user's relay, wherever it is."""
        stream = self.holds.get(user_id)
        return stream.status() if stream else self.broadcast.status(user_id)

    def listen(self, outbox: Outbox, status: Status, history: Sequence[Chunk | Note]) -> None:
        """Add a consumer, with what it gets first."""
        self.audience.listen(outbox, [status_note(status), *history])

    def send_back(self, outbox: Outbox) -> None:
        """Let a consumer that may have missed something go back to where it stands."""
        self.unsubscribe(outbox)
        self.go_back(outbox)

    def unsubscribe(self, outbox: Outbox) -> None:
        """Forget a consumer that has gone."""
        if self.audience.forget(outbox):
            self.broadcast.unfollow(outbox.user_id)

    def tell_status(self, status: Status) -> None:
        """Tell the consumers on this node that a relay came or went."""
        self.audience.deliver(status.user_id, status_note(status))

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
        self._ledger.prediction(session, prediction, time_us)
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
        for outbox in list(self.audience):
            if outbox.stalled():
                outbox.close(CloseCode.TOO_SLOW)

    async def close_all(self, seconds: float) -> None:
        """Close everybody with 1012 and wait for it, not for ever; relays first, so consumers get the last samples."""
        for stream in list(self.holds.values()):
            if stream.relay:
                stream.relay.close(CloseCode.RESTART)
                self.disconnect(stream, stream.relay)
        for outbox in list(self.audience):
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

    def _held(self, user_id: str) -> Stream | None:
        """Return what this node has of a user, with all that came."""
        self.turn.flush()
        return self.holds.get(user_id)

    def _take_in(self, stream: Stream, gap: tuple[int, int] | None, accepted: Chunk) -> None:
        self.turn.n_samples += len(accepted)
        for chunk in accepted.pieces():
            if not self._ledger.raw(stream, gap, chunk, now_us()) and stream.acks:
                self._turn_away(stream)
                return
            gap = None
            stream.write(chunk)
            self.audience.deliver(stream.session.user_id, chunk)
            self.broadcast.publish(stream, chunk)

    def _turn_away(self, stream: Stream) -> None:
        """Close a relay that keeps what is not durable: it comes back with it.

        The stream is forgotten, so that it goes on from what the database has, not from what found no room here.
        """
        assert stream.relay
        stream.relay.close(CloseCode.TRY_LATER)
        stream.lost_from = None
        self._end(stream)
        del self.holds[stream.session.user_id]
        self.broadcast.announce(stream.session.user_id, None)
        self.tell_status(stream.status())

    def _end(self, stream: Stream) -> None:
        stream.relay = None
        stream.offline_at = monotonic()
        self._ledger.end(stream, now_us())

    def _share(self, stream: Stream, note: Note) -> None:
        stream.note(note)
        self.audience.deliver(stream.session.user_id, note)
        self.broadcast.publish(stream, note)
