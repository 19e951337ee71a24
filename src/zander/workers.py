"""`zander serve --workers N`: N nodes on one port, each a process of its own, joined over Redis like any others.

The kernel spreads connections over the sockets that share the port. A worker that ends is replaced; all end with the
supervisor, even when that is killed.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time

import msgspec

from zander.app import create_app
from zander.embedded.child import Child
from zander.errors import SettingsError
from zander.journal.journal import FOLDER
from zander.server import Server, configure_logging, database, greeting, listen, raise_file_limit, require_folder
from zander.settings import Settings, environment, load

STOP_SECONDS = 15.0
RESTART_SECONDS = 1.0  # between the end of a worker and its replacement, so that a hopeless start does not spin

log = logging.getLogger(__name__)


def supervise(settings: Settings, n_workers: int) -> None:
    """Keep `n_workers` nodes running until SIGTERM or SIGINT; SettingsError without REDIS_URL, or without the port."""
    if settings.redis_url is None:
        raise SettingsError("REDIS_URL: --workers needs it, the workers are nodes that find each other over Redis")
    configure_logging(settings)
    require_folder(settings.data_dir / FOLDER)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    # Bound, but not listening: it keeps the port ours, and no connection comes to it.
    with listen(settings.host, settings.port, shared=True) as reserved, database(settings) as complete:
        port = reserved.getsockname()[1]
        variables = os.environ | environment(msgspec.structs.replace(complete, port=port))
        workers = [_start(variables) for _ in range(n_workers)]
        if _listening(settings.host, port, workers, stopping):
            print(greeting(settings, reserved), end="", file=sys.stderr, flush=True)
        while not stopping.wait(RESTART_SECONDS):
            workers = [_start(variables, worker) if worker.ended.is_set() else worker for worker in workers]
        _stop(workers)


def work() -> None:
    """Be one of the workers: serve with the supervisor's settings, on a port that is shared."""
    settings = load(env_file=None)
    configure_logging(settings)
    raise_file_limit()
    with listen(settings.host, settings.port, shared=True) as listener:
        Server(create_app(settings)).run([listener])


def _start(variables: dict[str, str], ended: Child | None = None) -> Child:
    if ended:
        log.error("worker %d ended with %d, starting another", ended.pid, ended.returncode)
    command = [sys.executable, "-m", "zander.workers"]
    return Child(command, orphan_signal=signal.SIGTERM, output=sys.stderr.buffer, environment=variables)


def _listening(host: str, port: int, workers: list[Child], stopping: threading.Event) -> bool:
    """Wait until a worker takes connections; False when they end or we are stopped first."""
    while not stopping.wait(0.05) and not all(worker.ended.is_set() for worker in workers):
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            continue
        return True
    return False


def _stop(workers: list[Child]) -> None:
    for worker in workers:
        worker.send(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    for worker in workers:
        worker.stop(signal.SIGTERM, max(0.1, deadline - time.monotonic()))


if __name__ == "__main__":
    work()
