"""`/history/{user_id}`: what the database holds of a user, for whoever wants more than the last moments."""

from __future__ import annotations

import json
from itertools import groupby
from typing import NamedTuple, get_args

from starlette.requests import Request
from starlette.responses import Response

from zander.database.history import NoteMark, RawMark
from zander.database.pages import frames, notes_page, raw_page
from zander.database.sessions import Archive
from zander.errors import BadMessage, NotFound
from zander.routes.context import require_consumer
from zander.routes.parameters import as_text, choice, mark, moment_us, number, user_id
from zander.streams.query import AnswerFormat
from zander.streams.stream import SampleType
from zander.wire.bodies import NPY_TYPE, npy, npy_headers, samples_json
from zander.wire.chunk import Chunk

MAX_LIMIT = 10_000
DEFAULT_LIMIT = 1000


class Question(NamedTuple):
    """What of a user's past is asked for."""

    user_id: str
    sample_type: SampleType
    format: AnswerFormat
    start_us: int
    end_us: int
    limit: int


async def history(request: Request) -> Response:
    """The samples of a type from `start` (included) to `end` (not included) that are in the database.

    They come by time, in pages; `next` leads to the next one. A page may be shorter than `limit`.
    """
    archive = require_consumer(request).archive
    question = _question(request)
    if question.sample_type != "raw":
        return await _notes(request, archive, question)
    begin = mark(request.query_params, "cursor", RawMark) or RawMark(question.start_us)
    chunks, following = await raw_page(archive.past, question.user_id, begin, question.end_us, limit=question.limit)
    next_ = as_text(following) if following else None
    if not chunks:
        await _refuse_unknown(archive, question)
    if question.format == "npy":
        return await _npy(archive, chunks, next_)
    return _json(question, await frames(chunks), next_)


def _question(request: Request) -> Question:
    query = request.query_params
    question = Question(
        user_id(request.path_params),
        choice(query, "sample_type", get_args(SampleType), "features"),
        choice(query, "format", get_args(AnswerFormat), "json"),
        max(0, moment_us(query, "start")),  # there is nothing before 1970
        max(0, moment_us(query, "end")),
        number(query, "limit", 1, MAX_LIMIT, DEFAULT_LIMIT),
    )
    if question.end_us < question.start_us:
        raise BadMessage("bad_parameter", "end: expected a time that is not before start")
    if question.format == "npy" and question.sample_type != "raw":
        raise BadMessage("bad_format", f"expected sample_type raw for format npy, got {question.sample_type}")
    return question


async def _notes(request: Request, archive: Archive, question: Question) -> Response:
    assert question.sample_type != "raw"
    begin = mark(request.query_params, "cursor", NoteMark) or NoteMark(question.start_us)
    asked = (question.user_id, question.sample_type, begin, question.end_us)
    notes, following = await notes_page(archive.past, *asked, limit=question.limit)
    if not notes:
        await _refuse_unknown(archive, question)
    return _json(question, [note.text for note in notes], as_text(following) if following else None)


async def _refuse_unknown(archive: Archive, question: Question) -> None:
    if not await archive.past.knows(question.user_id):
        raise NotFound(f"no session of user {question.user_id} in the database")


def _json(question: Question, texts: list[str], next_: str | None) -> Response:
    head = {"user_id": question.user_id, "sample_type": question.sample_type, "n": len(texts), "next": next_}
    return Response(samples_json(head, texts), media_type="application/json")


async def _npy(archive: Archive, chunks: list[Chunk], next_: str | None) -> Response:
    shapes = sorted({chunk.samples.shape[1] for chunk in chunks})
    if len(shapes) > 1:
        found = " and ".join(map(str, shapes))
        raise BadMessage("bad_format", f"expected sessions of one number of channels for format npy, got {found}")
    sessions = [
        (session_id, sum(map(len, of_session)))
        for session_id, of_session in groupby(chunks, lambda chunk: chunk.origin.session_id)
    ]
    headers = npy_headers(chunks, await _channel_names(archive, {session_id for session_id, _ in sessions}))
    if sessions:
        headers |= {"X-Session-Id": sessions[0][0], "X-Sessions": json.dumps(sessions)}
    if next_:
        headers["X-Next"] = next_
    return Response(npy(chunks, shapes[0] if shapes else 0), headers=headers, media_type=NPY_TYPE)


async def _channel_names(archive: Archive, session_ids: set[str]) -> list[str] | None:
    """Return the names of the channels where all of the sessions have the same."""
    stored = [await archive.session(session_id) for session_id in session_ids]
    names = [session.device_info.get("channel_names") if session else None for session in stored]
    return names[0] if names and all(it == names[0] for it in names) else None
