"""The positions that samples move: of a session, a ring and a cursor.

They are base classes. The native ones hold the same numbers, which the native path moves without a call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zander.native import IS_NATIVE

if TYPE_CHECKING or IS_NATIVE:
    from zander._native import CursorPosition, RingPosition, SessionPosition, Shortcut
else:

    class SessionPosition:
        """Positions of a session, after its last sample."""

        __slots__ = ("count", "last_time_us", "n_clamped", "next_position")

    class RingPosition:
        """Position of a ring: how much it was written, and where that ended."""

        __slots__ = ("n_written", "next_position")

    class CursorPosition:
        """Position of a cursor: the next sample that a subscriber is owed."""

        __slots__ = ("position", "session_id")

    class Shortcut:
        """A subscriber's cursor, and the way past its queue; there is none here."""


__all__ = ["CursorPosition", "RingPosition", "SessionPosition", "Shortcut"]
