"""Output to a terminal: safe and styled text, a line that is updated in place, a screen, a meter of what they show."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable
from statistics import median
from time import monotonic
from typing import Any, Self, TextIO

LOG_EVERY_S = 5.0  # between two progress lines where there is no terminal
METER_S = 5.0  # over which a meter counts

Span = tuple[str, str]  # text and style
PLAIN, BOLD, DIM, RED, GREEN, YELLOW = "", "1", "2", "31", "32", "33"

_CLEAR_LINE = "\r\x1b[K"
_ENTER = "\x1b[?1049h\x1b[?25l"  # the alternate screen, no cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"


def clean(text: object) -> str:
    """Replace control characters: text from the network must not control the terminal."""
    return "".join(character if character.isprintable() else "�" for character in str(text))


def paint(spans: Iterable[Span], columns: int) -> str:
    """Write styled text as one line of at most `columns`."""
    painted, left = [], columns
    for text, style in spans:
        piece = clean(text)
        piece = piece if len(piece) <= left else f"{piece[: left - 1]}…" if left else ""
        left -= len(piece)
        painted.append(f"\x1b[{style}m{piece}\x1b[0m" if style and piece else piece)
    return "".join(painted)


def count(n: int, noun: str) -> str:
    """Write `no gaps`, `1 gap`, `2 gaps`."""
    return f"{n:,} {noun}{'s' * (n != 1)}" if n else f"no {noun}s"


def duration(seconds: float) -> str:
    """Write `1:02:03`, or `02:03` below an hour."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute:02}:{second:02}"


def describe_prediction(message: dict[str, Any]) -> str:
    """Write a prediction in a line."""
    who = f"{message.get('prediction_type')} by {message.get('classifier_name')}"
    version = f" {message['version']}" if message.get("version") else ""
    data = message.get("data")
    fields = ", ".join(f"{name} {value}" for name, value in data.items()) if isinstance(data, dict) else data
    return f"prediction {who}{version}: {fields}"


class StatusLine:
    """A progress line that is updated in place, below the lines that stay; without a terminal, a line every 5 s."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._is_tty = out.isatty()
        self._text = ""
        self._shown_at = monotonic()

    def say(self, text: str) -> None:
        """Print a line that stays, above the progress line."""
        self._write(f"{_CLEAR_LINE if self._text else ''}{clean(text)}\n{self._text}")

    def show(self, text: str) -> None:
        """Update the progress line."""
        if self._is_tty:
            self._text = clean(text)[: os.get_terminal_size(self._out.fileno()).columns - 1]
            self._write(_CLEAR_LINE + self._text)
        elif monotonic() - self._shown_at >= LOG_EVERY_S:
            self._shown_at = monotonic()
            self._write(f"{clean(text)}\n")

    def end(self, text: str) -> None:
        """Replace the progress line by a last one."""
        self.say(text) if not self._text else self._write(f"{_CLEAR_LINE}{clean(text)}\n")
        self._text = ""

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


class Screen:
    """The whole terminal, inside a `with` block; what it showed before comes back at the end."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out

    def __enter__(self) -> Self:
        self._out.write(_ENTER)
        return self

    def __exit__(self, *_: object) -> None:
        self._out.write(_LEAVE)
        self._out.flush()

    @property
    def size(self) -> os.terminal_size:
        """Columns and lines, as they are now."""
        return os.get_terminal_size(self._out.fileno())

    def draw(self, lines: list[str]) -> None:
        """Show painted lines from the top; nothing flickers, since nothing is cleared beforehand."""
        self._out.write("\x1b[H" + "\x1b[K\r\n".join(lines) + "\x1b[J")
        self._out.flush()


class Meter:
    """Rate, median and maximum of the numbers added in the last METER_S."""

    def __init__(self) -> None:
        self._began = monotonic()
        self._numbers: deque[tuple[float, float]] = deque()

    def add(self, number: float) -> None:
        """Add a number, with the time of now."""
        self._numbers.append((monotonic(), number))
        self._forget()

    def per_second(self) -> float:
        """Return the sum per second."""
        self._forget()
        elapsed_s = min(METER_S, monotonic() - self._began)
        return sum(number for _, number in self._numbers) / elapsed_s if elapsed_s > 0 else 0.0

    def median(self) -> float | None:
        """Return the median, None without numbers."""
        self._forget()
        return median(number for _, number in self._numbers) if self._numbers else None

    def max(self) -> float | None:
        """Return the largest, None without numbers."""
        self._forget()
        return max((number for _, number in self._numbers), default=None)

    def _forget(self) -> None:
        oldest = monotonic() - METER_S
        while self._numbers and self._numbers[0][0] < oldest:
            self._numbers.popleft()
