"""Every JSON message of the protocol as a Struct, with its limits; `/docs` is generated from them.

Times are Unix seconds here and int64 microseconds everywhere inside. Raw leaves through `chunk.py`; every other
outgoing message is encoded once, into a `Note`.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias
from uuid import UUID

from msgspec import Meta, Struct

from zander.wire.chunk import MAX_POSITION, Chunk

MAX_MESSAGE_BYTES = 1 << 20
MAX_CHANNELS = 1024
MIN_RATE_HZ, MAX_RATE_HZ = 0.001, 100_000.0
MAX_MICROVOLTS = 3.4028235677973362e38  # the last double that still becomes a float32, and not infinity

USER_ID_IS = "1 to 100 characters without white space, slash or control characters"

Kind = Literal["features", "raw", "prediction", "gap", "status"]
KINDS: tuple[Kind, ...] = ("features", "raw", "prediction", "gap", "status")
Reason = Literal["relay", "slow", "lost"]

Microvolts = Annotated[float, Meta(ge=-MAX_MICROVOLTS, le=MAX_MICROVOLTS, description="µV")]
Position = Annotated[int, Meta(ge=0, le=MAX_POSITION, description="index of the (first) sample in its session")]
Seconds = Annotated[float, Meta(description="Unix time in seconds")]
UserId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=100,
        pattern=r"^[^\s/\x00-\x1f\x7f-\x9f]+(?![\s\S])",  # `$` would let a final newline pass
        description=USER_ID_IS,
    ),
]
Name50 = Annotated[str, Meta(min_length=1, max_length=50)]
Name100 = Annotated[str, Meta(min_length=1, max_length=100)]


# From a relay.


class DeviceInfo(Struct):
    """The fields of `device_info` that Zander reads; the others are kept and given back as they came."""

    device_type: str | None = None
    sampling_rate: Annotated[float, Meta(ge=MIN_RATE_HZ, le=MAX_RATE_HZ, description="Hz")] | None = None
    channel_names: Annotated[list[Name100], Meta(min_length=1, max_length=MAX_CHANNELS)] | None = None
    channel_count: Annotated[int, Meta(ge=1, le=MAX_CHANNELS)] | None = None

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
    api_key: str | None = None
    device_info: dict[str, Any] = {}
    session_id: UUID | None = None
    ack: bool = False


class Raw(Struct, tag="raw"):
    """One sample (`channels`) or a chunk (`samples`, a list of samples); null is a missing value."""

    channels: list[Microvolts | None] | None = None
    samples: list[list[Microvolts | None]] | None = None
    timestamp: Seconds | None = None
    position: Position | None = None


class Features(Struct, tag="features"):
    """What the relay computed; fields beyond these are kept and forwarded."""

    workload: float | None = None
    confidence: float | None = None
    band_powers: dict[str, float | None] | None = None
    metrics: dict[str, Any] | None = None
    timestamp: Seconds | None = None


class Ping(Struct, tag="ping"):
    """A clock probe."""

    t0: float


# From a consumer.


class ConsumerAuth(Struct, tag="auth"):
    """The first message of a consumer that sent no key in a header."""

    api_key: str


class Prediction(Struct, tag="prediction"):
    """A model's answer; with an `id` it is acknowledged."""

    prediction_type: Name50
    classifier_name: Name100
    data: dict[str, Any]
    version: Annotated[str, Meta(max_length=50)] | None = None
    id: str | int | None = None

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

    session_id: str
    user_id: str
    next_position: int
    server_time: Seconds


class Ack(Struct, tag="ack"):
    """Every sample below `durable` is committed in the database, or part of a gap: the relay need not keep it."""

    session_id: str
    durable: int


class Pong(Struct, tag="pong"):
    """The answer to a clock probe: `t0` as it came, when it was received and when this was sent."""

    t0: float
    t1: Seconds
    t2: Seconds


class Error(Struct, tag="error"):
    """What was expected and what came."""

    code: str
    message: str


class Status(Struct, tag="status"):
    """Sent on subscribing and whenever a relay comes or goes."""

    user_id: str
    online: bool
    session_id: str | None = None
    device_info: dict[str, Any] | None = None


class Gap(Struct, tag="gap", frozen=True, rename={"start": "from", "end": "to"}):
    """A hole in what this consumer gets: positions `from` (included) to `to` (not included)."""

    session_id: str
    start: int
    end: int
    reason: Reason


class PredictionAck(Struct, tag="prediction_ack"):
    """`delivered`: the user's relay was connected and the prediction went to it."""

    id: str | int
    delivered: bool


class Note(NamedTuple):
    """Anything but raw on its way out: JSON text, made once."""

    kind: Kind
    time_us: int
    text: str
    sender: str = ""  # the consumer a prediction came from; it does not get it back


Item: TypeAlias = Chunk | Gap | Note  # one thing in a stream, in the order in which it happened
