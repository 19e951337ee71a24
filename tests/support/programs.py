"""`zander serve` as a program of its own, for what only a process can show: signals, kills, its exit and its log."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

from support.nodes import Http
from support.services import eventually
from zander.embedded.child import Child

# Of this environment, what a program gets that is started without settings; `make coverage` counts it all the same.
BARE = {name: value for name, value in os.environ.items() if name == "PATH" or name.startswith("COVERAGE_")}


class Program(Http):
    """A running `zander serve`; it dies with the test run. `max_files`: as many files as it may have open, at most."""

    def __init__(self, *arguments: str, max_files: Any = None, **variables: Any) -> None:
        self._log = tempfile.NamedTemporaryFile(prefix="zander-log-")  # noqa: SIM115 - lives as long as the program
        self._folder = tempfile.TemporaryDirectory(prefix="zander-data-")
        given = {"DATA_DIR": self._folder.name} | {name.upper(): str(value) for name, value in variables.items()}
        self._child = Child(
            [*_limited(max_files), sys.executable, "-m", "zander", "serve", *arguments],
            orphan_signal=signal.SIGKILL,
            output=self._log.file,
            environment=BARE | {"PORT": "0"} | given,
        )
        eventually(lambda: self._child.ended.is_set() or "Zander serves" in self.log, 30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.close()
        self._folder.cleanup()

    @property
    def log(self) -> str:
        """All it has written so far."""
        return Path(self._log.name).read_text()

    @property
    def http(self) -> str:
        """Where it serves; an error when it does not."""
        found = re.search(r"Zander serves (http://\S+)", self.log)
        assert found, self.log
        return found[1].replace("localhost", "127.0.0.1")

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def has_ended(self) -> bool:
        return self._child.ended.is_set()

    def terminate(self, patience_s: float = 15.0) -> int:
        """Send SIGTERM, wait for the end, and return the exit code."""
        self._child.send(signal.SIGTERM)
        return self.exit_code(patience_s)

    def exit_code(self, patience_s: float = 15.0) -> int:
        """Wait for the end; an AssertionError when it does not come in time."""
        assert self._child.ended.wait(patience_s), f"still running after {patience_s} s:\n{self.log}"
        assert self._child.returncode is not None
        return self._child.returncode

    def send(self, number: signal.Signals) -> None:
        self._child.send(number)

    def kill(self) -> None:
        """End it at once."""
        self._child.send(signal.SIGKILL)
        self._child.ended.wait()


def _limited(max_files: Any) -> list[str]:
    """Begin a command that has fewer files than we have; not even the server can raise that again."""
    return ["/bin/sh", "-c", f'ulimit -n {max_files} && exec "$@"', "sh"] if max_files else []
