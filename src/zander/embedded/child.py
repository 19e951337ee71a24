"""A child process that ends when this process ends, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import IO, NamedTuple

LAUNCHER = Path(__file__).with_name("launcher.py")

# Nothing of our own environment: it may hold keys, and locales that the program does not have.
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}


class Account(NamedTuple):
    """The numbers of an unprivileged account."""

    uid: int
    gid: int


class Child:
    """A running program, in a session of its own (Ctrl-C in our terminal reaches us alone).

    On Linux the kernel sends it `orphan_signal` when we die, or rather when the *thread* that forked it ends:
    so each child has a thread that forks it, reaps it and ends with it, and a `Child` may be made anywhere.
    Elsewhere there is no such signal, and the program outlives a killed parent.
    """

    def __init__(
        self,
        command: list[str],
        *,
        orphan_signal: signal.Signals,
        output: IO[bytes],
        stdin: IO[bytes] | None = None,
        account: Account | None = None,
        environment: Mapping[str, str] = ENVIRONMENT,
    ) -> None:
        self.command = command
        self.ended = threading.Event()
        self.returncode: int | None = None  # negative after a signal, as in subprocess
        who = f"{account.uid}:{account.gid}" if account else ""
        bound = [str(LAUNCHER), str(os.getpid()), str(int(orphan_signal)), who, *command]
        forked: Future[subprocess.Popen[bytes]] = Future()
        threading.Thread(target=self._live, args=(bound, output, stdin, environment, forked), daemon=True).start()
        self._process = forked.result()
        self.pid = self._process.pid  # the launcher's, which becomes the program's

    def send(self, number: signal.Signals) -> None:
        """Send a signal, or do nothing if the program has ended."""
        if not self.ended.is_set():
            self._process.send_signal(number)

    def stop(self, number: signal.Signals, patience_s: float = 10.0) -> None:
        """Send a signal, wait for the end, and kill what has not ended after `patience_s`."""
        self.send(number)
        if not self.ended.wait(patience_s):
            self.send(signal.SIGKILL)
            self.ended.wait()

    def _live(
        self,
        bound: list[str],
        output: IO[bytes],
        stdin: IO[bytes] | None,
        environment: Mapping[str, str],
        forked: Future[subprocess.Popen[bytes]],
    ) -> None:
        """Fork, and wait for the end: the whole life of the thread."""
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", *bound],
                stdin=stdin or subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",  # a directory that every account may enter
                env=environment,
                start_new_session=True,
            )
        except BaseException as error:
            forked.set_exception(error)
            return
        forked.set_result(process)
        self.returncode = process.wait()
        self.ended.set()
