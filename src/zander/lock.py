"""A lock between processes: for the journal, a relay's spool and the embedded database."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self


class FileLock:
    """An exclusive lock on a file, from construction to `release`; the system releases it when the process dies."""

    def __init__(self, path: Path) -> None:
        """Take the lock, creating the file if need be; BlockingIOError when another process holds it.

        OSError when the file cannot be opened. There are no such locks on Windows.
        """
        import fcntl  # noqa: PLC0415 - so that the client can be imported on Windows

        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(self._fd)
            raise

    def write(self, text: str) -> None:
        """Replace what the file says, for instance of who holds it."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text.encode(), 0)

    def rename(self, path: Path) -> Self:
        """Give the locked file its final name: under that name nobody ever finds it unlocked."""
        self.path = self.path.rename(path)
        return self

    def release(self, *, remove: bool = False) -> None:
        """Let another process take the lock; with `remove`, delete the file first."""
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)
