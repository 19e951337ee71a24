"""`/stream`: where relays send."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from zander.delivery.outbox import Outbox
from zander.errors import CloseCode
from zander.hub.ingest import Ingest
from zander.routes.context import require_key
from zander.routes.questions import client_of
from zander.routes.websocket import Opening, SessionTask, endpoint
from zander.streams.clock import now_us
from zander.streams.stream import Stream
from zander.wire.chunk import RawIn
from zander.wire.codec import decode_auth, decode_fields, decode_relay, dumps
from zander.wire.connection import Connection, Message
from zander.wire.messages import AuthOk, Features, Pong

if TYPE_CHECKING:
    from zander._native import FrameReader


@endpoint
async def stream(opening: Opening) -> SessionTask:
    """Authenticate a relay and connect it; what it sends from then on is taken in."""
    came_us, settings, ingest = now_us(), opening.service.settings, opening.service.hub.ingest
    first, device = decode_auth(await opening.first_message())
    client = client_of(opening.request, first.api_key)
    require_key(opening.request, settings.edge_api_key, client.key or None)
    opening.admit()
    relay = Outbox(first.user_id, types=(), max_bytes=settings.outbox_max_bytes)
    relay.since_us = came_us
    opening.connection.when_lost(partial(relay.close, CloseCode.TRY_LATER))  # it may go while the database is asked
    return _Relay(relay, await ingest.connect(first, device, relay, client), ingest)


class _Relay(SessionTask):
    def __init__(self, relay: Outbox, connected: Stream, ingest: Ingest) -> None:
        super().__init__(relay)
        self._connected = connected
        self._ingest = ingest
        self._reader: FrameReader | None = None

    async def begin(self) -> None:
        session = self._connected.session
        self._outbox.say(dumps(AuthOk(session.session_id, session.user_id, self._connected.durable, now_us() / 1e6)))

    def take(self, message: Message) -> None:
        received = now_us() / 1e6
        incoming = decode_relay(message)
        if isinstance(incoming, RawIn):
            self._ingest.take_raw(self._connected, incoming)
        elif isinstance(incoming, Features):
            self._ingest.take_features(self._connected, incoming, decode_fields(message))
        else:
            self._outbox.say(dumps(Pong(incoming.t0, received, now_us() / 1e6)))

    def begin_direct(self, connection: Connection) -> None:
        self._ingest.rate_limit.watch(self._outbox, connection)
        if connection.reader:
            self._reader = connection.reader
            self._ingest.fast_path.begin(self._reader, self._connected, self._outbox)

    def end_direct(self) -> None:
        self._ingest.rate_limit.forget(self._outbox)
        if self._reader:
            self._ingest.fast_path.end(self._reader)

    def count_bad(self) -> int:
        self._ingest.n_bad_messages += 1
        return self._connected.session.count_bad()

    def end(self) -> None:
        self._ingest.disconnect(self._connected, self._outbox)
