"""Every JSON message of the protocol as a Struct, and how the incoming ones are read.

The Structs are tagged unions, their decoders are built once, and `/docs` is generated from them. Raw leaves through
`chunk.py`; every other outgoing message is encoded once into a `Note`. Times are Unix seconds on the wire and int64
microseconds everywhere inside.
"""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Struct

from zander.chunk import MAX_POSITION, RawIn, decode_binary
from zander.errors import BadMessage

MAX_MESSAGE_BYTES = 1 << 20
MAX_CHANNELS = 1024
MIN_RATE_HZ, MAX_RATE_HZ = 0.001, 100_000.0
MAX_DEPTH = 64  # of JSON that is kept: what can just be read here could not be written again further in
MAX_DEVICE_INFO_BYTES = 64 << 10
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
    """The first message of a relay: who it is and what its device looks like."""

    user_id: UserId
    api_key: str | None = None
    device_info: dict[str, Any] = {}


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


class Gap(Struct, tag="gap", rename={"start": "from", "end": "to"}):
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


# Reading and writing.


class _Typed(Struct):
    type: str


_relay = msgspec.json.Decoder(Raw | Features | Ping)
_auth = msgspec.json.Decoder(Auth)
_consumer_auth = msgspec.json.Decoder(ConsumerAuth)
_consumer: msgspec.json.Decoder[Prediction | ConsumerAuth] = msgspec.json.Decoder(Prediction | ConsumerAuth)
_prediction = msgspec.json.Decoder(Prediction)
_USER_REGEX = re.compile(r"`str` matching regex '.*'")  # only a user has one
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # after an even number of backslashes

_typed = msgspec.json.Decoder(_Typed)
_fields = msgspec.json.Decoder(dict[str, Any])
_encoder = msgspec.json.Encoder()

T = TypeVar("T")


def dumps(message: object) -> str:
    """Encode a Struct or plain data as JSON text."""
    return _encoder.encode(message).decode()


def _decode(decoder: msgspec.json.Decoder[T], data: str | bytes) -> T:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise BadMessage("bad_message", _USER_REGEX.sub(USER_ID_IS, str(error))) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadMessage("bad_json", f"expected JSON, got: {error}") from None


def _refuse_nul(data: str) -> None:
    if "\\u0000" in data and _NUL.search(data):  # jsonb and text cannot hold it: it would poison its whole batch
        raise BadMessage("bad_value", "expected text without U+0000")


def _refuse_deep(value: object, n_levels: int = MAX_DEPTH) -> None:
    if isinstance(value, dict | list):
        if not n_levels:
            raise BadMessage("bad_value", f"expected at most {MAX_DEPTH} levels of nested JSON")
        for inner in value.values() if isinstance(value, dict) else value:
            _refuse_deep(inner, n_levels - 1)


def message_type(data: str) -> str | None:
    """Return the `type` of a message that may be anything; None when it has none."""
    try:
        return _typed.decode(data).type
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def decode_auth(data: str) -> tuple[Auth, DeviceInfo]:
    """Read a relay's first message; BadMessage where a field is missing, wrong or out of its range."""
    _refuse_nul(data)
    auth = _decode(_auth, data)
    _refuse_deep(auth.device_info)
    if len(_encoder.encode(auth.device_info)) > MAX_DEVICE_INFO_BYTES:
        raise BadMessage("bad_value", f"expected a device_info of at most {MAX_DEVICE_INFO_BYTES} bytes")
    try:
        return auth, msgspec.convert(auth.device_info, DeviceInfo)
    except msgspec.ValidationError as error:
        raise BadMessage("bad_message", f"device_info: {error}") from None


def decode_relay(data: str | bytes) -> RawIn | Features | Ping:
    """Read what a relay sends after `auth`: text is JSON, bytes are a binary chunk."""
    if isinstance(data, bytes):
        return decode_binary(data)
    message = _decode(_relay, data)
    return _raw_in(message) if isinstance(message, Raw) else message


def _raw_in(raw: Raw) -> RawIn:
    if (raw.channels is None) == (raw.samples is None):
        raise BadMessage("bad_message", "expected either `channels` or `samples`")
    values = [raw.channels] if raw.samples is None else raw.samples
    try:
        samples = np.array(values, dtype="<f4")  # null becomes NaN
    except ValueError:
        raise BadMessage("bad_length", "expected samples of one length") from None
    if samples.ndim != 2 or not samples.size:
        raise BadMessage("bad_length", "expected at least one sample of at least one channel")
    return RawIn(raw.position, to_us(raw.timestamp), samples)


def to_us(seconds: float | None) -> int | None:
    """Convert Unix seconds to microseconds; BadMessage beyond ±10¹² s, where they would not fit."""
    if seconds is None:
        return None
    if not -1e12 <= seconds <= 1e12:
        raise BadMessage("bad_timestamp", f"expected Unix seconds, got {seconds}")
    return round(seconds * 1e6)


def decode_fields(data: str | bytes) -> dict[str, Any]:
    """Read a text message that has passed its Struct once more, with all its fields as they came."""
    text = str(data)
    _refuse_nul(text)
    fields = _decode(_fields, text)
    _refuse_deep(fields)
    return fields


def decode_consumer(data: str | bytes) -> Prediction | ConsumerAuth:
    """Read what a consumer sends."""
    if isinstance(data, bytes):
        raise BadMessage("bad_message", "expected a JSON text message, got a binary one")
    _refuse_nul(data)
    return _decode(_consumer, data)


def decode_consumer_auth(data: str) -> ConsumerAuth:
    """Read a consumer's first message."""
    return _decode(_consumer_auth, data)


def decode_prediction(data: str) -> Prediction:
    """Read a prediction."""
    return _decode(_prediction, data)
