"""The faults of PostgreSQL and Valkey that cost nothing but time."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from time import monotonic

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from chaos.faults import Stage, fault
from chaos.system import PASSWORD, ROLE
from support.databases import connected

POSTGRES, VALKEY = ("postgres",), ("valkey",)
OF_THE_NODES = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'"


@fault("kill PostgreSQL", POSTGRES, 0.0, 2.0)
async def _kill_postgres(stage: Stage) -> None:
    await asyncio.to_thread(stage.system.postgres.kill)
    await asyncio.sleep(stage.seconds)
    await asyncio.to_thread(stage.system.postgres.start)


@fault("freeze PostgreSQL", POSTGRES, 2.0, 6.0)
async def _freeze_postgres(stage: Stage) -> None:
    stage.system.postgres.pause()
    try:
        await asyncio.sleep(stage.seconds)
    finally:
        stage.system.postgres.resume()


@fault("terminate backends", POSTGRES, 0.5, 3.0)
async def _terminate_backends(stage: Stage) -> None:
    """At random moments."""
    until_s = monotonic() + stage.seconds
    while monotonic() < until_s:
        await stage.system.run(OF_THE_NODES)
        await asyncio.sleep(stage.chance.uniform(0, 0.2))


@fault("lose COMMIT answers", POSTGRES, 0.5, 3.0)
async def _lose_commits(stage: Stage) -> None:
    """A COMMIT waits for a standby that there is not, and is terminated there: committed, and no answer."""
    await stage.system.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
    until_s = monotonic() + stage.seconds
    while monotonic() < until_s:
        await stage.system.run(f"{OF_THE_NODES} AND wait_event = 'SyncRep'")
        await asyncio.sleep(stage.chance.uniform(0, 0.3))
    await stage.system.run("ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")


async def refuse(stage: Stage, *statements: str, mend: str) -> None:
    await stage.system.run(*statements)
    await asyncio.sleep(stage.seconds)
    await stage.system.run(mend)


@fault("no connections", POSTGRES, 0.5, 4.0)
async def _no_connections(stage: Stage) -> None:
    limit = f"ALTER ROLE {ROLE} CONNECTION LIMIT"
    await refuse(stage, f"{limit} 0", OF_THE_NODES, mend=f"{limit} -1")


@fault("read-only database", POSTGRES, 0.5, 4.0)
async def _read_only(stage: Stage) -> None:
    setting = f"ALTER ROLE {ROLE} SET default_transaction_read_only ="
    await refuse(stage, f"{setting} on", OF_THE_NODES, mend=f"{setting} off; {OF_THE_NODES}")


@fault("revoked permission", POSTGRES, 0.5, 4.0)
async def _revoked(stage: Stage) -> None:
    await refuse(stage, f"REVOKE INSERT ON raw_eeg FROM {ROLE}", mend=f"GRANT INSERT ON raw_eeg TO {ROLE}")


@fault("changed password", POSTGRES, 0.5, 4.0)
async def _changed_password(stage: Stage) -> None:
    change = f"ALTER ROLE {ROLE} PASSWORD"
    await refuse(stage, f"{change} 'another'", OF_THE_NODES, mend=f"{change} '{PASSWORD}'")


@fault("full database", POSTGRES, 0.5, 4.0)
async def _full_database(stage: Stage) -> None:
    body = "BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = '53100'; END"
    function = f"CREATE OR REPLACE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$"
    trigger = "CREATE OR REPLACE TRIGGER no_room BEFORE INSERT ON raw_eeg EXECUTE FUNCTION no_room()"
    await refuse(stage, function, trigger, mend="DROP FUNCTION no_room CASCADE")


@fault("locked table", POSTGRES, 0.5, 4.0)
async def _locked_table(stage: Stage) -> None:
    with suppress(asyncpg.PostgresError, asyncpg.InterfaceError):
        async with connected(stage.system.dsn) as connection, connection.transaction():
            await connection.execute("LOCK TABLE raw_eeg")
            await asyncio.sleep(stage.seconds)


@fault("poison", POSTGRES, 0.2, 2.0)
async def _poison(stage: Stage) -> None:
    """Some rows are refused for themselves."""
    drop = "ALTER TABLE raw_eeg DROP CONSTRAINT IF EXISTS poison"
    add = "ALTER TABLE raw_eeg ADD CONSTRAINT poison CHECK (position % 97 <> 13) NOT VALID"
    await refuse(stage, f"{drop}; {add}", mend=drop)


@fault("kill Valkey", VALKEY, 0.0, 2.0)
async def _kill_valkey(stage: Stage) -> None:
    await asyncio.to_thread(stage.system.valkey.kill)
    await asyncio.sleep(stage.seconds)
    await asyncio.to_thread(stage.system.valkey.start)


@fault("freeze Valkey", VALKEY, 2.0, 6.0)
async def _freeze_valkey(stage: Stage) -> None:
    stage.system.valkey.pause()
    try:
        await asyncio.sleep(stage.seconds)
    finally:
        stage.system.valkey.resume()


@fault("CLIENT KILL", VALKEY, 0.5, 3.0)
async def _kill_clients(stage: Stage) -> None:
    """Either kind of connection, at random moments."""
    until_s = monotonic() + stage.seconds
    async with Redis.from_url(stage.system.valkey.url) as client:
        while monotonic() < until_s:
            with suppress(RedisError):
                await client.client_kill_filter(_type=stage.chance.choice(("normal", "pubsub")), skipme=True)
            await asyncio.sleep(stage.chance.uniform(0, 0.5))


@fault("FLUSHALL", VALKEY, 0.0, 0.5)
async def _flush(stage: Stage) -> None:
    async with Redis.from_url(stage.system.valkey.url) as client:
        await client.flushall()
