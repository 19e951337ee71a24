"""`zander serve`: the socket, the process that serves it, how it says hello and how it takes its leave."""

from __future__ import annotations

import asyncio
import gc
import logging
import logging.config
import resource
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from time import monotonic

import msgspec
import uvloop
from starlette.applications import Starlette

from zander.app import create_app
from zander.errors import CloseCode, SettingsError
from zander.journal.journal import FOLDER
from zander.native import IS_NATIVE, WHY_NOT
from zander.settings import Settings
from zander.wire.listener import Listener

ACK_SECONDS = 2.0  # of the 15 s that a stop may take, to write what waits and tell the relays
CLOSE_SECONDS = 4.0  # then for the sockets; the database has its own in app.py
CUT_SECONDS = 2  # then those that did not close are cut
UNREAD_MILLISECONDS = 60_000  # after which the kernel cuts a peer that acknowledges nothing or keeps its window shut

log = logging.getLogger(__name__)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; SettingsError when the port cannot be had."""
    configure_logging(settings)
    raise_file_limit()
    require_folder(settings.data_dir / FOLDER)
    with listen(settings.host, settings.port) as listener, database(settings) as complete:
        Server(create_app(complete), greeting(settings, listener)).run([listener])


def raise_file_limit() -> None:
    """Let this process hold as many sockets as it may: shells usually give 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS says "unlimited" and means less
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def require_folder(folder: Path) -> None:
    """Make sure that the journal has its place; SettingsError when the folder cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SettingsError(f"DATA_DIR: cannot write to {folder.resolve()}: {error.strerror}") from None


@contextmanager
def database(settings: Settings) -> Iterator[Settings]:
    """Return the settings with a database: the one that is set, or one of our own while the block runs."""
    if settings.database_url:
        yield settings
        return
    from zander.embedded.postgres import Postgres  # noqa: PLC0415 - not everywhere, and not needed with a DATABASE_URL

    with Postgres(settings.data_dir) as postgres:
        yield msgspec.structs.replace(settings, database_url=postgres.dsn)


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Bind the port; `shared` lets several processes listen on it, and the kernel spread what comes."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; accepted sockets inherit it
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MILLISECONDS)
        listener.bind(address)
    except OSError as error:
        raise SettingsError(f"HOST and PORT: cannot listen on {host}:{port}: {error.strerror}") from None
    listener.setblocking(False)
    return listener


class Server:
    """The process's server: an app from its start to its end, with a word to the operator and a drain."""

    def __init__(self, app: Starlette, greeting: str = "") -> None:
        self.started = False
        self.listener: Listener
        self._app = app
        self._greeting = greeting
        self._stopping: asyncio.Event
        self.loop: asyncio.AbstractEventLoop

    def run(self, sockets: list[socket.socket]) -> None:
        """Serve until SIGTERM, SIGINT or `stop`."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve(sockets))

    def stop(self) -> None:
        """End as SIGTERM does; from any thread, and once more does nothing."""
        with suppress(RuntimeError):  # it has ended, and its loop is closed
            self.loop.call_soon_threadsafe(self._stopping.set)

    async def _serve(self, sockets: list[socket.socket]) -> None:
        self.loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.loop.add_signal_handler(number, self._stopping.set)
        async with self._app.router.lifespan_context(self._app):
            self.listener = Listener(self._app)
            self.listener.begin(sockets)
            _spare_the_collector()
            print(self._greeting, end="", file=sys.stderr, flush=True)
            self.started = True
            await self._stopping.wait()
            await self._close()

    async def _close(self) -> None:
        """Accept nobody, close every WebSocket with 1012 after its outbox, and answer the last requests.

        What waits for the database is written first, so that relays hear of it and send less again elsewhere.
        """
        began = monotonic()
        self.listener.end()
        service = self._app.state.service
        await service.recorder.drain(ACK_SECONDS)
        closing = monotonic()
        await service.hub.close_all(CLOSE_SECONDS)
        for connection in list(self.listener.open):  # that nobody has authenticated on
            await connection.close(CloseCode.RESTART)
        while self.listener.open and monotonic() - closing < CLOSE_SECONDS:  # noqa: ASYNC110 - nobody else asks for it
            await asyncio.sleep(0.02)  # cut before it answers our close, a peer might never read it
        if self.listener.tasks:
            await asyncio.wait(self.listener.tasks, timeout=CUT_SECONDS)
        await self.listener.close()
        log.info("stopped in %.1f s", monotonic() - began)


def _spare_the_collector() -> None:
    """Leave what was built at the start out of garbage collections, and make the full ones rare.

    They stand for the tail of the latency: 30 to 50 ms each at 100 relays, p99 13 ms without and 41 with them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


def greeting(settings: Settings, listener: socket.socket) -> str:
    """Say where the data is, which keys are in force, and what to try next."""
    port = listener.getsockname()[1]
    own = f"a PostgreSQL of its own in {settings.data_dir.resolve()}"
    keys = f"{len(settings.edge_api_key) or 'none'} for relays, {len(settings.consumer_keys)} for consumers"
    url = f"http://{'localhost' if settings.host == '127.0.0.1' else settings.host}:{port}"
    option = "" if port == 8000 else f" --url ws://localhost:{port}"
    return f"""
  Zander serves {url}   (API: {url}/docs)
  Data   {"the database of DATABASE_URL" if settings.database_url else own}
  Keys   {keys if settings.consumer_keys else "none: everybody on this machine may, nobody else can"}
  Nodes  {"joined over REDIS_URL" if settings.redis_url else "this one alone"}
  Path   {"native" if IS_NATIVE else f"all Python, two to ten times slower: {WHY_NOT}"}
  Try    zander relay --sample --user me{option}
         zander watch me{option}
         zander sql "SELECT * FROM raw_samples WHERE user_id = 'me' ORDER BY timestamp DESC LIMIT 5"
"""


def configure_logging(settings: Settings) -> None:
    """Log to stderr, a line each; of single connections only from WARNING: those lines hold whole URLs."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"format": "%(asctime)s %(levelname)-7s %(name)s: %(message)s"}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "root": {"level": settings.log_level, "handlers": ["stderr"]},
            "loggers": {"zander.wire": {"level": "WARNING"}},
        }
    )
