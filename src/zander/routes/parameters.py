"""Parameters of paths and queries, each read in one place; BadMessage (422) names the one that is wrong.

What parameters say together may be refused too, as a Conflict (409).
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar, get_args
from uuid import UUID

import msgspec
from msgspec import Struct

from zander.errors import BadMessage, Conflict
from zander.streams.query import AnswerFormat, Query, What
from zander.streams.stream import SampleType
from zander.wire.codec import to_us
from zander.wire.messages import USER_ID_IS, UserId

T = TypeVar("T", bound=str)
S = TypeVar("S", bound=Struct)

# A page token as text: base64 of 4 to 57 bytes of MessagePack, an array of three that begins with a time in µs.
PAGE_TOKEN = (
    "^k[w-z0-38][A-Za-z0-9_-]{2}([A-Za-z0-9_-]{4}){0,17}([A-Za-z0-9_-]{4}|[A-Za-z0-9_-]{3}=|[A-Za-z0-9_-]{2}==)$"
)


def user_id(path: Mapping[str, Any]) -> str:
    """Read the user of a path."""
    try:
        return msgspec.convert(path["user_id"], UserId)
    except msgspec.ValidationError:
        raise _bad("user_id", USER_ID_IS, path["user_id"]) from None


def session_id(values: Mapping[str, Any], name: str = "session_id") -> str:
    """Read the id of a session."""
    try:
        return str(msgspec.convert(values[name], UUID))
    except msgspec.ValidationError:
        raise _bad(name, "a UUID", values[name]) from None


def sample_query(path: Mapping[str, Any], query: Mapping[str, str], what: What) -> Query:
    """Read what every question about samples has: the user, `sample_type` and `format`."""
    return Query(
        user_id(path),
        what,
        choice(query, "sample_type", get_args(SampleType), "features"),
        format=choice(query, "format", get_args(AnswerFormat), "json"),
    )


def page_token(query: Mapping[str, str], name: str, kind: type[S]) -> S | None:
    """Read where a page goes on, as `page_token_text` has written it; None where none is given.

    Conflict: it is one of another question.
    """
    given = query.get(name)
    if given is None:
        return None
    if not re.fullmatch(PAGE_TOKEN, given):
        raise _bad(name, "the `next` of an answer", given)
    try:
        return msgspec.msgpack.decode(urlsafe_b64decode(given), type=kind)
    except (ValueError, msgspec.MsgspecError):
        raise other_question(name) from None


def other_question(name: str) -> Conflict:
    """Return the error for a page token that another question has led to."""
    return Conflict("bad_parameter", f"{name}: expected the `next` of an answer to the same question")


def page_token_text(token: Struct) -> str:
    """Write a page token as the `cursor` of the next question."""
    return urlsafe_b64encode(msgspec.msgpack.encode(token)).decode()


def choice(query: Mapping[str, str], name: str, known: tuple[T, ...], default: T) -> T:
    """Read one of the known values."""
    given = query.get(name, default)
    for value in known:
        if given == value:
            return value
    raise _bad(name, f"one of {', '.join(known)}", given)


def choices(query: Mapping[str, str], name: str, known: tuple[T, ...]) -> tuple[T, ...]:
    """Read some of the known values, comma-separated; without any, all."""
    given = query.get(name)
    if given is None:
        return known
    return tuple(choice({name: value.strip()}, name, known, known[0]) for value in given.split(","))


def number(values: Mapping[str, Any], name: str, low: int, high: int, default: int) -> int:
    """Read a whole number from `low` to `high`."""
    given = str(values.get(name, default))
    if given.isascii() and given.isdigit() and len(given) < 20 and low <= int(given) <= high:
        return int(given)
    raise _bad(name, f"a whole number from {low} to {high}", given)


def moment_us(query: Mapping[str, str], name: str) -> int:
    """Read a time, Unix seconds or ISO 8601 (UTC unless it says otherwise), as µs."""
    given = query.get(name, "")
    try:
        seconds = float(given)
    except ValueError:
        seconds = _iso_seconds(name, given)
    try:
        return to_us(seconds) or 0
    except BadMessage:
        raise _bad(name, "Unix seconds or ISO 8601", given) from None


def _iso_seconds(name: str, given: str) -> float:
    try:
        moment = datetime.fromisoformat(given.replace(" ", "+"))  # an unescaped + of the offset arrives as a space
    except ValueError:
        raise _bad(name, "Unix seconds or ISO 8601", given) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _bad(name: str, expected: str, given: str) -> BadMessage:
    return BadMessage("bad_parameter", f"{name}: expected {expected}, got {given[:100]!r}")
