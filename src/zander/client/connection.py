"""A WebSocket to the server that connects again after it was lost: the base of `Relay` and `Consumer`."""

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
    """The connection was lost or could not be made; `code` is the close code or the HTTP status, if any."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class Rejected(ConnectionLost):
    """The server refuses this client, and would again: close codes 4500 to 4999 and 1009, HTTP 400 to 499 but 429."""


class Connection:
    """One WebSocket at a time, and growing pauses between the attempts to open the next.

    A subclass says in `_path` where to connect to, and extends `_open` by what it exchanges first.
    """

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
        self._server_error = ""  # text of the last message, if that was an `error`: the reason when a close follows

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def connect(self) -> None:
        """Wait for a connection; Rejected when there will be none."""
        raise NotImplementedError

    def _path(self) -> str:
        """Return where to connect to, below the URL."""
        raise NotImplementedError

    async def _connect(self) -> None:
        """Close what is open and connect, trying until it is done or Rejected.

        `on_lost` is called with each failure and the pause that follows, in s.
        """
        await self._disconnect()
        while True:
            if self._lost is not None:
                await self._pause(self._lost)
            try:
                await self._open()
            except Rejected:
                raise
            except ConnectionLost as error:
                self._lost = error
            except BaseException:  # cancelled while the first messages are exchanged
                await self._disconnect()
                raise
            else:
                self._lost = None
                self._connected_at = monotonic()
                return

    async def _disconnect(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()

    async def _pause(self, lost: ConnectionLost) -> None:
        """Wait before the next attempt."""
        if self._connected_at and monotonic() - self._connected_at > STABLE_S:
            self._backoff.reset()
        self._connected_at = 0.0
        pause_s = self._backoff.next_s()
        self._on_lost(lost, pause_s)
        await asyncio.sleep(pause_s)

    async def _open(self) -> None:
        """Try once to connect; ConnectionLost when that fails."""
        self._server_error = ""
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
            raise ConnectionLost(f"cannot reach {self.url}: {_error_text(error)}") from None

    def _note_lost(self, closed: ConnectionClosed) -> ConnectionLost:
        """Return why the connection was closed, and keep it for the next pause."""
        if closed.rcvd is None:
            self._lost = ConnectionLost("the connection broke")
            return self._lost
        code = closed.rcvd.code
        reason = REASONS.get(code, "the server closed the connection")
        detail = f": {self._server_error}" if self._server_error else ""
        kind = Rejected if code == CloseCode.TOO_BIG or 4500 <= code < 5000 else ConnectionLost
        self._lost = kind(f"{reason} ({code}){detail}", code)
        return self._lost

    def _decode(self, text: str | bytes) -> Message:
        message: Message = orjson.loads(text)
        self._server_error = str(message.get("message", "")) if message.get("type") == "error" else ""
        return message


def _error_text(error: Exception) -> str:
    """Return what the system says, without asyncio's `[Errno 111] Connect call failed (…)` around it."""
    number = getattr(error, "errno", None)
    return os.strerror(number).lower() if number and number > 0 else str(error) or type(error).__name__
