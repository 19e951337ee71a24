"""The server that is attacked, a `zander serve` on a PostgreSQL, and what can be seen of it from outside."""

from __future__ import annotations

import asyncio
import os
from asyncio import Runner
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any, Self

import asyncpg
import psutil

from attack.line import KEY, NEIGHBOUR_KEY
from attack.visitor import Visit, ask_for_health, ask_for_history, come_as_relay
from support.databases import connected
from support.programs import Program
from support.services import PostgresServer, eventually
from zander.native import SWITCH

LOOK_SECONDS = 0.02
HEALTH_SECONDS = 0.1
RELAY_SECONDS = 0.5
HISTORY_SECONDS = 0.5
HOLD = "BEGIN; LOCK TABLE writers IN SHARE MODE"  # each batch begins with a claim on a row of it
STORED = "SELECT count(*), count(DISTINCT position) FROM raw_eeg WHERE user_id = $1"


class Target:
    """A running server with a key and a database of its own; `native` is its ZANDER_NATIVE, else that of here."""

    def __init__(self, postgres: PostgresServer, native: str | None = None, **settings: Any) -> None:
        self._dsn = postgres.create_database()
        native = native or os.environ.get(SWITCH)
        chosen = {SWITCH: native} if native else {}
        keys = f"{KEY},{NEIGHBOUR_KEY}"
        self._program = Program(database_url=self._dsn, edge_api_key=keys, batch_max_seconds=0.1, **(chosen | settings))
        eventually(self._program.ready)
        self._process = psutil.Process(self._program.pid)
        self.port = int(self._program.http.rpartition(":")[2])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._program.__exit__()

    @property
    def log(self) -> str:
        """All it has written so far."""
        return self._program.log

    @property
    def has_ended(self) -> bool:
        return self._program.has_ended

    def rss_bytes(self) -> int:
        """Return its resident memory; 0 when it has ended."""
        with suppress(psutil.NoSuchProcess):
            return int(self._process.memory_info().rss)
        return 0

    def cpu_s(self) -> float:
        """Return what it has used of the processors so far."""
        with suppress(psutil.NoSuchProcess):
            return float(sum(self._process.cpu_times()[:2]))
        return 0.0

    @contextmanager
    def held(self, is_held: bool = True) -> Iterator[None]:
        """Let the database answer, but commit no batch while the block runs."""
        if not is_held:
            yield
            return
        with Runner() as loop:
            database = loop.run(asyncpg.connect(self._dsn))
            try:
                loop.run(database.execute(HOLD))
                yield
            finally:
                loop.run(database.close())

    def n_stored(self, user_id: str, n_expected: int, patience_s: float) -> int:
        """Return how many samples of a user are in the database, -1 when one is there twice.

        Waits for those that are missing while the server has something to write, but no longer than `patience_s`.
        """
        return asyncio.run(self._n_stored(user_id, n_expected, monotonic() + patience_s))

    async def _n_stored(self, user_id: str, n_expected: int, until_s: float) -> int:
        async with connected(self._dsn) as database:
            while True:
                is_over = await asyncio.to_thread(self._has_written_all) or monotonic() > until_s
                n, n_distinct = await database.fetchrow(STORED, user_id)
                if n >= n_expected or is_over:
                    return int(n) if n == n_distinct else -1
                await asyncio.sleep(LOOK_SECONDS)

    def settle(self, patience_s: float) -> None:
        """Wait until all that came before is written: an attack must not suffer from the one before it."""
        until_s = monotonic() + patience_s
        while not self._has_written_all() and monotonic() < until_s:
            sleep(LOOK_SECONDS)

    def _has_written_all(self) -> bool:
        if self.has_ended:
            return True
        with suppress(OSError):  # it is too busy to say so
            status, stats = self._program.get("/stats", X_API_Key=NEIGHBOUR_KEY)
            return status == 200 and stats["database"]["pending_records"] == 0
        return False


class Watch:
    """An observer of a target while the block runs: its memory, the time of /health and of a user's /history.

    Also whether new relays get in; they stay until the end.
    """

    def __init__(self, target: Target, user: str) -> None:
        self._target = target
        self._user = user
        self.most_bytes = 0
        self.health_s: list[float] = []
        self.history_s: list[float] = []
        self.relays_s: list[float] = []
        self._relays: list[Visit] = []
        self._over = Event()
        looks = (
            (LOOK_SECONDS, self._weigh),
            (HEALTH_SECONDS, self._ask),
            (HISTORY_SECONDS, self._look_back),
            (RELAY_SECONDS, self._come),
        )
        self._threads = [Thread(target=self._each, args=look) for look in looks]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for relay in self._relays:
            relay.close()

    def _each(self, seconds: float, look: Callable[[], None]) -> None:
        look()
        while not self._over.wait(seconds):
            look()

    def _weigh(self) -> None:
        self.most_bytes = max(self.most_bytes, self._target.rss_bytes())

    def _ask(self) -> None:
        visit = ask_for_health(self._target.port)
        visit.close()
        self.health_s.append(visit.seconds)

    def _look_back(self) -> None:
        visit = ask_for_history(self._target.port, self._user)
        visit.close()
        self.history_s.append(visit.seconds)

    def _come(self) -> None:
        self._relays.append(come_as_relay(self._target.port))
        self.relays_s.append(self._relays[-1].seconds)
