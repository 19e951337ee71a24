"""Damage to files."""

from __future__ import annotations

from pathlib import Path


def damage(path: Path, at: int) -> None:
    """Flip all bits of the byte at `at`; a negative one counts from the end."""
    with path.open("r+b") as file:
        at = file.seek(at, 0 if at >= 0 else 2)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0xFF]))
