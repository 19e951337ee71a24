"""The consumer's end of the protocol: iteration over a user's samples and messages, across lost connections."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlencode

import numpy as np
import orjson
from websockets.exceptions import ConnectionClosed

from zander.client.connection import Connection, ConnectionLost, Message, Rejected
from zander.wire.chunk import Samples, decode_binary, period_us


class Raw(NamedTuple):
    """Consecutive samples, float32 `(n, n_channels)` in µV; `position` and `time_us` are of the first."""

    position: int
    time_us: int
    samples: Samples
    session_id: str = ""


class Cursor(NamedTuple):
    """The next sample that a consumer has not got."""

    session_id: str
    position: int


class _Progress:
    """The position after the last sample that came, in the session that is followed and in those before it.

    `position` is None in a session that had begun already when the first message came, until a sample of it comes:
    such a session is followed from there on. A session that begins later is wanted whole, so its position begins at 0.
    A relay may resume an earlier session; then its position is that of before.
    """

    def __init__(self, cursor: Cursor | None) -> None:
        self.session_id = cursor.session_id if cursor else ""
        self.position = cursor.position if cursor else None
        self.has_begun = False  # a message has said which session there is, or that there is none
        self._earlier: dict[str, int] = {}  # position by session

    @property
    def cursor(self) -> Cursor | None:
        """Where to go on, if that is known."""
        is_known = self.session_id and self.position is not None
        return Cursor(self.session_id, self.position or 0) if is_known else None

    def enter(self, session_id: str) -> None:
        """Follow this session from now on."""
        if session_id != self.session_id:
            if self.position is not None:
                self._earlier[self.session_id] = self.position
            self.session_id = session_id
            self.position = self._earlier.pop(session_id, 0 if self.has_begun else None)
        self.has_begun = True

    def advance(self, session_id: str, start: int, end: int) -> int:
        """Move to `end`, and return the first position from `start` on that is new; `end` if none is."""
        self.enter(session_id)
        first_new = min(max(start, self.position or 0), end)
        if first_new < end:
            self.position = end
        return first_new

    def give_up(self) -> None:
        """Follow no session until the next message names one."""
        self.session_id, self.position = "", None


def _ignore(*_: object) -> None:
    pass


class Consumer(Connection):
    """The consumer's end, `/subscribe`: iterate over it for `Raw`, and a dict for every other message.

    The iteration never ends by itself: after a lost connection it goes on where it was, so that no sample is missed or
    repeated; what the server no longer has comes as a `gap`. `last` buffered samples come first, on the first
    connection only. With a `cursor`, `consumer.cursor` of an earlier consumer, it goes on from there instead. Use
    `async with` where you leave the loop: it closes the connection at once.
    """

    def __init__(
        self,
        url: str,
        user_id: str,
        key: str | None = None,
        *,
        types: Collection[str] | None = None,
        format: str = "binary",
        last: int = 0,
        cursor: Cursor | None = None,
        on_lost: Callable[[ConnectionLost, float], None] = _ignore,
    ) -> None:
        super().__init__(url, key, on_lost)
        self._subscription = f"/subscribe/{quote(user_id, safe='')}"
        self._wants_raw = not types or "raw" in types
        # A binary chunk does not name its session, a status does: who wants raw gets status too, here if not outside.
        self._hides_status = bool(types) and self._wants_raw and "status" not in (types or ())
        asked = (*(types or ()), *(["status"] if self._hides_status else []))
        self._query: dict[str, Any] = {"format": format} | ({"types": ",".join(asked)} if asked else {})
        self._last = last
        self._progress = _Progress(cursor)
        self._period_us = 0.0
        self._may_have_missed_session = False  # it came back without a cursor, and no status has come since
        self._error_code = ""  # of the last message, if that was an error

    @property
    def cursor(self) -> Cursor | None:
        """Where to go on; None until a sample came, or a session began after this consumer connected."""
        return self._progress.cursor if self._wants_raw else None

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connect, trying until it is done or Rejected; `on_lost` is called with each failure and the pause, in s.

        A connection that is open is closed first.
        """
        await self._connect()

    async def close(self) -> None:
        """Close the connection. `connect`, or going on with the iteration, opens another."""
        await self._disconnect()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Raw | Message:
        while True:
            if self._socket is None:
                await self.connect()
            assert self._socket is not None
            try:
                event = self._event(await self._socket.recv())
            except ConnectionClosed as error:
                self._closed(error)
            else:
                if self._may_have_missed_session and self.cursor:
                    await self._disconnect()  # and ask for the session that began meanwhile, from its start
                elif event is not None:
                    return event

    async def send_prediction(
        self, prediction_type: str, classifier_name: str, data: Mapping[str, Any], **fields: Any
    ) -> None:
        """Send a prediction to the user's relay; `version` and `id` are further fields.

        With an `id`, a `prediction_ack` comes among the events, and in any case an `error` where it is refused, as over
        64 KiB of JSON. ConnectionLost without a connection.
        """
        if self._socket is None:
            raise ConnectionLost("not connected")
        message = {
            "type": "prediction",
            "prediction_type": prediction_type,
            "classifier_name": classifier_name,
        }
        try:
            await self._socket.send(orjson.dumps({**message, "data": dict(data), **fields}).decode())
        except ConnectionClosed as error:
            raise self._note_lost(error) from None

    async def _open(self) -> None:
        await super()._open()
        assert self._socket is not None
        self._last = 0
        self._may_have_missed_session = self._progress.has_begun and self.cursor is None
        if self._headers is None:  # a server with keys would wait 10 s for one; this way it refuses at once
            with suppress(ConnectionClosed):  # the first `recv` says why
                await self._socket.send('{"type":"auth","api_key":""}')

    def _path(self) -> str:
        start: dict[str, Any] = {"last": self._last} if self._last else {}
        if cursor := self.cursor:
            start = {"session_id": cursor.session_id, "from": cursor.position}
        return f"{self._subscription}?{urlencode(self._query | start)}"

    def _closed(self, error: ConnectionClosed) -> None:
        """Note why the connection was closed; Rejected when there is no coming back."""
        self._socket = None
        lost = self._note_lost(error)
        if self.cursor and self._error_code == "not_found":  # the error was an event; the next session will do
            self._progress.give_up()
        elif isinstance(lost, Rejected):
            raise lost from None

    def _event(self, frame: str | bytes) -> Raw | Message | None:
        """Read a message; None when nothing of it is new, or it was not asked for."""
        if isinstance(frame, bytes):
            position, time_us, samples = decode_binary(frame)
            return self._raw(Raw(position or 0, time_us or 0, samples, self._progress.session_id))
        message = self._decode(frame)
        self._error_code = str(message.get("code")) if message["type"] == "error" else ""
        if message["type"] == "raw":
            samples = np.array(message["samples"] if "samples" in message else [message["channels"]], np.float32)
            session_id = message.get("session_id", self._progress.session_id)
            return self._raw(Raw(message["position"], round(message["timestamp"] * 1e6), samples, session_id))
        if message["type"] == "gap":
            return self._gap(message)
        if message["type"] == "status":
            return self._status(message)
        return message

    def _raw(self, raw: Raw) -> Raw | None:
        """Cut off the samples that came before."""
        start, n = raw.position, len(raw.samples)
        n_old = self._progress.advance(raw.session_id, start, start + n) - start
        if n_old == n:
            return None
        if not n_old:
            return raw
        return Raw(start + n_old, raw.time_us + round(n_old * self._period_us), raw.samples[n_old:], raw.session_id)

    def _gap(self, gap: Message) -> Message | None:
        start = self._progress.advance(gap["session_id"], gap["from"], gap["to"])
        return gap | {"from": start} if start < gap["to"] else None

    def _status(self, status: Message) -> Message | None:
        self._progress.enter(status.get("session_id") or self._progress.session_id)
        if self.cursor is None:
            self._may_have_missed_session = False
        self._period_us = period_us((status.get("device_info") or {}).get("sampling_rate"))
        return None if self._hides_status else status
