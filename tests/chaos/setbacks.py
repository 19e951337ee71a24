"""Faults that destroy something: a damaged journal, a database that goes back. With them the table has all faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from chaos.faults import FAULTS, NODES, Stage, fault
from chaos.outages import OF_THE_NODES, POSTGRES, refuse
from chaos.system import ROLE, System

__all__ = ["FAULTS"]

QUIET_SECONDS = 0.3  # in which what is on its way to the database arrives


@fault("damaged journal", NODES, 0.5, 2.5)
async def _damaged_journal(stage: Stage) -> None:
    """Bits flip, or zeros are written; now and then the lock file is lost too."""
    async with _down(stage) as journal:
        for path in journal.glob("*.v1"):
            stage.system.damage.flip_bits(path, stage.chance)
        for path in journal.glob("*.lock"):
            if stage.chance.random() < 0.3:
                path.unlink()
        (journal / "stray.lock").touch()


@fault("missing segment", NODES, 1.0, 3.0)
async def _missing_segment(stage: Stage) -> None:
    async with _down(stage) as journal:
        if paths := sorted(path for path in journal.glob("*.v1") if path.stat().st_size):
            stage.system.damage.delete(stage.chance.choice(paths[1:-1] or paths))


@asynccontextmanager
async def _down(stage: Stage) -> AsyncIterator[Path]:
    """Keep a node from the database for a while, so that much is in its journal, and kill it; then it starts again."""
    server = stage.server
    server.database.freeze()
    try:
        await asyncio.sleep(stage.seconds)
        await asyncio.to_thread(server.kill)
        yield server.disk.folder / "journal"
    finally:
        server.database.thaw()
        await asyncio.to_thread(server.start)


@fault("restored backup", POSTGRES, 1.0, 4.0)
async def _restored_backup(stage: Stage) -> None:
    postgres = stage.system.postgres
    before = await _there(stage.system)
    backup = await asyncio.to_thread(postgres.backup)
    await asyncio.sleep(stage.seconds)
    await _go_back(stage.system, before, lambda: asyncio.to_thread(postgres.restore, backup))


@fault("standby that was behind", POSTGRES, 1.0, 4.0)
async def _standby(stage: Stage) -> None:
    postgres = stage.system.postgres
    standby = await asyncio.to_thread(postgres.standby)
    await asyncio.to_thread(standby.until_it_follows)
    before = await _there(stage.system)
    await asyncio.to_thread(standby.fall_behind)
    await asyncio.sleep(stage.seconds)
    await _go_back(stage.system, before, lambda: asyncio.to_thread(standby.take_over))


There = tuple[dict[str, int], set[tuple[str, int]]]  # how far each session is in the database, and all features


async def _there(system: System) -> There:
    return await system.durable(), await system.features()


async def _go_back(system: System, before: There, replace: Callable[[], Awaitable[None]]) -> None:
    """Replace the database by an older state; note what was durable since that."""
    for server in system.servers:
        server.database.freeze()
    await asyncio.sleep(QUIET_SECONDS)
    durable, features = await _there(system)
    for session_id, position in durable.items():
        system.damage.note_span(session_id, before[0].get(session_id, 0), position)
    for session_id, number in features - before[1]:
        system.damage.features.setdefault(session_id, set()).add(number)
    system.damage.went_back = True
    await replace()
    for server in system.servers:
        server.database.thaw()


@fault("statement timeout", POSTGRES, 0.5, 4.0)
async def _statement_timeout(stage: Stage) -> None:
    """Of the nodes' role, and so short that a backlog exceeds it."""
    role = f"ALTER ROLE {ROLE}"
    await refuse(
        stage,
        f"{role} SET statement_timeout = '15ms'; {role} SET lock_timeout = '10ms'",
        OF_THE_NODES,
        mend=f"{role} RESET statement_timeout; {role} RESET lock_timeout; {OF_THE_NODES}",
    )
