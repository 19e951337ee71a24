"""`/sessions`: what was recorded, and what it lacks."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct, structs
from starlette.requests import Request
from starlette.responses import Response

from zander.database.samples import StoredGap
from zander.database.sessions import DatabaseSessions, Missing
from zander.errors import NotFound
from zander.routes.context import require_consumer
from zander.routes.parameters import number, session_id, user_id
from zander.streams.session import StoredSession
from zander.wire.bodies import list_answer
from zander.wire.chunk import MAX_POSITION, Chunk
from zander.wire.messages import DEVICE_IS, Reason, SessionId, User

MAX_LIMIT = 200
DEFAULT_LIMIT = 50
MAX_GAPS = 10_000


class SessionSummary(Struct):
    """A session as the database has it."""

    session_id: SessionId
    user_id: User
    start_time: Annotated[float, Meta(description="when the session began, Unix seconds")]
    end_time: Annotated[
        float | None,
        Meta(description="when its relay left, Unix seconds; null until that is known (`/streams` says who is online)"),
    ]
    device_info: Annotated[dict[str, Any], Meta(description=DEVICE_IS)]
    next_position: Annotated[int, Meta(description="position below which every sample is in the database, or in a gap")]
    last_time: Annotated[float | None, Meta(description="time of its last sample in the database, Unix seconds")]
    n_samples: Annotated[int, Meta(description="how many samples the database has")]
    n_gaps: Annotated[int, Meta(description="how many gaps there are")]


class Sessions(Struct):
    """Sessions, newest first."""

    sessions: Annotated[list[SessionSummary], Meta(description="newest first")]
    next: Annotated[str | None, Meta(description="`before` of the next page, null at the end")]


class SessionGap(Struct, rename={"start": "from", "end": "to"}):
    """Positions from `from` to `to` (not included) that are not in the database, and never will be."""

    start: Annotated[int, Meta(description="first missing position")]
    end: Annotated[int, Meta(description="position after the last missing one")]
    reason: Annotated[Reason, Meta(description="`relay`: it sent past them; `lost`: the server had to give them up")]
    noticed_at: Annotated[float, Meta(description="when that was known, Unix seconds")]


class SessionDetail(SessionSummary):
    """A session as the database has it, with what it lacks."""

    first_time: Annotated[float | None, Meta(description="time of its first sample in the database, Unix seconds")]
    duration_seconds: Annotated[float | None, Meta(description="from its first sample to its last")]
    gaps: Annotated[list[SessionGap], Meta(description="what it lacks, by position")]


async def sessions(request: Request) -> Response:
    """What was recorded, of a user or of all, newest first.

    A page may be shorter than `limit`. A session without an `end_time` may be online or may have ended with its server:
    `/streams` says who is online.
    """
    service = require_consumer(request)
    query = request.query_params
    before = session_id(query, "before") if "before" in query else None
    limit = number(query, "limit", 1, MAX_LIMIT, DEFAULT_LIMIT)
    of_user = user_id(query) if "user_id" in query else None
    await service.answers.make_room(request)
    async with service.questions.turn(request):
        page = await _page(service.sessions, of_user, before, limit)
    return service.answers.response(list_answer({"next": page.next}, "sessions", page.sessions), request)


async def session(request: Request) -> Response:
    """What was recorded in a session, and what it lacks."""
    service = require_consumer(request)
    asked = session_id(request.path_params)
    first_gap = number(request.query_params, "from", 0, MAX_POSITION, 0)
    await service.answers.make_room(request)
    async with service.questions.turn(request):
        detail = await _detail(service.sessions, asked, first_gap)
    fields = structs.asdict(detail)
    return service.answers.response(list_answer(fields, "gaps", fields.pop("gaps")), request)


async def _page(stored_sessions: DatabaseSessions, of_user: str | None, before: str | None, limit: int) -> Sessions:
    if before and not await stored_sessions.session(before):
        raise NotFound(f"no session {before} in the database")
    found = await stored_sessions.sessions(of_user, before, limit + 1)
    page = found[:limit]
    is_last = len(found) <= limit and not (found and await stored_sessions.sessions(of_user, found[-1].session_id, 1))
    missing = await stored_sessions.missing(session.session_id for session in page)
    summaries = [SessionSummary(**_summary(it, missing.get(it.session_id, Missing(0, 0)))) for it in page]
    return Sessions(summaries, None if is_last else page[-1].session_id)


async def _detail(stored_sessions: DatabaseSessions, asked: str, first_gap: int) -> SessionDetail:
    stored = await stored_sessions.session(asked)
    if not stored:
        raise NotFound(f"no session {asked} in the database")
    missing = await stored_sessions.missing([asked])
    gaps = await stored_sessions.gaps(asked, first_gap, MAX_POSITION, MAX_GAPS)
    items = await stored_sessions.samples(stored, 0, 1)
    first_us = next((int(item.times_us[0]) for item in items if isinstance(item, Chunk)), None)
    lasted_us = None if first_us is None or stored.durable_us is None else stored.durable_us - first_us
    return SessionDetail(
        **_summary(stored, missing.get(asked, Missing(0, 0))),
        first_time=_seconds(first_us),
        duration_seconds=_seconds(lasted_us),
        gaps=[_gap(gap) for gap in gaps],
    )


def _summary(stored: StoredSession, missing: Missing) -> dict[str, Any]:
    return {
        "session_id": stored.session_id,
        "user_id": stored.user_id,
        "start_time": stored.start_us / 1e6,
        "end_time": _seconds(stored.end_us),
        "device_info": stored.device_info,
        "next_position": stored.durable_position,
        "last_time": _seconds(stored.durable_us),
        "n_samples": max(0, stored.durable_position - missing.n_samples),
        "n_gaps": missing.n_gaps,
    }


def _gap(gap: StoredGap) -> SessionGap:
    return SessionGap(gap.start, gap.end, gap.reason, gap.noticed_us / 1e6)  # type: ignore[arg-type]


def _seconds(time_us: int | None) -> float | None:
    return None if time_us is None else time_us / 1e6
