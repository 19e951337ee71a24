"""Whose a spool's folder is: which user's, which device's, which session's, and which process's now."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from zander.errors import ZanderError
from zander.lock import FileLock


class SpoolError(ZanderError):
    """The folder cannot be this relay's spool; the message says why."""


class Card:
    """A small file in the folder, and a lock: one process at a time has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "session.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / "lock")
        except BlockingIOError:
            raise SpoolError(f"{folder}: another relay uses this spool now") from None
        except OSError as error:
            raise SpoolError(f"{folder}: {error.strerror}") from None

    def read(self) -> dict[str, Any]:
        """Return what was written last, nothing if there is none."""
        try:
            card: dict[str, Any] = orjson.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, orjson.JSONDecodeError) as error:
            self.close()
            raise SpoolError(f"{self._path}: expected a spool's card, got: {error}") from None
        return card

    def write(self, card: Mapping[str, Any]) -> None:
        """Replace it: a kill at any moment leaves the one or the other."""
        new = self._path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(orjson.dumps(card))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)

    def close(self) -> None:
        """Let another process have it."""
        self._lock.release()
