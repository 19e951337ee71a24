"""Examples for the API reference: a program, and a message or answer for each Struct. Tests run and read them all."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

PROGRAM = """\
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
        "bytes": 44_000,
        "raw": _BUFFER,
        "features": _BUFFER | {"held": 40, "rate": 1.0, "bytes": 9600},
        "prediction": _BUFFER | {"held": 0, "rate": 0.0, "first_time": None, "last_time": None, "bytes": 0},
    },
    "Streams": {
        "streams": [{**_WHO, "start_time": _TIME, "rate": 128.0, "next_position": 5120, "device_info": _DEVICE}]
    },
    "ServerStats": {
        "version": version("zander-eeg"),
        "uptime_seconds": 40.2,
        "connections": 2,
        "relays": 1,
        "consumers": 1,
        "kept_streams": 1,
        "kept_bytes": 44224,
        "evicted_streams": 0,
        "samples_in": 5120,
        "samples_out": 5120,
        "bad_messages": 0,
        "clamped": 0,
        "turned_away": 0,
        "wrong_keys": 0,
        "redis": "off",
        "peers": 0,
        "answers": {"open": 0, "bytes": 0, "cut": 0},
        "questions": {"open": 0, "refused": 0},
        "preloads": {"consumers": 0, "bytes": 0, "cut": 0},
        "path": {"native": True, "intercepted": 5119, "passed_messages": 40, "passed_sessions": 1},
        "database": {"online": True, "written_records": 5000, "written_batches": 21, "pending_records": 120},
    },
    "Health": {"status": "ok"},
    "Readiness": {"status": "ready", "database": "up", "redis": "off", "journal": "up", "reason": None},
    "ErrorAnswer": {"error": {"code": "not_found", "message": "no features of user user_123 in the buffer"}},
}
