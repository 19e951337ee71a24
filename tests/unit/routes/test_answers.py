"""Answers that are made in pieces, and bounded in what all of them hold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from support.clock import Clock
from zander.app import create_app
from zander.errors import Unavailable
from zander.routes.answers import EACH_BYTES, STALLED_SECONDS, Answers
from zander.settings import Settings
from zander.wire.bodies import Answer, npy_answer, samples_answer, text_answer
from zander.wire.chunk import Chunk, Origin
from zander.wire.messages import Note

ORIGIN = Origin("me", "s", 10_000.0)
SCOPE: dict[str, Any] = {"type": "http"}


def chunk(n: int, n_channels: int) -> Chunk:
    return Chunk(ORIGIN, 0, np.arange(n) * 10_000, np.full((n, n_channels), 0.5, np.float32))


class Client:
    """A client of an ASGI app, that takes what is sent once it `reads`."""

    def __init__(self, *, reads: bool = True) -> None:
        self.reads = asyncio.Event()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.blocks: list[bytes] = []
        self.is_done = False
        if reads:
            self.reads.set()

    @property
    def body(self) -> bytes:
        return b"".join(self.blocks)

    async def receive(self) -> Any:
        raise AssertionError("nothing more comes of a client")

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        await self.reads.wait()
        self.blocks.append(message["body"])
        self.is_done = not message.get("more_body", False)


def asked(key: str = "one") -> Request:
    return Request({"type": "http", "client": ("127.0.0.1", 1), "headers": [(b"x-api-key", key.encode())]})


async def run(answers: Answers, answer: Answer, client: Client) -> None:
    await answers.response(answer, asked())(SCOPE, client.receive, client.send)


async def begin(answers: Answers, answer: Answer, client: Client) -> asyncio.Task[None]:
    """Send until the client has to read."""
    task = asyncio.create_task(run(answers, answer, client))
    for _ in range(20):
        await asyncio.sleep(0)
    return task


async def test_a_short_answer_goes_with_its_length() -> None:
    answers, client = Answers(), Client()
    await run(answers, text_answer('{"a":1}'), client)
    assert (client.headers["content-length"], client.body, client.is_done) == ("7", b'{"a":1}', True)
    await run(answers, samples_answer("me", "raw", []), client := Client())
    assert json.loads(client.body) == {"user_id": "me", "sample_type": "raw", "n": 0, "samples": []}
    assert answers.stats().bytes == answers.stats().open == 0


@pytest.mark.parametrize("shape", [(1000, 8), (100, 1024), (1, 1), (65, 3)])
async def test_an_answer_in_pieces_is_the_whole_answer(shape: tuple[int, int]) -> None:
    whole = chunk(*shape)
    await run(Answers(), samples_answer("me", "raw", [whole]), client := Client())
    assert json.loads(client.body)["samples"] == [json.loads(text) for text in whole.json_frames]
    await run(Answers(), npy_answer([whole], shape[1], None, {}), client := Client())
    assert client.body[-whole.samples.nbytes :] == whole.samples.tobytes()
    notes = [Note("features", i, json.dumps({"i": i, "pad": "x" * 5000})) for i in range(300)]
    await run(Answers(), samples_answer("me", "features", notes), client := Client())
    assert [sample["i"] for sample in json.loads(client.body)["samples"]] == list(range(300))


async def test_all_answers_together_make_one_piece_an_iteration_of_the_event_loop() -> None:
    made: list[int] = []
    n_iterations = 0

    def pieces() -> Iterator[bytes]:
        for _ in range(10):
            made.append(n_iterations)
            yield bytes(20_000)

    async def count() -> None:
        nonlocal n_iterations
        while True:
            n_iterations += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    answers = Answers()
    await asyncio.gather(*(run(answers, Answer(pieces(), 200_000), Client()) for _ in range(5)))
    counting.cancel()
    assert len(made) == 50
    assert len(set(made)) == 50


async def test_an_answer_that_nobody_reads_is_not_made() -> None:
    answers, client = Answers(), Client(reads=False)
    whole = chunk(1000, 1024)
    answer = samples_answer("me", "raw", [whole])
    n_made = 0
    pieces = answer.pieces

    def counted() -> Iterator[bytes]:
        nonlocal n_made
        for piece in pieces:
            n_made += 1
            yield piece

    answer.pieces = counted()
    task = await begin(answers, answer, client)
    assert n_made == 1
    assert answers.stats().bytes == 1000 * (4 * 1024 + 8) + EACH_BYTES
    client.reads.set()
    await task
    assert client.is_done
    assert (answers.stats().open, answers.stats().bytes) == (0, 0)


async def test_where_there_is_no_room_an_answer_that_is_not_read_is_cut_for_another(clock: Clock) -> None:
    answers = Answers(2 * (EACH_BYTES + 1_000_000))
    unread = [await begin(answers, samples_answer("me", "raw", [chunk(1000, 250)]), Client(reads=False)) for _ in "ab"]
    with pytest.raises(Unavailable):
        await answers.make_room(asked())
    clock.now_s += STALLED_SECONDS
    await answers.make_room(asked())
    reading = Client()
    await run(answers, samples_answer("me", "raw", [chunk(2000, 250)]), reading)
    assert reading.is_done
    with pytest.raises(OSError, match="did not read"):
        await unread[0]
    assert not unread[1].done()
    assert (answers.stats().open, answers.stats().cut) == (1, 1)
    unread[1].cancel()


async def test_an_answer_whose_client_reads_is_not_cut_for_another(clock: Clock) -> None:
    answers, client = Answers(1), Client(reads=False)
    reading = await begin(answers, samples_answer("me", "raw", [chunk(1000, 250)]), client)
    clock.now_s += STALLED_SECONDS
    client.reads.set()
    for _ in range(20):
        await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await answers.make_room(asked())
    await reading
    await answers.make_room(asked())
    assert client.is_done


async def test_an_answer_that_is_cut_before_it_began_is_not_sent(clock: Clock) -> None:
    answers = Answers(1)
    response = answers.response(text_answer("{}"), asked())
    clock.now_s += STALLED_SECONDS
    await answers.make_room(asked())
    with pytest.raises(Unavailable, match="ask again"):
        await response(SCOPE, (client := Client()).receive, client.send)
    assert client.headers == {}


async def test_an_answer_that_is_cut_while_its_first_block_is_made_is_503() -> None:
    answers, client = Answers(1), Client()
    others: list[asyncio.Task[None]] = []

    def pieces() -> Iterator[bytes]:
        others.append(asyncio.create_task(answers.make_room(asked("another"))))
        while True:
            yield b"a"

    async def answer(request: Request) -> Response:
        return answers.response(Answer(pieces(), 1_000_000), request)

    handlers = create_app(Settings()).exception_handlers
    app = Starlette(routes=[Route("/", answer)], exception_handlers=handlers)
    await app(dict(asked().scope, method="GET", path="/", query_string=b""), client.receive, client.send)
    await others[0]
    assert answers.stats().cut == 1
    assert (client.status, client.headers["retry-after"]) == (503, "1")
    assert json.loads(client.body)["error"]["code"] == "unavailable"


async def test_the_client_that_has_most_makes_room_for_others_though_it_reads() -> None:
    answers, client = Answers(2 * (EACH_BYTES + 1_000_000)), Client(reads=False)
    mine = [await begin(answers, samples_answer("me", "raw", [chunk(1000, 250)]), client) for _ in "ab"]
    with pytest.raises(Unavailable):
        await answers.make_room(asked())
    await answers.make_room(asked("another"))
    await run_by("another", answers, reading := Client())
    assert reading.is_done
    with pytest.raises(OSError, match="had most"):
        await mine[0]
    assert not mine[1].done()
    assert answers.stats().cut == 1
    mine[1].cancel()


async def run_by(key: str, answers: Answers, client: Client) -> None:
    await answers.response(text_answer("{}"), asked(key))(SCOPE, client.receive, client.send)
