"""Every message of the protocol, as a peer writes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zander.errors import BadMessage
from zander.wire.chunk import Chunk, Origin, RawIn, encode_binary
from zander.wire.codec import (
    MAX_DEVICE_INFO_BYTES,
    PredictionIn,
    decode_auth,
    decode_consumer,
    decode_consumer_auth,
    decode_fields,
    decode_prediction,
    decode_relay,
    dumps,
    message_type,
    to_us,
)
from zander.wire.messages import (
    AuthOk,
    ConsumerAuth,
    DeviceInfo,
    Error,
    Features,
    Gap,
    Ping,
    Pong,
    Prediction,
    PredictionAck,
    Status,
    UserId,
)

# The messages of the original README, character for character; only its `...` are left out: they are not JSON.

AUTH = """{
    "type": "auth",
    "api_key": "your-api-key",
    "user_id": "user_123",
    "device_info": {
        "device_type": "Emotiv EPOC",
        "sampling_rate": 128,
        "channel_names": ["F3", "F4", "C3", "Cz", "C4", "P3", "P4"],
        "channel_count": 7
    }
}"""
FEATURES = """{
    "type": "features",
    "workload": 0.65,
    "confidence": 0.89,
    "band_powers": {"delta": 0.12, "theta": 0.25, "alpha": 0.35},
    "metrics": {"frontal_theta": 0.22, "theta_beta_ratio": 1.38}
}"""
RAW = """{
    "type": "raw",
    "channels": [0.1, 0.2, -0.3, 0.15, 0.22, -0.1, 0.3]
}"""
PREDICTION = """{
    "type": "prediction",
    "prediction_type": "workload_azure_lstm",
    "classifier_name": "azure_ml_lstm_v2",
    "version": "v2.1.0",
    "data": {
        "workload_prediction": 0.72,
        "confidence": 0.94
    }
}"""
ORIGINALS = (AUTH, FEATURES, RAW, PREDICTION)

DECODERS: list[Callable[[str], Any]] = [
    decode_auth,
    decode_relay,
    decode_consumer,
    decode_consumer_auth,
    decode_prediction,
    decode_fields,
]


def raw(text: str) -> RawIn:
    decoded = decode_relay(text)
    assert isinstance(decoded, RawIn)
    return decoded


def refusal(decode: Callable[[Any], Any], data: str | bytes) -> BadMessage:
    with pytest.raises(BadMessage) as refused:
        decode(data)
    return refused.value


# From a relay.


@pytest.mark.parametrize(
    ("text", "n_channels"),
    [
        ("{}", None),
        ('{"channel_count":7}', 7),
        ('{"channel_names":["F3","F4"]}', 2),
        ('{"channel_names":["F3","F4"],"channel_count":2}', 2),
        ('{"channel_names":null,"channel_count":null,"sampling_rate":null,"device_type":null}', None),
        ('{"channel_count":1024,"sampling_rate":100000}', 1024),
    ],
)
def test_a_device_says_how_many_channels_it_has_or_leaves_it_open(text: str, n_channels: int | None) -> None:
    assert msgspec.json.decode(text, type=DeviceInfo).n_channels == n_channels


@pytest.mark.parametrize(
    "device_info",
    [
        '{"channel_count":0}',
        '{"channel_count":1025}',
        '{"channel_count":2.5}',
        '{"channel_names":[]}',
        '{"channel_names":[""]}',
        '{"channel_names":"F3"}',
        '{"channel_names":["F3","F4"],"channel_count":3}',
        '{"sampling_rate":0}',
        '{"sampling_rate":-128}',
        '{"sampling_rate":100001}',
        '{"sampling_rate":"128"}',
        '{"device_type":5}',
        "[]",
        "null",
        '"Emotiv"',
    ],
)
def test_a_device_that_cannot_be_is_refused(device_info: str) -> None:
    error = refusal(decode_auth, f'{{"type":"auth","user_id":"me","device_info":{device_info}}}')
    assert error.code == "bad_message"
    assert "device_info" in error.message


@pytest.mark.parametrize("user_id", ["u", "user_123", "a@b.c", "Zoë", "脳波", "x" * 100, "😀" * 100, "..", "%2F", "'"])
def test_a_user_is_anything_that_fits_a_path(user_id: str) -> None:
    assert msgspec.convert(user_id, UserId) == user_id


@pytest.mark.parametrize(
    "user_id",
    [
        "",
        " ",
        "a b",
        "a/b",
        "a\n",
        "\na",
        "a\tb",
        "a\x00",
        "a\x1f",
        "a\x7f",
        "a\x85",
        "a\xa0b",
        "a\u2028",
        "x" * 101,
    ],
)
def test_a_user_is_not_blank_or_long_or_a_path_and_has_no_control_characters(user_id: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(user_id, UserId)


def test_the_original_raw_is_one_sample() -> None:
    got = raw(RAW)
    assert (got.position, got.time_us) == (None, None)
    assert got.samples.dtype == np.float32
    assert got.samples.tolist() == np.array([[0.1, 0.2, -0.3, 0.15, 0.22, -0.1, 0.3]], np.float32).tolist()


def test_one_sample_may_have_a_position_and_a_time() -> None:
    got = raw('{"type":"raw","channels":[0,1],"timestamp":1764000000.000001,"position":5}')
    assert (got.position, got.time_us) == (5, 1_764_000_000_000_001)
    assert got.samples.tolist() == [[0, 1]]


def test_a_chunk_is_several_samples() -> None:
    got = raw('{"type":"raw","samples":[[0,0.5],[1,0.5],[2,0.5]],"timestamp":0,"position":0}')
    assert (got.position, got.time_us) == (0, 0)
    assert got.samples.tolist() == [[0, 0.5], [1, 0.5], [2, 0.5]]


def test_null_is_a_missing_value() -> None:
    assert np.isnan(raw('{"type":"raw","channels":[null,1]}').samples).tolist() == [[True, False]]
    assert np.isnan(raw('{"type":"raw","samples":[[0],[null]]}').samples).tolist() == [[False], [True]]
    assert np.isnan(raw('{"type":"raw","channels":[null]}').samples).all()


def test_a_field_that_is_null_is_one_that_is_not_there() -> None:
    got = raw('{"type":"raw","channels":[1],"samples":null,"timestamp":null,"position":null}')
    assert (got.position, got.time_us) == (None, None)


def test_fields_that_nobody_knows_are_passed_over() -> None:
    assert raw('{"quality":[1,2],"channels":[1],"type":"raw","type2":"x"}').samples.tolist() == [[1]]


def test_the_largest_float32_is_a_value_however_it_is_written() -> None:
    largest = np.finfo(np.float32).max
    for text in (
        "3.4028234663852886e38",
        "3.4028235e38",
        "3.4028235e+38",
    ):  # exactly, and as float32 is printed
        assert raw(f'{{"type":"raw","channels":[{text},-{text}]}}').samples.tolist() == [[largest, -largest]]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "bad_json"),
        ("{", "bad_json"),
        ("nonsense", "bad_json"),
        ('{"type":"raw","channels":[1]}x', "bad_json"),
        ('{"type":"raw","channels":[NaN]}', "bad_json"),
        ('{"type":"raw","channels":[Infinity]}', "bad_json"),
        ("\ufeff" + '{"type":"raw","channels":[1]}', "bad_json"),
        ("null", "bad_message"),
        ("[]", "bad_message"),
        ('"raw"', "bad_message"),
        ("{}", "bad_message"),
        ('{"channels":[1]}', "bad_message"),
        ('{"type":5}', "bad_message"),
        ('{"type":"RAW","channels":[1]}', "bad_message"),
        ('{"type":"auth","user_id":"me"}', "bad_message"),
        ('{"type":"prediction"}', "bad_message"),
        ('{"type":"raw"}', "bad_message"),
        ('{"type":"raw","channels":null}', "bad_message"),
        ('{"type":"raw","channels":[1],"samples":[[1]]}', "bad_message"),
        ('{"type":"raw","channels":1}', "bad_message"),
        ('{"type":"raw","channels":["1"]}', "bad_message"),
        ('{"type":"raw","channels":[true]}', "bad_message"),
        ('{"type":"raw","channels":[[1]]}', "bad_message"),
        ('{"type":"raw","channels":[3.4028235677973366e38]}', "bad_message"),
        ('{"type":"raw","channels":[1e39]}', "bad_message"),
        ('{"type":"raw","channels":[-1e39]}', "bad_message"),
        ('{"type":"raw","channels":[1e999]}', "bad_message"),
        ('{"type":"raw","channels":[]}', "bad_length"),
        ('{"type":"raw","samples":[]}', "bad_length"),
        ('{"type":"raw","samples":[[]]}', "bad_length"),
        ('{"type":"raw","samples":[[],[]]}', "bad_length"),
        ('{"type":"raw","samples":[[1,2],[3]]}', "bad_length"),
        ('{"type":"raw","samples":[[1],[]]}', "bad_length"),
        ('{"type":"raw","samples":[1,2]}', "bad_message"),
        ('{"type":"raw","channels":[1],"position":-1}', "bad_message"),
        ('{"type":"raw","channels":[1],"position":9007199254740992}', "bad_message"),
        ('{"type":"raw","channels":[1],"position":1.5}', "bad_message"),
        ('{"type":"raw","channels":[1],"position":"0"}', "bad_message"),
        ('{"type":"raw","channels":[1],"timestamp":"now"}', "bad_message"),
        ('{"type":"raw","channels":[1],"timestamp":1e13}', "bad_timestamp"),
        ('{"type":"raw","channels":[1],"timestamp":-1e13}', "bad_timestamp"),
        ('{"type":"features","workload":"high"}', "bad_message"),
        ('{"type":"features","band_powers":[1]}', "bad_message"),
        ('{"type":"ping"}', "bad_message"),
        ('{"type":"ping","t0":null}', "bad_message"),
        ('{"type":"ping","t0":"now"}', "bad_message"),
        ('{"type":"features","metrics":{"a":' + "[" * 100_000 + "]" * 100_000 + "}}", "bad_json"),
        ('{"type":"features","metrics":{"name":"\ud800"}}', "bad_json"),
    ],
)
def test_what_a_relay_must_not_send_is_refused(text: str, code: str) -> None:
    error = refusal(decode_relay, text)
    assert error.code == code
    assert (
        "xpected" in error.message or "issing" in error.message or "nvalid" in error.message or "range" in error.message
    )


def test_the_original_features_are_read() -> None:
    features = decode_relay(FEATURES)
    assert features == Features(
        workload=0.65,
        confidence=0.89,
        band_powers={"delta": 0.12, "theta": 0.25, "alpha": 0.35},
        metrics={"frontal_theta": 0.22, "theta_beta_ratio": 1.38},
    )


def test_features_may_be_anything_or_nothing() -> None:
    assert decode_relay('{"type":"features"}') == Features()
    text = '{"type":"features","band_powers":{"alpha":null},"metrics":{"by":{"Cz":[1,"x"]}},"timestamp":5}'
    assert decode_relay(text) == Features(band_powers={"alpha": None}, metrics={"by": {"Cz": [1, "x"]}}, timestamp=5.0)


def test_a_clock_probe_is_read() -> None:
    assert decode_relay('{"type":"ping","t0":1764000000.25}') == Ping(1764000000.25)


# From a consumer.


def test_a_consumer_may_give_its_key_in_a_message() -> None:
    assert decode_consumer_auth('{"type":"auth","api_key":"secret"}') == ConsumerAuth("secret")
    assert decode_consumer('{"type":"auth","api_key":"secret"}') == ConsumerAuth("secret")


@pytest.mark.parametrize("text", ["", "{}", '{"type":"auth"}', '{"type":"auth","api_key":null}', PREDICTION])
def test_a_first_message_without_a_key_is_refused(text: str) -> None:
    refusal(decode_consumer_auth, text)


def test_the_original_prediction_is_read() -> None:
    prediction = Prediction(
        prediction_type="workload_azure_lstm",
        classifier_name="azure_ml_lstm_v2",
        version="v2.1.0",
        data={"workload_prediction": 0.72, "confidence": 0.94},
    )
    read = decode_prediction(PREDICTION)
    assert decode_consumer(PREDICTION) == read
    assert (read.prediction, read.fields) == (prediction, json.loads(PREDICTION))
    assert prediction.confidence == 0.94


@pytest.mark.parametrize(
    ("data", "confidence"),
    [
        ("{}", None),
        ('{"confidence":1}', 1.0),
        ('{"confidence":null}', None),
        ('{"confidence":true}', None),
        ('{"confidence":"0.9"}', None),
        ('{"confidence":[0.9]}', None),
        ('{"confidence":1' + "0" * 400 + "}", None),  # a JSON number, but none that a FLOAT column holds
    ],
)
def test_confidence_is_taken_from_the_data_where_it_is_a_number(data: str, confidence: float | None) -> None:
    text = f'{{"type":"prediction","prediction_type":"p","classifier_name":"c","data":{data}}}'
    assert decode_prediction(text).prediction.confidence == confidence


@pytest.mark.parametrize("identity", ['"a-1"', "7", '""'])
def test_a_prediction_may_have_an_id_to_be_answered_with(identity: str) -> None:
    text = f'{{"type":"prediction","prediction_type":"p","classifier_name":"c","data":{{}},"id":{identity}}}'
    found = decode_prediction(text).prediction.id
    assert found is not None
    assert dumps(PredictionAck(found, True)) == f'{{"type":"prediction_ack","id":{identity},"delivered":true}}'


@pytest.mark.parametrize(
    "fields",
    [
        {"prediction_type": None},
        {"prediction_type": ""},
        {"prediction_type": "x" * 51},
        {"classifier_name": None},
        {"classifier_name": "x" * 101},
        {"version": "x" * 51},
        {"data": None},
        {"data": [1]},
        {"data": "high"},
        {"id": 1.5},
        {"type": "features"},
        {"type": "raw"},
        {"data": {"note": "a\x00b"}},
        {"classifier_name": "a\x00b"},
    ],
)
def test_what_a_consumer_must_not_send_is_refused(fields: dict[str, Any]) -> None:
    refusal(decode_consumer, json.dumps(json.loads(PREDICTION) | fields))


def test_a_consumer_must_not_send_bytes() -> None:
    assert refusal(decode_consumer, b"{}").code == "bad_message"


def test_a_backslash_before_u0000_is_text_like_any_other() -> None:
    text = json.dumps(json.loads(PREDICTION) | {"data": {"path": r"C:\u0000"}})
    assert isinstance(decode_consumer(text), PredictionIn)


# From the server.


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            AuthOk("s", "u", 0, 1764000000.0),
            '{"type":"auth_ok","session_id":"s","user_id":"u","next_position":0,"server_time":1764000000.0}',
        ),
        (Pong(1.5, 2.5, 3.5), '{"type":"pong","t0":1.5,"t1":2.5,"t2":3.5}'),
        (Error("unauthorized", "no"), '{"type":"error","code":"unauthorized","message":"no"}'),
        (
            Status("u", True, "s", {"sampling_rate": 128}),
            '{"type":"status","user_id":"u","online":true,"session_id":"s","device_info":{"sampling_rate":128}}',
        ),
        (
            Status("u", False),
            '{"type":"status","user_id":"u","online":false,"session_id":null,"device_info":null}',
        ),
        (Gap("s", 3, 7, "slow"), '{"type":"gap","session_id":"s","from":3,"to":7,"reason":"slow"}'),
        (PredictionAck("a", False), '{"type":"prediction_ack","id":"a","delivered":false}'),
    ],
)
def test_what_the_server_says_is_written_like_this(message: msgspec.Struct, text: str) -> None:
    assert dumps(message) == text


# Reading and writing.


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (AUTH, "auth"),
        (FEATURES, "features"),
        ('{"type":"anything","more":[]}', "anything"),
        ("{}", None),
        ('{"type":5}', None),
        ("[]", None),
        ("nonsense", None),
        ('{"type":"\ud800"}', None),
        ("[" * 5000, None),
    ],
)
def test_the_type_of_a_message_is_found_or_none(text: str, found: str | None) -> None:
    assert message_type(text) == found


def test_the_original_auth_is_read() -> None:
    auth, device = decode_auth(AUTH)
    assert (auth.user_id, auth.api_key) == ("user_123", "your-api-key")
    assert auth.device_info == json.loads(AUTH)["device_info"]
    assert device == DeviceInfo("Emotiv EPOC", 128, ["F3", "F4", "C3", "Cz", "C4", "P3", "P4"], 7)


def test_auth_needs_no_more_than_a_user() -> None:
    auth, device = decode_auth('{"type":"auth","user_id":"me"}')
    assert (auth.user_id, auth.api_key, auth.device_info) == ("me", None, {})
    assert device == DeviceInfo()


def test_what_nobody_knows_of_a_device_is_kept() -> None:
    auth, _ = decode_auth('{"type":"auth","user_id":"me","device_info":{"firmware":[1,{"x":null}],"channel_count":2}}')
    assert auth.device_info == {"firmware": [1, {"x": None}], "channel_count": 2}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        RAW,
        '{"type":"auth"}',
        '{"type":"auth","user_id":""}',
        '{"type":"auth","user_id":"a/b"}',
        '{"type":"auth","user_id":5}',
        '{"type":"auth","user_id":"me","api_key":5}',
        '{"type":"auth","user_id":"me","device_info":{"name":"a\\u0000b"}}',
    ],
)
def test_a_wrong_auth_is_refused(text: str) -> None:
    refusal(decode_auth, text)


def test_a_device_info_without_end_is_refused() -> None:
    note = "x" * MAX_DEVICE_INFO_BYTES
    error = refusal(decode_auth, f'{{"type":"auth","user_id":"me","device_info":{{"note":"{note}"}}}}')
    assert error.code == "bad_value"
    assert note not in error.message


def test_a_device_info_that_is_nested_without_end_is_refused() -> None:
    """What can just be read could not be written again a few calls further in, or on another node."""
    nested = "[" * 500 + "]" * 500
    refusal(decode_auth, f'{{"type":"auth","user_id":"me","device_info":{{"nested":{nested}}}}}')
    decode_auth('{"type":"auth","user_id":"me","device_info":{"montage":{"sites":[{"at":[[1,2],[3]]}]}}}')


def test_bytes_of_a_relay_are_a_binary_chunk() -> None:
    sent = RawIn(7, 9, np.array([[7, 0.5]], np.float32))
    got = decode_relay(encode_binary(sent))
    assert isinstance(got, RawIn)
    assert (got.position, got.time_us, got.samples.tolist()) == (7, 9, [[7, 0.5]])


@pytest.mark.parametrize(
    ("seconds", "time_us"),
    [
        (None, None),
        (0, 0),
        (0.0000005, 0),
        (1764000000.123456, 1764000000123456),
        (-1.5, -1_500_000),
        (1e12, 10**18),
    ],
)
def test_seconds_become_the_nearest_microsecond(seconds: float | None, time_us: int | None) -> None:
    assert to_us(seconds) == time_us


@pytest.mark.parametrize("seconds", [1.1e12, -1.1e12, 1e308, float("inf"), float("nan")])
def test_seconds_that_no_clock_shows_are_refused(seconds: float) -> None:
    with pytest.raises(BadMessage):
        to_us(seconds)


def test_all_fields_of_a_message_are_read_as_they_came() -> None:
    assert decode_fields(FEATURES) == json.loads(FEATURES)
    refusal(decode_fields, '{"metrics":{"a":"\\u0000"}}')
    refusal(decode_fields, "[]")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**30, -(10**400)])
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    *("user_id", "api_key", "device_info", "sampling_rate", "channel_names", "channel_count", "t0"),
    *("channels", "samples", "timestamp", "position", "workload", "confidence", "band_powers", "metrics"),
    *("prediction_type", "classifier_name", "version", "data", "id"),
]


@st.composite
def messages(draw: st.DrawFn) -> str:
    """A message with the right names and anything in them."""
    kind = draw(st.sampled_from(["auth", "raw", "features", "ping", "prediction"]) | JSON)
    fields = draw(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5))
    return json.dumps({"type": kind} | fields, ensure_ascii=draw(st.booleans()))


@st.composite
def mutations(draw: st.DrawFn) -> str:
    """A message of the README with a few characters cut out, put in or replaced."""
    text = draw(st.sampled_from(ORIGINALS))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.text(max_size=2)) + text[at + draw(st.integers(0, 3)) :]
    return text


@given(st.text() | JSON.map(json.dumps) | messages() | mutations())
def test_whatever_text_comes_is_read_or_refused_as_a_bad_message(text: str) -> None:
    message_type(text)
    for decode in DECODERS:
        try:
            decoded = decode(text)
            if not isinstance(decoded, RawIn):
                dumps(decoded)  # and what was read can be passed on
        except BadMessage as error:
            dumps(Error(error.code, error.message))
            continue
        if isinstance(decoded, Prediction):
            assert decoded.confidence is None or isinstance(decoded.confidence, float)


@given(st.binary(max_size=80))
def test_whatever_bytes_come_are_read_or_refused_as_a_bad_message(data: bytes) -> None:
    for decode in (decode_relay, decode_consumer):
        try:
            decode(data)
        except BadMessage as error:
            dumps(Error(error.code, error.message))


@given(st.lists(st.lists(st.floats(width=32, allow_infinity=False), min_size=2, max_size=2), min_size=1, max_size=5))
def test_a_sample_has_the_same_bits_after_json(values: list[list[float]]) -> None:
    samples = np.array(values, np.float32)
    times_us = np.arange(len(samples))
    chunk = Chunk(Origin("me", "s", 1.0), 5, times_us, samples)
    assert same_bits(raw(chunk.chunk_frame).samples, samples)
    for i, frame in enumerate(chunk.json_frames):
        got = raw(frame)
        assert (got.position, got.time_us) == (5 + i, i)
        assert same_bits(got.samples[0], samples[i])


def same_bits(got: np.ndarray[Any, Any], sent: np.ndarray[Any, Any]) -> bool:
    """Compare float32 bit by bit; one NaN is as good as another, since JSON has only null."""
    missing = np.isnan(sent)
    return bool((np.isnan(got) == missing).all() and got[~missing].tobytes() == sent[~missing].tobytes())
