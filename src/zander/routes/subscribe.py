"""`/subscribe/{user_id}`: where consumers listen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from uuid import uuid4

from zander import auth
from zander.delivery.outbox import Outbox
from zander.delivery.queue import FORMATS
from zander.errors import Conflict
from zander.routes.context import Service, require_key
from zander.routes.parameters import choice, choices, number, session_id, user_id
from zander.routes.websocket import Opening, SessionTask, endpoint
from zander.wire.chunk import MAX_POSITION
from zander.wire.codec import decode_consumer, decode_consumer_auth, dumps
from zander.wire.connection import Connection, Message
from zander.wire.messages import KINDS, ConsumerAuth, PredictionAck

MAX_DELAY_MS = 1000


class _Place(NamedTuple):
    """The session and position at which a consumer resumes."""

    session_id: str
    position: int


@endpoint
async def subscribe(opening: Opening) -> SessionTask:
    """Authenticate a consumer; from then on it is sent what happens, and its predictions are taken."""
    await _authenticate(opening)
    request, settings = opening.request, opening.service.settings
    query = request.query_params
    outbox = Outbox(
        user_id(request.path_params),
        uuid4().hex,
        choice(query, "format", FORMATS, "json"),
        choices(query, "types", KINDS),
        settings.outbox_max_bytes,
        preloads=opening.service.hub.subscribers.preloads,
    )
    start = _place(query) or number(query, "last", 0, settings.buffer_samples, 0)
    delay_ms = number(query, "delay_ms", 0, MAX_DELAY_MS, 0)
    opening.admit()
    return _Consumer(outbox, start, delay_ms / 1e3, opening.service)


class _Consumer(SessionTask):
    """The session task of a consumer, from a position on or from the last so many samples."""

    def __init__(self, outbox: Outbox, start: _Place | int, delay_s: float, context: Service) -> None:
        super().__init__(outbox, delay_s)
        self._start = start
        self._hub, self._replays = context.hub, context.replays
        self._n_bad = 0

    async def begin(self) -> None:
        if isinstance(self._start, int):
            await self._hub.subscribe(self._outbox, self._start)
        else:
            self._replays.start(self._outbox, *self._start)

    async def take(self, message: Message) -> None:
        incoming = decode_consumer(message)
        if isinstance(incoming, ConsumerAuth):
            return  # an auth that was not needed
        delivered = False
        try:
            delivered = await self._hub.predict(self._outbox.user_id, incoming, str(message), self._outbox.consumer_id)
        finally:  # an error is told besides
            if (prediction_id := incoming.prediction.id) is not None:
                self._outbox.say(dumps(PredictionAck(prediction_id, delivered)))

    def begin_direct(self, connection: Connection) -> None:
        if connection.socket:
            connection.socket.delay(self.delay_s)
            self._outbox.open_through(connection.socket)

    def end_direct(self) -> None:
        self._outbox.close_through()

    def count_bad(self) -> int:
        self._hub.ingest.n_bad_messages += 1
        self._n_bad += 1
        return self._n_bad

    def end(self) -> None:
        self._hub.unsubscribe(self._outbox)
        self._replays.stop(self._outbox)


async def _authenticate(opening: Opening) -> None:
    """Look for a key in the headers, or in the first message."""
    keys, key = opening.service.settings.consumer_keys, auth.given_key(opening.request.headers)
    if keys and key is None:
        key = decode_consumer_auth(await opening.first_message()).api_key
    require_key(opening.request, keys, key)


def _place(query: Mapping[str, str]) -> _Place | None:
    """Read where a consumer resumes; Conflict when it does not say all of that, or more."""
    given = {"session_id", "from", "last"} & set(query)
    if given <= {"last"}:
        return None
    if given != {"session_id", "from"}:
        raise Conflict("bad_parameter", "expected session_id and from, or last, or none of them")
    return _Place(session_id(query), number(query, "from", 0, MAX_POSITION, 0))
