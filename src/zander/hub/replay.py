"""Catching a consumer up to live: from memory, the database or the journal, after a cut or where something was missed.

A consumer gets the rest of the session that its cursor is in, then the user's later sessions from their start, each
after its status. Meanwhile it is not live; features and predictions come from the moment on from which it is. Memory
(the ring of the node that holds the user) and the database join at any position, since its outbox leaves out what
repeats; what neither has any more becomes a gap `lost`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from time import monotonic, thread_time
from typing import NamedTuple, TypeVar

from zander.delivery.outbox import Outbox
from zander.delivery.subscribers import Subscribers, status_note
from zander.errors import ClientError, CloseCode, NotFound, Unavailable
from zander.hub.hub import Hub
from zander.hub.interfaces import RecordSink, SessionStore
from zander.streams.session import StoredSession
from zander.wire.chunk import Chunk, join
from zander.wire.codec import dumps
from zander.wire.messages import Error, Gap, Status

PIECE_SAMPLES = 256  # offered in one loop iteration: 0.5 ms as JSON
PAGE_SAMPLES, PAGE_BYTES = 1024, 256 << 10  # at most, read at once
PENDING_SAMPLES = 1 << 14  # read from the journal at once, which is read from its start each time
REST = 3  # times as long as it took to read or offer: all replays together have a quarter of the loop
PATIENCE_SECONDS = 10.0  # without anything new, until what is missing is given up
POLL_SECONDS = 0.25

log = logging.getLogger(__name__)

T = TypeVar("T")


class Replays:
    """The replays of this node, all together at one pace."""

    def __init__(self, hub: Hub, subscribers: Subscribers, store: SessionStore, sink: RecordSink) -> None:
        self._subscribers = subscribers
        self._sources = Sources(hub, store, sink, Pace())
        self._tasks: dict[Outbox, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Replay to consumers that were sent back, from their cursors, until cancelled."""
        while True:
            outbox = await self._subscribers.sent_back.get()
            if outbox in self._subscribers.behind:  # else it has gone meanwhile
                self._begin(outbox, Replay(self._sources, outbox, is_known=True))

    def start(self, outbox: Outbox, session_id: str, position: int) -> asyncio.Task[None]:
        """Bring a consumer from a position to the live stream; what makes that impossible closes it.

        NotFound when the user has no such session, Unavailable when nobody knows because the database is away.
        """
        outbox.cursor.seek(session_id, position)
        return self._begin(outbox, Replay(self._sources, outbox))

    def stop(self, outbox: Outbox) -> None:
        """Forget a consumer that has gone."""
        if task := self._tasks.pop(outbox, None):
            task.cancel()

    def _begin(self, outbox: Outbox, replay: Replay) -> asyncio.Task[None]:
        self._subscribers.behind.add(outbox)
        self._tasks[outbox] = task = asyncio.create_task(self._run(outbox, replay))
        task.add_done_callback(lambda task: self._tasks.pop(outbox) if self._tasks.get(outbox) is task else None)
        return task

    async def _run(self, outbox: Outbox, replay: Replay) -> None:
        try:
            await replay.run()
        except ClientError as error:
            outbox.say(dumps(Error(error.code, error.message)))
            outbox.close(error.close)
        except Exception:
            outbox.close(CloseCode.TRY_LATER)
            log.exception("a replay has failed")


class Pace:
    """The common pace of all replays of this node, so that the live stream has its turns between theirs."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._n_reading = 0

    async def read(self, page: Awaitable[T]) -> T:
        """Read, and rest; a reading's share of what the loop did meanwhile is taken for what it cost."""
        self._n_reading += 1
        try:
            began_s = thread_time()
            found = await page
            used_s = (thread_time() - began_s) / self._n_reading
        finally:
            self._n_reading -= 1
        async with self._turn:
            await asyncio.sleep(REST * used_s)
        return found

    async def scan(self, pending: Awaitable[T]) -> T:
        """Look through the journal, one after the other, and rest."""
        async with self._turn:
            began_s = thread_time()
            found = await pending
            await asyncio.sleep(REST * (thread_time() - began_s))
        return found

    async def offer(self, outbox: Outbox, item: Chunk | Gap) -> None:
        """Offer a gap, or samples piece by piece, each when the one before it is on its way."""
        if isinstance(item, Gap):
            outbox.preload([item])
            return
        for piece in item.pieces(PIECE_SAMPLES):
            await outbox.emptied()
            async with self._turn:
                began_s = thread_time()
                outbox.queue.encode(piece)
                outbox.preload([piece])
                await asyncio.sleep(REST * (thread_time() - began_s))


class Sources(NamedTuple):
    """Everything that replays read from, and their common pace."""

    hub: Hub
    store: SessionStore
    sink: RecordSink
    pace: Pace


class Replay:
    """One consumer on its way to the live stream; how far it has come, its cursor tells.

    `is_known`: there is such a session, even if the database does not have it yet.
    """

    def __init__(self, sources: Sources, outbox: Outbox, *, is_known: bool = False) -> None:
        self._hub, self._store, self._sink, self._pace = sources
        self._is_known = is_known
        self._outbox = outbox
        self._stored: StoredSession | None = None  # the session of the cursor, once the database has been asked
        self._is_away = False  # the database
        self._later: deque[StoredSession] = deque()  # to be replayed after that
        self._memory_from = 0  # memory does not reach back further
        self._n_samples = PIECE_SAMPLES  # of a page
        self._due_s = monotonic() + PATIENCE_SECONDS

    async def run(self) -> None:
        """Go on until the consumer listens."""
        await self._find()
        self._tell()
        while not await self._to_the_end():
            if await self._enter_next():
                return

    @property
    def _session_id(self) -> str:
        return str(self._outbox.cursor.session_id)

    @property
    def _is_held(self) -> bool:
        """Whether some node has the session in memory."""
        return self._hub.status(self._outbox.user_id).session_id == self._session_id

    @property
    def _is_late(self) -> bool:
        """Whether nothing new came for PATIENCE_SECONDS."""
        return monotonic() >= self._due_s

    async def _find(self) -> None:
        """See whether there is such a session; a new one gets to the database with its first batch."""
        while not self._is_held:
            self._stored = await self._ask(lambda: self._store.session(self._session_id))
            if self._is_known or (self._stored and self._stored.user_id == self._outbox.user_id):
                return
            if self._stored or self._is_late:
                raise NotFound(f"no session {self._session_id} of user {self._outbox.user_id}")
            await asyncio.sleep(POLL_SECONDS)

    def _tell(self) -> None:
        """Tell the consumer which session comes now."""
        status = self._hub.status(self._outbox.user_id)
        if status.session_id != self._session_id:
            device_info = self._stored.device_info if self._stored else None
            status = Status(self._outbox.user_id, False, self._session_id, device_info)
        self._outbox.offer(status_note(status))

    # One session.

    async def _to_the_end(self) -> bool:
        """Replay the session; True when the consumer listens, False when the session has ended before."""
        while True:
            if self._is_held and await self._join():
                return True
            if page := await self._page():
                for item in page:
                    await self._pace.offer(self._outbox, item)
                self._due_s = monotonic() + PATIENCE_SECONDS
            elif not self._is_held and self._has_ended():
                return False
            else:
                await asyncio.sleep(POLL_SECONDS)

    async def _join(self) -> bool:
        """Let the consumer listen if memory reaches back, or if it has waited for long enough."""
        if self._outbox.cursor.position >= self._memory_from or self._is_late:
            memory_from = await self._hub.join(self._outbox, self._is_late)
            if memory_from is None:
                return True
            self._memory_from = memory_from
        return False

    def _has_ended(self) -> bool:
        """Return whether nothing more will come of a session that nobody holds; Unavailable when nobody knows."""
        if self._stored and not self._is_away and (self._stored.end_us is not None or self._is_late):
            self._outbox.skip(self._stored.durable_position, "lost")
            return True
        if self._is_late and self._is_away:
            raise Unavailable("the database is away, which has the rest of the session")
        return self._is_late  # the node that had it has died; what its journal has comes to the database too late

    async def _page(self) -> list[Chunk | Gap]:
        """Return what comes next of what is recorded; from behind a hole only if the database has nothing of that."""
        try:
            if durable := await self._durable():
                return durable
            pending = await self._pending()
            self._stored = await self._store.session(self._session_id)
            self._is_away = False
            return await self._durable() or pending  # asked for in this order: what is in neither never will be
        except Unavailable:
            self._is_away = True
        pending = await self._pending()
        joins = pending and _start(pending[0]) <= self._outbox.cursor.position
        return pending if joins or self._is_late else []

    async def _durable(self) -> list[Chunk | Gap]:
        """Return what comes next in the database."""
        if self._stored is None:
            return []
        page = self._store.samples(self._stored, self._outbox.cursor.position, self._n_samples)
        items = await self._pace.read(page)
        for item in items[-1:]:
            if isinstance(item, Chunk):
                self._n_samples = max(PIECE_SAMPLES, min(PAGE_SAMPLES, PAGE_BYTES // item.samples[0].nbytes))
        return items

    async def _pending(self) -> list[Chunk | Gap]:
        """Return what comes next in this node's journal, if the session is or was here."""
        stream, start = self._hub.held(self._outbox.user_id), self._outbox.cursor.position
        if stream and stream.session.session_id == self._session_id:
            origin = stream.session.origin
        elif self._stored and not self._is_held:
            origin = self._stored.origin
        else:
            return []
        return joined(await self._pace.scan(self._sink.pending(origin, start, start + PENDING_SAMPLES)))

    # From one session to the next.

    async def _enter_next(self) -> bool:
        """Go to the user's next session; True when there is none to replay and the consumer listens."""
        if not self._later:
            outbox, store = self._outbox, self._store
            self._later.extend(await self._ask(lambda: store.later_sessions(outbox.user_id, self._session_id)))
        if self._later:
            self._enter(self._later.popleft())
            return False
        return await self._enter_held()

    async def _enter_held(self) -> bool:
        """Go to the session that some node holds and the database does not have, or has before this one."""
        outbox, last = self._outbox, self._stored
        session_id = self._hub.status(outbox.user_id).session_id
        if session_id is None:
            return await self._hub.join(outbox, True) is None
        stored = await self._ask(lambda: self._store.session(session_id))
        if stored and last and stored.start_us < last.start_us and outbox.cursor.position_in(session_id) is None:
            await self._hub.subscribe(outbox, 0)  # it was resumed, and is owed from now on
            return True
        self._enter(stored, session_id)
        return False

    def _enter(self, stored: StoredSession | None, session_id: str = "") -> None:
        session_id = stored.session_id if stored else session_id
        self._outbox.cursor.seek(session_id, self._outbox.cursor.position_in(session_id) or 0)
        self._stored, self._memory_from = stored, 0
        self._due_s = monotonic() + PATIENCE_SECONDS
        self._tell()

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """Ask the database; Unavailable when it was away for too long."""
        while True:
            try:
                return await question()
            except Unavailable:
                if self._is_late:
                    raise
            await asyncio.sleep(POLL_SECONDS)


def _start(item: Chunk | Gap) -> int:
    return item.start if isinstance(item, Gap) else item.position


def joined(items: list[Chunk | Gap]) -> list[Chunk | Gap]:
    """Join the chunks that follow each other by position."""
    runs: list[list[Chunk] | Gap] = []
    for item in items:
        last = runs[-1] if runs else None
        if isinstance(item, Gap):
            runs.append(item)
        elif isinstance(last, list) and last[-1].end == item.position:
            last.append(item)
        else:
            runs.append([item])
    return [run if isinstance(run, Gap) else join(run) for run in runs]
