"""What the API reference says beyond the code: which endpoint speaks which Struct, and what names mean.

Tests hold it against the routes, the Structs, the close codes and the codes of errors: whoever adds one is told to
describe it here.
"""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from msgspec import Meta, Struct

from zander.delivery.queue import Format
from zander.errors import CloseCode
from zander.routes import health, history, sessions
from zander.routes.docs import meanings
from zander.routes.docs.openapi import Channel, Endpoint, Parameter, Reference
from zander.routes.websocket import AUTH_SECONDS, MAX_BAD_MESSAGES
from zander.streams.query import AnswerFormat
from zander.streams.stream import SampleType, StreamStats
from zander.wire import messages
from zander.wire.chunk import BINARY_LAYOUT
from zander.wire.messages import Features, Kind, Microvolts, Position, Prediction, Seconds

# What the server writes by hand or merges from what came, as Structs. Tests hold them against the real messages.


class RawSample(Struct, tag="raw"):
    """One sample of all channels."""

    user_id: str
    session_id: str
    position: Position
    timestamp: Seconds
    channels: list[Microvolts | None]


class RawChunk(Struct, tag="raw"):
    """Consecutive samples: as many as are at hand."""

    user_id: str
    session_id: str
    position: Position
    timestamp: Seconds
    samples: list[list[Microvolts | None]]


class FeaturesEvent(Features, tag="features", kw_only=True):
    """Features as the relay sent them, with all their fields, and whose they are."""

    user_id: str
    session_id: str
    timestamp: Seconds


class PredictionEvent(Prediction, tag="prediction", kw_only=True):
    """A prediction as the consumer sent it, and whom it is about."""

    user_id: str
    timestamp: Seconds


class Samples(Struct):
    """Buffered samples, oldest first."""

    user_id: str
    sample_type: SampleType
    n: int
    samples: list[RawSample | FeaturesEvent | PredictionEvent]


class HistoryPage(Samples):
    """What the database holds, by time: a page of it. Predictions have a `session_id` there, and no `id`."""

    next: str | None


class ErrorDetail(Struct):
    """What was expected and what came."""

    code: str
    message: str


class ErrorAnswer(Struct):
    """What every REST error looks like."""

    error: ErrorDetail


SAMPLE_TYPE = Parameter("sample_type", SampleType, "what to read", "features")
FORMAT = Parameter("format", AnswerFormat, "`npy`, for raw only: an array that `numpy.load` reads", "json")
START = Parameter("start", str, "first time: Unix seconds or ISO 8601 (UTC unless it says otherwise)", required=True)
END = Parameter("end", str, "time after the last, in the same forms", required=True)


def _limit(default: int, maximum: int) -> Parameter:
    return Parameter("limit", Annotated[int, Meta(ge=1, le=maximum)], "at most so many on a page", default)


CURSOR = Parameter("cursor", str, "`next` of the page before; all else as it was")
USER = Parameter("user_id", messages.UserId, "of this user; left out: of all")
BEFORE = Parameter("before", UUID, "`next` of the page before: those that began before this session")
GAPS_FROM = Parameter("from", Position, f"list the first {sessions.MAX_GAPS:,} gaps that end behind this position", 0)

NPY: dict[str, Any] = {
    "application/octet-stream": {
        "schema": {
            "type": "string",
            "format": "binary",
            "description": "`format=npy`: float32 `(n_samples, n_channels)` in µV, NaN where a value is missing",
        }
    }
}
NPY_HEADERS = {
    "X-Session-Id": "npy: the session",
    "X-Positions": "npy: JSON list of `[from, to]`, the runs without a hole",
    "X-Position": "npy: position of the first sample",
    "X-Time": "npy: time of the first sample, Unix seconds",
    "X-Time-Last": "npy: time of the last sample",
    "X-Channel-Names": "npy: JSON list of the channels' names, null when the relay gave none",
}
HISTORY_HEADERS = NPY_HEADERS | {
    "X-Session-Id": "npy: the session of the first sample",
    "X-Positions": "npy: JSON list of `[from, to]`, the runs without a hole, session by session",
    "X-Channel-Names": "npy: JSON list of the channels' names, null when there are none or sessions differ",
    "X-Sessions": "npy: JSON list of `[session_id, n]`, whose samples they are, in their order",
    "X-Next": "npy: `next`; not there at the end",
}


def _buffer(answer: Any, *query: Parameter) -> Endpoint:
    return Endpoint(answer, (404, 422, 503), (SAMPLE_TYPE, FORMAT, *query), other_media=NPY, headers=NPY_HEADERS)


ENDPOINTS = {
    "/health": Endpoint(health.Health, needs_key=False),
    "/health/ready": Endpoint(
        health.Readiness,
        needs_key=False,
        other_answers={503: ("The same: the database, or Redis, is away.", health.Readiness)},
    ),
    "/buffer/{user_id}/latest": _buffer(RawSample | FeaturesEvent | PredictionEvent),
    "/buffer/{user_id}/last/{n}": _buffer(Samples),
    "/buffer/{user_id}/range": _buffer(Samples, START, END),
    "/buffer/{user_id}/stats": Endpoint(StreamStats, (404, 422, 503)),
    "/history/{user_id}": Endpoint(
        HistoryPage,
        (404, 422, 503),
        (SAMPLE_TYPE, FORMAT, START, END, _limit(history.DEFAULT_LIMIT, history.MAX_LIMIT), CURSOR),
        other_media=NPY,
        headers=HISTORY_HEADERS,
    ),
    "/sessions": Endpoint(
        sessions.Sessions,
        (404, 422, 503),
        (USER, BEFORE, _limit(sessions.DEFAULT_LIMIT, sessions.MAX_LIMIT)),
    ),
    "/sessions/{session_id}": Endpoint(sessions.SessionDetail, (404, 422, 503), (GAPS_FROM,)),
    "/streams": Endpoint(health.Streams),
    "/stats": Endpoint(health.ServerStats),
    "/docs": Endpoint(str, needs_key=False, media_type="text/html"),
    "/openapi.json": Endpoint(dict[str, Any], needs_key=False),
}

PATH_PARAMETERS = {
    "user_id": Parameter("user_id", messages.UserId, "the user, as the relay named them"),
    "n": Parameter("n", Annotated[int, Meta(ge=1)], "how many, at most what is buffered (BUFFER_SAMPLES)"),
    "session_id": Parameter("session_id", UUID, "the session"),
}

CHANNELS = {
    "/stream": Channel(
        key="`api_key` in the first message, or `Authorization: Bearer …`, or `X-API-Key`",
        rules=(
            f"First comes an Auth, within {AUTH_SECONDS:g} s; the answer is an AuthOk, or an Error and a close.",
            "The newest relay of a user wins: the one before it is closed with 4509.",
            "With `ack` Acks follow: keep what you send until it is durable. After a cut send its `session_id` in the "
            "next Auth, and go on at the `next_position` of the AuthOk: what is there already is dropped.",
            f"A bad message is answered with an Error and dropped; after {MAX_BAD_MESSAGES} the connection is closed.",
        ),
        first=messages.Auth,
        receives=(messages.Raw, messages.Features, messages.Ping),
        sends=(messages.AuthOk, messages.Ack, PredictionEvent, messages.Pong, messages.Error),
        binary=("receives",),
        close_codes=tuple(CloseCode),
    ),
    "/subscribe/{user_id}": Channel(
        key="`Authorization: Bearer …`, or `X-API-Key`, or a first message; never in the URL",
        rules=(
            "The first message is a ConsumerAuth only where no header carried the key and the server wants one.",
            "Raw comes as RawSample, as RawChunk or as a binary chunk, by `format`; everything else is JSON always.",
            "What you get first: a Status, then the `last` samples, then everything live, without a hole or a repeat.",
            "With `session_id` and `from` you go on there instead: from memory, or the database, and then live.",
            "When you read too slowly the oldest raw is dropped, and the hole announced as a Gap.",
            "A Prediction is stored and goes to the user's relay and other consumers, as a PredictionEvent.",
        ),
        first=messages.ConsumerAuth,
        receives=(messages.Prediction,),
        sends=(
            *(messages.Status, RawSample, RawChunk, FeaturesEvent, PredictionEvent),
            *(messages.Gap, messages.PredictionAck, messages.Error),
        ),
        binary=("sends",),
        close_codes=tuple(code for code in CloseCode if code is not CloseCode.TAKEN_OVER),
        query=(
            Parameter("types", list[Kind], "what to get, comma-separated; left out: everything"),
            Parameter("format", Format, "how raw comes: a message per sample, JSON chunks, or binary chunks", "json"),
            Parameter("last", Annotated[int, Meta(ge=0)], "send so many buffered samples first", 0),
            Parameter("session_id", UUID, "go on in this session, at `from`; later sessions of the user follow"),
            Parameter("from", Position, "the first position to send of that session", 0),
        ),
    ),
}

CLOSE_CODES = {
    CloseCode.TOO_BIG: f"a message over {messages.MAX_MESSAGE_BYTES >> 20} MiB",
    CloseCode.RESTART: "the server restarts",
    CloseCode.TRY_LATER: "the server cannot keep what you would send, or not reach what it needs, now",
    CloseCode.AUTH_TIMEOUT: f"no first message within {AUTH_SECONDS:g} s",
    CloseCode.TOO_SLOW: "read too slowly for too long",
    CloseCode.TOO_MANY: "more connections than this node serves",
    CloseCode.BAD_MESSAGES: f"a first message or a query that is wrong, or {MAX_BAD_MESSAGES} bad messages",
    CloseCode.UNAUTHORIZED: "the key is wrong or missing",
    CloseCode.FORBIDDEN: "not allowed for this user: the `session_id` is another user's",
    CloseCode.TAKEN_OVER: "a newer relay streams for this user: do not fight it",
}

REFERENCE = Reference(
    endpoints=ENDPOINTS,
    channels=CHANNELS,
    path_parameters=PATH_PARAMETERS,
    error=ErrorAnswer,
    structs=(messages.DeviceInfo,),
    fields=meanings.FIELDS,
    examples=meanings.EXAMPLES,
    close_codes=CLOSE_CODES,
    error_codes=meanings.ERROR_CODES,
    binary_chunk=BINARY_LAYOUT,
    description=meanings.DESCRIPTION,
)
