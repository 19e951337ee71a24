"""Answers on their way: made in pieces as they are read, one piece an iteration of the event loop, and bounded in all.

An answer holds copies of what it is made of until it is sent. Where all of this process hold too much together, the
client that has most makes room for others: its answer is cut that has got on longest ago. That client itself gets
another one only where one of all reads nothing, which is cut for it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from time import monotonic
from typing import Annotated

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from zander.errors import Unavailable
from zander.routes.questions import client_of
from zander.wire.bodies import Answer
from zander.wire.connection import Client

MAX_BYTES = 64 << 20  # from which on no other answer begins: one more may be beyond it
BLOCK_BYTES = 16 << 10  # that are sent at once, at least; what is shorter goes with its length
SHORT_BYTES = 1 << 10  # of what an answer is made of: it is made at once, and as JSON no block
EACH_BYTES = 128 << 10  # of each beside what it is made of: its block, and what the transport holds
STALLED_SECONDS = 0.2  # without getting on, after which an answer may be cut
TOO_MANY = "too many answers are being sent: ask again"


class AnswerStats(Struct):
    """Answers over REST that are being sent."""

    open: Annotated[int, Meta(description="how many")]
    bytes: Annotated[int, Meta(description="memory taken by what is not sent yet")]
    cut: Annotated[
        int,
        Meta(description="how many were cut since the start: others waited, and their client had most or read nothing"),
    ]


class Answers:
    """All answers that are being sent. `max_bytes`: of memory that they take together, from which on none begins."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._open: dict[_Sending, None] = {}  # the one that has got on longest ago first
        self._n_bytes_of: Counter[Client] = Counter()
        self._n_cut = 0
        self._turn = asyncio.Lock()

    async def make_room(self, request: Request) -> None:
        """Make room for another one, before anything is gathered for it; Unavailable where there is none now.

        It is its turn then: what is gathered may take about as long as a piece.
        """
        async with self._turn:
            await asyncio.sleep(0)
        while self._n_bytes_of.total() >= self._max_bytes:
            ((most, _),) = self._n_bytes_of.most_common(1)
            has_most = most == client_of(request)
            oldest = next(sending for sending in self._open if has_most or sending.client == most)
            if has_most and monotonic() - oldest.since_s < STALLED_SECONDS:
                raise Unavailable(TOO_MANY)
            self._n_cut += 1
            oldest.cut()

    def response(self, answer: Answer, request: Request) -> Response:
        """Return the response that sends an answer."""
        sending = _Sending(self, answer, client_of(request))
        self._open[sending] = None
        self._n_bytes_of[sending.client] += sending.n_bytes
        return sending

    async def make(self, pieces: Iterator[bytes]) -> bytes:
        """Make the next piece, when it is its turn; b"" at the end. All of them together have one an iteration."""
        async with self._turn:
            piece = next(pieces, b"")
            await asyncio.sleep(0)
        return piece

    def note_progress(self, sending: _Sending) -> None:
        """Note that a client takes its answer."""
        if sending in self._open:
            sending.since_s = monotonic()
            del self._open[sending]
            self._open[sending] = None

    def forget(self, sending: _Sending) -> None:
        """Count an answer no more."""
        if sending in self._open:
            del self._open[sending]
            self._n_bytes_of[sending.client] -= sending.n_bytes
            if not self._n_bytes_of[sending.client]:
                del self._n_bytes_of[sending.client]

    def stats(self) -> AnswerStats:
        """Return the counts."""
        return AnswerStats(len(self._open), self._n_bytes_of.total(), self._n_cut)


class _Sending(StreamingResponse):
    """One answer; `since_s`, of `monotonic()`: when it has got on."""

    def __init__(self, answers: Answers, answer: Answer, client: Client) -> None:
        super().__init__(answer.pieces, headers=answer.headers, media_type=answer.content_type)
        self.client = client
        self.n_bytes = answer.nbytes + EACH_BYTES
        self.since_s = monotonic()
        self._answers = answers
        self._pieces = answer.pieces
        self._is_short = answer.nbytes < SHORT_BYTES
        self._limit: asyncio.Timeout | None = None  # while it runs
        self._is_cut = self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(None) as self._limit:
                if not self._is_cut:
                    await self._send(send)
                    return
        except TimeoutError:
            pass
        finally:
            self._answers.forget(self)
        if not self._has_begun:  # it may still be told
            raise Unavailable(TOO_MANY)
        raise OSError("the peer did not read its answer, or had most of all, and others waited")

    async def _send(self, send: Send) -> None:
        block = await self._block()
        if len(block) < BLOCK_BYTES:
            self.headers["Content-Length"] = str(len(block))
        self._has_begun = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while len(block) >= BLOCK_BYTES:
            await send({"type": "http.response.body", "body": block, "more_body": True})
            self._answers.note_progress(self)
            block = await self._block()
        await send({"type": "http.response.body", "body": block})

    async def _block(self) -> bytes:
        """Return the next BLOCK_BYTES, or more; fewer at the end."""
        if self._is_short:
            return b"".join(self._pieces)
        found, n_bytes = list[bytes](), 0
        while n_bytes < BLOCK_BYTES and (piece := await self._answers.make(self._pieces)):
            found.append(piece)
            n_bytes += len(piece)
        return b"".join(found)

    def cut(self) -> None:
        """End the connection, or say 503 where nothing is sent yet, and hold nothing any more."""
        self._answers.forget(self)
        self._is_cut = True
        if self._limit:
            self._limit.reschedule(asyncio.get_running_loop().time())
