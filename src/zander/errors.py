"""Errors of this package, and the close codes that tell a client of them.

    ZanderError
    ├── SettingsError        a setting is wrong; the start stops with its sentence
    ├── StorageError         the database cannot take a batch now; it is tried again
    │   └── Moved            another process has written from the same journal
    └── ClientError          a client did something wrong, or asked for what is not here
        ├── BadMessage       422   dropped and counted; the connection goes on
        ├── Conflict         409   parameters that are right one by one, but not together
        ├── Unauthorized     401   the key is wrong or missing
        ├── Forbidden        403   not allowed for this user: a session that is somebody else's
        ├── TooMany          429   more connections than this node serves, or more questions than a client may ask
        ├── NotFound         404   no such user, or nothing buffered
        └── Unavailable      503   the part that would answer is away

A ClientError is raised where it is noticed and translated once, at the edge: into an `error` message on a
WebSocket, into `{"error": {…}}` over REST.
"""

from __future__ import annotations

from enum import IntEnum


class CloseCode(IntEnum):
    """Reasons for which the server closes a WebSocket; the numbers in `meaning` are held against the code by a test."""

    meaning: str

    NOT_UTF8 = 1007, "a text that cannot be decoded"
    TOO_BIG = 1009, "a message over 1 MiB"
    INTERNAL_ERROR = 1011, "no answer to a ping for 40 s, or an error of the server"
    RESTART = 1012, "the server restarts"
    TRY_LATER = 1013, "the server cannot keep what you would send, or not reach what it needs, now"
    AUTH_TIMEOUT = 4408, "no first message within 10 s"
    TOO_SLOW = 4413, "read too slowly for too long"
    TOO_MANY = 4429, "more connections than this node serves, or a relay that sends too much for too long"
    BAD_MESSAGES = 4500, "a first message or a query that is wrong, or 100 bad messages"
    UNAUTHORIZED = 4501, "the key is wrong or missing"
    FORBIDDEN = 4503, "not allowed for this user: the `session_id` is another user's"
    TAKEN_OVER = 4509, "a newer relay streams for this user: do not fight it"

    def __new__(cls, code: int, meaning: str) -> CloseCode:
        """Make a member of a code and what it means for the client."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    @property
    def invites_return(self) -> bool:
        """Whether the client may come back as it is; else it has to change first."""
        return self in (CloseCode.RESTART, CloseCode.TRY_LATER) or 4000 <= self < 4500


class ZanderError(Exception):
    """The root of everything this package raises by itself."""


class SettingsError(ZanderError):
    """A setting that names itself and says what it takes."""


class StorageError(ZanderError):
    """The database is away or refuses; nothing of the batch was committed, or it is not known yet."""


class Moved(StorageError):
    """The journal is committed up to `position`, which is not where the batch starts; nothing of it was committed."""

    def __init__(self, position: int) -> None:
        super().__init__(f"the journal is committed up to {position} already")
        self.position = position


class ClientError(ZanderError):
    """A client's mistake: `code` for programs, the message for people, `status` for REST, `close` for WebSockets."""

    status = 400
    close = CloseCode.BAD_MESSAGES

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class BadMessage(ClientError):
    """Not what the protocol says: what was expected and what came."""

    status = 422


class Conflict(ClientError):
    """Parameters that are right one by one, but not together, or not for the samples that they are about."""

    status = 409


class Unauthorized(ClientError):
    """No key, or a wrong one."""

    status = 401
    close = CloseCode.UNAUTHORIZED

    def __init__(self, message: str, close: CloseCode = CloseCode.UNAUTHORIZED) -> None:
        super().__init__("unauthorized", message)
        self.close = close


class Forbidden(ClientError):
    """Not allowed for this user."""

    status = 403
    close = CloseCode.FORBIDDEN

    def __init__(self, message: str) -> None:
        super().__init__("forbidden", message)


class TooMany(ClientError):
    """More connections than this node serves, or more questions at once than a client may ask."""

    status = 429
    close = CloseCode.TOO_MANY

    def __init__(self, message: str) -> None:
        super().__init__("too_many", message)


class NotFound(ClientError):
    """Nothing here under that name."""

    status = 404

    def __init__(self, message: str) -> None:
        super().__init__("not_found", message)


class Unavailable(ClientError):
    """The node or service that would answer does not, now."""

    status = 503
    close = CloseCode.TRY_LATER

    def __init__(self, message: str) -> None:
        super().__init__("unavailable", message)
