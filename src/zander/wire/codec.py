"""Decoders and encoders of JSON messages, built once; binary chunks are read by `chunk.py`."""

from __future__ import annotations

import re
import sys
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec import Struct

from zander.errors import BadMessage
from zander.wire.chunk import RawIn, decode_binary
from zander.wire.messages import (
    MAX_NOTE_BYTES,
    USER_ID_IS,
    Auth,
    ConsumerAuth,
    DeviceInfo,
    Features,
    Ping,
    Prediction,
    Raw,
)

MAX_DEPTH = 64  # of JSON that is kept: what can just be read here could not be written again further in
MAX_DEVICE_INFO_BYTES = 64 << 10


class _Typed(Struct):
    type: str


_relay = msgspec.json.Decoder(Raw | Features | Ping)
_auth = msgspec.json.Decoder(Auth)
_consumer_auth = msgspec.json.Decoder(ConsumerAuth)
_USER_REGEX = re.compile(r"`str` matching regex '.*'")  # only a user has one
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # after an even number of backslashes

_typed = msgspec.json.Decoder(_Typed)
_fields = msgspec.json.Decoder(dict[str, Any])
_encoder = msgspec.json.Encoder()

T = TypeVar("T")


class PredictionIn(NamedTuple):
    """A prediction as a consumer sent it: checked, and all fields of the message."""

    prediction: Prediction
    fields: dict[str, Any]


def dumps(message: object) -> str:
    """Encode a Struct or plain data as JSON text."""
    return _encoder.encode(message).decode()


def dumps_note(message: dict[str, Any]) -> str:
    """Encode features or a prediction as they leave; BadMessage when that is too large for those who get it."""
    encoded = _encoder.encode(message)
    if len(encoded) > MAX_NOTE_BYTES:
        kind = message["type"]
        raise BadMessage(
            "too_large", f"{kind}: expected at most {MAX_NOTE_BYTES} bytes as it is sent on, got {len(encoded)}"
        )
    return encoded.decode()


def _decode(decoder: msgspec.json.Decoder[T], data: str | bytes) -> T:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise BadMessage("bad_message", _sentence(error)) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadMessage("bad_json", f"expected JSON, got: {error}") from None


def _refuse_nul(data: str) -> None:
    if "\\u0000" in data and _NUL.search(data):  # jsonb and text cannot hold it: it would poison its whole batch
        raise BadMessage("bad_value", "expected text without U+0000")


def refuse_deep(value: object, n_levels: int = MAX_DEPTH) -> None:
    """Raise BadMessage for JSON that is nested deeper than `n_levels`."""
    if isinstance(value, dict | list):
        if not n_levels:
            raise BadMessage("bad_value", f"expected at most {MAX_DEPTH} levels of nested JSON")
        for inner in value.values() if isinstance(value, dict) else value:
            refuse_deep(inner, n_levels - 1)


def memory_bytes(value: object) -> int:
    """Return the memory that decoded JSON takes: of empty lists, twenty times what the text does."""
    n_bytes = sys.getsizeof(value)
    if isinstance(value, dict):
        return n_bytes + sum(memory_bytes(name) + memory_bytes(inner) for name, inner in value.items())
    return n_bytes + sum(map(memory_bytes, value)) if isinstance(value, list) else n_bytes


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
    refuse_deep(auth.device_info)
    try:
        n_bytes = max(len(_encoder.encode(auth.device_info)), len(msgspec.msgpack.encode(auth.device_info)))
    except OverflowError:  # it travels between nodes as msgpack
        raise BadMessage("bad_value", "expected integers of at most 64 bits in device_info") from None
    if n_bytes > MAX_DEVICE_INFO_BYTES:
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
    refuse_deep(fields)
    return fields


def decode_consumer(data: str | bytes) -> PredictionIn | ConsumerAuth:
    """Read what a consumer sends."""
    if isinstance(data, bytes):
        raise BadMessage("bad_message", "expected a JSON text message, got a binary one")
    fields, message = _read(data, Prediction | ConsumerAuth)
    return PredictionIn(message, fields) if isinstance(message, Prediction) else message


def decode_consumer_auth(data: str) -> ConsumerAuth:
    """Read a consumer's first message."""
    return _decode(_consumer_auth, data)


def decode_prediction(data: str) -> PredictionIn:
    """Read a prediction that another node has passed on."""
    fields, message = _read(data, Prediction)
    return PredictionIn(message, fields)


def _read(data: str, kind: Any) -> tuple[dict[str, Any], Any]:
    """Parse text once: return all its fields, and the message of that kind."""
    _refuse_nul(data)
    fields = _decode(_fields, data)
    try:
        return fields, msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise BadMessage("bad_message", _sentence(error)) from None


def _sentence(error: msgspec.ValidationError) -> str:
    return _USER_REGEX.sub(USER_ID_IS, str(error))
