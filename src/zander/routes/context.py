"""The parts that endpoints share: the built service, who may use it, and the form of a response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

from starlette.requests import HTTPConnection
from starlette.responses import Response

from zander import auth
from zander.database.history import History
from zander.database.sessions import DatabaseSessions
from zander.errors import Unauthorized
from zander.hub.hub import Hub
from zander.hub.replay import Replays
from zander.journal.recorder import Recorder
from zander.routes.answers import Answers
from zander.routes.questions import Questions
from zander.settings import Keys, Settings
from zander.wire.bodies import JSON_TYPE
from zander.wire.codec import dumps


class Service(NamedTuple):
    """The built parts, as `app.py` put them together; `started_at` is of `time.monotonic()`."""

    settings: Settings
    hub: Hub
    recorder: Recorder
    sessions: DatabaseSessions
    history: History
    replays: Replays
    answers: Answers
    questions: Questions
    refusals: auth.Refusals
    started_at: float


def service(connection: HTTPConnection) -> Service:
    """Return the service that a request or WebSocket came to."""
    return cast(Service, connection.app.state.service)


def check_origin(connection: HTTPConnection) -> None:
    """Raise Unauthorized for a web page of another site where no key is needed."""
    if not service(connection).settings.edge_api_key:
        auth.check_origin(connection.headers)


def require_key(connection: HTTPConnection, keys: Keys, given: str | None) -> None:
    """Raise Unauthorized unless `given` is one of `keys`, or there are none; count and log who is refused."""
    try:
        auth.require(keys, given)
    except Unauthorized:
        service(connection).refusals.note(connection.client.host if connection.client else "an unknown address")
        raise


def require_consumer(connection: HTTPConnection) -> Service:
    """Return the service; Unauthorized without a consumer's key in the headers."""
    found = service(connection)
    check_origin(connection)
    require_key(connection, found.settings.consumer_keys, auth.given_key(connection.headers))
    return found


def json_response(message: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Write a message as JSON."""
    return Response(dumps(message), status, headers, media_type=JSON_TYPE)
