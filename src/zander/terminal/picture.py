"""The screen of `zander watch`: a head of what is known, then a trace per channel, as many as fit."""

from __future__ import annotations

import math
from time import monotonic

import numpy as np

from zander.terminal.plot import DOTS_ACROSS, Window, draw
from zander.terminal.screen import (
    BOLD,
    DIM,
    GREEN,
    PLAIN,
    RED,
    YELLOW,
    Span,
    clean,
    describe_prediction,
    duration,
    paint,
)
from zander.terminal.view import View, counts, describe_features, device

MAX_TRACE_LINES = 8
DOTS_PER_S = 50  # across: alpha waves have five to a period, and can be seen
NAME_COLUMNS = 12
VALUE_COLUMNS = 9
RANGE_COLUMNS = 18
UNIT_COLUMNS = 3


def picture(view: View, columns: int, lines: int) -> list[str]:
    """Draw the view into at most `lines` painted lines of `columns`."""
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
        [*who, (f"   {device(view)}", PLAIN)] if view.device_info else who,
        [(session + position, DIM)],
        [(counts(view), PLAIN)],
        [("features    ", DIM), (describe_features(view.features) if view.features else "none yet", PLAIN)],
        [_prediction(view)],
    ]
    if view.link != "connected" or view.error:
        problem = view.link if view.link != "connected" else f"the server says {view.error}"
        head.append([(problem, YELLOW)])
    return head


def _state(view: View) -> Span:
    if view.link != "connected":
        return "● no connection", YELLOW
    return ("● online", GREEN) if view.online else ("● offline", RED)


def _prediction(view: View) -> Span:
    if view.prediction is None:
        return "prediction  none yet", DIM
    return describe_prediction(view.prediction), PLAIN


def _body(view: View, window: Window, columns: int, lines: int) -> list[list[Span]]:
    """Draw a rule, as many channels as fit below it, and how many did not."""
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
