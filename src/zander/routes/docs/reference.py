"""The part of the API reference that the code does not say: the Structs of each endpoint, terms, rules, error codes.

Tests hold it against the routes, the Structs and the codes of errors: one that is not described here fails. The meaning
of a field is on its Struct, that of a close code in `errors.py`.
"""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from msgspec import Meta, Struct

from zander.delivery.queue import Format
from zander.errors import CloseCode
from zander.routes import health, history, sessions
from zander.routes.docs.examples import EXAMPLES
from zander.routes.docs.openapi import Channel, Endpoint, Parameter, Reference
from zander.routes.parameters import PAGE_TOKEN
from zander.routes.questions import MAX_OPEN, MAX_RUNNING
from zander.routes.subscribe import MAX_DELAY_MS
from zander.routes.websocket import AUTH_SECONDS, MAX_BAD_MESSAGES
from zander.settings import Settings
from zander.streams.query import MAX_FOUND_BYTES, AnswerFormat
from zander.streams.stream import SampleType, StreamStats
from zander.wire import messages
from zander.wire.bodies import MAX_HEADER_BYTES
from zander.wire.chunk import BINARY_LAYOUT
from zander.wire.messages import FeaturesEvent, Kind, Position, PredictionEvent, RawChunk, RawSample, User


class Samples(Struct):
    """Buffered samples, oldest first."""

    user_id: User
    sample_type: Annotated[SampleType, Meta(description="the type that was asked for")]
    n: Annotated[int, Meta(description="number of samples")]
    samples: Annotated[
        list[RawSample | FeaturesEvent | PredictionEvent],
        Meta(description="the samples, as a consumer would have got them"),
    ]


class HistoryPage(Samples):
    """A page of samples in the database, by time. Predictions have a `session_id` there, and no `id`."""

    next: Annotated[str | None, Meta(description="`cursor` of the next page, null at the end")]


class ErrorDetail(Struct):
    """A refusal, with its code."""

    code: Annotated[str, Meta(description="for programs (see error codes)")]
    message: Annotated[str, Meta(description="for people: what was expected and what came")]


class ErrorAnswer(Struct):
    """The form of every REST error."""

    error: Annotated[ErrorDetail, Meta(description="what went wrong")]


SAMPLE_TYPE = Parameter("sample_type", SampleType, "what to read", "features")
FORMAT = Parameter(
    "format",
    AnswerFormat,
    "`npy`, with `sample_type=raw` only (409 with any other): an array that `numpy.load` reads",
    "json",
)
# What is accepted beyond the pattern: exponents, the 29th of February, and the other forms of ISO 8601.
DAY = (
    r"[1-9][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    r"|02-(0[1-9]|1[0-9]|2[0-8]))"
)
CLOCK = r"T([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,6})?)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])?"
Moment = Annotated[str, Meta(pattern=rf"^(-?[0-9]{{1,12}}(\.[0-9]{{1,6}})?|{DAY}({CLOCK})?)$")]
START = Parameter("start", Moment, "first time: Unix seconds or ISO 8601 (UTC unless it says otherwise)", required=True)
END = Parameter("end", Moment, "time after the last, in those forms; not before `start` (409 if it is)", required=True)


def _limit(default: int, maximum: int) -> Parameter:
    return Parameter("limit", Annotated[int, Meta(ge=1, le=maximum)], "at most so many on a page", default)


Cursor = Annotated[str, Meta(pattern=PAGE_TOKEN)]
CURSOR = Parameter("cursor", Cursor, "`next` of the page before; all else as it was (409 if it is not)")
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
    "X-Omitted": f"npy: headers that are left out, comma-separated, since each is over {MAX_HEADER_BYTES:,} bytes; "
    "names are in `device_info` (`/streams`, `/sessions/{session_id}`), positions in `format=json`",
}
HISTORY_HEADERS = NPY_HEADERS | {
    "X-Session-Id": "npy: the session of the first sample",
    "X-Positions": "npy: JSON list of `[from, to]`, the runs without a hole, session by session",
    "X-Channel-Names": "npy: JSON list of the channels' names, null when there are none or sessions differ",
    "X-Sessions": "npy: JSON list of `[session_id, n]`, whose samples they are, in their order",
    "X-Next": "npy: `next`; not there at the end",
}


def _buffer(answer: Any, *query: Parameter) -> Endpoint:
    return Endpoint(answer, (404, 409, 422, 503), (SAMPLE_TYPE, FORMAT, *query), other_media=NPY, headers=NPY_HEADERS)


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
        (404, 409, 422, 429, 503),
        (SAMPLE_TYPE, FORMAT, START, END, _limit(history.DEFAULT_LIMIT, history.MAX_LIMIT), CURSOR),
        other_media=NPY,
        headers=HISTORY_HEADERS,
    ),
    "/sessions": Endpoint(
        sessions.Sessions,
        (404, 422, 429, 503),
        (USER, BEFORE, _limit(sessions.DEFAULT_LIMIT, sessions.MAX_LIMIT)),
    ),
    "/sessions/{session_id}": Endpoint(sessions.SessionDetail, (404, 422, 429, 503), (GAPS_FROM,)),
    "/streams": Endpoint(health.Streams, (503,)),
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
        summary="A relay sends samples and features, and gets the predictions about its user.",
        key="`api_key` in the first message, or `Authorization: Bearer …`, or `X-API-Key`",
        rules=(
            f"First comes an Auth, within {AUTH_SECONDS:g} s; the answer is an AuthOk, or an Error and a close.",
            f"The newest relay of a user wins: the one before it is closed with {CloseCode.TAKEN_OVER}.",
            "With `ack` Acks follow: keep what you send until it is durable. After a disconnect send its `session_id` "
            "in the next Auth, and go on at the `next_position` of the AuthOk: what is there already is dropped.",
            "Instead of a Raw, a binary chunk may be sent.",
        ),
        first=messages.Auth,
        receives=(messages.Raw, messages.Features, messages.Ping),
        sends=(messages.AuthOk, messages.Ack, PredictionEvent, messages.Pong, messages.Error),
        binary=("receives",),
        close_codes=tuple(CloseCode),
    ),
    "/subscribe/{user_id}": Channel(
        summary="A consumer gets everything about a user as it comes, and may send predictions.",
        key="`Authorization: Bearer …`, or `X-API-Key`, or a first message; never in the URL",
        rules=(
            "The first message is a ConsumerAuth only where no header carried the key and the server wants one.",
            "Raw comes as RawSample, as RawChunk or as a binary chunk, by `format`; everything else is JSON always.",
            "A Status comes first, then the `last` samples, then everything live, without a hole or a repeat.",
            "With `session_id` and `from` it goes on there instead: from memory or the database, and then live.",
            "For a consumer that reads too slowly the oldest raw is dropped, and the hole announced as a Gap.",
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
            Parameter(
                "delay_ms",
                Annotated[int, Meta(ge=0, le=MAX_DELAY_MS)],
                "wait so long before sending, for fewer and larger writes",
                0,
            ),
            Parameter("last", Annotated[int, Meta(ge=0)], "send so many buffered samples first", 0),
            Parameter("session_id", UUID, "go on in this session, at `from`; later sessions of the user follow"),
            Parameter("from", Position, "the first position to send of that session", 0),
        ),
    ),
}

ERROR_CODES = {
    "bad_json": "not JSON",
    "bad_message": "not a message of this protocol: an unknown type, a missing field, a value of the wrong type",
    "bad_value": "a value out of its range: infinity, U+0000, a device_info that is too large",
    "too_large": f"features or a prediction over {messages.MAX_NOTE_BYTES >> 10} KiB, as JSON on its way out, or a "
    f"question for more than {MAX_FOUND_BYTES >> 20} MiB of samples (409)",
    "bad_length": "samples of different lengths, none at all, or a binary message that is too short or too long",
    "bad_header": "a binary message of another version, kind or dtype",
    "bad_channels": "not the session's number of channels",
    "bad_rate": "not the session's sampling rate",
    "bad_position": "a position out of its range, or more than a day of samples ahead",
    "bad_timestamp": "a time longer ago than `MAX_AGE_DAYS`, or more than a minute from now",
    "clamped": "a time more than a second before the one before it: it was moved, and nothing dropped; said once in a "
    "session",
    "not_stored": "what the relay sends is given to consumers but not stored, since the journal or the user's share of "
    "it is full; said once in a session",
    "no_sampling_rate": "a chunk of several samples, of a device that did not tell its sampling rate",
    "bad_parameter": "a parameter of a path or a query that is missing or out of its range (422), or that is right but "
    "for another one (409): an `end` before `start`, a `cursor` of another question",
    "bad_format": "as npy: features, predictions, or sessions that differ in their number of channels (409)",
    "unauthorized": "the key is wrong or missing, or the first message did not come or was no auth",
    "forbidden": "not allowed for this user: the session is another user's",
    "too_many": f"more connections than this node serves, or more than {MAX_OPEN} questions to the database at once of "
    f"one key and address, of which {MAX_RUNNING} run and the others wait",
    "not_found": "no such user or session, or nothing buffered",
    "unavailable": "the database, or the node that holds the user, does not answer now",
}

DESCRIPTION = (
    "Zander takes raw EEG and features from edge relays over WebSocket, gives them at once to every consumer that has "
    "subscribed, and writes every sample to TimescaleDB. Predictions go the other way: from a consumer to the user's "
    "relay."
)

TERMS = {
    "relay": "the program beside the headset; it sends to `/stream`",
    "consumer": "a client of `/subscribe/{user_id}`; it receives, and may send predictions",
    "session": "one relay's life on one device layout; a UUID; a relay may resume it after a disconnect",
    "sample": "all channels at one instant, in µV",
    "chunk": "several consecutive samples: float32, shape `(n_samples, n_channels)`",
    "position": "index of a sample in its session, from 0; the same number at the relay, in the buffer, at every "
    "consumer and in the database",
    "gap": "positions that the relay skipped, or that the server had to give up",
    "durable": "position below which every sample of a session is committed in the database, or part of a gap",
}

RULES = {
    "Positions": (
        "Without a `position` the server counts.",
        "A position ahead of the next one leaves a gap. By more than a day of samples it is refused; where the device "
        "gives no sampling rate, that is a day at 1 kHz.",
        "Samples at positions that are there already are dropped and counted as duplicates; the rest is taken.",
        "The number of channels never changes within a session.",
    ),
    "Times": (
        "Times are Unix seconds as a JSON number, and int64 microseconds in binary.",
        "Without a `timestamp` the server's clock counts: a chunk that arrives now ends now.",
        "The sampling rate spaces the samples of a chunk. A device that gives none sends one sample per message.",
        "Times within a session never run backwards: samples that would are moved behind the one before, and counted "
        "as `clamped`. They are an eighth closer than the sampling rate says, until they meet their own times.",
        "Times are accepted from `MAX_AGE_DAYS` before to a minute after the server's clock.",
        "The server's clock is never set back while it runs.",
    ),
    "Values": (
        "A missing value is `null` in JSON and NaN in binary. Infinity is refused.",
        "A field that is not named here is ignored; in features, in a prediction and in `device_info` it is kept.",
    ),
    "Gaps": (
        "A gap is never filled. It is announced to every consumer between the samples around it.",
        "Its reason is `relay` (the relay sent past these positions), `slow` (this consumer read too slowly) or `lost` "
        "(the server had to give them up, or cannot have them for this consumer now).",
        "The gaps of a session are stored, and listed by `GET /sessions/{session_id}`; `slow` is a consumer's own.",
    ),
    "Bad messages": (
        "A bad message is answered with one `error`, dropped and counted; the connection goes on.",
        f"After {MAX_BAD_MESSAGES} of them it is closed with {CloseCode.BAD_MESSAGES}.",
        f"Features and predictions over {messages.MAX_NOTE_BYTES >> 10} KiB are refused: what counts is the JSON text "
        "that the server sends on, with `user_id` and all it adds, and without white space.",
        f"A message over {messages.MAX_MESSAGE_BYTES >> 20} MiB closes it with {CloseCode.TOO_BIG}.",
    ),
}

REFERENCE = Reference(
    endpoints=ENDPOINTS,
    channels=CHANNELS,
    path_parameters=PATH_PARAMETERS,
    error=ErrorAnswer,
    structs=(messages.DeviceInfo,),
    examples=EXAMPLES,
    error_codes=ERROR_CODES,
    binary_chunk=BINARY_LAYOUT,
    terms=TERMS,
    rules=RULES,
    description=DESCRIPTION,
)


def with_settings(settings: Settings) -> Reference:
    """Return the reference of a server, whose buffers are as long as its settings say, and which has keys or none."""
    parameter = PATH_PARAMETERS["n"]
    of_server = parameter._replace(kind=Annotated[int, Meta(ge=1, le=settings.buffer_samples)])
    channel = CHANNELS["/subscribe/{user_id}"]
    last = Annotated[int, Meta(ge=0, le=settings.buffer_samples)]
    query = tuple(it._replace(kind=last) if it.name == "last" else it for it in channel.query)
    return REFERENCE._replace(
        path_parameters={**PATH_PARAMETERS, "n": of_server},
        channels={**CHANNELS, "/subscribe/{user_id}": channel._replace(query=query)},
        needs_key=bool(settings.consumer_keys),
    )
