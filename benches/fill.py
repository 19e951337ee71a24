"""How many samples a second one process brings into PostgreSQL, beside `psql \\copy` of the same bytes.

    python benches/fill.py [options]

The journal is filled with records of one sample, as many relays leave them; then the recorder writes all of it with
nothing else to do. psql copies the rows that the recorder writes, in their order, into a table of the same shape, which
is a hypertable where that of the recorder is one. Ends with 1 when a sample was lost, with 2 when the bench could not
run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import resource
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

import asyncpg
import numpy as np

from options import at_least, run, save
from parts import BenchError, Usage, machine, usage
from report import lines
from zander.database.timescale import is_hypertable
from zander.database.writer import DatabaseWriter
from zander.embedded.postgres import Postgres, program
from zander.journal.journal import Journals
from zander.journal.log import frame
from zander.journal.pgcopy import COPY_END, COPY_HEAD, RAW_COLUMNS
from zander.journal.recorder import Recorder
from zander.journal.records import SessionRecord, encode, raw_record
from zander.journal.writer import JournalWriter
from zander.native import IS_DEBUG, WHY_NOT
from zander.settings import Settings
from zander.wire.chunk import Chunk, Origin

T0_US = int((time.time() - 3600) * 1e6)  # not late for a hypertable
STEP_US = 7812
PATIENCE_S = 600.0
EMPTIED = """
TRUNCATE raw_eeg;
DROP TABLE IF EXISTS copied;
CREATE TABLE copied (LIKE raw_eeg INCLUDING ALL);
"""
AS_HYPERTABLE = "SELECT create_hypertable('copied', 'timestamp', create_default_indexes => false)"
HAS_ROWS = "SELECT EXISTS (SELECT FROM raw_eeg)"
HELD = "SELECT count(*), count(DISTINCT (session_id, position)) FROM {table} WHERE session_id = ANY ($1::uuid[])"


class Fill(NamedTuple):
    """What one way took."""

    samples_per_s: float
    client_us: float  # CPU per sample
    postgres_us: float | None  # None where it runs elsewhere

    def cells(self) -> dict[str, float]:
        """Name the figures."""
        here = {} if self.postgres_us is None else {"PostgreSQL CPU per sample, µs": self.postgres_us}
        return {
            "samples into the database, /s": self.samples_per_s,
            "client CPU per sample, µs": self.client_us,
            **here,
        }


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--samples", type=at_least(1), default=1_000_000, metavar="N", help="samples in the journal (1,000,000)")
    add("--sessions", type=at_least(1), default=1000, metavar="N", help="sessions that they are of (1000)")
    add("--channels", type=at_least(1), default=7, metavar="N", help="channels (7)")
    add("--rounds", type=at_least(1), default=3, metavar="N", help="runs of each way, in turn; the median is shown (3)")
    add("--database-url", metavar="URL", help="an empty database to write to, instead of an own PostgreSQL")
    add("--json", type=Path, metavar="FILE", help="write the figures to FILE too")
    options = parser.parse_args(words)
    if options.samples < options.sessions:
        parser.error(f"--samples: expected at least one of each of {options.sessions} sessions, got {options.samples}")
    return options


class Samples:
    """What is written, under new session ids."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.origins = [Origin(f"bench-{i:04}", str(uuid.uuid4()), STEP_US) for i in range(options.sessions)]
        self.n_each = options.samples // options.sessions
        self.n = self.n_each * options.sessions
        self._values = np.random.default_rng(1).normal(0, 20, (self.n_each, options.channels)).astype(np.float32)

    @property
    def session_ids(self) -> list[str]:
        """All of them."""
        return [origin.session_id for origin in self.origins]

    def frames(self) -> Iterator[tuple[bytes, int]]:
        """Give the frames of the journal, a sample of each session in turn, and how many those hold."""
        for position in range(self.n_each):
            yield b"".join(self._frame(origin, position) for origin in self.origins), len(self.origins)

    def _frame(self, origin: Origin, position: int) -> bytes:
        times_us = np.array([T0_US + position * STEP_US])
        return frame(encode(raw_record(Chunk(origin, position, times_us, self._values[position : position + 1]), 0)))


@asynccontextmanager
async def recording(folder: Path, dsn: str) -> AsyncIterator[Recorder]:
    """Run a recorder as the service does."""
    settings, journals = Settings(), Journals(folder, 1 << 40)
    storage = DatabaseWriter(dsn, retention_days=None, columnstore_after_hours=settings.columnstore_after_hours)
    writer = JournalWriter(journals, max_bytes=1 << 40, batch_records=settings.batch_max_records)
    recorder = Recorder(
        storage,
        journals,
        writer,
        max_seconds=settings.batch_max_seconds,
        linger_seconds=settings.batch_linger_seconds,
        on_written=lambda written: None,
    )
    run = asyncio.create_task(recorder.run())
    try:
        while not recorder.online:  # noqa: ASYNC110 - nobody says it
            await asyncio.sleep(0.01)
        yield recorder
    finally:
        run.cancel()
        await asyncio.wait([run])
        await storage.close()
        journals.close()


async def by_zander(folder: Path, dsn: str, pids: dict[str, int], samples: Samples) -> Fill:
    """Fill the journal, and let the recorder write it."""
    frames = list(samples.frames())
    async with recording(folder, dsn) as recorder:
        for origin in samples.origins:
            recorder.writer.record(SessionRecord(origin.session_id, origin.user_id, T0_US, None, "{}"))
        if not await recorder.drain(PATIENCE_S):
            raise BenchError("the sessions are not in the database")
        for piece, n in frames:
            recorder.writer.record_frames(piece, n)
        cpu_s, before = time.process_time(), usage(pids)
        if not await recorder.drain(PATIENCE_S):
            raise BenchError("the samples are not in the database")
        cpu_s, after = time.process_time() - cpu_s, usage(pids)
    return _fill(samples.n, after.at_s - before.at_s, cpu_s, _postgres_s(before, after))


async def write_rows(folder: Path, samples: Samples, file: Path) -> None:
    """Write the rows as the recorder would, batch by batch, as a binary COPY."""
    journals = Journals(folder, 1 << 40)
    for frames, _ in samples.frames():
        journals.own.log.write(frames)
    with file.open("wb") as copy:
        copy.write(COPY_HEAD)
        while (batch := await journals.read(journals.own)).n_records:
            copy.writelines(record.rows for records in batch.raw.values() for record in records)
            journals.own.commit(batch.end)
        copy.write(COPY_END)
    journals.close()


async def by_psql(file: Path, dsn: str, pids: dict[str, int], n_samples: int) -> Fill:
    """Let psql copy the rows; its own clock tells how long that took."""
    copy = f"\\copy copied ({', '.join(RAW_COLUMNS)}) from '{file}' with (format binary)"
    command = [_psql(), "--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", "-c", "\\timing on", "-c", copy, dsn]
    cpu_s, before = _children_s(), usage(pids)
    environment = os.environ | {"LC_ALL": "C"}
    ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, env=environment, check=False)
    took = re.search(r"Time: ([\d.]+) ms", ran.stdout)
    if ran.returncode or not took:
        raise BenchError(f"psql did not copy: {ran.stderr.strip() or ran.stdout.strip()}")
    return _fill(n_samples, float(took[1]) / 1e3, _children_s() - cpu_s, _postgres_s(before, usage(pids)))


def _postgres_s(before: Usage, after: Usage) -> float | None:
    if "PostgreSQL" not in before.cpu_s:
        return None
    return after.cpu_s["PostgreSQL"] - before.cpu_s["PostgreSQL"]


def _psql() -> str:
    inside = program("psql")
    found = str(inside) if inside.exists() else shutil.which("psql")
    if not found:
        raise BenchError("there is no psql")
    return found


def _children_s() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def _fill(n_samples: int, seconds: float, client_s: float, postgres_s: float | None) -> Fill:
    postgres_us = None if postgres_s is None else 1e6 * postgres_s / n_samples
    return Fill(n_samples / seconds, 1e6 * client_s / n_samples, postgres_us)


async def measure(
    dsn: str, pids: dict[str, int], folder: Path, options: argparse.Namespace
) -> tuple[dict[str, list[Fill]], int]:
    """Let both ways write in turn; return what they took, and how many samples are not there once."""
    async with recording(folder / "schema", dsn):  # makes the tables
        pass
    connection = await asyncpg.connect(dsn)
    if await connection.fetchval(HAS_ROWS):  # they would be deleted
        raise BenchError("--database-url: expected a database without samples")
    found: dict[str, list[Fill]] = {"psql \\copy": [], "Zander": []}
    n_lost = 0
    for _ in range(options.rounds):
        samples, file = Samples(options), folder / "rows"
        await write_rows(folder / "rows-journal", samples, file)
        await connection.execute(EMPTIED)
        if await is_hypertable(connection, "raw_eeg"):
            await connection.execute(AS_HYPERTABLE)
        await _checkpoint(connection)
        found["psql \\copy"].append(await by_psql(file, dsn, pids, samples.n))
        n_lost += await _lost(connection, "copied", samples)
        file.unlink()
        await _checkpoint(connection)
        found["Zander"].append(await by_zander(folder / "journal", dsn, pids, samples))
        n_lost += await _lost(connection, "raw_eeg", samples)
    await connection.close()
    return found, n_lost


async def _checkpoint(connection: asyncpg.Connection) -> None:
    """Let neither way write what the other has left to be written, where the role may."""
    with suppress(asyncpg.InsufficientPrivilegeError):
        await connection.execute("CHECKPOINT")


def _median(fills: list[Fill]) -> Fill:
    postgres_us = [fill.postgres_us for fill in fills if fill.postgres_us is not None]
    return Fill(
        median(fill.samples_per_s for fill in fills),
        median(fill.client_us for fill in fills),
        median(postgres_us) if postgres_us else None,
    )


async def _lost(connection: asyncpg.Connection, table: str, samples: Samples) -> int:
    n, n_distinct = await connection.fetchrow(HELD.format(table=table), samples.session_ids)
    return int(abs(samples.n - n_distinct) + n - n_distinct)


def main() -> int:
    """Run the bench."""
    options = arguments()
    if IS_DEBUG or WHY_NOT:
        raise BenchError(f"the native path is not there, or a debug build: {WHY_NOT}")
    print(machine())
    print(f"{options.samples} samples × {options.channels} channels of {options.sessions} sessions\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="zander-bench-") as directory:
        folder = Path(directory)
        folder.chmod(0o755)  # PostgreSQL has an account of its own when we are root
        if options.database_url:
            found, n_lost = asyncio.run(measure(options.database_url, {}, folder, options))
        else:
            with Postgres(folder) as postgres:
                found, n_lost = asyncio.run(measure(postgres.dsn, {"PostgreSQL": postgres.pid or 0}, folder, options))
    middle = {name: _median(fills) for name, fills in found.items()}
    print(lines({name: fill.cells() for name, fill in middle.items()}))
    print(f"\n{n_lost} of {options.rounds * 2 * options.samples} samples were lost" if n_lost else "\nnothing lost")
    save(options.json, {name: [fill._asdict() for fill in fills] for name, fills in found.items()})
    return 1 if n_lost else 0


if __name__ == "__main__":
    run(main)
