"""Session lookup for a connecting relay: a new session, the one this node holds, or one resumed from the database."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from uuid import uuid4

from zander.delivery.outbox import Outbox
from zander.errors import Forbidden, Unavailable
from zander.hub.interfaces import Peers, SessionStore
from zander.streams.session import MAX_AGE_US, Session, resumed
from zander.streams.stream import Stream, Streams
from zander.wire.chunk import Chunk
from zander.wire.codec import dumps
from zander.wire.messages import Auth, DeviceInfo

LOOP_ITERATIONS = 4  # in which the end of a connection is noticed that has come already
LOOKUP_SECONDS = 10.0  # a relay that waits for an answer must be more patient: later it may be elsewhere


class SessionLookup:
    """Lookup of sessions. Raising a session's fence in the database takes it over from another node."""

    def __init__(self, streams: Streams, store: SessionStore, peers: Peers, max_age_us: int = MAX_AGE_US) -> None:
        self._streams = streams
        self._store = store
        self._peers = peers
        self._max_age_us = max_age_us
        self._waiting: dict[str, list[Outbox]] = {}  # by user, relays whose session is being looked up, oldest first

    async def session(self, auth: Auth, device: DeviceInfo, now_us: int, relay: Outbox) -> Session:
        """Return the session that a relay asks for.

        BadMessage when its device is another by now, Forbidden for another user's session. Unavailable when the
        database has to be asked and is away, or when the relay has gone meanwhile or a newer one has come.
        """
        waiting = self._waiting.setdefault(auth.user_id, [])
        waiting.append(relay)
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                await _read_on()
                if relay.closed.done():
                    raise Unavailable("it has gone")
                session = await self._find(auth, device, now_us)
        except TimeoutError:
            raise Unavailable("the database does not answer") from None
        finally:
            if is_newest := relay in waiting:
                at = waiting.index(relay)
                del waiting[at if relay.closed.done() else 0 : at + 1]  # and those who came before, unless it has gone
            if not waiting:
                self._waiting.pop(auth.user_id, None)
        if not is_newest or relay.closed.done():
            raise Unavailable("a newer relay of the user has come")
        return session

    async def _find(self, auth: Auth, device: DeviceInfo, now_us: int) -> Session:
        if auth.session_id is None:
            who = (auth.user_id, str(uuid4()), now_us)
            return Session(*who, device, auth.device_info, max_age_us=self._max_age_us)
        session_id = str(auth.session_id)
        if self._owner(session_id) not in (None, auth.user_id):
            raise Forbidden(f"expected a session of user {auth.user_id}, got {session_id}")
        stream = self._held(auth.user_id)
        is_here = stream is not None and stream.session.session_id == session_id
        if stream and is_here and not await self._is_elsewhere(stream) and self._held(auth.user_id) is stream:  # still
            return stream.session
        return await self._resumed(auth, device, session_id, now_us)

    def _owner(self, session_id: str) -> str | None:
        """Return whose session it is: it may be on a node, and not in the database yet."""
        if held := self._streams.of_session(session_id):
            return held.session.user_id
        return self._peers.user_of(session_id)

    def _held(self, user_id: str) -> Stream | None:
        """Return what this node holds of a user."""
        return self._streams.get(user_id)

    async def _is_elsewhere(self, held: Stream) -> bool:
        """Ask the database, while Redis is away, whether another node has taken a session over."""
        if self._peers.state == "down":
            with suppress(Unavailable):
                stored = await self._store.session(held.session.session_id)
                return stored is not None and stored.fence > held.session.fence
        return False

    async def _resumed(self, auth: Auth, device: DeviceInfo, session_id: str, now_us: int) -> Session:
        stored = await self._store.resume(auth.user_id, session_id, now_us, dumps(auth.device_info))
        session = resumed(stored, device, self._max_age_us)
        if session.n_channels is None:  # the device does not say, but what it has sent does
            for item in await self._store.samples(stored, stored.durable_position - 1, 1):
                session.n_channels = item.samples.shape[1] if isinstance(item, Chunk) else None
        await _read_on()
        return session


async def _read_on() -> None:
    """Let what waits in the sockets be read: after this process was frozen, a relay's end may be among it."""
    for _ in range(LOOP_ITERATIONS):
        await asyncio.sleep(0)
