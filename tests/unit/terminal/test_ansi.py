"""Text for a terminal: cut, counted and styled; a progress line where there is no terminal."""

from __future__ import annotations

import io

import pytest

from support.clock import Clock
from zander.terminal import ansi
from zander.terminal.ansi import BOLD, METER_S, PLAIN, Meter, StatusLine, count, duration, paint


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ansi, "monotonic", clock)
    return clock


def test_a_painted_line_is_cut_where_the_terminal_ends() -> None:
    assert paint([("abc", BOLD), ("def", PLAIN)], 6) == "\x1b[1mabc\x1b[0mdef"
    assert paint([("abc", BOLD), ("def", PLAIN)], 5) == "\x1b[1mabc\x1b[0md…"
    assert paint([("abc", BOLD), ("def", PLAIN)], 3) == "\x1b[1mabc\x1b[0m"


def test_numbers_are_written_as_words_and_times() -> None:
    assert [count(n, "gap") for n in (0, 1, 2000)] == ["no gaps", "1 gap", "2,000 gaps"]
    assert [duration(seconds) for seconds in (59.9, 61, 3723)] == ["00:59", "01:01", "1:02:03"]


def test_a_progress_line_without_a_terminal_is_printed_now_and_then(clock: Clock) -> None:
    out = io.StringIO()
    line = StatusLine(out)
    line.say("begins\x07")
    line.show("too early")
    clock.now_s += ansi.LOG_EVERY_S
    line.show("half")
    line.show("too early")
    line.end("done")
    assert out.getvalue() == "begins�\nhalf\ndone\n"


def test_a_meter_forgets_what_is_old(clock: Clock) -> None:
    meter = Meter()
    assert (meter.median(), meter.max()) == (None, None)
    meter.add(100)
    clock.now_s += METER_S
    for number in (1, 2, 6):
        meter.add(number)
    assert (meter.per_second(), meter.median(), meter.max()) == (109 / METER_S, 4, 100)
    clock.now_s += METER_S / 2
    meter.add(3)
    assert (meter.per_second(), meter.median(), meter.max()) == (12 / METER_S, 2.5, 6)
