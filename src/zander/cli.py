"""The `zander` command. Each command imports what it needs when it runs, so that all of them start quickly.

Exits with 0 when all is well or after Ctrl-C, 1 when the work failed, 2 when it could not begin: a setting, a
file or the command line is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from zander.errors import SettingsError, ZanderError

Number = TypeVar("Number", int, float)

URL = "ws://127.0.0.1:8000"
FORMATS = ("sample", "chunk", "binary")
TYPES = ("features", "raw", "prediction", "gap", "status")


class Failure(Exception):
    """Ends the command with a sentence and an exit code."""

    def __init__(self, sentence: str, code: int = 1) -> None:
        super().__init__(sentence)
        self.code = code


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit code."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character shows another
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # `zander watch | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SettingsError as error:
        return _complain(str(error), 2)
    except Failure as failure:
        return _complain(str(failure), failure.code)
    except ZanderError as error:
        return _complain(str(error), 1)
    return 0


def _complain(sentence: str, code: int) -> int:
    print(f"zander: {sentence}", file=sys.stderr)
    return code


# The commands.


def _serve(options: argparse.Namespace) -> None:
    with _extra("server"):
        from zander.embedded.postgres import EmbeddedPostgresError  # noqa: PLC0415
        from zander.server import serve  # noqa: PLC0415
        from zander.settings import load  # noqa: PLC0415
        from zander.workers import supervise  # noqa: PLC0415

    settings = load()
    try:
        if options.workers == 1:
            serve(settings)
        else:
            supervise(settings, options.workers)
    except EmbeddedPostgresError as error:
        raise Failure(str(error), 2) from None
    except OSError as error:
        raise Failure(f"cannot start: {error}", 2) from None


def _relay(options: argparse.Namespace) -> None:
    from zander.client import SpoolError  # noqa: PLC0415
    from zander.sources.edf import Recording, RecordingError, example  # noqa: PLC0415
    from zander.terminal.relay import RelayOptions, relay  # noqa: PLC0415

    try:
        recording = example() if options.sample else Recording(options.file)
    except RecordingError as error:
        raise Failure(str(error), 2) from None
    with recording:
        given = vars(options) | {"key": options.key or _key("EDGE_API_KEY")}
        try:
            _run(relay(recording, RelayOptions(**{name: given[name] for name in RelayOptions._fields})))
        except SpoolError as error:
            raise Failure(str(error), 2) from None


def _watch(options: argparse.Namespace) -> None:
    from zander.terminal.watch import WatchOptions, watch  # noqa: PLC0415

    given = vars(options) | {"key": options.key or _key("CONSUMER_API_KEY", "EDGE_API_KEY")}
    _run(watch(WatchOptions(**{name: given[name] for name in WatchOptions._fields})))


def _dsn(_: argparse.Namespace) -> None:
    print(_database())


def _sql(options: argparse.Namespace) -> None:
    with _extra("server"):
        from zander.database.sql import print_query  # noqa: PLC0415

    _run(print_query(_database(), options.query, sys.stdout))


def _migrate(_: argparse.Namespace) -> None:
    with _extra("server"):
        from zander.database.hypertables import convert_at  # noqa: PLC0415
        from zander.database.maintenance import index_at, migrate_at  # noqa: PLC0415
        from zander.settings import load  # noqa: PLC0415

    dsn, settings = _database(), load()
    applied = asyncio.run(migrate_at(dsn))
    print("\n".join(f"applied {name}" for name in applied) or "nothing to apply: the database is up to date")
    say = partial(print, flush=True)
    after = (settings.retention_days, settings.columnstore_after_hours, settings.chunk_hours)
    _run(convert_at(dsn, *after, say))
    _run(index_at(dsn, say))


# What they share.


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Import modules that need an extra of the distribution; Failure says to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "zander").startswith("zander"):
            raise
        raise Failure(f"{error.name} is not installed: install `zander-eeg[{name}]`", 2) from None


def _database() -> str:
    """Return where the database is: the one that is set, or the one that a node keeps in its data directory."""
    with _extra("server"):
        from zander.database.address import plain_dsn  # noqa: PLC0415
        from zander.embedded import postgres as embedded  # noqa: PLC0415
        from zander.settings import load  # noqa: PLC0415

    settings = load()
    if settings.database_url:
        return plain_dsn(settings.database_url)
    if found := embedded.dsn(settings.data_dir):
        return found
    where = settings.data_dir.resolve()
    raise Failure(f"no DATABASE_URL is set, and no `zander serve` keeps a database in {where} now")


def _key(*variables: str) -> str | None:
    """Return the first key of the first variable that is set, in the environment or in `.env`."""
    from zander.variables import first_value  # noqa: PLC0415

    return first_value(*variables).split(",")[0].strip() or None


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end, or until SIGINT or SIGTERM: then the work is cancelled and takes its leave."""

    async def cancellable() -> None:
        task = asyncio.ensure_future(work)
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(NotImplementedError):  # not on Windows; there Ctrl-C is a KeyboardInterrupt
                asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(cancellable())


# The command line.


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zander", description="A broker for live EEG: takes it from relays, gives it to consumers, and stores it."
    )
    parser.add_argument("--version", action="version", version=f"zander {version('zander-eeg')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_serve(commands.add_parser("serve", help="run the server"))
    _add_relay(commands.add_parser("relay", help="stream an EDF or BDF recording, as a relay streams a headset"))
    _add_watch(commands.add_parser("watch", help="show a user's stream in the terminal"))
    _add_sql(commands.add_parser("sql", help="show what a query finds in the database"))
    commands.add_parser("dsn", help="print the address of the database, for psql").set_defaults(command=_dsn)
    _add_migrate(commands.add_parser("migrate", help="bring the database's tables up to date"))
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.description = "Runs the server. Everything else is set in the environment or in .env."
    parser.add_argument("--workers", type=_above(int), default=1, metavar="N", help="processes that share the port (1)")
    parser.set_defaults(command=_serve)


def _add_relay(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.description = "Streams a recording at its own pace, in µV. Ctrl-C ends it."
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("file", nargs="?", type=Path, metavar="FILE", help="an EDF or BDF file")
    source.add_argument("--sample", action="store_true", help="the recording that pyedflib ships: Fp1, 128 Hz")
    add("--user", dest="user_id", default="me", metavar="USER", help="whose stream it is (me)")
    _add_connection(parser, "EDGE_API_KEY")
    add("--format", choices=FORMATS, default="sample", help="a message per sample (the default), or in chunks")
    add("--speed", type=_above(float), default=1.0, metavar="X", help="10: ten times as fast (1)")
    add("--loop", action="store_true", help="begin again at the end")
    add(
        "--features",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="send band powers once per second of the recording (yes)",
    )
    add("--spool", type=Path, metavar="DIR", help="keep what is not stored yet in DIR: a relay started again goes on")
    add("--spool-mib", type=_above(float), default=64.0, metavar="N", help="how much to keep, there or in memory (64)")
    parser.set_defaults(command=_relay)


def _add_watch(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.description = (
        "Shows a user's stream: a screen in a terminal, else a line a second. Ctrl-C ends it. The latency is from"
        " the time of a message's newest sample to its arrival here, so both ends need the same clock."
    )
    add("user_id", nargs="?", default="me", metavar="USER", help="whose stream (me)")
    _add_connection(parser, "CONSUMER_API_KEY, else EDGE_API_KEY")
    add("--types", type=_types, default=(), help=f"comma-separated, of {', '.join(TYPES)} (all)")
    add("--last", type=_above(int), default=0, metavar="N", help="show the last N buffered samples first")
    parser.set_defaults(command=_watch)


def _add_sql(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Runs a query on the database that `zander dsn` names, read-only, and prints its rows as psql does."
    )
    parser.add_argument("query", metavar="QUERY", help="SELECT, VALUES, TABLE or WITH; name the user, it is quicker")
    parser.set_defaults(command=_sql)


def _add_migrate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Brings the database's tables up to date, as a server does at its start, and makes hypertables of plain tables"
        " that have many rows, where TimescaleDB was added later. A server leaves that to this command: it takes"
        " about a minute for 10 million samples, and nobody reads or writes them meanwhile."
    )
    parser.set_defaults(command=_migrate)


def _add_connection(parser: argparse.ArgumentParser, variables: str) -> None:
    parser.add_argument("--url", type=_url, default=URL, help=f"the server ({URL})")
    parser.add_argument("--key", help=f"better, since others see a command line: the variable {variables}")
    parser.add_argument("--seconds", type=_above(float), metavar="S", help="end after S seconds")


def _above(kind: Callable[[str], Number]) -> Callable[[str], Number]:
    """Read a number above 0."""

    def read(text: str) -> Number:
        try:
            number = kind(text)
        except ValueError:
            number = kind("0")
        if not isfinite(number) or number <= 0:
            raise argparse.ArgumentTypeError(
                f"expected a {'whole number' if kind is int else 'number'} above 0, got {text!r}"
            )
        return number

    return read


def _url(text: str) -> str:
    if not text.startswith(("ws://", "wss://", "http://", "https://")):
        raise argparse.ArgumentTypeError(f"expected {URL} or the like, got {text!r}")
    return text


def _types(text: str) -> tuple[str, ...]:
    """Read types; the server would refuse an unknown one, but only once it is reached."""
    types = tuple(part.strip() for part in text.split(","))
    if unknown := [name for name in types if name not in TYPES]:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(TYPES)}, got {', '.join(unknown)!r}")
    return types
