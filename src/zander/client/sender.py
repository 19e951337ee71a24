"""The way of a relay's samples from the spool to the connection, in the order of their positions."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

import orjson
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from zander.client.spool import Piece, Spool
from zander.errors import BadMessage
from zander.wire.chunk import MAX_CHUNK_BYTES, Samples, decode_binary, join_binary

MAX_QUEUED = 256  # messages that wait for the network; when it is slower, samples are read from the spool again
MAX_DRIFT_US = 1  # what joining may change a time by: less than it is rounded to anyway


class _Message(NamedTuple):
    """Samples up to the position `end` (not included), as they go on the wire."""

    end: int
    frame: bytes | str


class Sender:
    """Puts samples into the spool, and sends them over whichever connection there is.

    After `resume` it reads from the spool what the server does not have. Once nothing waits there, new samples go
    straight from `add` to the connection. `period_us` is the time between two samples, 0 if it is not known: then
    nothing is joined.
    """

    def __init__(self, spool: Spool, period_us: float) -> None:
        self.spool = spool
        self._period_us = period_us
        self._cursor = 0  # everything below was given to this connection
        self._queue: deque[_Message] = deque()  # everything from the cursor on; empty while the spool is read
        self._is_open = False
        self._has_work = asyncio.Event()
        self._numbered_from: int | None = spool.next_position  # until the server has said which positions it has

    def add(self, position: int, time_us: int, samples: Samples, field: str | None) -> None:
        """Put samples into the spool, and queue them unless earlier ones have to be read from it first.

        With a `field`, `channels` or `samples`, they go as JSON; what is sent again is always binary.
        """
        is_next = self._is_open and (bool(self._queue) or self._cursor == self.spool.next_position)
        piece = self.spool.add(position, time_us, samples)
        if piece is not None and is_next:
            if len(self._queue) >= MAX_QUEUED:
                self._queue.clear()
            else:
                frame = piece.frame if field is None else _raw_message(field, samples, position, time_us)
                self._queue.append(_Message(piece.end, frame))
        self._has_work.set()

    def resume(self, session_id: str, position: int) -> None:
        """Begin with a connection whose server has everything of the session below `position`."""
        spool = self.spool
        self._queue.clear()
        self._is_open = True
        if session_id == spool.session_id:
            self._cursor = position
        else:  # new, or the server would not have the old one: then all that is not durable goes into this one
            self._cursor = max(position, spool.start)
            spool.session_id = session_id
        if self._numbered_from is not None and self._numbered_from < position:
            # The machine died and the end of the spool with it: these numbers were given before.
            spool.drop(self._numbered_from, min(position, spool.end))
        self._numbered_from = None
        spool.skip(position)
        spool.forget(position)

    async def run(self, socket: ClientConnection) -> None:
        """Send, after `resume`, until the connection is closed or this is cancelled.

        What the spool's disk raises aborts the connection.
        """
        try:
            while True:
                if self._queue:
                    await self._send(socket, self._queue.popleft())
                elif self._cursor < self.spool.end:
                    await self._send_spool(socket)
                else:
                    self._cursor = self.spool.next_position
                    self._has_work.clear()
                    await self._has_work.wait()
        except ConnectionClosed:
            pass  # whoever receives from it learns why
        except Exception:
            socket.transport.abort()
            raise
        finally:
            self._is_open = False

    async def _send_spool(self, socket: ClientConnection) -> None:
        for message in joined(self.spool.since(self._cursor), self._period_us):
            await self._send(socket, message)
            await asyncio.sleep(0)  # lets others add to the spool
            if self._queue:
                return

    async def _send(self, socket: ClientConnection, message: _Message) -> None:
        self._cursor = message.end
        await socket.send(message.frame)


def joined(pieces: Iterable[Piece], period_us: float) -> Iterator[_Message]:
    """Make one message of pieces that follow each other, in position and, to the microsecond, in time."""
    run: list[Piece] = []
    n_bytes = 0
    for piece in pieces:
        if run and not (n_bytes + len(piece.frame) <= MAX_CHUNK_BYTES and _follows(run, piece, period_us)):
            yield from _join(run)
            run, n_bytes = [], 0
        run.append(piece)
        n_bytes += len(piece.frame)
    yield from _join(run)


def _follows(run: list[Piece], piece: Piece, period_us: float) -> bool:
    first, last = run[0], run[-1]
    due_us = first.time_us + (piece.position - first.position) * period_us
    is_due = period_us > 0 and abs(piece.time_us - due_us) <= MAX_DRIFT_US
    return piece.position == last.end and piece.n_channels == first.n_channels and is_due


def _join(run: list[Piece]) -> list[_Message]:
    if len(run) > 1:
        frame = join_binary([piece.frame for piece in run])
        with suppress(BadMessage):  # an infinite value: the server refuses its piece, but not those beside it
            decode_binary(frame)
            return [_Message(run[-1].end, frame)]
    return [_Message(piece.end, piece.frame) for piece in run]


def _raw_message(field: str, values: Samples, position: int, time_us: int) -> str:
    inner = values[0] if field == "channels" else values
    message = {"type": "raw", field: inner, "position": position, "timestamp": time_us / 1e6}
    return orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY).decode()
