"""A session as the database has it."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from zander.wire.chunk import Origin, period_us


class StoredSession(Struct):
    """A row of `sessions`; times in µs. `end_us` is None until its end is stored, which comes after all its samples."""

    session_id: str
    user_id: str
    start_us: int
    end_us: int | None
    device_info: dict[str, Any]
    durable_position: int
    durable_us: int | None
    fence: int

    @property
    def origin(self) -> Origin:
        """Where its samples come from."""
        return Origin(self.user_id, self.session_id, period_us(self.device_info.get("sampling_rate")))
