"""What `zander watch` knows of a user: filled from a consumer's events, read by the picture."""

from __future__ import annotations

from time import monotonic, time
from typing import Any

from zander.client import Raw
from zander.terminal.meter import Meter
from zander.terminal.plot import Window
from zander.terminal.screen import count

TRACE_S = 12.0  # what the widest terminal shows
MIN_TRACE_SAMPLES = 1024
MAX_TRACE_VALUES = 16 << 20  # 64 MiB
GREEK = {"delta": "δ", "theta": "θ", "alpha": "α", "beta": "β", "gamma": "γ"}
UNKNOWN_RATE_HZ = 250.0  # for the length of the trace, when the device did not say


class View:
    """The state of a user's stream, as far as this consumer has seen it."""

    def __init__(self, user_id: str, *, has_history: bool = False) -> None:
        self.user_id = user_id
        self.began_at = monotonic()
        self.link = "connecting"  # or "connected", or why it is not
        self.online = False
        self.session_id = ""
        self.device_info: dict[str, Any] = {}
        self.window: Window | None = None
        self.rate = Meter()
        self.latency_s = Meter()
        self.n_samples = 0
        self.n_gaps = 0
        self.n_missing = 0
        self.last_gap = ""
        self.features: dict[str, Any] | None = None
        self.prediction: dict[str, Any] | None = None
        self.error = ""
        self._has_history = has_history  # at the next connection: then old samples come first
        self._live_from = 0.0

    @property
    def sampling_rate_hz(self) -> float:
        """The device's rate, 0 when it did not say."""
        rate = self.device_info.get("sampling_rate")
        return float(rate) if isinstance(rate, int | float) else 0.0

    @property
    def period_s(self) -> float:
        """Time between two samples as they arrive, 0 when the device did not say: a recording may run faster."""
        speed = self.device_info.get("playback_speed")
        rate_hz = self.sampling_rate_hz * (speed if isinstance(speed, int | float) and speed > 0 else 1)
        return 1 / rate_hz if rate_hz else 0.0

    @property
    def channel_names(self) -> list[str]:
        """The device's names, numbers where it did not say."""
        names = self.device_info.get("channel_names")
        if isinstance(names, list):
            return [str(name) for name in names]
        return [f"ch {number}" for number in range(1, self.window.n_channels + 1)] if self.window else []

    def take(self, event: Raw | dict[str, Any]) -> None:
        """Take in an event."""
        if self.link != "connected":
            self._live_from = monotonic() + (1.0 if self._has_history else 0.0)
        self.link = "connected"
        if isinstance(event, Raw):
            self._take_raw(event)
        elif event["type"] == "status":
            self._take_status(event)
        elif event["type"] == "gap":
            self.n_gaps += 1
            self.n_missing += event["to"] - event["from"]
            self.last_gap = event["reason"]
        elif event["type"] == "features":
            self.features = event
        elif event["type"] == "prediction":
            self.prediction = event
        elif event["type"] == "error":
            self.error = f"{event.get('code')}: {event.get('message')}"

    def lose(self, reason: str, pause_s: float) -> None:
        """Note that the connection is gone and when it is tried again."""
        self.link = f"{reason}; trying again in {pause_s:.1f} s"
        self._has_history = True
        self.online = False

    def _take_status(self, status: dict[str, Any]) -> None:
        self.online = status["online"]
        session_id = status.get("session_id") or ""
        if session_id != self.session_id:
            self.window = None
        self.session_id = session_id
        self.device_info = status.get("device_info") or {}

    def _take_raw(self, raw: Raw) -> None:
        n_samples, n_channels = raw.samples.shape
        if self.window is None or self.window.n_channels != n_channels or raw.position < self.window.end:
            rate_hz = self.sampling_rate_hz or UNKNOWN_RATE_HZ
            n_kept = max(MIN_TRACE_SAMPLES, min(round(rate_hz * TRACE_S), MAX_TRACE_VALUES // n_channels))
            self.window = Window(n_kept, n_channels)
            self.window.end = raw.position
        self.window.write(raw.position, raw.samples)
        self.n_samples += n_samples
        if monotonic() < self._live_from:
            return
        self.rate.add(n_samples)
        self.latency_s.add(time() - raw.time_us / 1e6 - (n_samples - 1) * self.period_s)


def milliseconds(seconds: float | None) -> str:
    """Write a latency."""
    return "–" if seconds is None else f"{seconds * 1e3:,.1f} ms"


def device(view: View) -> str:
    """Write what is known of the device."""
    info = view.device_info
    n_channels = info.get("channel_count") or len(view.channel_names)
    parts = [
        str(info.get("device_type") or "device without a name"),
        f"{view.sampling_rate_hz:g} Hz" if view.sampling_rate_hz else "unknown rate",
        count(n_channels, "channel"),
    ]
    return ", ".join(parts)


def counts(view: View) -> str:
    """Write rate, latency and gaps."""
    gaps = count(view.n_gaps, "gap")
    if view.n_gaps:
        gaps += f" ({count(view.n_missing, 'sample')}, last: {view.last_gap})"
    latency = f"p50 {milliseconds(view.latency_s.median())}, max {milliseconds(view.latency_s.max())}"
    return f"{view.rate.per_second():,.1f} samples/s   latency {latency}   {gaps}"


def describe_features(message: dict[str, Any]) -> str:
    """Write features in a line: the workload, then the band powers."""
    given = [(name, message.get(name)) for name in ("workload", "confidence")]
    parts = [f"{name} {_number(value)}" for name, value in given if value is not None]
    bands = message.get("band_powers")
    if isinstance(bands, dict):
        parts += [f"{GREEK.get(name, name)} {_number(value)}" for name, value in bands.items()]
    return "  ".join(parts)


def report(view: View) -> str:
    """Write all of it in a line, for where there is no screen."""
    if view.link != "connected":
        return view.link
    parts = [f"{view.user_id} {'online' if view.online else 'offline'}", counts(view)]
    if view.window:
        parts.append(f"position {view.window.end:,}")
    if view.features:
        parts.append(f"features {describe_features(view.features)}")
    if view.error:
        parts.append(f"error {view.error}")
    return "   ".join(parts)


def summary(view: View) -> str:
    """Write what was seen, at the end."""
    elapsed_s = monotonic() - view.began_at
    seen = f"{count(view.n_samples, 'sample')}, {count(view.n_gaps, 'gap')}"
    return f"watched {view.user_id} for {elapsed_s:.1f} s: {seen}"


def _number(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) else str(value)
