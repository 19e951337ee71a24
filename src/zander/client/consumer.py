"""The consumer's end of the wire: it knows how far it has come, and goes on there after a cut."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlencode

import numpy as np
import orjson
from websockets.exceptions import ConnectionClosed

from zander.client.connection import ConnectionLost, Line, Message, Rejected
from zander.wire.chunk import Samples, decode_binary, period_us


class Raw(NamedTuple):
    """Consecutive samples, float32 `(n, n_channels)` in µV; `position` and `time_us` are of the first."""

    position: int
    time_us: int
    samples: Samples
    session_id: str = ""


class Cursor(NamedTuple):
    """How far a consumer has come: the next sample that it has not got."""

    session_id: str
    position: int


def _ignore(*_: object) -> None:
    pass


class Consumer(Line):
    """The consumer's end, `/subscribe`: iterate over it for `Raw`, and a dict for every other message.

    The iteration never ends by itself: a lost connection is made again, and goes on where it was, so that no sample
    is missed or repeated; what the server no longer has comes as a `gap`. `last` buffered samples come first, on the
    first connection only. With a `cursor` it goes on from there instead: `consumer.cursor` of an earlier one. Use
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
        self._is_hidden = bool(types) and "raw" in (types or ()) and "status" not in (types or ())
        asked = (*(types or ()), *(["status"] if self._is_hidden else []))  # it says which session raw is of
        self._query: dict[str, Any] = {"format": format} | ({"types": ",".join(asked)} if asked else {})
        self._last = last
        self._session_id = cursor.session_id if cursor else ""
        self._next = cursor.position if cursor else None
        self._wants_raw = not types or "raw" in types
        self._stood: dict[str, int] = {}  # how far it has come in other sessions: one may be resumed after another
        self._period_us = 0.0
        self._has_heard = False  # which session there is, if any
        self._is_blind = False  # it is back, could not say from where, and may have missed a session
        self._error_code = ""  # of the last message, if that was an error

    @property
    def cursor(self) -> Cursor | None:
        """How far this consumer has come; None until it got a sample, or a session began while it listened."""
        is_known = self._wants_raw and self._next is not None and self._session_id
        return Cursor(self._session_id, self._next or 0) if is_known else None

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connect, trying until it is done or Rejected; `on_lost` hears of each failure and of the pause, in s.

        A connection that is open is closed first.
        """
        await self._dial()

    async def close(self) -> None:
        """Say goodbye. `connect`, or going on with the iteration, begins anew."""
        await self._hang_up()

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
                self._socket = None
                lost = self._ended(error)
                if self.cursor and self._error_code == "not_found":  # it was told; the next session will do
                    self._session_id, self._next = "", None
                elif isinstance(lost, Rejected):
                    raise lost from None
            else:
                if self._is_blind and self.cursor:
                    await self._hang_up()  # and ask for all of the session that began meanwhile
                elif event is not None:
                    return event

    async def send_prediction(
        self, prediction_type: str, classifier_name: str, data: Mapping[str, Any], **fields: Any
    ) -> None:
        """Send a prediction to the user's relay; `version` and `id` are further fields.

        With an `id`, a `prediction_ack` comes among the events.
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
            raise self._ended(error) from None

    async def _open(self) -> None:
        await super()._open()
        assert self._socket is not None
        self._last = 0
        self._is_blind = self._has_heard and self.cursor is None
        if self._headers is None:  # a server with keys would wait 10 s for one; this way it refuses at once
            with suppress(ConnectionClosed):  # the first `recv` says why
                await self._socket.send('{"type":"auth","api_key":""}')

    def _path(self) -> str:
        cursor = self.cursor
        past: dict[str, Any] = {"last": self._last} if self._last else {}
        if cursor:
            past = {"session_id": cursor.session_id, "from": cursor.position}
        return f"{self._subscription}?{urlencode(self._query | past)}"

    def _event(self, frame: str | bytes) -> Raw | Message | None:
        """Read a message; None when it is nothing new, or nothing that was asked for."""
        if isinstance(frame, bytes):
            position, time_us, samples = decode_binary(frame)
            return self._raw(self._session_id, position or 0, time_us or 0, samples)
        message = self._read(frame)
        self._error_code = str(message.get("code")) if message["type"] == "error" else ""
        if message["type"] == "raw":
            samples = np.array(message["samples"] if "samples" in message else [message["channels"]], np.float32)
            session_id = message.get("session_id", self._session_id)
            return self._raw(session_id, message["position"], round(message["timestamp"] * 1e6), samples)
        if message["type"] == "gap":
            return self._gap(message)
        if message["type"] == "status":
            self._begin(message.get("session_id") or self._session_id)
            self._is_blind = self._is_blind and self.cursor is not None
            self._period_us = period_us((message.get("device_info") or {}).get("sampling_rate"))
            return None if self._is_hidden else message
        return message

    def _begin(self, session_id: str) -> None:
        """Note which session follows; one that began while this consumer was there is missed from 0."""
        if session_id != self._session_id:
            if self._next is not None:
                self._stood[self._session_id] = self._next
            self._session_id = session_id
            self._next = self._stood.pop(session_id, 0 if self._has_heard else None)
        self._has_heard = True

    def _raw(self, session_id: str, position: int, time_us: int, samples: Samples) -> Raw | None:
        self._begin(session_id)
        n_behind = max(0, (self._next or 0) - position)
        if n_behind >= len(samples):
            return None
        self._next = position + len(samples)
        if n_behind:
            position, samples = position + n_behind, samples[n_behind:]
            time_us += round(n_behind * self._period_us)
        return Raw(position, time_us, samples, session_id)

    def _gap(self, gap: Message) -> Message | None:
        self._begin(gap["session_id"])
        start = max(gap["from"], self._next or 0)
        if start >= gap["to"]:
            return None
        self._next = gap["to"]
        return gap | {"from": start}
