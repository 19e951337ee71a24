"""Clock of the server."""

from __future__ import annotations

from time import time


def now_us() -> int:
    """Return the server's time, µs since 1970."""
    return int(time() * 1e6)
