"""One user followed on another node: where, and how far we are."""

from __future__ import annotations

import asyncio

from zander.cluster import messages as peers
from zander.cluster.directory import Holding, Owner
from zander.delivery.outbox import Outbox
from zander.wire.chunk import Chunk, Origin
from zander.wire.messages import Note, Status

UNHEARD_US = 3_000_000  # a session may be so old before every node has heard of it


class Feed:
    """One user followed. Where consumers stand among the samples, each outbox knows; the notes are counted here."""

    def __init__(self, user_id: str) -> None:
        self.node_id = ""
        self.origin = Origin(user_id, "", 0.0)
        self.n_notes: int | None = None  # taken over of this session; None: nothing yet
        self.live = False
        self.last = 0  # the most that was asked for by a consumer whose owner was not known yet
        self.told: Status | None = None  # what our consumers know of the relay
        self.task: asyncio.Task[None] | None = None

    @property
    def has_all(self) -> bool:
        """Whether the session has ended, and everything of it came before that."""
        told = self.told
        return self.live and told is not None and not told.online and told.session_id == self.origin.session_id

    def follows(self, node_id: str, session_id: str) -> bool:
        """Say whether this is a feed of the session on that node."""
        return (self.node_id, self.origin.session_id) == (node_id, session_id)

    def move(self, owner: Owner) -> None:
        """Follow another node, or another session."""
        self.live = False
        self.node_id = owner.node_id
        self.origin = Origin(owner.holding.user_id, owner.holding.session_id, 0.0, owner.holding.base)
        self.n_notes = None

    def reset(self) -> None:
        """Follow nothing, until somebody has the user again; if it is the same session, anew."""
        self.live = False
        self.node_id = ""
        self.origin = Origin(self.origin.user_id, "", 0.0)

    def stand(self, reply: peers.Followed) -> None:
        """Stand where the reply ends; events go on from there."""
        self.origin.period_us = reply.period_us
        self.n_notes = reply.n_notes
        self.live = True

    def unpack(self, events: list[peers.Event]) -> list[Chunk | Note]:
        """Unpack what came of this session."""
        return [peers.from_event(event, self.origin) for event in events]

    def count(self, events: list[Chunk | Note]) -> list[Chunk | Note]:
        """Count the notes among live events."""
        self.n_notes = (self.n_notes or 0) + sum(isinstance(event, Note) for event in events)
        return events


def owed_from(outbox: Outbox, holding: Holding) -> int | None:
    """Return from where on a consumer is to get a session; None: it was on for long when the consumer came."""
    position = outbox.stands_in(holding.session_id)
    if position is None and is_owed(outbox, holding):
        return holding.base
    return position


def is_owed(outbox: Outbox, holding: Holding) -> bool:
    """Say whether a consumer was there before the relay came."""
    return outbox.since_us < holding.rank + UNHEARD_US
