"""Directory of which node holds which user, as the others tell this one. Pure rules, no input or output.

Every node tells all others of each change of what it holds, and beats once a second with the number of changes so
far; who has missed one asks for everything. Nothing is kept in Redis, so nothing there can be stale or flushed. The
newest session of a user wins; a node that is silent for DEAD_SECONDS holds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from msgspec import Struct

DEAD_SECONDS = 3.0


class Holding(Struct, array_like=True):
    """A stream that a node holds. `rank` orders the sessions of a user: the greatest is the newest.

    `base` is the position from which on its relay sends there.
    """

    user_id: str
    session_id: str
    rank: int
    base: int
    online: bool
    device_info: dict[str, Any]


class Owner(NamedTuple):
    """A node and the stream it holds."""

    node_id: str
    holding: Holding

    @property
    def order(self) -> tuple[int, str]:
        """The greatest wins: the newest session."""
        return self.holding.rank, self.node_id


class Peer:
    """Another node, as far as it is known."""

    def __init__(self, link_n: int, n_changes: int, holdings: Iterable[Holding], now: float) -> None:
        self.link_n = link_n
        self.n_changes = n_changes
        self.holdings: dict[str, Holding] = {}
        self.users: dict[str, str] = {}  # by session
        self.heard_at: dict[str, float] = {}  # by user, when we heard of what it holds
        self.seen_at = now
        for holding in holdings:
            self.hold(holding, now)

    def hold(self, holding: Holding, now: float) -> None:
        """Add or replace what it holds of a user."""
        before = self.holdings.get(holding.user_id)
        if before:
            self.users.pop(before.session_id, None)
        self.holdings[holding.user_id] = holding
        self.users[holding.session_id] = holding.user_id
        if before is None or before.rank != holding.rank:
            self.heard_at[holding.user_id] = now

    def drop(self, user_id: str) -> None:
        """Remove a user whom it holds no more."""
        if holding := self.holdings.pop(user_id, None):
            self.users.pop(holding.session_id, None)
        self.heard_at.pop(user_id, None)


class Directory:
    """All other nodes and what they hold; `now` is a monotonic clock in seconds."""

    def __init__(self) -> None:
        self.peers: dict[str, Peer] = {}

    def replace(self, node_id: str, peer: Peer) -> set[str]:
        """Take a node's whole state; return the users it concerns."""
        before = self.peers.get(node_id)
        self.peers[node_id] = peer
        if before:
            for user_id, at in before.heard_at.items():
                if user_id in peer.holdings and peer.holdings[user_id].rank == before.holdings[user_id].rank:
                    peer.heard_at[user_id] = at
        return set(peer.holdings) | (set(before.holdings) if before else set())

    def change(self, node_id: str, n_changes: int, user_id: str, holding: Holding | None, now: float) -> bool:
        """Take one change; False when one before it was missed, so that the whole state has to be asked for."""
        peer = self.peers.get(node_id)
        if peer is None or n_changes != peer.n_changes + 1:
            return False
        peer.n_changes = n_changes
        peer.seen_at = now
        if holding:
            peer.hold(holding, now)
        else:
            peer.drop(user_id)
        return True

    def beat(self, node_id: str, link_n: int, n_changes: int, now: float) -> bool:
        """Take a sign of life; False when something was missed: a change, or what a broken link lost."""
        peer = self.peers.get(node_id)
        if peer is None or (peer.link_n, peer.n_changes) != (link_n, n_changes):
            return False
        peer.seen_at = now
        return True

    def holds(self, node_id: str, user_id: str, session_id: str) -> bool:
        """Return whether a node has not given up a session yet, as far as is known."""
        peer = self.peers.get(node_id)
        return bool(peer and user_id in peer.holdings and peer.holdings[user_id].session_id == session_id)

    def user_of(self, session_id: str) -> str | None:
        """Return whose session it is, if a node holds it."""
        return next((peer.users[session_id] for peer in self.peers.values() if session_id in peer.users), None)

    def heard_at(self, owner: Owner) -> float:
        """Return when we heard of what a node holds."""
        return self.peers[owner.node_id].heard_at[owner.holding.user_id]

    def remove(self, node_id: str) -> set[str]:
        """Forget a node; return the users it held."""
        peer = self.peers.pop(node_id, None)
        return set(peer.holdings) if peer else set()

    def silent(self, now: float) -> list[str]:
        """Return the nodes that have not been heard of for DEAD_SECONDS."""
        return [node_id for node_id, peer in self.peers.items() if now - peer.seen_at > DEAD_SECONDS]

    def owner(self, user_id: str) -> Owner | None:
        """Return the node with the newest session of the user."""
        owners = [
            Owner(node_id, peer.holdings[user_id]) for node_id, peer in self.peers.items() if user_id in peer.holdings
        ]
        return max(owners, key=lambda owner: owner.order, default=None)
