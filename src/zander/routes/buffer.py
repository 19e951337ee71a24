"""`/buffer/{user_id}/…`: the last moments of a user, for dashboards."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from zander.routes.context import require_consumer
from zander.routes.parameters import moment_us, number, sample_query
from zander.streams.query import Query, What, answer


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
    query.check_range()
    return await _answer(request, query)


async def stats(request: Request) -> Response:
    """What is buffered, by type."""
    return await _answer(request, _query(request, "stats"))


def _query(request: Request, what: What) -> Query:
    require_consumer(request)
    return sample_query(request.path_params, request.query_params, what)


async def _answer(request: Request, query: Query) -> Response:
    service = require_consumer(request)
    await service.answers.make_room(request)
    return service.answers.response(answer(query, await service.hub.find(query)), request)
