"""`/stream`: where relays send."""

from __future__ import annotations

from functools import partial
from time import time

from starlette.websockets import WebSocket

from zander import auth
from zander.delivery.outbox import Outbox
from zander.errors import CloseCode
from zander.hub.hub import Hub, now_us
from zander.routes.context import Service
from zander.routes.websocket import Conversation, door, find_direct, first_message
from zander.streams.stream import Stream
from zander.wire.chunk import RawIn
from zander.wire.codec import decode_auth, decode_fields, decode_relay, dumps
from zander.wire.messages import AuthOk, Features, Pong
from zander.wire.websocket import Message


@door
async def stream(socket: WebSocket, context: Service) -> Conversation:
    """Greet a relay; what it sends from then on is taken in."""
    relay, connected = await _connect(socket, context)
    return _Relay(relay, connected, context.hub)


class _Relay(Conversation):
    def __init__(self, relay: Outbox, connected: Stream, hub: Hub) -> None:
        super().__init__(relay, hub.turn.peel(connected, relay))
        self._connected = connected
        self._hub = hub

    async def begin(self) -> None:
        session = self._connected.session
        self._outbox.say(dumps(AuthOk(session.session_id, session.user_id, self._connected.durable, time())))

    def take(self, message: Message) -> None:
        received = time()
        incoming = decode_relay(message)
        if isinstance(incoming, RawIn):
            self._hub.ingest(self._connected, incoming)
        elif isinstance(incoming, Features):
            self._hub.take_features(self._connected, incoming, decode_fields(message))
        else:
            self._outbox.say(dumps(Pong(incoming.t0, received, time())))

    def count_bad(self) -> int:
        self._hub.n_bad_messages += 1
        return self._connected.session.count_bad()

    def end(self) -> None:
        self._hub.disconnect(self._connected, self._outbox)


async def _connect(socket: WebSocket, context: Service) -> tuple[Outbox, Stream]:
    settings, came_us = context.settings, now_us()
    first, device = decode_auth(await first_message(socket))
    auth.require(settings.edge_api_key, auth.given_key(socket.headers) or first.api_key)
    relay = Outbox(first.user_id, types=(), max_bytes=settings.outbox_max_bytes)
    relay.since_us = came_us
    if direct := find_direct(socket):  # it may go while the database is asked
        direct.when_lost(partial(relay.close, CloseCode.TRY_LATER))
    connected = await context.hub.connect(first, device, relay)
    return relay, connected
