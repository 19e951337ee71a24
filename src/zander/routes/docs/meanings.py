"""What names mean, in words and by example: the part of the API reference that no type can say."""

from __future__ import annotations

from typing import Any

DESCRIPTION = (
    "Zander takes raw EEG and features from edge relays over WebSocket, gives them at once to everyone who listens, "
    "and writes every sample to TimescaleDB. Predictions go the other way: from a consumer to the user's relay."
)

EXAMPLE = """\
import asyncio, json, random
from websockets.asyncio.client import connect

SERVER = "ws://localhost:8000"
DEVICE = {"sampling_rate": 128, "channel_names": ["C3", "C4"]}

async def main():
    async with connect(f"{SERVER}/subscribe/me") as consumer, connect(f"{SERVER}/stream") as relay:
        await relay.send(json.dumps({"type": "auth", "user_id": "me", "device_info": DEVICE}))
        print("relay:   ", await relay.recv())
        for _ in range(128):
            sample = {"type": "raw", "channels": [random.gauss(0, 10), random.gauss(0, 10)]}
            await relay.send(json.dumps(sample))
        async for message in consumer:
            print("consumer:", message)
            if json.loads(message).get("position") == 127:
                break

asyncio.run(main())
"""

# The meaning of fields: `field` in any Struct, `Struct.field` in that one.
FIELDS = {
    "user_id": "the user: no white space, no `/`, no control characters",
    "session_id": "UUID of the session: one relay's life on one device layout",
    "position": "index of the (first) sample in its session, from 0",
    "timestamp": "Unix time in seconds, of the first sample where there are several",
    "next_position": "position after the last sample",
    "device_info": "the device, as the relay described it (see DeviceInfo)",
    "code": "for programs (see error codes)",
    "message": "for people: what was expected and what came",
    "sample_type": "what was asked for",
    "start_time": "when the session began, Unix seconds",
    "bad_messages": "messages dropped because they broke a rule",
    # Relay.
    "Auth.session_id": "the session to go on with after a cut, or a UUID of your own to begin it under",
    "Auth.ack": "true: Acks follow, and where samples cannot be kept for certain the connection is closed with 1013",
    "durable": "position below which every sample is committed in the database, or part of a gap",
    "Auth.api_key": "one of the server's EDGE_API_KEY; not needed when it came in a header",
    "Auth.device_info": "what the device looks like (see DeviceInfo); other fields are kept",
    "DeviceInfo.device_type": "make and model",
    "DeviceInfo.sampling_rate": "samples per second, needed for chunks: it spaces their samples",
    "DeviceInfo.channel_names": "names of the channels, in the order of the values",
    "DeviceInfo.channel_count": "number of channels; with names it must be their number",
    "Raw.channels": "one sample: a value per channel, in µV",
    "Raw.samples": "a chunk: a list of samples, each a value per channel, in µV",
    "Raw.timestamp": "Unix time of the first sample; left out: the chunk ends now, by the server's clock",
    "Raw.position": "position of the first sample; left out: the server counts",
    "RawSample.channels": "a value per channel, in µV; null is a missing value",
    "RawChunk.samples": "a list of samples, each a value per channel, in µV",
    "workload": "the relay's estimate of mental workload",
    "confidence": "how sure the relay is of it",
    "band_powers": "power by frequency band",
    "metrics": "anything else the relay computed",
    "Features.timestamp": "Unix time in seconds; left out: now, by the server's clock",
    "t0": "the relay's clock when it sent the ping, given back as it came",
    "t1": "when the server received it, Unix seconds",
    "t2": "when the server answered, Unix seconds",
    "AuthOk.next_position": "where the relay goes on: 0, or in a resumed session the durable position",
    "AuthOk.server_time": "the server's clock, Unix seconds",
    # Consumer.
    "ConsumerAuth.api_key": "one of the server's CONSUMER_API_KEY",
    "prediction_type": "what is predicted",
    "classifier_name": "which model says so",
    "data": "the prediction itself, in the model's own form; a `confidence` in it gets a column of its own",
    "Prediction.version": "version of the model",
    "PredictionEvent.version": "version of the model",
    "Prediction.id": "any name for this prediction: with one it is acknowledged",
    "PredictionEvent.id": "the sender's name for it",
    "PredictionEvent.timestamp": "when the server took it in, Unix seconds",
    "PredictionAck.id": "the prediction's `id`",
    "delivered": "whether the user's relay was connected and the prediction went to it",
    "Status.online": "whether the user's relay is connected",
    "Gap.from": "first missing position",
    "Gap.to": "position after the last missing one",
    "Gap.reason": "`relay`: it sent past them; `slow`: this consumer read too slowly; `lost`: the server had to give "
    "them up",
    # REST.
    "HistoryPage.samples": "the samples, as a consumer would have got them",
    "HistoryPage.next": "`cursor` of the next page, null at the end",
    "Sessions.sessions": "newest first",
    "Sessions.next": "`before` of the next page, null at the end",
    "end_time": "when its relay left, Unix seconds; null until that is known (`/streams` says who is online)",
    "SessionSummary.next_position": "position below which every sample is in the database, or in a gap",
    "SessionDetail.next_position": "position below which every sample is in the database, or in a gap",
    "SessionSummary.last_time": "time of its last sample in the database, Unix seconds",
    "SessionDetail.first_time": "time of its first sample in the database, Unix seconds",
    "SessionDetail.last_time": "time of its last sample in the database, Unix seconds",
    "duration_seconds": "from its first sample to its last",
    "n_samples": "how many samples the database has",
    "n_gaps": "how many gaps there are",
    "SessionDetail.gaps": "what it lacks, by position",
    "SessionGap.from": "first missing position",
    "SessionGap.to": "position after the last missing one",
    "SessionGap.reason": "`relay`: it sent past them; `lost`: the server had to give them up",
    "noticed_at": "when that was known, Unix seconds",
    "Health.status": "`ok`",
    "Readiness.status": "`ready`, or `degraded`: ingest and delivery go on",
    "Readiness.database": "`up` or `down`",
    "redis": "`off` where no REDIS_URL is set",
    "error": "what went wrong",
    "streams": "by user",
    "n": "number of samples",
    "Samples.samples": "the samples, as a consumer would have got them",
    "rate": "how many a second, over the last 5 s",
    "StreamStats.online": "whether the relay is connected",
    "raw": "the buffer of samples",
    "features": "the buffer of features",
    "prediction": "the buffer of predictions",
    "held": "how many are buffered",
    "capacity": "how many there is room for",
    "first_time": "time of the oldest, Unix seconds",
    "last_time": "time of the newest, Unix seconds",
    "bytes": "memory taken",
    "gaps": "holes in the positions, since the session began",
    "duplicates": "samples dropped because they were there already",
    "ServerStats.version": "of Zander",
    "uptime_seconds": "since the start",
    "connections": "open WebSockets",
    "relays": "users whose relay is connected to this node",
    "consumers": "consumers connected to this node",
    "samples_in": "samples received",
    "samples_out": "samples given to consumers",
    "peers": "other nodes that this one hears",
    "path": "how the relays' messages came in",
    "native": "whether the native path is there",
    "intercepted": "raw messages that took it",
    "passed_frames": "frames that did not, for what they are: control frames, fragments, errors",
    "passed_messages": "messages that did not: features, pings, and raw that is wrong or in an unusual form",
    "passed_sessions": "raw that did not, since it does not simply follow: the first, gaps, repeats",
    "database": "what is written, and what waits to be",
    "RecorderStats.online": "whether the database can be written to",
    "pending_records": "waiting to be written",
    "pending_bytes": "in the journal, not yet committed",
    "journal_bytes": "what the journal takes on the disk",
    "taking": "whether the journal has room",
    "oldest_pending_seconds": "how long the oldest has waited",
    "written_records": "committed",
    "written_batches": "commits",
    "dropped_records": "found no room in the journal",
    "dead_letters": "the database would never take them; they are in its table `dead_letters`",
    "last_batch_records": "size of the last batch",
    "last_batch_seconds": "how long it took",
    "last_error": "why the last batch failed, null once one has succeeded",
}

_SESSION = "5f0c6a52-8d0e-4c55-9a2f-0b1f6f3c2d11"
_TIME = 1764000000.0
_DEVICE: dict[str, Any] = {
    "device_type": "Emotiv EPOC",
    "sampling_rate": 128,
    "channel_names": ["F3", "F4", "C3", "Cz", "C4", "P3", "P4"],
    "channel_count": 7,
}
_SAMPLE = [0.1, 0.2, -0.3, 0.15, 0.22, -0.1, 0.3]
_WHO: dict[str, Any] = {"user_id": "user_123", "session_id": _SESSION}
_AT: dict[str, Any] = {"position": 512, "timestamp": _TIME}
_FEATURES: dict[str, Any] = {
    "type": "features",
    "workload": 0.65,
    "confidence": 0.89,
    "band_powers": {"delta": 0.12, "theta": 0.25, "alpha": 0.35},
    "metrics": {"frontal_theta": 0.22, "theta_beta_ratio": 1.38},
}
_PREDICTION: dict[str, Any] = {
    "type": "prediction",
    "prediction_type": "workload_azure_lstm",
    "classifier_name": "azure_ml_lstm_v2",
    "version": "v2.1.0",
    "data": {"workload_prediction": 0.72, "confidence": 0.94},
}
_RAW_SAMPLE = {"type": "raw", **_WHO, **_AT, "channels": _SAMPLE}
_BUFFER: dict[str, Any] = {
    "held": 1000,
    "capacity": 1000,
    "rate": 128.0,
    "first_time": _TIME,
    "last_time": _TIME + 7.8125,
    "bytes": 36000,
    "gaps": 0,
    "duplicates": 0,
}
_RECORDED: dict[str, Any] = {
    **_WHO,
    "start_time": _TIME,
    "end_time": _TIME + 40.2,
    "device_info": _DEVICE,
    "next_position": 5120,
    "last_time": _TIME + 40.0,
    "n_samples": 4992,
    "n_gaps": 1,
}

EXAMPLES: dict[str, Any] = {
    "Auth": {"type": "auth", "api_key": "your-api-key", "user_id": "user_123", "device_info": _DEVICE},
    "DeviceInfo": _DEVICE,
    "AuthOk": {"type": "auth_ok", **_WHO, "next_position": 0, "server_time": _TIME},
    "Raw": {"type": "raw", "channels": _SAMPLE},
    "Features": _FEATURES,
    "Ping": {"type": "ping", "t0": _TIME},
    "Ack": {"type": "ack", "session_id": _SESSION, "durable": 512},
    "Pong": {"type": "pong", "t0": _TIME, "t1": _TIME + 0.012, "t2": _TIME + 0.0121},
    "Error": {"type": "error", "code": "bad_channels", "message": "expected 7 channels, got 8"},
    "ConsumerAuth": {"type": "auth", "api_key": "your-api-key"},
    "Status": {"type": "status", **_WHO, "online": True, "device_info": _DEVICE},
    "RawSample": _RAW_SAMPLE,
    "RawChunk": {"type": "raw", **_WHO, **_AT, "samples": [_SAMPLE, [0.12, 0.18, -0.28, 0.11, None, -0.09, 0.31]]},
    "FeaturesEvent": _FEATURES | _WHO | {"timestamp": _TIME},
    "Prediction": _PREDICTION | {"id": 1},
    "PredictionEvent": _PREDICTION | {"id": 1, "user_id": "user_123", "timestamp": _TIME},
    "PredictionAck": {"type": "prediction_ack", "id": 1, "delivered": True},
    "Gap": {"type": "gap", "session_id": _SESSION, "from": 512, "to": 640, "reason": "relay"},
    "Samples": {"user_id": "user_123", "sample_type": "raw", "n": 1, "samples": [_RAW_SAMPLE]},
    "HistoryPage": {"user_id": "user_123", "sample_type": "raw", "n": 1, "next": None, "samples": [_RAW_SAMPLE]},
    "Sessions": {"sessions": [_RECORDED], "next": _SESSION},
    "SessionDetail": _RECORDED
    | {
        "first_time": _TIME,
        "duration_seconds": 40.0,
        "gaps": [{"from": 512, "to": 640, "reason": "relay", "noticed_at": _TIME + 4.1}],
    },
    "StreamStats": {
        **_WHO,
        "online": True,
        "next_position": 5120,
        "bad_messages": 0,
        "raw": _BUFFER,
        "features": _BUFFER | {"held": 40, "rate": 1.0, "bytes": 9600},
        "prediction": _BUFFER | {"held": 0, "rate": 0.0, "first_time": None, "last_time": None, "bytes": 0},
    },
    "Streams": {
        "streams": [{**_WHO, "start_time": _TIME, "rate": 128.0, "next_position": 5120, "device_info": _DEVICE}]
    },
    "ServerStats": {
        "version": "0.1.0",
        "uptime_seconds": 40.2,
        "connections": 2,
        "relays": 1,
        "consumers": 1,
        "samples_in": 5120,
        "samples_out": 5120,
        "bad_messages": 0,
        "redis": "off",
        "peers": 0,
        "path": {"native": True, "intercepted": 5119, "passed_messages": 40, "passed_sessions": 1},
        "database": {"online": True, "written_records": 5000, "written_batches": 21, "pending_records": 120},
    },
    "Health": {"status": "ok"},
    "Readiness": {"status": "ready", "database": "up", "redis": "off"},
    "ErrorAnswer": {"error": {"code": "not_found", "message": "no features of user user_123 in the buffer"}},
}

ERROR_CODES = {
    "bad_json": "not JSON",
    "bad_message": "not a message of this protocol: an unknown type, a missing field, a value of the wrong type",
    "bad_value": "a value out of its range: infinity, U+0000, a device_info that is too large",
    "bad_length": "samples of different lengths, none at all, or a binary message that is too short or too long",
    "bad_header": "a binary message of another version, kind or dtype",
    "bad_channels": "not the session's number of channels",
    "bad_rate": "not the session's sampling rate",
    "bad_position": "a position out of its range",
    "bad_timestamp": "a time before 1970, or more than a day from now",
    "no_sampling_rate": "a chunk of several samples, of a device that did not tell its sampling rate",
    "bad_parameter": "a parameter of a path or a query that is missing or out of its range",
    "bad_format": "as npy: features, predictions, or sessions that differ in their number of channels",
    "unauthorized": "the key is wrong or missing, or the first message did not come or was no auth",
    "forbidden": "not allowed for this user: the session is another user's",
    "too_many": "more connections than this node serves",
    "not_found": "no such user or session, or nothing buffered",
    "unavailable": "the database, or the node that holds the user, does not answer now",
}
