"""The relay's end of the protocol: samples get their positions here, and are kept until the server has stored them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed

from zander.client.connection import Connection, ConnectionLost, Message, Rejected
from zander.client.sender import Sender
from zander.client.spool import SPOOL_BYTES, Spool
from zander.wire.chunk import MAX_CHUNK_BYTES, Samples, period_us

AUTH_S = 20.0  # for the answer to `auth`: the server may have to ask its database
CLOSE_S = 10.0  # how long `close` waits for the last acks
BREAK_S = 1.0  # the same, at the end of an `async with` that an exception ends

SESSION_FIELDS = ("sampling_rate", "channel_names", "channel_count")  # of a device: they stay the same in a session

Values = Sequence[Any] | NDArray[np.floating[Any] | np.integer[Any]]

log = logging.getLogger(__name__)


def _ignore(*_: object) -> None:
    pass


def _log_error(message: Message) -> None:
    if message["type"] == "error":
        log.warning("the server says %s: %s", message.get("code"), message.get("message"))


class Relay(Connection):
    """The relay's end, `/stream`: sends a user's samples and features.

    Samples get their positions here, and are kept until the server says that they are durable: in memory, or in the
    folder `spool`, where they outlive this process. `send_sample` and `send_chunk` never wait for the network: without
    a connection the samples stay in the spool, of at most `spool_bytes`. When that is full the oldest are dropped, and
    `on_drop` is called with the first position and the one after the last. After a lost connection the relay connects
    again by itself, goes on with its session, and sends again what is not durable: `on_connected` is called each time
    with how many samples that are, `on_lost` with each failure and the pause that follows, in s.

    `on_message` is called with what the server sends (`prediction`, `error`, …), and by default logs each error; if it
    raises, the connection ends and the next `send_…` raises that. Once the server has refused this relay, or another
    one took over, `send_…` raises Rejected. SpoolError when the folder is used by another process, or has samples of
    another user or device.
    """

    def __init__(
        self,
        url: str,
        user_id: str,
        device_info: Mapping[str, Any],
        key: str | None = None,
        *,
        spool: Path | None = None,
        spool_bytes: int = SPOOL_BYTES,
        on_message: Callable[[Message], None] = _log_error,
        on_lost: Callable[[ConnectionLost, float], None] = _ignore,
        on_connected: Callable[[int], None] = _ignore,
        on_drop: Callable[[int, int], None] = _ignore,
    ) -> None:
        super().__init__(url, key, on_lost)
        self._user_id = user_id
        self._device_info = dict(device_info)
        self._period_us = period_us(self._device_info.get("sampling_rate"))
        self._on_message = on_message
        self._on_connected = on_connected
        self._open_spool = partial(Spool, spool, max_bytes=spool_bytes, on_drop=on_drop)
        self._sender = self._new_sender()
        self._changed = asyncio.Event()  # set, and replaced, with every connection, ack and failure
        self._task: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._is_connected = False
        self._n_connections = 0

    @property
    def session_id(self) -> str:
        """The session, as the server named it; empty until the first connection."""
        return self._spool.session_id

    @property
    def next_position(self) -> int:
        """Position of the next sample."""
        return self._spool.next_position

    @property
    def durable(self) -> int:
        """The position below which the server has stored everything that it can have."""
        return self._spool.durable

    @property
    def n_waiting(self) -> int:
        """Number of samples that are kept because they are not durable yet."""
        return self._spool.n_waiting

    @property
    def n_dropped(self) -> int:
        """Number of samples that were dropped because the spool was full."""
        return self._spool.n_dropped

    @property
    def is_connected(self) -> bool:
        """True while there is a connection, as far as this end knows."""
        return self._is_connected

    # Connecting and closing.

    async def __aexit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        if n_left := await self.close(BREAK_S if kind else None):
            log.warning("%s: %d samples are not known to be stored", self._user_id, n_left)

    def start(self) -> None:
        """Connect in the background, again and again; what is sent meanwhile waits."""
        if self._task is None or self._task.done():
            if self._spool.is_closed:
                self._sender = self._new_sender()
            self._failure = None
            self._task = asyncio.create_task(self._run())

    async def connect(self) -> None:
        """Start, and wait for the connection; Rejected when the server refuses, else it is tried again and again."""
        self.start()
        n = self._n_connections
        await self._until(lambda: self._is_connected or self._n_connections > n)

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until everything sent so far is durable; False when it is not in time."""
        end = self._spool.end
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._until(lambda: self._spool.durable >= end)
        return self._spool.durable >= end

    async def close(self, wait_s: float | None = None, *, end_session: bool = False) -> int:
        """Wait for the last acks, CLOSE_S or `wait_s` at most, and close; return how many samples are not durable.

        `connect`, or another relay with this spool's folder, goes on with the session, and with what is left; with
        `end_session`, if nothing is left, it begins a new one.
        """
        try:
            with suppress(ConnectionLost):
                self._check()
                await self.drain(CLOSE_S if wait_s is None else wait_s)
        finally:
            if self._task is not None:
                task, self._task = self._task, None
                task.cancel()
                await asyncio.wait({task})
            n_left = self.n_waiting
            if end_session and not n_left:
                self._spool.clear()
            self._spool.close()
        return n_left

    # Sending.

    async def send_sample(self, channels: Values, *, time_us: int | None = None) -> None:
        """Send one sample, in µV; without a time it is of now."""
        values = np.asarray(channels, np.float32)[np.newaxis]
        await self._add(values, None, time_us, "channels")

    async def send_chunk(
        self, samples: Values, *, position: int | None = None, time_us: int | None = None, binary: bool = True
    ) -> None:
        """Send consecutive samples `(n, n_channels)`, in µV; `position` and `time_us` are those of the first.

        Without a time the last sample is of now. A position ahead of `next_position` says that the device has lost
        samples; what lies behind it was sent before, and is left out.
        """
        values = np.ascontiguousarray(samples, np.float32)
        await self._add(values, position, time_us, None if binary else "samples")

    async def send_features(self, features: Mapping[str, Any]) -> None:
        """Send `workload`, `confidence`, `band_powers`, `metrics`, …; ConnectionLost without a connection.

        Over 64 KiB of JSON they are answered with an `error`, `too_large`.
        """
        self._check()
        if self._socket is None or not self._is_connected:
            raise ConnectionLost("not connected")
        try:
            await self._socket.send(orjson.dumps({"type": "features", **features}).decode())
        except ConnectionClosed:
            raise ConnectionLost("the connection broke") from None

    async def _add(self, values: Samples, position: int | None, time_us: int | None, field: str | None) -> None:
        self._check()
        if values.ndim != 2 or not values.shape[1]:
            raise ValueError(f"expected samples of the shape (n, n_channels), got {values.shape}")
        n, n_at_once = len(values), max(1, MAX_CHUNK_BYTES // values[:1].nbytes) if len(values) else 1
        first = self.next_position if position is None else position
        first_us = round(time() * 1e6 - (n - 1) * self._period_us) if time_us is None else time_us
        for i in range(max(0, self.next_position - first), n, n_at_once):
            self._sender.add(first + i, first_us + round(i * self._period_us), values[i : i + n_at_once], field)
        await asyncio.sleep(0)  # lets the network run, also when a program sends without a pause

    # The connection.

    def _path(self) -> str:
        return "/stream"

    async def _run(self) -> None:
        """Connect, send and receive, again and again, until the server refuses it or something fails."""
        try:
            while True:
                await self._connect()
                self._is_connected = True
                self._n_connections += 1
                self._on_connected(self.n_waiting)
                self._notify()
                await self._exchange()
        except Exception as error:
            self._failure = error
        finally:
            self._is_connected = False
            self._notify()
            await self._disconnect()

    async def _open(self) -> None:
        await super()._open()
        assert self._socket is not None
        auth = {"type": "auth", "user_id": self._user_id, "device_info": self._device_info, "ack": True}
        if self.session_id:
            auth["session_id"] = self.session_id
        try:
            async with asyncio.timeout(AUTH_S):
                await self._socket.send(orjson.dumps(auth).decode())
                while (message := self._decode(await self._socket.recv()))["type"] != "auth_ok":
                    pass  # an error: the close that follows it becomes an exception
        except ConnectionClosed as error:
            raise self._note_lost(error) from None
        except TimeoutError:
            await self._disconnect()
            raise ConnectionLost(f"{self.url} does not answer") from None
        self._sender.resume(message["session_id"], message["next_position"])

    async def _exchange(self) -> None:
        """Send and receive to the end of the connection; Rejected when the server refuses this relay."""
        assert self._socket is not None
        socket = self._socket
        sending = asyncio.create_task(self._sender.run(socket))
        try:
            while True:  # a WebSocket nobody reads from answers no ping, and is cut
                self._receive(self._decode(await socket.recv()))
        except ConnectionClosed as error:
            lost = self._note_lost(error)
        finally:
            self._is_connected = False
            sending.cancel()
            await asyncio.wait({sending})
            await self._disconnect()
        if not sending.cancelled():
            sending.result()  # raises what the spool's disk did
        if isinstance(lost, Rejected):
            raise lost

    def _receive(self, message: Message) -> None:
        if message["type"] != "ack":
            self._on_message(message)
        elif message["session_id"] == self.session_id:
            durable = min(message["durable"], self.next_position)
            if durable > self.durable:
                self._spool.forget(durable)
                self._notify()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._check()
            if self._task is None:
                raise ConnectionLost("not connected")
            await self._changed.wait()

    def _new_sender(self) -> Sender:
        spool = self._open_spool()
        spool.claim(self._user_id, {name: self._device_info.get(name) for name in SESSION_FIELDS})
        return Sender(spool, self._period_us)

    @property
    def _spool(self) -> Spool:
        return self._sender.spool
