"""`/stream`: where relays send."""

from __future__ import annotations

from functools import partial
from time import time

from starlette.websockets import WebSocket

from zander import auth
from zander.delivery.outbox import Outbox
from zander.errors import CloseCode
from zander.hub.ingest import Ingest
from zander.routes.context import Service
from zander.routes.websocket import SessionTask, endpoint, find_direct, first_message
from zander.streams.clock import now_us
from zander.streams.stream import Stream
from zander.wire.chunk import RawIn
from zander.wire.codec import decode_auth, decode_fields, decode_relay, dumps
from zander.wire.messages import AuthOk, Features, Pong
from zander.wire.websocket import Message


@endpoint
async def stream(socket: WebSocket, context: Service) -> SessionTask:
    """Authenticate a relay and connect it; what it sends from then on is taken in."""
    relay, connected = await _connect(socket, context)
    return _Relay(relay, connected, context.hub.ingest)


class _Relay(SessionTask):
    def __init__(self, relay: Outbox, connected: Stream, ingest: Ingest) -> None:
        super().__init__(relay, ingest.fast_path.interceptor(connected, relay))
        self._connected = connected
        self._ingest = ingest

    async def begin(self) -> None:
        session = self._connected.session
        self._outbox.say(dumps(AuthOk(session.session_id, session.user_id, self._connected.durable, time())))

    def take(self, message: Message) -> None:
        received = time()
        incoming = decode_relay(message)
        if isinstance(incoming, RawIn):
            self._ingest.take_raw(self._connected, incoming)
        elif isinstance(incoming, Features):
            self._ingest.take_features(self._connected, incoming, decode_fields(message))
        else:
            self._outbox.say(dumps(Pong(incoming.t0, received, time())))

    def count_bad(self) -> int:
        self._ingest.n_bad_messages += 1
        return self._connected.session.count_bad()

    def end(self) -> None:
        self._ingest.disconnect(self._connected, self._outbox)


async def _connect(socket: WebSocket, context: Service) -> tuple[Outbox, Stream]:
    settings, came_us = context.settings, now_us()
    first, device = decode_auth(await first_message(socket))
    auth.require(settings.edge_api_key, auth.given_key(socket.headers) or first.api_key)
    relay = Outbox(first.user_id, types=(), max_bytes=settings.outbox_max_bytes)
    relay.since_us = came_us
    if direct := find_direct(socket):  # it may go while the database is asked
        direct.when_lost(partial(relay.close, CloseCode.TRY_LATER))
    connected = await context.hub.ingest.connect(first, device, relay)
    return relay, connected
