"""Who listens on this node, and to whom."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from time import time

from zander.delivery.outbox import Outbox
from zander.wire.chunk import Chunk
from zander.wire.codec import dumps
from zander.wire.messages import Note, Status


def status_note(status: Status) -> Note:
    """Make a status what consumers get."""
    return Note("status", int(time() * 1e6), dumps(status))


class Audience:
    """The consumers connected to this node: those who listen, by user, and those who are brought up to there first."""

    def __init__(self) -> None:
        self.replaying: set[Outbox] = set()
        self.n_samples_out = 0
        self._listeners: dict[str, set[Outbox]] = {}

    def __contains__(self, user_id: str) -> bool:
        return user_id in self._listeners

    def __iter__(self) -> Iterator[Outbox]:
        yield from self.replaying
        for listeners in self._listeners.values():
            yield from listeners

    def __len__(self) -> int:
        return len(self.replaying) + sum(map(len, self._listeners.values()))

    @property
    def user_ids(self) -> list[str]:
        """The users whom somebody listens to."""
        return list(self._listeners)

    def of(self, user_id: str) -> Collection[Outbox]:
        """Return those who listen to a user."""
        return self._listeners.get(user_id, ())

    def listen(self, outbox: Outbox, history: Sequence[Chunk | Note]) -> None:
        """Let a consumer listen, with what it gets first."""
        self.replaying.discard(outbox)
        outbox.preload(history)
        self._listeners.setdefault(outbox.user_id, set()).add(outbox)

    def forget(self, outbox: Outbox) -> bool:
        """Forget a consumer; True when nobody listens to its user any more."""
        self.replaying.discard(outbox)
        listeners = self._listeners.get(outbox.user_id, set())
        listeners.discard(outbox)
        return not listeners and self._listeners.pop(outbox.user_id, None) is not None

    def deliver(self, user_id: str, event: Chunk | Note) -> None:
        """Give an event to all who listen to a user."""
        listeners = self._listeners.get(user_id)
        if not listeners:
            return
        if isinstance(event, Chunk):
            self.n_samples_out += len(event) * len(listeners)
            for outbox in listeners:
                outbox.offer(event)
        else:
            for outbox in listeners:
                outbox.note(event)
