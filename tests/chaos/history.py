"""What happened in a round: what relays sent, what consumers got, what is in the database. The checker judges it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chaos.damage import Damage, Span

Values = NDArray[np.float32]  # (n, n_channels)


@dataclass
class Sent:
    """One session, as its relay tells it: the sample at position i is `values[i]`."""

    user_id: str
    session_id: str
    values: Values
    numbered: bool  # it gives positions and asks for acks; else it is of the original protocol
    lived: bool = True  # numbered: it had the chance to send all again, and its acks say that all is durable
    acked: int = 0  # numbered: the highest ack
    taken: int = 0  # original: sent before a ping that was answered, so the server had read it
    n_features: int = 0  # original: how many it sent, numbered from 0
    features_taken: int = 0  # original: how many of them before a ping that was answered
    left_out: list[Span] = field(default_factory=list)  # numbered: positions it never sent, and said so
    dropped: list[Span] = field(default_factory=list)  # numbered: what it could not keep; some may have arrived before

    def __str__(self) -> str:
        kind = "numbered" if self.numbered else "original"
        return f"session {self.session_id[:8]} of {self.user_id} ({kind})"


@dataclass
class Stored:
    """One session, as the database holds it."""

    user_id: str | None  # None: no row in `sessions`
    durable: int
    positions: NDArray[np.int64]  # as they stand there, in no order, repeats and all
    times_us: NDArray[np.int64]
    values: list[Values]
    gaps: list[tuple[int, int, str]] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)  # positions in dead_letters
    features: list[int] = field(default_factory=list)  # the numbers of those in `predictions`


class Samples(NamedTuple):
    """Consecutive samples that a consumer got."""

    session_id: str
    position: int
    values: Values


class Gap(NamedTuple):
    """A hole that a consumer was told of."""

    session_id: str
    start: int
    end: int
    reason: str


@dataclass
class Seen:
    """Everything one consumer got, in its order."""

    name: str
    user_id: str
    events: list[Samples | Gap] = field(default_factory=list)


@dataclass
class History:
    """A round. What its faults excuse: a full disk may lose of an original relay, poison goes to dead_letters."""

    sent: list[Sent]
    stored: dict[str, Stored]
    seen: list[Seen]
    may_lose: bool = False
    may_forget: bool = False  # it died with the disk full: of the end of an original session there may be no trace
    may_refuse: bool = False
    may_miss: bool = False  # a node was away, with sessions that nobody else had heard of
    damage: Damage = field(default_factory=Damage)  # what faults have destroyed
    gapless: bool = False  # nothing happened that excuses a gap at a consumer (a rolling restart)
