"""Context of the endpoints: the built service, and who may use it."""

from __future__ import annotations

from typing import NamedTuple, cast

from starlette.requests import HTTPConnection

from zander import auth
from zander.database.sessions import Archive
from zander.hub.hub import Hub
from zander.hub.replay import Replays
from zander.journal.recorder import Recorder
from zander.settings import Settings


class Service(NamedTuple):
    """The built parts, as `app.py` put them together; `started_at` is of `time.monotonic()`."""

    settings: Settings
    hub: Hub
    recorder: Recorder
    archive: Archive
    replays: Replays
    started_at: float


def service(connection: HTTPConnection) -> Service:
    """Return the service that a request or WebSocket came to."""
    return cast(Service, connection.app.state.service)


def check_origin(connection: HTTPConnection) -> None:
    """Raise Unauthorized for a web page of another site where no key is needed."""
    if not service(connection).settings.edge_api_key:
        auth.check_origin(connection.headers)


def require_consumer(connection: HTTPConnection) -> Service:
    """Return the service; Unauthorized without a consumer's key in the headers."""
    found = service(connection)
    check_origin(connection)
    auth.require(found.settings.consumer_keys, auth.given_key(connection.headers))
    return found
