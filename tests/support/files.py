"""Damage to files."""

from __future__ import annotations

from pathlib import Path


def damage(path: Path, at: int) -> None:
    """Overwrite the byte at `at`; a negative one counts from the end."""
    with path.open("r+b") as file:
        file.seek(at, 0 if at >= 0 else 2)
        file.write(b"!")
