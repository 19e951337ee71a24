"""A node's disk that can be filled: a small tmpfs where mounting is possible, else a limit on the size of files."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil

SIZE_MIB = 96
CLONE_NEWNS = 0x00020000

_private = False


class Disk(Protocol):
    """Where a node keeps its data."""

    folder: Path
    pid: int | None  # of the node

    def fill(self) -> None:
        """Leave no room."""

    def free(self) -> None:
        """Make room again."""

    def close(self) -> None:
        """Let go of it."""


class Tmpfs:
    """A small file system in memory; a file of ballast fills it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pid: int | None = None
        self._ballast = folder / "ballast"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "chaos", folder], check=True)

    def fill(self) -> None:
        with open(self._ballast, "wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 16))

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)


class Limited:
    """A folder whose node may write to no file: EFBIG where a full disk says ENOSPC."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pid: int | None = None
        folder.mkdir()

    def fill(self) -> None:
        self._limit(0)

    def free(self) -> None:
        self._limit(resource.RLIM_INFINITY)

    def close(self) -> None:
        """Nothing to let go of."""

    def _limit(self, n_bytes: int) -> None:
        if self.pid is not None:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(self.pid).rlimit(psutil.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))


def mount_privately() -> None:
    """Where it is allowed, give this process mounts of its own, which end with it. Before any thread is started."""
    global _private  # noqa: PLW0603 - a fact about the process
    if sys.platform != "linux" or os.geteuid() != 0:
        return
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) == 0:
        _private = subprocess.run(["mount", "--make-rprivate", "/"], check=False).returncode == 0


def disk(folder: Path) -> Disk:
    """Make the better disk that this machine allows."""
    return Tmpfs(folder) if _private else Limited(folder)
