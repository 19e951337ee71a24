"""Shares of the journal: what each client and user has in it while it fills, so that one cannot fill it for all."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Literal

from zander.wire.connection import NOBODY, Client

Kind = Literal["samples", "notes", "sessions"]

COUNTED_FROM = 0.125  # of the bound that waits for the database: below it everybody is taken and nothing is counted
# A user is refused who has more than so many times what is free to its client. One alone can take two thirds of the
# journal with samples, and a third with notes; n of them leave the others one part in 2n + 1. Notes are refused before
# samples. Sessions are those of a client: each may be of another user.
SHARES: dict[Kind, float] = {"samples": 2.0, "notes": 0.5, "sessions": 0.25}
# A client beside others may have so many times what is free: n of them leave the others one part in 4n + 1. Before it
# has all that, less is free to it than to others: then those of its users are refused first who have most.
CLIENT_SHARE = 4.0
AGAIN = 0.5  # of a share, at which who was over it is taken again: not record by record, with a gap between them
EPOCHS = 32  # in which the bound is counted: what is committed is taken off so many bytes at a time

log = logging.getLogger(__name__)


class Shares:
    """Bytes of each user in a journal of at most `max_bytes`, since it began to fill, that are not committed yet.

    Nothing is counted before the offset `start`; `end` is where the journal ends. `n_users_refused` and
    `n_clients_refused` are how many were refused for their share; each is logged once, until all is committed.
    `client_of` says whose relay a user has.
    """

    def __init__(self, max_bytes: int, client_of: Callable[[str], Client] = lambda _: NOBODY) -> None:
        self.max_bytes = max_bytes
        self.start = self.end = 0
        self.n_users_refused = self.n_clients_refused = 0
        self._client_of = client_of
        self._epoch_bytes = max(1, max_bytes // EPOCHS)
        self._epochs: deque[tuple[int, _Bytes]] = deque()  # where the first record of each ends, and its bytes
        self._all = _Bytes()
        self._over: set[tuple[str | Client, Kind]] = set()
        self._logged: set[str | Client] = set()

    def takes(self, user_id: str, kind: Kind, limit: int, client: Client | None = None) -> bool:
        """Return whether a user may append more to a journal that may end at `limit`; beyond it that refuses all.

        But for sessions, which it never refuses. `client` is whose relay it is that begins one.
        """
        n_free = limit - self.end
        if n_free <= 0:
            return kind != "sessions"
        if self.end <= self.start:
            return True
        client = client or self._client_of(user_id)
        n_free_to_it = self._free_to(client, n_free)
        if n_free_to_it <= 0:
            self._tell(client, self._all.clients[client], "samples, notes and sessions")
            return False
        whose: str | Client = client if kind == "sessions" else user_id
        n_bytes = self._all.sessions[client] if kind == "sessions" else self._all.users[user_id]
        is_over = (whose, kind) in self._over
        if n_bytes <= SHARES[kind] * n_free_to_it * (AGAIN if is_over else 1.0):
            self._over.discard((whose, kind))
            return True
        if not is_over:
            self._over.add((whose, kind))
            self._tell(whose, n_bytes, kind)
        return False

    def add(self, sizes: Iterable[tuple[str, int]]) -> None:
        """Count bytes of users that were appended just now."""
        for user_id, n_bytes in sizes:
            self._add(user_id, n_bytes)

    def add_session(self, user_id: str, n_bytes: int, *, begins: bool) -> None:
        """Count the record of a session; one that begins counts for its end too, which is as large and not refused."""
        self._add(user_id, n_bytes, 2 * n_bytes if begins else 0)

    def commit(self, offset: int, max_bytes: int) -> None:
        """Take off what lies before an offset, in a journal that may have `max_bytes`."""
        self.start = offset + int(COUNTED_FROM * max_bytes)
        while self._epochs and offset >= (self._epochs[1][0] if len(self._epochs) > 1 else self.end):
            self._all.take_off(self._epochs.popleft()[1])
        if not self._epochs:
            self._over.clear()
            self._logged.clear()

    def _free_to(self, client: Client, n_free: int) -> float:
        """Return how much of what is free is free to a client: all of it to one alone."""
        if len(self._all.clients) <= 1:
            return n_free
        return min(n_free, CLIENT_SHARE * n_free - self._all.clients[client])

    def _add(self, user_id: str, n_bytes: int, n_session_bytes: int = 0) -> None:
        if not self._epochs or self.end >= self._epochs[-1][0] + self._epoch_bytes:
            self._epochs.append((self.end, _Bytes()))
        client = self._client_of(user_id)
        for some in (self._all, self._epochs[-1][1]):
            some.users[user_id] += n_bytes
            some.clients[client] += n_bytes
            some.sessions[client] += n_session_bytes

    def _tell(self, whose: str | Client, n_bytes: int, what: str) -> None:
        if whose in self._logged:
            return
        self._logged.add(whose)
        if isinstance(whose, Client):
            self.n_clients_refused += 1
        else:
            self.n_users_refused += 1
        log.warning(
            "%s has %d bytes in the journal that the database has not: more %s are refused, others go on",
            f"a client at {whose.address}" if isinstance(whose, Client) else f"user {whose}",
            n_bytes,
            what,
        )


class _Bytes:
    """Bytes in the journal: of users, of clients, and of the sessions of clients."""

    __slots__ = ("clients", "sessions", "users")

    def __init__(self) -> None:
        self.users: Counter[str] = Counter()
        self.clients: Counter[Client] = Counter()
        self.sessions: Counter[Client] = Counter()

    def take_off(self, some: _Bytes) -> None:
        self.users -= some.users  # which forgets a count of 0
        self.clients -= some.clients
        self.sessions -= some.sessions
