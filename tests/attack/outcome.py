"""The verdict on an attack: what was seen of the server, the neighbour and the visitors, and what was wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from attack.attacks import MIB, Attack
from attack.line import Report
from attack.neighbour import Heard
from attack.visitor import MANY_SECONDS

# What must hold, beside what attacks.py says of each; of times no test asks.
MAX_LIFE_S = 11.0  # of a connection that must be cut: 10 s, and one until that is seen
MAX_NEIGHBOUR_P99_S = 0.010
MAX_HEALTH_S = 0.050  # beside its longest at rest
MAX_HISTORY_S = 0.250  # the same
MAX_STORM_S = 0.8
MAX_STORM_CPU_S = 0.0002  # of the server, for each that came back


class Delays(NamedTuple):
    """Delays of the neighbour's samples of one phase, in seconds."""

    p50_s: float
    p99_s: float
    most_s: float
    late_s: float  # that the neighbour itself sent them after their time, p99

    @classmethod
    def of(cls, heard: Heard, phase: slice) -> Delays:
        """Measure a phase; what did not come took for ever."""
        left, due = np.array(heard.left_s[phase]), np.array(heard.due_s[phase])
        came = np.array([MANY_SECONDS if s is None else s for s in heard.came_s[phase]])
        if not len(came):
            return cls(MANY_SECONDS, MANY_SECONDS, MANY_SECONDS, 0.0)
        p50_s, p99_s, most_s = np.percentile(came - left, (50, 99, 100), method="higher")
        return cls(float(p50_s), float(p99_s), float(most_s), float(np.percentile(left - due, 99)))


class Outcome(NamedTuple):
    """The result of an attack, as it was seen of the server, the neighbour and the visitors."""

    attack: Attack
    report: Report
    before_bytes: int
    most_bytes: int
    after_bytes: int
    cpu_s: float
    rest: Delays
    beside: Delays
    n_neighbour: int  # samples that it sent
    n_lost: int  # of them, that its consumer did not get just once and in order
    n_stored: int
    neighbour_ending: str
    health_rest_s: list[float]
    health_s: list[float]
    history_rest_s: list[float]  # of the neighbour's /history
    history_s: list[float]
    newcomers_s: list[float]
    n_log_lines: int  # that the server wrote
    is_logged: bool  # whether it has written what it must
    complaint: str  # of the server as a program

    @property
    def grown_bytes(self) -> int:
        return max(self.most_bytes, self.after_bytes) - self.before_bytes

    @property
    def n_turned_away(self) -> int:
        return sum(seconds >= MANY_SECONDS for seconds in self.newcomers_s)

    @property
    def broken(self) -> list[str]:
        """Return what is wrong, whatever the machine: a sentence each."""
        return list(self._broken())

    @property
    def slow(self) -> list[str]:
        """Return what took too long."""
        return list(self._slow())

    def _broken(self) -> Iterator[str]:
        attack, endings = self.attack, self.report.endings
        if self.complaint:
            yield self.complaint
        if attack.max_growth_bytes and self.grown_bytes > attack.max_growth_bytes:
            yield f"the server grew by {self.grown_bytes / MIB:.0f} MiB"
        if attack.ends is not None and (wrong := {how: n for how, n in endings.items() if how not in attack.ends}):
            yield f"connections ended {in_words(wrong)}, expected {' '.join(sorted(attack.ends))}"
        if self.neighbour_ending:
            yield f"the neighbour was cut: {self.neighbour_ending}"
        if self.n_lost:
            yield f"the neighbour's consumer missed {self.n_lost} of {self.n_neighbour}"
        if self.n_stored != self.n_neighbour:
            yield f"of the neighbour's {self.n_neighbour} samples {self.n_stored} are stored"
        if self.n_turned_away:
            yield f"{self.n_turned_away} of {len(self.newcomers_s)} new relays were not let in"
        if n := sum(seconds >= MANY_SECONDS for seconds in self.history_s):
            yield f"{n} of {len(self.history_s)} questions for the neighbour's /history were not answered"
        if attack.must_serve and self.report.served_s is None:
            yield "not all got what they came for"
        if self.report.harm:
            yield self.report.harm
        if self.n_log_lines > attack.max_log_lines:
            yield f"the server logged {self.n_log_lines:,} lines"
        if not self.is_logged:
            yield f"the log does not say “{attack.must_log}”"

    def _slow(self) -> Iterator[str]:
        report = self.report
        if self.attack.ends is not None and report.longest_s > MAX_LIFE_S:
            yield f"a connection lived {report.longest_s:.1f} s"
        if self.beside.p99_s > MAX_NEIGHBOUR_P99_S:
            yield f"the neighbour's p99 is {milliseconds(self.beside.p99_s)} ms"
        if max(self.health_s) > max(self.health_rest_s) + MAX_HEALTH_S:
            yield f"/health took {milliseconds(max(self.health_s))} ms"
        if max(self.history_s) > max(self.history_rest_s) + MAX_HISTORY_S:
            yield f"the neighbour's /history took {milliseconds(max(self.history_s))} ms"
        if report.served_s is not None:
            if report.served_s > MAX_STORM_S:
                yield f"the last was subscribed after {report.served_s:.2f} s"
            if (each_s := self.cpu_s / self.attack.n_connections) > MAX_STORM_CPU_S:
                yield f"each cost {1000 * each_s:.2f} ms"


def milliseconds(seconds: float) -> str:
    """Write a time for people."""
    return "never" if seconds >= MANY_SECONDS / 2 else f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f}"


def in_words(endings: dict[str, int]) -> str:
    """Write how connections ended."""
    return ", ".join(how if n == 1 else f"{how} × {n:,}" for how, n in sorted(endings.items()))
