"""`/stream`: where relays send."""

from __future__ import annotations

from time import time

from starlette.websockets import WebSocket

from zander import auth
from zander.chunk import RawIn
from zander.errors import CloseCode
from zander.hub import now_us
from zander.messages import AuthOk, Features, Pong
from zander.outbox import Outbox
from zander.protocol import DIRECT, Message
from zander.routes.context import Service
from zander.routes.socket import Conversation, door, first_message
from zander.stream import Stream
from zander.wire import decode_auth, decode_fields, decode_relay, dumps


@door
async def stream(socket: WebSocket, context: Service) -> None:
    """Greet a relay, then take in what it sends."""
    hub = context.hub
    relay, connected = await _connect(socket, context)

    def take(message: Message) -> None:
        received = time()
        incoming = decode_relay(message)
        if isinstance(incoming, RawIn):
            hub.ingest(connected, incoming)
        elif isinstance(incoming, Features):
            hub.take_features(connected, incoming, decode_fields(message))
        else:
            relay.say(dumps(Pong(incoming.t0, received, time())))

    def count_bad() -> int:
        hub.n_bad_messages += 1
        return connected.session.count_bad()

    try:
        await Conversation(socket, relay, take, count_bad, hub.turn.peel(connected, relay)).run()
    finally:
        hub.disconnect(connected, relay)


async def _connect(socket: WebSocket, context: Service) -> tuple[Outbox, Stream]:
    settings, came_us = context.settings, now_us()
    first, device = decode_auth(await first_message(socket))
    auth.require(settings.edge_api_key, auth.given_key(socket.headers) or first.api_key)
    relay = Outbox(first.user_id, types=(), max_bytes=settings.outbox_max_bytes)
    relay.since_us = came_us
    if direct := socket.scope.get("extensions", {}).get(DIRECT):  # it may go while the database is asked
        direct.when_lost(lambda: relay.close(CloseCode.TRY_LATER))
    connected = await context.hub.connect(first, device, relay)
    session = connected.session
    relay.say(dumps(AuthOk(session.session_id, session.user_id, connected.durable, time())))
    return relay, connected
