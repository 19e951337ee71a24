"""A run: everything that is needed is started, a load generator drives it, and what it takes meanwhile is read."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import psutil

from frames import Load
from parts import BenchError, Program, Subject, peak_bytes, rss_bytes, service, usage, valkey
from zander.embedded.postgres import Postgres, free_port


class House(NamedTuple):
    """A service that runs, and what it runs on."""

    port: int
    dsn: str
    pids: dict[str, int]
    server: Program


@contextmanager
def house(
    subject: Subject,
    database_url: str | None,
    *,
    has_redis: bool,
    has_database: bool = True,
    settings: dict[str, str] | None = None,
) -> Iterator[House]:
    """Run the service with a PostgreSQL, unless there is one, and a Valkey of its own.

    Without a database its URL leads nowhere: all that is taken in stays in the journal.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zander-bench-")))
        directory.chmod(0o755)  # PostgreSQL has an account of its own when we are root
        settings, pids = {"DATA_DIR": str(directory)} | (settings or {}), {}
        if not has_database:
            dsn = f"postgresql://127.0.0.1:{free_port()}/nobody"
        elif database_url:
            dsn = database_url
        else:
            postgres = stack.enter_context(Postgres(directory))
            dsn, pids["PostgreSQL"] = postgres.dsn, postgres.pid or 0
        if has_redis:
            settings["REDIS_URL"], pids["Valkey"] = stack.enter_context(valkey())
        port, server = stack.enter_context(service(subject, settings | {"DATABASE_URL": dsn}, is_whole=has_database))
        yield House(port, dsn, pids | {"server": server.pid}, server)


@contextmanager
def blaming(server: Program) -> Iterator[None]:
    """Add to an error what the server said."""
    try:
        yield
    except (BenchError, OSError, psutil.Error) as error:
        raise BenchError(f"{error or 'the service ended'}\nThe server said:\n{server.said()}") from None


class Course(NamedTuple):
    """How a run went: what was asked and seen when its steady part began, when that ended, and when all had arrived."""

    figures: dict[str, Any]  # the generator's
    answers: tuple[Any, Any, Any]
    took_s: float  # of the steady part
    spent_s: dict[str, float]  # CPU, by part
    shares: dict[str, float]  # of one core
    rss_bytes: int
    peak_bytes: int


def follow(program: list[str], load: Load, pids: dict[str, int], ask: Callable[[], Any]) -> Course:
    """Run a load generator, which gets the load as JSON."""
    with generator(program, load) as process:
        pids = pids | {"generator": process.pid}
        sent_before = _await(process, "steady")
        first, before = ask(), usage(pids)
        sent_after = _await(process, "sent")
        second, after = ask(), usage(pids)
        _await(process, "arrived")
        rss, peak = rss_bytes(pids["server"]), peak_bytes(pids["server"])
        third = ask()
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
        figures = _await(process, "figures")
    took_s = after.at_s - before.at_s
    figures |= _rates(sent_before, sent_after)
    spent_s = {name: cpu_s - before.cpu_s[name] for name, cpu_s in after.cpu_s.items()}
    return Course(figures, (first, second, third), took_s, spent_s, _shares(spent_s, took_s), rss, peak)


def _rates(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Return what the generator has counted a second, by its own clock; nothing where it counts nothing."""
    steady_s = after.pop("at_s", 0.0) - before.pop("at_s", 0.0)
    return {f"{name}_per_s": (n - before[name]) / steady_s for name, n in after.items()}


def drive(program: list[str], load: Load, pids: dict[str, int]) -> dict[str, Any]:
    """Let a load generator drive the service; return its figures, and what the parts took meanwhile."""
    rss_before = rss_bytes(pids["server"])
    course = follow(program, load, pids, lambda: stats(load.port))
    before, after, last = course.answers
    n_samples = after["samples_in"] - before["samples_in"]
    samples_per_s = n_samples / course.took_s
    return course.figures | {
        "samples_per_s": samples_per_s,
        "waiting_s": after["database"]["pending_records"] / max(1.0, samples_per_s),
        "server_us_per_sample": 1e6 * course.spent_s["server"] / max(1, n_samples),
        "cpu_share": course.shares,
        "rss_kib_per_user": (course.rss_bytes - rss_before) / 1024 / load.relays,
        "peak_mib": course.peak_bytes / (1 << 20),
        "served": last.get("consumers", 0),
    }


def _shares(spent_s: dict[str, float], took_s: float) -> dict[str, float]:
    """Return the share of one core that each part took, and all that is no part of the bench."""
    others_s = spent_s["the machine"] - sum(cpu_s for name, cpu_s in spent_s.items() if name != "the machine")
    order = ("server", "generator", "PostgreSQL", "Valkey")
    spent_s = {name: spent_s[name] for name in order if name in spent_s} | {"others": max(0.0, others_s)}
    return {name: cpu_s / took_s for name, cpu_s in spent_s.items()}


@contextmanager
def generator(program: list[str], load: Load) -> Iterator[subprocess.Popen[str]]:
    """Start the load generator, out of reach of a Ctrl-C: it ends with the block."""
    command = [*program, json.dumps(load._asdict())]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _await(process: subprocess.Popen[str], event: str) -> dict[str, Any]:
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        raise BenchError("the load generator ended before its time")
    message: dict[str, Any] = json.loads(line)
    assert message.pop("event") == event
    return message


def stats(port: int) -> dict[str, Any]:
    """Ask the server for its counts."""
    with urlopen(f"http://127.0.0.1:{port}/stats", timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
        return found
