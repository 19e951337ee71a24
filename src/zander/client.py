"""`Relay` and `Consumer`: the two ends of Zander's wire, for asyncio programs.

    async with Relay("ws://127.0.0.1:8000", "me", {"sampling_rate": 128, "channel_count": 1}) as relay:
        await relay.send_sample([12.5])

    async for event in Consumer("ws://127.0.0.1:8000", "me"):
        print(event)

Both connect again by themselves, with growing pauses, as long as that can help. What cannot be helped so is a
`Rejected`. Keys travel in the `Authorization` header, never in the URL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlencode

import numpy as np
import orjson
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from zander.chunk import RawIn, Samples, decode_binary, encode_binary
from zander.line import ConnectionLost, Line, Message, Rejected

__all__ = ["ConnectionLost", "Consumer", "Raw", "Rejected", "Relay"]

Values = Sequence[float] | NDArray[np.floating[Any]]


class Raw(NamedTuple):
    """Consecutive samples, float32 `(n, n_channels)` in µV; `position` and `time_us` are of the first."""

    position: int
    time_us: int
    samples: Samples


def _ignore(*_: object) -> None:
    pass


class Relay(Line):
    """The relay's end, `/stream`: sends a user's samples and features.

    `send_…` raises ConnectionLost when the connection is gone; unless it is a Rejected, `connect` begins a
    new session. What the server says (`prediction`, `error`, …) goes to `on_message` as soon as it comes; if
    that raises, the connection ends and the next `send_…` raises it. The server named the session `session_id`.
    """

    def __init__(
        self,
        url: str,
        user_id: str,
        device_info: Mapping[str, Any],
        key: str | None = None,
        *,
        on_message: Callable[[Message], None] = _ignore,
        on_lost: Callable[[ConnectionLost, float], None] = _ignore,
    ) -> None:
        super().__init__(url, key, on_lost)
        self._auth = orjson.dumps({"type": "auth", "user_id": user_id, "device_info": dict(device_info)}).decode()
        self._on_message = on_message
        self._listener: asyncio.Task[None] | None = None
        self.session_id = ""

    async def send_sample(self, channels: Values, *, time_us: int | None = None) -> None:
        """Send one sample, in µV; without a time the server's clock stamps it."""
        await self._send(_raw_message("channels", np.asarray(channels, np.float32), None, time_us))

    async def send_chunk(
        self, samples: Values, *, position: int | None = None, time_us: int | None = None, binary: bool = True
    ) -> None:
        """Send consecutive samples `(n, n_channels)`, in µV; `position` and `time_us` are those of the first.

        Without a position the server counts, without a time the last sample is of now.
        """
        values = np.ascontiguousarray(samples, np.float32)
        if binary:
            await self._send(encode_binary(RawIn(position, time_us, values)))
        else:
            await self._send(_raw_message("samples", values, position, time_us))

    async def send_features(self, features: Mapping[str, Any]) -> None:
        """Send features: `workload`, `confidence`, `band_powers`, `metrics`, and whatever else."""
        await self._send(orjson.dumps({"type": "features", **features}).decode())

    async def close(self) -> None:
        """End the session."""
        await super().close()
        if self._listener is not None:
            await self._listener
            self._listener = None

    def _path(self) -> str:
        return "/stream"

    async def _open(self) -> None:
        await super()._open()
        assert self._socket is not None
        try:
            await self._socket.send(self._auth)
            while (message := self._read(await self._socket.recv()))["type"] != "auth_ok":
                pass  # an error: the close that follows it becomes an exception
        except ConnectionClosed as error:
            raise self._ended(error) from None
        self.session_id = message["session_id"]
        self._listener = asyncio.create_task(self._listen(self._socket))

    async def _listen(self, socket: ClientConnection) -> None:
        """Read all the time: a WebSocket nobody reads from answers no ping, and is cut."""
        try:
            while True:
                self._on_message(self._read(await socket.recv()))
        except ConnectionClosed:
            pass
        finally:
            await socket.close()

    async def _send(self, frame: str | bytes) -> None:
        if self._socket is None:
            raise ConnectionLost("not connected")
        try:
            await self._socket.send(frame)
        except ConnectionClosed as error:
            if self._listener is not None:
                await self._listener  # it may have yet to read why
            raise self._ended(error) from None


class Consumer(Line):
    """The consumer's end, `/subscribe`: iterate over it for `Raw`, and a dict for every other message.

    The iteration never ends by itself: a lost connection is made again, and what was sent meanwhile is missed
    (`position` shows how much). `last` buffered samples come first, on the first connection only. Use
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
        on_lost: Callable[[ConnectionLost, float], None] = _ignore,
    ) -> None:
        query = {"format": format} | ({"types": ",".join(types)} if types else {})
        super().__init__(url, key, on_lost)
        self._subscription = f"/subscribe/{quote(user_id, safe='')}?{urlencode(query)}"
        self._last = last

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Raw | Message:
        while True:
            if self._socket is None:
                await self.connect()
            assert self._socket is not None
            try:
                return self._event(await self._socket.recv())
            except ConnectionClosed as error:
                self._socket = None
                lost = self._ended(error)
                if isinstance(lost, Rejected):
                    raise lost from None

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
        if self._headers is None:  # a server with keys would wait 10 s for one; this way it refuses at once
            with suppress(ConnectionClosed):  # the first `recv` says why
                await self._socket.send('{"type":"auth","api_key":""}')

    def _path(self) -> str:
        return f"{self._subscription}&last={self._last}" if self._last else self._subscription

    def _event(self, frame: str | bytes) -> Raw | Message:
        if isinstance(frame, bytes):
            position, time_us, samples = decode_binary(frame)
            return Raw(position or 0, time_us or 0, samples)
        message = self._read(frame)
        if message["type"] != "raw":
            return message
        values = message["samples"] if "samples" in message else [message["channels"]]
        return Raw(message["position"], round(message["timestamp"] * 1e6), np.array(values, np.float32))


def _raw_message(field: str, values: Samples, position: int | None, time_us: int | None) -> str:
    message: Message = {"type": "raw", field: values}
    if position is not None:
        message["position"] = position
    if time_us is not None:
        message["timestamp"] = time_us / 1e6
    return orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY).decode()
