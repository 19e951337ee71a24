"""Cursor of one subscriber: the next sample that it is owed, in each session it has been in."""

from __future__ import annotations

from zander.positions import CursorPosition

MAX_SESSIONS = 64  # whose positions are remembered: one session may be resumed after another


class Cursor(CursorPosition):
    """`position` in `session_id` is the next sample owed; None before the first session.

    A session that begins or goes on while the subscriber is there is entered where its relay begins, or where the
    subscriber left it.
    """

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self.session_id = None
        self.position = 0
        self._left: dict[str, int] = {}  # positions in other sessions, the one left longest ago first

    def seek(self, session_id: str, position: int) -> None:
        """Go to a position; nothing of what lies before it is owed."""
        if self.session_id not in (None, session_id):
            self._left[str(self.session_id)] = self.position
            if len(self._left) > MAX_SESSIONS:
                del self._left[next(iter(self._left))]
        self._left.pop(session_id, None)
        self.session_id, self.position = session_id, position

    def enter(self, session_id: str, position: int) -> None:
        """Go to where the subscriber left a session, or to `position` in one where it never was."""
        if session_id != self.session_id:
            self.seek(session_id, self._left.get(session_id, position))

    def position_in(self, session_id: str) -> int | None:
        """Return the position in a session; None: the subscriber was never in it."""
        return self.position if session_id == self.session_id else self._left.get(session_id)
