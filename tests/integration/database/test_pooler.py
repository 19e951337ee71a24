"""PgBouncer in transaction mode, of any version: all works, and nothing is left on its connections to the server."""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from support.clients import relay
from support.nodes import Node
from support.services import eventually
from zander.database.connection import READ_SETTINGS, Pool
from zander.database.maintenance import migrate_at
from zander.embedded.child import Account, Child
from zander.embedded.postgres import free_port

# PgBouncer's file; the server is that of the tests, and two clients share each connection to it.
CONFIGURATION = """
[databases]
* = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
server_reset_query =
log_connections = 0
log_disconnections = 0
{more}
"""


def programs() -> list[str]:
    """The versions that are installed; PGBOUNCER names others, separated by colons."""
    found = [*os.environ.get("PGBOUNCER", "").split(":"), shutil.which("pgbouncer") or ""]
    return [program for program in found if program] or ["none"]


@contextmanager
def pgbouncer(program: str, dsn: str, more: str = "") -> Iterator[str]:
    """Run PgBouncer in front of a server, and yield the address of the same database through it."""
    server, listen_port = urlsplit(dsn), free_port()
    with tempfile.TemporaryDirectory(prefix="zander-pgbouncer-") as folder, tempfile.TemporaryFile() as output:
        file = Path(folder) / "pgbouncer.ini"
        where = {"host": server.hostname, "port": server.port, "user": server.username, "password": server.password}
        file.write_text(CONFIGURATION.format(**where, listen_port=listen_port, more=more))
        account = None
        if os.geteuid() == 0:  # which PgBouncer refuses
            nobody = pwd.getpwnam("nobody")
            account = Account(nobody.pw_uid, nobody.pw_gid)
            for path in (Path(folder), file):
                os.chown(path, *account)
        child = Child([program, str(file)], orphan_signal=signal.SIGKILL, output=output, account=account)
        try:
            url = f"postgresql://{server.username}@127.0.0.1:{listen_port}{server.path}"
            eventually(lambda: child.ended.is_set() or asyncio.run(_answers(url)))
            if child.ended.is_set():
                output.seek(0)
                pytest.fail(output.read().decode())
            yield url
        finally:
            child.stop(signal.SIGTERM)


async def _answers(url: str) -> bool:
    try:
        connection = await asyncpg.connect(url, statement_cache_size=0)
    except (OSError, asyncpg.PostgresError):
        return False
    await connection.close()
    return True


@pytest.fixture(params=programs())
def pooled_url(request: pytest.FixtureRequest, database_url: str) -> Iterator[str]:
    """A database through PgBouncer."""
    if request.param == "none":
        pytest.skip("PgBouncer is not installed: apt-get install pgbouncer, or PGBOUNCER=/path/to/pgbouncer")
    with pgbouncer(request.param, database_url) as url:
        yield url


async def test_two_nodes_take_in_resume_and_answer(pooled_url: str, start_node: Callable[..., Node], user: str) -> None:
    one, two = start_node(database_url=pooled_url), start_node(database_url=pooled_url)
    eventually(one.ready)
    eventually(two.ready)
    async with relay(one.ws, user, ack=True) as edge:
        await edge.send({"type": "raw", "samples": [[i, 0] for i in range(500)]})
        await edge.send({"type": "features", "workload": 0.5})
        while (await edge.until("ack"))["durable"] < 500:
            pass
        session_id = edge.session_id
    async with relay(two.ws, user, ack=True, session_id=session_id) as edge:
        await edge.send({"type": "raw", "samples": [[i, 0] for i in range(500, 600)], "position": 500})
        while (await edge.until("ack"))["durable"] < 600:
            pass
    status, page = await asyncio.to_thread(
        one.get, f"/history/{user}?start=0&end=9000000000&sample_type=raw&limit=1000"
    )
    assert (status, len(page["samples"])) == (200, 600)
    assert two.get(f"/sessions/{session_id}")[1]["next_position"] == 600


async def test_nothing_stays_on_the_connections_that_others_use_next(pooled_url: str, database_url: str) -> None:
    await migrate_at(pooled_url)
    pool = Pool(pooled_url, 4)
    found = await asyncio.gather(*(pool.fetch("SHOW enable_bitmapscan") for _ in range(40)))
    assert {rows[0][0] for rows in found} == {"off"}
    await pool.close()
    plain = await asyncpg.connect(database_url)
    names = [*READ_SETTINGS, "idle_in_transaction_session_timeout", "lock_timeout"]
    wanted = [await plain.fetchval(f"SHOW {name}") for name in names]
    await plain.close()
    for _ in range(5):
        other = await asyncpg.connect(pooled_url, statement_cache_size=0)
        assert [await other.fetchval(f"SHOW {name}") for name in names] == wanted
        assert await other.fetchval("SELECT count(*) FROM pg_prepared_statements") == 0
        assert await other.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
        await other.close()


async def test_a_pooler_is_told_once(pooled_url: str, caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(pooled_url, 2)
    with caplog.at_level(logging.INFO, "zander.database.connection"):
        await asyncio.gather(*(pool.fetch("SELECT 1") for _ in range(3)))
    await pool.close()
    assert [message for message in caplog.messages if "a connection pooler is before the database" in message]
