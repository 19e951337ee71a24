"""The services the other tests lean on."""

import asyncio
import subprocess
import sys
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis

from support.services import PostgresServer, ValkeyServer, eventually, has_ended
from zander.embedded import postgres as embedded
from zander.embedded.child import ENVIRONMENT


async def _tables(dsn: str, create: str = "SELECT") -> int:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(create)
        n_tables: int = await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        return n_tables
    finally:
        await connection.close()


def test_postgres_comes_back_on_its_port_with_its_data_after_a_stop_and_after_a_kill() -> None:
    with PostgresServer() as server:
        dsn = server.create_database()
        assert asyncio.run(_tables(dsn, "CREATE TABLE kept ()")) == 1
        for end in (server.stop, server.kill):
            end()
            with pytest.raises(OSError, match="onnect"):
                asyncio.run(_tables(dsn))
            server.start()
            assert asyncio.run(_tables(dsn)) == 1
        assert asyncio.run(_tables(server.create_database())) == 0
    assert not server.directory.exists()


def test_postgres_pauses_and_goes_on() -> None:
    with PostgresServer() as server:
        server.pause()
        psql = [str(embedded.program("psql")), server.dsn, "-c", "SELECT"]
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run(psql, check=False, env=ENVIRONMENT, timeout=0.3)
        server.resume()
        assert asyncio.run(_tables(server.dsn)) == 0
        server.pause()
        server.kill()


def test_valkey_pauses_and_comes_back_on_its_port() -> None:
    with ValkeyServer() as server, redis.Redis.from_url(server.url, socket_timeout=0.1, retry=None) as client:
        assert client.ping()
        server.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        server.resume()
        assert client.ping()
        for end in (server.stop, server.kill):
            end()
            with pytest.raises(redis.ConnectionError):
                client.ping()
            server.start()
            assert client.ping()
        server.pause()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing binds a child to its parent")
def test_valkey_ends_with_its_parent() -> None:
    keep = "from support.services import ValkeyServer as V; s = V(); s.start(); print(s.pid, flush=True); input()"
    pipe, here = subprocess.PIPE, Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", keep], stdin=pipe, stdout=pipe, cwd=here) as python:
        assert python.stdout is not None
        server = psutil.Process(int(python.stdout.readline()))
        python.kill()
        eventually(lambda: has_ended(server))
