"""A WebSocket to Zander that comes back: what `client.Relay` and `client.Consumer` share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from time import monotonic
from typing import Any, Self

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from zander.errors import CloseCode, ZanderError
from zander.retry import Backoff

FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 30.0
STABLE_S = 5.0  # a connection that lived so long makes the next pause short again

REASONS: dict[int, str] = {
    CloseCode.TOO_BIG: "a message was too big",
    CloseCode.RESTART: "the server restarts",
    CloseCode.TRY_LATER: "the server cannot take this now",
    CloseCode.AUTH_TIMEOUT: "the server got no auth in time",
    CloseCode.TOO_SLOW: "this client reads too slowly",
    CloseCode.TOO_MANY: "the server has too many connections",
    CloseCode.BAD_MESSAGES: "the server refuses what was sent",
    CloseCode.UNAUTHORIZED: "the key is wrong or missing",
    CloseCode.FORBIDDEN: "the key does not allow this user",
    CloseCode.TAKEN_OVER: "another relay took over this user",
}

Message = dict[str, Any]


class ConnectionLost(ZanderError):
    """The connection is gone or could not be made; `code` is the close code or the HTTP status, if any."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class Rejected(ConnectionLost):
    """Coming back would not help, this client has to change first: close codes 4500 to 4999, and 1009."""


class Line:
    """What both ends share: one WebSocket at a time, and the pauses between two."""

    def __init__(self, url: str, key: str | None, on_lost: Callable[[ConnectionLost, float], None]) -> None:
        self.url = url.rstrip("/")
        self._address = f"ws{self.url[4:]}" if self.url.startswith("http") else self.url
        # websockets writes latin-1, keys are UTF-8
        self._headers = {"Authorization": f"Bearer {key}".encode().decode("latin-1")} if key else None
        self._on_lost = on_lost
        self._socket: ClientConnection | None = None
        self._lost: ConnectionLost | None = None
        self._backoff = Backoff(FIRST_PAUSE_S, MAX_PAUSE_S)
        self._connected_at = 0.0
        self._complaint = ""  # of the server's last `error` message: it says why it closes

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def connect(self) -> None:
        """Wait for a connection; Rejected when there will be none."""
        raise NotImplementedError

    def _path(self) -> str:
        """Where to connect to, below the URL."""
        raise NotImplementedError

    async def _dial(self) -> None:
        """Connect, trying until it is done or Rejected; `on_lost` hears of each failure and of the pause, in s."""
        await self._hang_up()
        while True:
            if self._lost is not None:
                await self._pause(self._lost)
            try:
                await self._open()
            except Rejected:
                raise
            except ConnectionLost as error:
                self._lost = error
            except BaseException:  # cancelled between the connection and the greeting
                await self._hang_up()
                raise
            else:
                self._lost = None
                self._connected_at = monotonic()
                return

    async def _hang_up(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()

    async def _pause(self, lost: ConnectionLost) -> None:
        """Wait before the next try."""
        if self._connected_at and monotonic() - self._connected_at > STABLE_S:
            self._backoff.reset()
        self._connected_at = 0.0
        pause_s = self._backoff.next_s()
        self._on_lost(lost, pause_s)
        await asyncio.sleep(pause_s)

    async def _open(self) -> None:
        """Try once to connect."""
        self._complaint = ""
        try:
            self._socket = await connect(
                self._address + self._path(), additional_headers=self._headers, compression=None
            )
        except InvalidURI as error:
            raise Rejected(str(error)) from None
        except InvalidStatus as error:
            status = error.response.status_code
            kind = Rejected if 400 <= status < 500 and status != 429 else ConnectionLost
            raise kind(f"{self.url} answers {status} instead of opening a WebSocket", status) from None
        except (OSError, InvalidHandshake) as error:
            raise ConnectionLost(f"cannot reach {self.url}: {_why(error)}") from None

    def _ended(self, closed: ConnectionClosed) -> ConnectionLost:
        """Translate the end of the connection, and remember it."""
        if closed.rcvd is None:
            self._lost = ConnectionLost("the connection broke")
            return self._lost
        code = closed.rcvd.code
        reason = REASONS.get(code, "the server closed the connection")
        told = f": {self._complaint}" if self._complaint else ""
        kind = Rejected if code == CloseCode.TOO_BIG or 4500 <= code < 5000 else ConnectionLost
        self._lost = kind(f"{reason} ({code}){told}", code)
        return self._lost

    def _read(self, text: str | bytes) -> Message:
        message: Message = orjson.loads(text)
        self._complaint = str(message.get("message", "")) if message.get("type") == "error" else ""
        return message


def _why(error: Exception) -> str:
    """Say what asyncio wraps into `[Errno 111] Connect call failed (…)`."""
    number = getattr(error, "errno", None)
    return os.strerror(number).lower() if number and number > 0 else str(error) or type(error).__name__
