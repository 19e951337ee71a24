"""The live system that faults hit: two `zander serve`, PostgreSQL and Valkey, and a proxy on each line between them."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

import asyncpg

from chaos.damage import Damage
from chaos.disk import Disk, disk
from chaos.proxy import Proxy
from support.databases import connected
from support.programs import Program
from support.services import PostgresServer, ValkeyServer
from zander.embedded.postgres import free_port

ROLE = "eeg"  # the nodes' own: a superuser could not be refused anything
PASSWORD = "chaos"
PATIENCE_S = 30.0
LOG_LINES = 40
JOURNAL_BYTES = 16 << 20  # in files of 2 MiB, of which there are several after some seconds without the database
TRACEBACK = re.compile(r"Traceback .*?(?=\n\d{4}-\d\d-\d\d |\Z)", re.DOTALL)  # up to the next line of the log


class Server:
    """One node; it keeps its port and its folder from one life to the next."""

    def __init__(self, number: int, database: Proxy, redis: Proxy) -> None:
        self.number = number
        self.port = free_port()
        self.database = database
        self.redis = redis
        self._said = ""  # by its former lives
        self._heard = 0  # how much of the log was there before this round
        self.complaints: list[str] = []  # what it did that it promised not to
        self._folder = Path(tempfile.mkdtemp(prefix="zander-chaos-"))
        self.disk: Disk = disk(self._folder / "data")
        self._program: Program | None = None

    def __str__(self) -> str:
        return f"node {self.number}"

    @property
    def log(self) -> str:
        """What it has written in this round, in all its lives."""
        return (self._said + (self._program.log if self._program else ""))[self._heard :]

    def is_ready(self) -> bool:
        """Whether it runs, and the database and Redis are there."""
        try:
            return self._program is not None and self._program.ready()
        except OSError:
            return False

    def start(self) -> None:
        """Start it, unless it runs; blocks until it serves."""
        if self._program is not None:
            return
        self._program = Program(
            port=self.port,
            data_dir=self.disk.folder,
            database_url=f"postgresql://{ROLE}:{PASSWORD}@127.0.0.1:{self.database.port}/chaos",
            redis_url=f"redis://127.0.0.1:{self.redis.port}/0",
            batch_max_seconds=0.2,
            journal_max_bytes=JOURNAL_BYTES,
        )
        self.disk.pid = self._program.pid

    def terminate(self) -> None:
        """Stop it as an operator does; it has 15 s."""
        if self._program is None:
            return
        try:
            if code := self._program.terminate(20):
                self.complaints.append(f"{self} ended with {code} after SIGTERM")
        except AssertionError:
            self.complaints.append(f"{self} still ran 20 s after SIGTERM")
        self.kill()

    def kill(self) -> None:
        """End it at once."""
        if self._program is not None:
            self.disk.pid = None
            self._program.kill()
            self._said += self._program.log
            self._program.__exit__()
            self._program = None

    def pause(self) -> None:
        if self._program is not None:
            self._program.send(signal.SIGSTOP)

    def resume(self) -> None:
        if self._program is not None:
            self._program.send(signal.SIGCONT)

    def look(self) -> None:
        """Note what should not be: an end of its own, a traceback in the log."""
        if self._program is not None and self._program.has_ended:
            self.complaints.append(f"{self} ended by itself")
            self.kill()
        if found := TRACEBACK.search(self.log):
            self.complaints.append(f"{self} wrote a traceback:\n{found[0]}")

    def begin(self) -> None:
        """Begin a round: what was said and complained of before is no longer of interest."""
        self.complaints.clear()
        self._heard += len(self.log)

    def close(self) -> None:
        self.kill()
        self.disk.close()
        shutil.rmtree(self._folder)


ALL_FEATURES = """
SELECT session_id::text, (data->'metrics'->>'n')::int FROM predictions WHERE data->'metrics'->>'n' IS NOT NULL
"""


class System:
    """All of it. A fault holds the lock of what it hits, so that each is mended before the next."""

    def __init__(self, postgres: PostgresServer, valkey: ValkeyServer, servers: list[Server]) -> None:
        self.postgres = postgres
        self.valkey = valkey
        self.servers = servers
        self.avoided: set[Server] = set()  # new connections are led elsewhere
        self.damage = Damage()  # of this round
        self.locks = {name: asyncio.Lock() for name in (*map(str, servers), "postgres", "valkey", "links")}

    @property
    def dsn(self) -> str:
        """The database, as the superuser and past the proxies."""
        return self.postgres.dsn.rpartition("/")[0] + "/chaos"

    @property
    def log_tails(self) -> str:
        """The last lines of each node in this round."""
        tails = ("\n".join(server.log.splitlines()[-LOG_LINES:]) for server in self.servers)
        return "\n".join(f"--- {server}\n{tail}" for server, tail in zip(self.servers, tails, strict=True))

    async def begin(self) -> None:
        """Begin a round, with all nodes there."""
        self.damage = Damage()
        for server in self.servers:
            await asyncio.to_thread(server.start)
            server.begin()

    def complaints(self) -> list[str]:
        """What the nodes did in this round that they promised not to."""
        for server in self.servers:
            server.look()
        return [complaint for server in self.servers for complaint in server.complaints]

    @asynccontextmanager
    async def held(self, target: str) -> AsyncIterator[None]:
        """Hold the lock of a target, or those of all nodes."""
        async with AsyncExitStack() as stack:
            for name in map(str, self.servers) if target == "nodes" else (target,):
                await stack.enter_async_context(self.locks[name])
            yield

    async def is_ready(self) -> bool:
        """Wait until every node says that it is ready; False when one does not in time."""
        until_s = monotonic() + PATIENCE_S
        while not all([await asyncio.to_thread(server.is_ready) for server in self.servers]):
            if monotonic() > until_s:
                return False
            await asyncio.sleep(0.05)
        return True

    async def durable(self) -> dict[str, int]:
        """Return how far each session is in the database."""
        async with connected(self.dsn) as connection:
            return dict(await connection.fetch("SELECT session_id::text, durable_position FROM sessions"))

    async def features(self) -> set[tuple[str, int]]:
        """Return the numbers of the features in the database, with their sessions."""
        async with connected(self.dsn) as connection:
            return {(row[0], row[1]) for row in await connection.fetch(ALL_FEATURES)}

    async def run(self, *statements: str) -> None:
        """Run statements as the superuser, again and again until they have succeeded."""
        until_s = monotonic() + PATIENCE_S
        while True:
            try:
                async with connected(self.dsn) as connection:
                    for statement in statements:
                        await connection.execute(statement, timeout=10)
                return
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                if monotonic() > until_s:
                    raise
                await asyncio.sleep(0.05)


@asynccontextmanager
async def started() -> AsyncIterator[System]:
    """Start everything; at the end of the block it is gone."""
    async with AsyncExitStack() as stack:
        postgres = await asyncio.to_thread(stack.enter_context, PostgresServer())
        valkey = await asyncio.to_thread(stack.enter_context, ValkeyServer())
        servers = []
        for number in range(2):
            database = await stack.enter_async_context(Proxy(lambda: urlsplit(postgres.dsn).port or 0))
            redis = await stack.enter_async_context(Proxy(lambda: valkey.port))
            servers.append(Server(number, database, redis))
            stack.callback(servers[-1].close)
        system = System(postgres, valkey, servers)
        await _create_database(postgres.dsn)
        await asyncio.gather(*(asyncio.to_thread(server.start) for server in servers))
        assert await system.is_ready(), system.log_tails
        yield system


async def _create_database(dsn: str) -> None:
    async with connected(dsn) as connection:
        await connection.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'")
        await connection.execute(f"CREATE DATABASE chaos OWNER {ROLE}")
