"""Which session a relay gets: a new one, the one it had here, or the one that only the database knows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from uuid import uuid4

from zander.delivery.outbox import Outbox
from zander.errors import Unavailable
from zander.hub.interfaces import Archive, Broadcast
from zander.streams.session import Session, resumed
from zander.streams.stream import Stream
from zander.wire.codec import dumps
from zander.wire.messages import Auth, DeviceInfo

Held = Callable[[], Stream | None]

TURNS = 4  # of the loop, in which the end of a connection is noticed that has come already
ADMISSION_SECONDS = 10.0  # a relay that waits for an answer must be more patient: later it may be elsewhere


class Admission:
    """Finds sessions. Raising a session's fence in the database is what takes it over from another node."""

    def __init__(self, archive: Archive, broadcast: Broadcast) -> None:
        self._archive = archive
        self._broadcast = broadcast
        self._comers: dict[str, list[Outbox]] = {}  # relays whose session is being asked for, in the order they came

    async def session(self, auth: Auth, device: DeviceInfo, held: Held, now_us: int, relay: Outbox) -> Session:
        """Return the session that a relay asks for; `held` tells what this node has of its user, now.

        BadMessage when its device is another by now, Forbidden for another user's session. Unavailable when the
        database has to be asked and is away, or when the relay has gone meanwhile or a newer one has come.
        """
        comers = self._comers.setdefault(auth.user_id, [])
        comers.append(relay)
        try:
            async with asyncio.timeout(ADMISSION_SECONDS):
                await _read_on()
                if relay.closed.done():
                    raise Unavailable("it has gone")
                session = await self._find(auth, device, held, now_us)
        except TimeoutError:
            raise Unavailable("the database does not answer") from None
        finally:
            is_newest = relay in comers
            del comers[: comers.index(relay) + 1 if is_newest else 0]  # and those who came before
            if not comers:
                self._comers.pop(auth.user_id, None)
        if not is_newest or relay.closed.done():
            raise Unavailable("a newer relay of the user has come")
        return session

    async def _find(self, auth: Auth, device: DeviceInfo, held: Held, now_us: int) -> Session:
        if auth.session_id is None:
            return Session(auth.user_id, str(uuid4()), now_us, device, auth.device_info)
        session_id = str(auth.session_id)
        stream = held()
        is_here = stream is not None and stream.session.session_id == session_id
        if stream and is_here and not await self._is_elsewhere(stream) and held() is stream:  # still
            return stream.session
        return await self._resumed(auth, device, session_id, now_us)

    async def _is_elsewhere(self, held: Stream) -> bool:
        """Ask the database, while Redis is away, whether another node has taken a session over."""
        if self._broadcast.state == "down":
            with suppress(Unavailable):
                stored = await self._archive.session(held.session.session_id)
                return stored is not None and stored.fence > held.session.fence
        return False

    async def _resumed(self, auth: Auth, device: DeviceInfo, session_id: str, now_us: int) -> Session:
        stored = await self._archive.resume(auth.user_id, session_id, now_us, dumps(auth.device_info))
        session = resumed(stored, device)
        if session.n_channels is None:  # the device does not say, but what it has sent does
            for chunk in await self._archive.samples(stored, stored.durable_position - 1, 1):
                session.n_channels = chunk.samples.shape[1]
        await _read_on()
        return session


async def _read_on() -> None:
    """Let what waits in the sockets be read: after this process was frozen, a relay's end may be among it."""
    for _ in range(TURNS):
        await asyncio.sleep(0)
