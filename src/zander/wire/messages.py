"""Every JSON message of the protocol as a Struct, with its limits and the meaning of each field.

`/docs`, `/openapi.json` and `routes/docs/protocol.md` are generated from them. Times are Unix seconds here and int64
microseconds everywhere inside. Raw leaves through `chunk.py`, which writes what `RawSample` and `RawChunk` say; every
other outgoing message is encoded once, into a `Note`.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias
from uuid import UUID

from msgspec import Meta, Struct

from zander.wire.chunk import MAX_POSITION, Chunk

MAX_MESSAGE_BYTES = 1 << 20
MAX_NOTE_BYTES = 64 << 10  # of features or a prediction, as they leave: what clients and the buffers take at once
MAX_CHANNELS = 1024
MIN_RATE_HZ, MAX_RATE_HZ = 0.001, 100_000.0
MAX_MICROVOLTS = 3.4028235677973362e38  # the last double that still becomes a float32, and not infinity

USER_ID_IS = "1 to 100 characters without white space, slash or control characters"
DEVICE_IS = "the device, as the relay described it (see DeviceInfo)"

Kind = Literal["features", "raw", "prediction", "gap", "status"]
KINDS: tuple[Kind, ...] = ("features", "raw", "prediction", "gap", "status")
Reason = Literal["relay", "slow", "lost"]

Microvolts = Annotated[float, Meta(ge=-MAX_MICROVOLTS, le=MAX_MICROVOLTS, description="µV")]
Position = Annotated[int, Meta(ge=0, le=MAX_POSITION, description="index of the (first) sample in its session, from 0")]
Seconds = Annotated[float, Meta(description="Unix time in seconds")]
SampleTime = Annotated[float, Meta(description="Unix time in seconds, of the first sample where there are several")]
UserId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=100,
        pattern=r"^[^\s/\x00-\x1f\x7f-\x9f]+(?![\s\S])",  # `$` would let a final newline pass
        description="the user: no white space, no `/`, no control characters",
    ),
]
User = Annotated[str, Meta(description="the user")]
SessionId = Annotated[str, Meta(description="UUID of the session: one relay's life on one device layout")]
Name50 = Annotated[str, Meta(min_length=1, max_length=50)]
Name100 = Annotated[str, Meta(min_length=1, max_length=100)]


# From a relay.


class DeviceInfo(Struct):
    """The fields of `device_info` that Zander reads; the others are kept and given back as they came."""

    device_type: Annotated[str | None, Meta(description="make and model")] = None
    sampling_rate: Annotated[
        Annotated[float, Meta(ge=MIN_RATE_HZ, le=MAX_RATE_HZ)] | None,
        Meta(description="samples per second; needed for chunks of several samples: it spaces them"),
    ] = None
    channel_names: Annotated[
        Annotated[list[Name100], Meta(min_length=1, max_length=MAX_CHANNELS)] | None,
        Meta(description="names of the channels, in the order of the values"),
    ] = None
    channel_count: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_CHANNELS)] | None,
        Meta(description="number of channels; with names it must be their number"),
    ] = None

    def __post_init__(self) -> None:
        if self.channel_names and self.channel_count not in (None, len(self.channel_names)):
            raise ValueError(f"channel_count is {self.channel_count}, channel_names are {len(self.channel_names)}")

    @property
    def n_channels(self) -> int | None:
        """Number of channels declared, None when neither a count nor names are."""
        return self.channel_count or (len(self.channel_names) if self.channel_names else None)


class Auth(Struct, tag="auth"):
    """The first message of a relay: who it is, what its device looks like, and which session it goes on with."""

    user_id: UserId
    api_key: Annotated[
        str | None, Meta(description="one of the server's EDGE_API_KEY; not needed when a header carried it")
    ] = None
    device_info: Annotated[
        dict[str, Any], Meta(description="the device (see DeviceInfo); other fields are kept and given back")
    ] = {}
    session_id: Annotated[
        UUID | None,
        Meta(description="the session to go on with after a disconnect, or a UUID of your own to begin it under"),
    ] = None
    ack: Annotated[
        bool,
        Meta(
            description="true: Acks follow, and where samples cannot be kept for certain the connection is closed "
            "with 1013"
        ),
    ] = False


class Raw(Struct, tag="raw"):
    """One sample (`channels`) or a chunk (`samples`, a list of samples); null is a missing value."""

    channels: Annotated[list[Microvolts | None] | None, Meta(description="one sample: a value per channel, in µV")] = (
        None
    )
    samples: Annotated[
        list[list[Microvolts | None]] | None,
        Meta(description="a chunk: a list of samples, each a value per channel, in µV"),
    ] = None
    timestamp: Annotated[
        Seconds | None,
        Meta(description="Unix time of the first sample; left out: the chunk ends now, by the server's clock"),
    ] = None
    position: Annotated[
        Position | None, Meta(description="position of the first sample; left out: the server counts")
    ] = None


class Features(Struct, tag="features"):
    """Values that the relay computed; fields beyond these are kept and forwarded."""

    workload: Annotated[float | None, Meta(description="the relay's estimate of mental workload")] = None
    confidence: Annotated[float | None, Meta(description="how sure the relay is of it")] = None
    band_powers: Annotated[dict[str, float | None] | None, Meta(description="power by frequency band")] = None
    metrics: Annotated[dict[str, Any] | None, Meta(description="anything else that the relay computed")] = None
    timestamp: Annotated[
        Seconds | None, Meta(description="Unix time in seconds; left out: now, by the server's clock")
    ] = None


class Ping(Struct, tag="ping"):
    """A clock probe."""

    t0: Annotated[float, Meta(description="the sender's clock when it sent the ping")]


# From a consumer.


class ConsumerAuth(Struct, tag="auth"):
    """The first message of a consumer that sent no key in a header."""

    api_key: Annotated[str, Meta(description="one of the server's CONSUMER_API_KEY")]


class Prediction(Struct, tag="prediction"):
    """A model's answer; with an `id` it is acknowledged."""

    prediction_type: Annotated[Name50, Meta(description="what is predicted")]
    classifier_name: Annotated[Name100, Meta(description="the model that predicts it")]
    data: Annotated[
        dict[str, Any],
        Meta(
            description="the prediction itself, in the model's own form; a `confidence` in it gets a column of its own"
        ),
    ]
    version: Annotated[Annotated[str, Meta(max_length=50)] | None, Meta(description="version of the model")] = None
    id: Annotated[str | int | None, Meta(description="any name for this prediction: with one it is acknowledged")] = (
        None
    )

    @property
    def confidence(self) -> float | None:
        """`data.confidence` where that is a number, and one that fits a float."""
        value = self.data.get("confidence")
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > sys.float_info.max:
            return None
        return float(value)


# From the server.


class AuthOk(Struct, tag="auth_ok"):
    """The relay may send; it goes on at `next_position`."""

    session_id: SessionId
    user_id: User
    next_position: Annotated[
        int, Meta(description="where the relay goes on: 0, or in a resumed session the durable position")
    ]
    server_time: Annotated[float, Meta(description="the server's clock, Unix seconds")]


class Ack(Struct, tag="ack"):
    """Every sample below `durable` is committed in the database, or part of a gap: the relay need not keep it."""

    session_id: SessionId
    durable: Annotated[
        int, Meta(description="position below which every sample is committed in the database, or part of a gap")
    ]


class Pong(Struct, tag="pong"):
    """The answer to a clock probe: `t0` as it came, when it was received and when this was sent."""

    t0: Annotated[float, Meta(description="the ping's `t0`, as it came")]
    t1: Annotated[float, Meta(description="when the server received the ping, Unix seconds")]
    t2: Annotated[float, Meta(description="when the server answered, Unix seconds")]


class Error(Struct, tag="error"):
    """A refusal. The message that caused it is dropped; a close code follows where the connection ends with it."""

    code: Annotated[str, Meta(description="for programs (see error codes)")]
    message: Annotated[str, Meta(description="for people: what was expected and what came")]


class Status(Struct, tag="status"):
    """The state of the user's relay: sent on subscribing and whenever a relay comes or goes."""

    user_id: User
    online: Annotated[bool, Meta(description="whether the user's relay is connected")]
    session_id: Annotated[
        str | None, Meta(description="its session, or the last one; null when this server knows of none")
    ] = None
    device_info: Annotated[dict[str, Any] | None, Meta(description=DEVICE_IS)] = None


class RawSample(Struct, tag="raw"):
    """One sample of all channels."""

    user_id: User
    session_id: SessionId
    position: Position
    timestamp: SampleTime
    channels: Annotated[
        list[Microvolts | None], Meta(description="a value per channel, in µV; null is a missing value")
    ]


class RawChunk(Struct, tag="raw"):
    """Consecutive samples: as many as are at hand."""

    user_id: User
    session_id: SessionId
    position: Position
    timestamp: SampleTime
    samples: Annotated[
        list[list[Microvolts | None]],
        Meta(description="a list of samples, each a value per channel, in µV; null is a missing value"),
    ]


class FeaturesEvent(Features, tag="features", kw_only=True):
    """Features as the relay sent them, with all their fields, and whose they are."""

    user_id: User
    session_id: SessionId
    timestamp: Seconds


class PredictionEvent(Prediction, tag="prediction", kw_only=True):
    """A prediction as the consumer sent it, and whom it is about."""

    user_id: User
    timestamp: Annotated[float, Meta(description="when the server took it in, Unix seconds")]
    id: Annotated[str | int | None, Meta(description="the sender's name for it")] = None


class Gap(Struct, tag="gap", frozen=True, rename={"start": "from", "end": "to"}):
    """A hole in what this consumer gets: positions `from` (included) to `to` (not included)."""

    session_id: SessionId
    start: Annotated[int, Meta(description="first missing position")]
    end: Annotated[int, Meta(description="position after the last missing one")]
    reason: Annotated[
        Reason,
        Meta(
            description="`relay`: it sent past them; `slow`: this consumer read too slowly; `lost`: the server had to "
            "give them up, or cannot have them for this consumer now"
        ),
    ]


class PredictionAck(Struct, tag="prediction_ack"):
    """The answer to a prediction that has an `id`."""

    id: Annotated[str | int, Meta(description="the prediction's `id`")]
    delivered: Annotated[bool, Meta(description="whether the user's relay was connected and the prediction went to it")]


class Note(NamedTuple):
    """Anything but raw on its way out: JSON text, made once."""

    kind: Kind
    time_us: int
    text: str
    sender: str = ""  # the consumer a prediction came from; it does not get it back


Item: TypeAlias = Chunk | Gap | Note  # one thing in a stream, in the order in which it happened
