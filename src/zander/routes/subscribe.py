"""`/subscribe/{user_id}`: where consumers listen."""

from __future__ import annotations

from itertools import count
from uuid import uuid4

from starlette.websockets import WebSocket

from zander import auth
from zander.messages import KINDS, Prediction, PredictionAck
from zander.outbox import FORMATS, Outbox
from zander.protocol import Message
from zander.routes.context import Service
from zander.routes.parameters import choice, choices, number, user_id
from zander.routes.socket import Conversation, door, first_message
from zander.wire import decode_consumer, decode_consumer_auth, dumps


@door
async def subscribe(socket: WebSocket, context: Service) -> None:
    """Greet a consumer, then send it what happens and take its predictions."""
    hub = context.hub
    outbox, last = await _admit(socket, context)

    async def take(message: Message) -> None:
        incoming = decode_consumer(message)
        if not isinstance(incoming, Prediction):
            return  # an auth that was not needed
        delivered = False
        try:
            delivered = await hub.predict(outbox.user_id, str(message), outbox.consumer_id)
        finally:  # an error is told besides
            if incoming.id is not None:
                outbox.say(dumps(PredictionAck(incoming.id, delivered)))

    numbers = count(1)

    def count_bad() -> int:
        hub.n_bad_messages += 1
        return next(numbers)

    try:
        await hub.subscribe(outbox, last)
        await Conversation(socket, outbox, take, count_bad).run()
    finally:
        hub.unsubscribe(outbox)


async def _admit(socket: WebSocket, context: Service) -> tuple[Outbox, int]:
    settings = context.settings
    key = auth.given_key(socket.headers)
    if settings.consumer_keys and key is None:
        key = decode_consumer_auth(await first_message(socket)).api_key
    auth.require(settings.consumer_keys, key)
    query = socket.query_params
    outbox = Outbox(
        user_id(socket.path_params),
        uuid4().hex,
        choice(query, "format", FORMATS, "json"),
        choices(query, "types", KINDS),
        settings.outbox_max_bytes,
    )
    return outbox, number(query, "last", 0, settings.buffer_samples, 0)
