"""The dashboard of `zander watch`: the state of a user's stream, drawn on a screen or written in a line."""

from __future__ import annotations

import math
from time import monotonic, time
from typing import Any

import numpy as np

from zander.client import Raw
from zander.terminal.ansi import (
    BOLD,
    DIM,
    GREEN,
    PLAIN,
    RED,
    YELLOW,
    Meter,
    Span,
    clean,
    count,
    describe_prediction,
    duration,
    paint,
)
from zander.terminal.plot import DOTS_ACROSS, Window, draw

TRACE_S = 12.0  # what the widest terminal shows
MIN_TRACE_SAMPLES = 1024
MAX_TRACE_VALUES = 16 << 20  # 64 MiB
GREEK = {"delta": "δ", "theta": "θ", "alpha": "α", "beta": "β", "gamma": "γ"}
UNKNOWN_RATE_HZ = 250.0  # for the length of the trace, if it is not known
MAX_TRACE_LINES = 8
DOTS_PER_S = 50  # across: alpha waves have five to a period, and can be seen
NAME_COLUMNS = 12
VALUE_COLUMNS = 9
RANGE_COLUMNS = 18
UNIT_COLUMNS = 3


class View:
    """The state of a user's stream, filled from a consumer's events."""

    def __init__(self, user_id: str, *, has_history: bool = False) -> None:
        self.user_id = user_id
        self.began_at = monotonic()
        self.connection = "connecting"  # or "connected", or the reason why not
        self.is_online = False
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
        """The device's rate, 0 if it is not known."""
        rate = self.device_info.get("sampling_rate")
        return float(rate) if isinstance(rate, int | float) else 0.0

    @property
    def period_s(self) -> float:
        """Time between two samples as they arrive, 0 if it is not known; a recording may be played faster."""
        speed = self.device_info.get("playback_speed")
        rate_hz = self.sampling_rate_hz * (speed if isinstance(speed, int | float) and speed > 0 else 1)
        return 1 / rate_hz if rate_hz else 0.0

    @property
    def channel_names(self) -> list[str]:
        """The names the device gave, or else numbers."""
        names = self.device_info.get("channel_names")
        if isinstance(names, list):
            return [str(name) for name in names]
        return [f"ch {number}" for number in range(1, self.window.n_channels + 1)] if self.window else []

    def add(self, event: Raw | dict[str, Any]) -> None:
        """Add what came from the consumer."""
        if self.connection != "connected":
            self._live_from = monotonic() + (1.0 if self._has_history else 0.0)
        self.connection = "connected"
        if isinstance(event, Raw):
            self._add_raw(event)
        elif event["type"] == "status":
            self._add_status(event)
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

    def note_lost(self, reason: str, pause_s: float) -> None:
        """Note why the connection was lost, and when the next attempt is."""
        self.connection = f"{reason}; trying again in {pause_s:.1f} s"
        self._has_history = True
        self.is_online = False

    def _add_status(self, status: dict[str, Any]) -> None:
        self.is_online = status["online"]
        session_id = status.get("session_id") or ""
        if session_id != self.session_id:
            self.window = None
        self.session_id = session_id
        self.device_info = status.get("device_info") or {}

    def _add_raw(self, raw: Raw) -> None:
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


def render(view: View, columns: int, lines: int) -> list[str]:
    """Draw the state into at most `lines` lines of `columns` with ANSI styles: a head, then as many traces as fit."""
    head = _head(view)
    if view.window is None:
        return [paint(spans, columns) for spans in [*head, [], [("waiting for raw samples", DIM)]]]
    body = _body(view, view.window, columns, lines - len(head))
    return [paint(spans, columns) for spans in [*head, *body]][:lines]


def _head(view: View) -> list[list[Span]]:
    elapsed = duration(monotonic() - view.began_at)
    who: list[Span] = [(view.user_id, BOLD), ("  ", PLAIN), _state(view), (f"   {elapsed}", DIM)]
    session = f"session {view.session_id}" if view.session_id else "no session yet"
    position = f", position {view.window.end:,}" if view.window else ""
    head = [
        [*who, (f"   {describe_device(view)}", PLAIN)] if view.device_info else who,
        [(session + position, DIM)],
        [(counts(view), PLAIN)],
        [("features    ", DIM), (describe_features(view.features) if view.features else "none yet", PLAIN)],
        [_prediction(view)],
    ]
    if view.connection != "connected" or view.error:
        problem = view.connection if view.connection != "connected" else f"the server says {view.error}"
        head.append([(problem, YELLOW)])
    return head


def _state(view: View) -> Span:
    if view.connection != "connected":
        return "● no connection", YELLOW
    return ("● online", GREEN) if view.is_online else ("● offline", RED)


def _prediction(view: View) -> Span:
    if view.prediction is None:
        return "prediction  none yet", DIM
    return describe_prediction(view.prediction), PLAIN


def _body(view: View, window: Window, columns: int, lines: int) -> list[list[Span]]:
    """Draw a rule, below it as many channels as fit, and the number of those that do not."""
    n_channels = window.n_channels
    height = min(MAX_TRACE_LINES, max(1, (lines - 1) // n_channels))
    n_shown = n_channels if n_channels * height < lines else max(0, lines - 2)
    names = [clean(name)[:NAME_COLUMNS] for name in view.channel_names[:n_shown]]
    names += [""] * (n_shown - len(names))
    name_columns = max(map(len, names), default=0) + 1
    width = max(1, columns - name_columns - VALUE_COLUMNS - (RANGE_COLUMNS if height == 1 else UNIT_COLUMNS))
    n_bins, per_bin = width * DOTS_ACROSS, max(1, round(view.sampling_rate_hz / DOTS_PER_S))
    low, high = window.envelope(n_bins, per_bin)
    body = [_rule(columns, n_bins * per_bin / view.sampling_rate_hz if view.sampling_rate_hz else None)]
    for channel, name in enumerate(names):
        trace = draw(low[:, channel], high[:, channel], width, height)
        extent = float(np.fmin.reduce(low[:, channel])), float(np.fmax.reduce(high[:, channel]))
        body += _channel(name.ljust(name_columns), trace, float(window.newest()[channel]), extent)
    if n_shown < n_channels:
        body.append([(f"… and {n_channels - n_shown} more", DIM)])
    return body


def _rule(columns: int, seconds: float | None) -> list[Span]:
    title = f"── last {seconds:.1f} s " if seconds else ""
    return [(title + "─" * (columns - len(title)), DIM)]


def _channel(name: str, trace: list[str], value: float, extent: tuple[float, float]) -> list[list[Span]]:
    """Lay out a channel: in one line everything, in more the range at its ends and the value in the middle."""
    low, high = map(microvolts, extent)
    now = f"{microvolts(value):>{VALUE_COLUMNS}}"
    if len(trace) == 1:
        return [[(name, BOLD), (trace[0], GREEN), (now, PLAIN), (f" µV {f'{low} to {high}':>14}", DIM)]]
    side: list[Span] = [("", PLAIN)] * len(trace)
    side[0], side[-1] = (f"{high:>{VALUE_COLUMNS}}", DIM), (f"{low:>{VALUE_COLUMNS}}", DIM)
    middle = len(trace) // 2 if len(trace) > 2 else 0
    side[middle] = (f"{now} µV", BOLD)
    blank = " " * len(name)
    return [[(name if row == middle else blank, BOLD), (line, GREEN), side[row]] for row, line in enumerate(trace)]


def microvolts(value: float) -> str:
    """Write a value in at most 7 characters."""
    if math.isnan(value):
        return "–"
    if abs(value) < 999.5:
        return f"{value:.1f}"
    return f"{value:.0f}" if abs(value) < 99_999.5 else f"{value:.0e}"


def milliseconds(seconds: float | None) -> str:
    """Write a latency."""
    return "–" if seconds is None else f"{seconds * 1e3:,.1f} ms"


def describe_device(view: View) -> str:
    """Describe the device, as far as it is known."""
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
    """Write the state in a line, for output that is no terminal."""
    if view.connection != "connected":
        return view.connection
    parts = [f"{view.user_id} {'online' if view.is_online else 'offline'}", counts(view)]
    if view.window:
        parts.append(f"position {view.window.end:,}")
    if view.features:
        parts.append(f"features {describe_features(view.features)}")
    if view.error:
        parts.append(f"error {view.error}")
    return "   ".join(parts)


def summary(view: View) -> str:
    """Write what was received, for the end."""
    elapsed_s = monotonic() - view.began_at
    seen = f"{count(view.n_samples, 'sample')}, {count(view.n_gaps, 'gap')}"
    return f"watched {view.user_id} for {elapsed_s:.1f} s: {seen}"


def _number(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) else str(value)
