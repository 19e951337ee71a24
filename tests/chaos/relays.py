"""Relays over bare WebSockets: one of the original protocol, and one that numbers, hears acks and resumes."""

from __future__ import annotations

import asyncio
import json
from random import Random
from time import monotonic
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from chaos.damage import Span
from chaos.history import Sent, Values
from chaos.load import OPEN_SECONDS, Link, Relay, Signal, first, opening, outside, receive, rows
from zander.wire.chunk import RawIn, encode_binary

TICK_S = 0.02
PING_EVERY = 10  # messages
LAST_PING_SECONDS = 3.0


class Original(Relay):
    """Sends and forgets; each connection is a session. Pings that are answered say what the server has read."""

    def __init__(self, user_id: str, link: Link, chance: Random) -> None:
        super().__init__(user_id, link, chance)
        self._sessions: list[tuple[Sent, Signal]] = []
        self._pings: dict[str, list[tuple[int, int]]] = {}  # by session: samples and features sent before each
        self._n_channels = chance.randint(2, 4)
        self._rate_hz = chance.choice((64, 128))
        self._binary = chance.random() < 0.3

    @property
    def sent(self) -> list[Sent]:
        for session, signal in self._sessions:
            session.values = signal.values
        return [session for session, _ in self._sessions]

    def is_done(self) -> bool:
        return self.stopping.is_set()

    async def _live(self) -> None:
        signal = Signal(self._n_channels, self._rate_hz, self.chance)
        async with opening(f"{self.link.url}/stream") as socket:
            auth = {"type": "auth", "user_id": self.user_id, "device_info": signal.device}
            await socket.send(json.dumps(auth))
            greeting = await receive(socket, OPEN_SECONDS)
            if greeting["type"] != "auth_ok":
                return
            session = Sent(self.user_id, greeting["session_id"], signal.values, numbered=False)
            self._sessions.append((session, signal))
            listening = asyncio.create_task(self._listen(socket, session))
            await first(listening, asyncio.create_task(self._send(socket, session, signal)))

    async def _send(self, socket: ClientConnection, session: Sent, signal: Signal) -> None:
        n_messages = 0
        while not self.stopping.is_set():
            for value in signal.measure(max(1, round(self._rate_hz * TICK_S))):
                await socket.send(self._message(value))
                n_messages += 1
                if n_messages % PING_EVERY == 0:
                    await socket.send(json.dumps({"type": "features", "metrics": {"n": session.n_features}}))
                    session.n_features += 1
                    await self._ping(socket, session, n_messages)
            await asyncio.sleep(TICK_S)
        await self._ping(socket, session, n_messages)
        async with asyncio.timeout(LAST_PING_SECONDS):
            while session.taken < signal.n:  # noqa: ASYNC110 - a test's loop
                await asyncio.sleep(TICK_S)

    async def _ping(self, socket: ClientConnection, session: Sent, n_samples: int) -> None:
        """Ask, and know from the answer that all before it was read: `t0` comes back as it was."""
        sent = self._pings.setdefault(session.session_id, [])
        sent.append((n_samples, session.n_features))
        await socket.send(json.dumps({"type": "ping", "t0": len(sent) - 1}))

    def _message(self, value: Values) -> str | bytes:
        if self._binary:
            return encode_binary(RawIn(None, None, value.reshape(1, -1)))
        return json.dumps({"type": "raw", "channels": rows(value.reshape(1, -1))[0]})

    async def _listen(self, socket: ClientConnection, session: Sent) -> None:
        try:
            while True:
                message = await receive(socket)
                if message["type"] == "pong":
                    session.taken, session.features_taken = self._pings[session.session_id][int(message["t0"])]
                    self.begun.set()
                elif message["type"] == "error":
                    self.note_error(message)
        except ConnectionClosed as error:
            self.note_close(error)


class Numbered(Relay):
    """Keeps everything until it is acked, and goes on after a cut where the server says."""

    def __init__(self, user_id: str, link: Link, chance: Random) -> None:
        super().__init__(user_id, link, chance)
        self.signal = Signal(chance.choice((2, 8)), chance.choice((128, 256, 512)), chance)
        self.session_id = ""
        self.acked = 0
        self.lived = True
        self.latencies_s: list[float] = []
        self._left_out: list[Span] = []
        self._measured: list[tuple[int, float]] = []  # position after a block, when it was sent first
        self._grown = asyncio.Event()
        self._form = chance.choice((self._sample, self._chunk, self._binary))
        self._leaves_out = chance.random() < 0.3

    @property
    def sent(self) -> list[Sent]:
        if not self.session_id:
            return []
        sent = Sent(self.user_id, self.session_id, self.signal.values, numbered=True, lived=self.lived)
        sent.acked, sent.left_out = self.acked, self._left_out
        return [sent]

    def is_done(self) -> bool:
        return self.stopping.is_set() and self.acked >= self.signal.n

    async def run(self) -> None:
        measuring = asyncio.create_task(self._measure())
        try:
            await super().run()
        finally:
            measuring.cancel()

    async def _measure(self) -> None:
        """The headset: it does not wait for the network."""
        while not self.stopping.is_set():
            self.signal.measure(max(1, round(self.signal.rate_hz * TICK_S)))
            self._measured.append((self.signal.n, monotonic()))
            if self._leaves_out and self.chance.random() < 0.01:
                n = self.chance.randint(1, 40)
                self._left_out.append((self.signal.n, self.signal.n + n))
                self.signal.measure(n)
                self.signal.measure(1)  # a hole shows by what comes after it
            self._grown.set()
            await asyncio.sleep(TICK_S)
        self._grown.set()

    async def _live(self) -> None:
        async with opening(f"{self.link.url}/stream") as socket:
            auth = {"type": "auth", "user_id": self.user_id, "device_info": self.signal.device, "ack": True}
            await socket.send(json.dumps(auth | ({"session_id": self.session_id} if self.session_id else {})))
            greeting = await receive(socket, OPEN_SECONDS)
            if greeting["type"] != "auth_ok":
                return
            self._check(greeting)
            self.session_id = greeting["session_id"]
            listening = asyncio.create_task(self._listen(socket))
            await first(listening, asyncio.create_task(self._send(socket, greeting["next_position"])))

    def _check(self, greeting: dict[str, Any]) -> None:
        position = greeting["next_position"]
        if self.session_id and greeting["session_id"] != self.session_id:
            self.complain(f"resumed {self.session_id}, got {greeting['session_id']}")
        least = 0 if self.link.may_go_back else self.acked
        if not least <= position <= self.signal.n:
            self.complain(f"was told to go on at {position}; acked was {self.acked}, sent {self.signal.n}")

    async def _send(self, socket: ClientConnection, position: int) -> None:
        while not self.is_done():
            self._grown.clear()
            while (position := outside(self._left_out, position)) < self.signal.n:
                end = min([position + self.chance.randint(1, 32), self.signal.n, *self._holes_after(position)])
                for message in self._form(position, self.signal.values[position:end]):
                    await socket.send(message)
                position = end
            await self._grown.wait()

    def _holes_after(self, position: int) -> list[int]:
        return [start for start, _ in self._left_out if start > position]

    async def _listen(self, socket: ClientConnection) -> None:
        try:
            while not self.is_done():
                message = await receive(socket)
                if message["type"] == "ack":
                    self._ack(message["durable"])
                elif message["type"] == "error":
                    self.note_error(message)
        except ConnectionClosed as error:
            self.note_close(error)

    def _ack(self, durable: int) -> None:
        if durable < self.acked or durable > self.signal.n:
            self.complain(f"got an ack for {durable} after one for {self.acked}, sent {self.signal.n}")
        self.acked = max(self.acked, durable)
        self.begun.set()
        while self._measured and self._measured[0][0] <= durable:
            self.latencies_s.append(monotonic() - self._measured.pop(0)[1])

    def _sample(self, position: int, values: Values) -> list[str | bytes]:
        samples = [{"type": "raw", "channels": row, "position": position + i} for i, row in enumerate(rows(values))]
        return [json.dumps(sample) for sample in samples]

    def _chunk(self, position: int, values: Values) -> list[str | bytes]:
        return [json.dumps({"type": "raw", "samples": rows(values), "position": position})]

    def _binary(self, position: int, values: Values) -> list[str | bytes]:
        return [encode_binary(RawIn(position, None, values))]
