"""`/history/{user_id}`: the samples of a user that are in the database, page by page."""

from __future__ import annotations

import json
from itertools import groupby
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from zander.database.history import MAX_RUNS, NotePageToken, RawPageToken
from zander.errors import Conflict, NotFound
from zander.routes.context import Service, require_consumer
from zander.routes.parameters import moment_us, number, other_question, page_token, page_token_text, sample_query
from zander.streams.query import Query
from zander.wire.bodies import Answer, npy_answer, samples_answer
from zander.wire.chunk import Chunk

MAX_LIMIT = 10_000
DEFAULT_LIMIT = 1000
T = TypeVar("T", RawPageToken, NotePageToken)

NPY_RUNS = 16  # they, and their sessions, are listed in headers: 20 to 50 bytes each


async def history(request: Request) -> Response:
    """The samples of a type from `start` (included) to `end` (not included) that are in the database.

    They come by time, in pages; `next` leads to the next one. A page may be shorter than `limit`.
    """
    service = require_consumer(request)
    query = _query(request)
    await service.answers.make_room(request)
    read = _raw if query.sample_type == "raw" else _notes
    async with service.questions.turn(request):
        answer = await read(request, service, query)
    return service.answers.response(answer, request)


def _query(request: Request) -> Query:
    parameters = request.query_params
    query = sample_query(request.path_params, parameters, "range")
    query.start_us = max(0, moment_us(parameters, "start"))  # there is nothing before 1970
    query.end_us = max(0, moment_us(parameters, "end"))
    query.n = number(parameters, "limit", 1, MAX_LIMIT, DEFAULT_LIMIT)
    query.check_range()
    query.check_format()
    return query


async def _raw(request: Request, service: Service, query: Query) -> Answer:
    token = _page_token(request, query, RawPageToken)
    max_runs = NPY_RUNS if query.format == "npy" else MAX_RUNS
    asked = query.user_id, token, query.end_us
    chunks, next_token = await service.history.raw_page(*asked, limit=query.n, max_runs=max_runs)
    next_ = page_token_text(next_token) if next_token else None
    if not chunks:
        await _refuse_unknown(service, query)
    if query.format == "npy":
        return await _npy(service, chunks, next_)
    return samples_answer(query.user_id, query.sample_type, chunks, next=next_)


async def _notes(request: Request, service: Service, query: Query) -> Answer:
    assert query.sample_type != "raw"
    token = _page_token(request, query, NotePageToken)
    asked = (query.user_id, query.sample_type, token, query.end_us)
    notes, next_token = await service.history.notes_page(*asked, limit=query.n)
    next_ = page_token_text(next_token) if next_token else None
    if not notes:
        await _refuse_unknown(service, query)
    return samples_answer(query.user_id, query.sample_type, notes, next=next_)


def _page_token(request: Request, query: Query, kind: type[T]) -> T:
    """Read where the page begins; Conflict for a place that is not in the range."""
    token = page_token(request.query_params, "cursor", kind)
    if token and not query.start_us <= token.time_us < query.end_us:
        raise other_question("cursor")
    return token or kind(query.start_us)


async def _refuse_unknown(service: Service, query: Query) -> None:
    if not await service.history.has_user(query.user_id):
        raise NotFound(f"no session of user {query.user_id} in the database")


async def _npy(service: Service, chunks: list[Chunk], next_: str | None) -> Answer:
    shapes = sorted({chunk.samples.shape[1] for chunk in chunks})
    if len(shapes) > 1:
        found = " and ".join(map(str, shapes))
        raise Conflict("bad_format", f"expected sessions of one number of channels for format npy, got {found}")
    sessions = [
        (session_id, sum(map(len, of_session)))
        for session_id, of_session in groupby(chunks, lambda chunk: chunk.origin.session_id)
    ]
    headers: dict[str, str] = {}
    if sessions:
        headers |= {"X-Session-Id": sessions[0][0], "X-Sessions": json.dumps(sessions)}
    if next_:
        headers["X-Next"] = next_
    names = await _channel_names(service, {session_id for session_id, _ in sessions})
    return npy_answer(chunks, shapes[0] if shapes else 0, names, headers)


async def _channel_names(service: Service, session_ids: set[str]) -> list[str] | None:
    """Return the names of the channels where all of the sessions have the same."""
    stored = [await service.sessions.session(session_id) for session_id in session_ids]
    names = [session.device_info.get("channel_names") if session else None for session in stored]
    return names[0] if names and all(it == names[0] for it in names) else None
