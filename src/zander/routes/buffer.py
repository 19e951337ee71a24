"""`/buffer/{user_id}/…`: the last moments of a user, for dashboards."""

from __future__ import annotations

from typing import get_args

from starlette.requests import Request
from starlette.responses import Response

from zander.errors import BadMessage
from zander.routes.context import require_consumer
from zander.routes.parameters import choice, moment_us, number, user_id
from zander.streams.query import AnswerFormat, Query, What
from zander.streams.stream import SampleType


async def latest(request: Request) -> Response:
    """The latest sample of a type."""
    return await _answer(request, _query(request, "latest"))


async def last(request: Request) -> Response:
    """The last `n` samples of a type, oldest first."""
    query = _query(request, "last")
    query.n = number(request.path_params, "n", 1, require_consumer(request).settings.buffer_samples, 1)
    return await _answer(request, query)


async def range_(request: Request) -> Response:
    """The samples of a type from `start` (included) to `end` (not included)."""
    query = _query(request, "range")
    query.start_us = moment_us(request.query_params, "start")
    query.end_us = moment_us(request.query_params, "end")
    if query.end_us < query.start_us:
        raise BadMessage("bad_parameter", "end: expected a time that is not before start")
    return await _answer(request, query)


async def stats(request: Request) -> Response:
    """What is buffered, by type."""
    return await _answer(request, _query(request, "stats"))


def _query(request: Request, what: What) -> Query:
    require_consumer(request)
    parameters = request.query_params
    return Query(
        user_id(request.path_params),
        what,
        choice(parameters, "sample_type", get_args(SampleType), "features"),
        format=choice(parameters, "format", get_args(AnswerFormat), "json"),
    )


async def _answer(request: Request, query: Query) -> Response:
    answer = await require_consumer(request).hub.answer(query)
    return Response(answer.body, headers=answer.headers, media_type=answer.content_type)
