"""Two worlds that get the same bytes: one with the native path, one without. What came of them has to be the same.

Each has a real hub, journal and listener. The native one has sockets, the other transports that are lists; the clock
stands still.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from msgspec import Struct
from msgspec.json import encode
from starlette.applications import Starlette

from support.hubs import ListedPeers, Shelf
from support.memory_database import MemoryStorage
from support.relay_bytes import TEXT, Cutter, masked
from support.samples import T0_US
from zander.auth import Refusals
from zander.delivery.queue import FORMATS
from zander.delivery.subscribers import Subscribers
from zander.hub.hub import Hub
from zander.hub.ingest import Ingest
from zander.hub.kept import Kept
from zander.hub.replay import Replays
from zander.journal.batch import Written
from zander.journal.journal import Journals
from zander.journal.recorder import Recorder
from zander.journal.writer import JournalWriter
from zander.native import IS_NATIVE
from zander.routes import ROUTES
from zander.routes.context import Service
from zander.settings import Settings
from zander.streams.stream import Streams
from zander.wire import websocket
from zander.wire.listener import FirstRequest, Listener
from zander.wire.websocket import WebSocketConnection

if IS_NATIVE:
    from zander._native import FrameReader, Reactor

USER = "üser-1"
SESSION_ID = str(uuid.UUID(int=0x1234_5678_9ABC_4DEF_8123_4567_89AB_CDEF))
SMALL_TURN_BYTES = 8 * 6  # that a turn passes to the parser at least
STEP_US = 7_000  # what passes with every turn


class Story(Struct, forbid_unknown_fields=True):
    """What happens: the relay's device, and steps, each a name and bytes. `eager`: the first come with the auth."""

    steps: list[tuple[str, bytes]]
    n_channels: int | None = 2
    rate: float | None = 128.0
    capacity: int = 10
    ack: bool = False
    eager: bool = False
    followed: bool = False
    outbox_bytes: int = 1 << 20
    formats: tuple[str, ...] = FORMATS


class Clock:
    """The time of everything."""

    def __init__(self) -> None:
        self.now_us = T0_US

    def seconds(self) -> float:
        return self.now_us / 1e6


@contextmanager
def pinned() -> Iterator[Clock]:
    """Stop the clock of all rooms."""
    clock = Clock()
    rooms = [f"zander.{name}.time" for name in ("delivery.subscribers", "delivery.outbox")]
    counting = ("hub.ingest", "hub.kept", "delivery.outbox", "streams.stream", "journal.writer", "journal.recorder")
    rooms += [f"zander.{name}.monotonic" for name in counting]
    with ExitStack() as patched:
        for room in rooms:
            patched.enter_context(patch(room, clock.seconds))
        for room in ("hub.ingest", "routes.stream"):
            patched.enter_context(patch(f"zander.{room}.now_us", lambda: clock.now_us))
        if IS_NATIVE:
            patched.enter_context(patch.object(websocket, "FrameReader", lambda: FrameReader(lambda: clock.now_us)))
        yield clock


class Pipe(asyncio.Transport):
    """A peer of the world without the native path: what was written to it, and what is read from it."""

    is_intercepted = False  # nothing ever is

    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False
        self._unread: list[bytes] = []
        self._paused = False
        self.protocol: Any = FirstRequest(listener)
        self.protocol.connection_made(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, data: Any) -> None:
        if not self.closed:
            self.written += data

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = lose = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        asyncio.get_running_loop().call_soon(self.turn)

    def feed(self, data: bytes) -> None:
        """Let the peer send."""
        self._unread.append(data)
        self.turn()

    def turn(self) -> bool:
        """Let the server read; True when it did."""
        has_read = False
        while self._unread and not self._paused and not self.closed:
            if data := self._unread.pop(0):
                self.protocol.data_received(data)
                has_read = True
        return has_read


class Plug:
    """A peer of the world with the native path: the other end of a real socket."""

    def __init__(self, listener: Listener, reactor: Reactor) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        theirs.setblocking(False)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        self._reactor = reactor
        self._written = bytearray()
        self._unsent = b""
        self.closed = False
        self._transport = reactor.add(theirs.detach(), None, FirstRequest(listener))
        self._protocol: Any = self._transport.get_protocol()

    @property
    def protocol(self) -> Any:
        """The server's end, also after it."""
        self._protocol = self._transport.get_protocol() or self._protocol
        return self._protocol

    @property
    def is_intercepted(self) -> bool:
        """Whether samples are taken natively."""
        reader = getattr(self.protocol, "reader", None)
        return bool(reader and reader.is_intercepting)

    @property
    def written(self) -> bytearray:
        """All that came from the server."""
        while not self.closed:
            try:
                data = self._socket.recv(1 << 20)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self._written += data
            self.closed = not data
        return self._written

    def feed(self, data: bytes) -> None:
        """Let the peer send."""
        self._unsent += data
        self.turn()
        for _ in range(len(data) // SMALL_TURN_BYTES):
            self._reactor.turn()

    def turn(self) -> bool:
        """Send what can be sent, and let the server read; True when something was sent."""
        protocol, n_unsent = self.protocol, len(self._unsent)
        while self._unsent:
            try:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
            except BlockingIOError:
                break
            except OSError:
                self._unsent = b""
            self._reactor.turn()
        self._reactor.turn()
        self._protocol = self._transport.get_protocol() or protocol
        return len(self._unsent) < n_unsent

    def lose(self) -> None:
        """Let the peer go."""
        _ = self.written
        self.closed = True
        self._socket.close()
        self.turn()

    close = lose


async def quiet(*pipes: Pipe | Plug) -> None:
    """Let the loop turn until nothing is left to do."""
    ready: Any = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]
    for _ in range(3):
        await asyncio.sleep(0)
        while sum(pipe.turn() for pipe in pipes) or ready:  # noqa: ASYNC110 - it waits until nothing happens
            await asyncio.sleep(0)


class Stage:
    """What stays from story to story: for each world a journal, and the app."""

    def __init__(self, clock: Clock, folder: Path) -> None:
        self.clock = clock
        self.journals = {native: Journals(folder / str(native), 1 << 30) for native in (True, False)}
        self.errors: list[str] = []
        self.app = Starlette(routes=ROUTES)

    def close(self) -> None:
        for journals in self.journals.values():
            journals.close()


class _Errors(logging.Handler):
    def __init__(self, stage: Stage) -> None:
        super().__init__(logging.ERROR)
        self.stage = stage

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what is said of a connection that failed."""
        self.stage.errors.append(f"{record.getMessage()}{record.exc_info and record.exc_info[1]!r}")


@contextmanager
def stage() -> Iterator[Stage]:
    """Set a stage; nobody else plays meanwhile."""
    wire_log, own_log = logging.getLogger("zander.wire"), logging.getLogger("zander")
    with pinned() as clock, tempfile.TemporaryDirectory(prefix="zander-twins-") as folder, ExitStack() as patched:
        stage = Stage(clock, Path(folder))
        for log, handlers in ((wire_log, [_Errors(stage)]), (own_log, [logging.NullHandler()])):
            patched.enter_context(patch.object(log, "propagate", False))
            patched.enter_context(patch.object(log, "handlers", handlers))
        yield stage
        stage.close()


class World:
    """One of the two."""

    def __init__(self, stage: Stage, story: Story, native: bool) -> None:
        self.story = story
        self.journals = stage.journals[native]
        self.journal_start = self.journals.own.log.end
        writer = JournalWriter(self.journals, max_bytes=1 << 30, batch_records=1000)
        streams, subscribers, self.archive = Streams(), Subscribers(), Shelf()
        self.peers = ListedPeers(subscribers)
        if story.followed:
            self.peers.follow(USER)
        self.archive.items[SESSION_ID] = []
        capacity = story.capacity
        kept = Kept(streams, self.peers, max_bytes=1 << 30, seconds=900.0)
        self.ingest = Ingest(streams, subscribers, writer, self.archive, self.peers, kept=kept, buffer_samples=capacity)
        self.hub = Hub(self.ingest, subscribers, self.peers)
        replays = Replays(self.hub, subscribers, self.archive, writer)
        self.recorder = Recorder(
            MemoryStorage(),
            self.journals,
            writer,
            max_seconds=60.0,
            linger_seconds=0.0,
            on_written=self.ingest.on_written,
        )
        settings = Settings(outbox_max_bytes=story.outbox_bytes, buffer_samples=capacity)
        parts: Any = (settings, self.hub, self.recorder, self.archive, None, replays, None, None, Refusals(), 0.0)
        stage.app.state.service = Service(*parts)
        self.listener = Listener(stage.app)
        self._reactor = Reactor(asyncio.get_running_loop()) if native else None
        self._through: dict[Any, Any] = {}  # while nobody reads
        self.relays: list[Pipe | Plug] = []
        self.consumers: dict[str, Pipe | Plug] = {}
        self.errors = stage.errors = []

    @property
    def pipes(self) -> list[Pipe | Plug]:
        """All peers."""
        return [*self.relays, *self.consumers.values()]

    async def quiet(self) -> None:
        """Let everything happen that is on its way."""
        await quiet(*self.pipes)

    def pipe(self, path: str) -> Pipe | Plug:
        """Connect a peer; its upgrade is on its way."""
        self.listener.n_connections += 1
        pipe = Plug(self.listener, self._reactor) if self._reactor else Pipe(self.listener)
        pipe.feed(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        return pipe

    def connect_relay(self) -> None:
        """Connect the relay; its auth is on its way too."""
        story = self.story
        device = {"sampling_rate": story.rate, "channel_count": story.n_channels}
        auth = {"type": "auth", "user_id": USER, "session_id": SESSION_ID, "ack": story.ack, "device_info": device}
        self.relays.append(self.pipe("/stream"))
        self._cutter = Cutter()
        self.relays[-1].feed(masked(encode(auth), TEXT))

    async def open(self) -> None:
        """Let everybody come."""
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: self.errors.append(repr(context)))
        for format in self.story.formats:
            self.consumers[format] = self.pipe(f"/subscribe/%C3%BCser-1?format={format}")
        await self.quiet()
        self.connect_relay()
        if not self.story.eager:
            await self.quiet()

    async def do(self, name: str, data: bytes, clock: Clock) -> None:  # noqa: PLR0912 - one for each step
        """Do a step of the story; whatever else than bytes or the relay's end comes to a loop that is quiet."""
        if name == "feed":
            pieces, relay = self._cutter.cut(data), self.relays[-1]
            while pieces and not relay.is_intercepted:
                relay.feed(pieces.pop(0))
            relay.feed(b"".join(pieces))
            return
        if name == "close":
            self.ingest.supersede(USER)
            return
        if name == "lost":
            self.relays[-1].lose()
            return
        if name == "again-at-once":
            if self.story.eager:
                await self.quiet()  # how much of what came with the auth was read by now is chance
            self.connect_relay()
            return
        await self.quiet()
        clock.now_us += STEP_US
        stream, log = self.ingest.streams.get(USER), self.journals.own.log
        if name == "full":
            log.write = log.probe = _no_room  # type: ignore[method-assign, assignment]
        elif name == "room":
            log.__dict__.pop("write", None)
            log.__dict__.pop("probe", None)
            clock.now_us += 2_000_000
        elif name == "stall":
            self.stall()
        elif name == "read":
            self.read_on()
        elif name == "again":
            self.connect_relay()
            await self.quiet()
        elif name == "late":
            clock.now_us += 60_000_000
        elif name == "early":
            clock.now_us -= 3_600_000_000
        elif name == "written" and stream:
            self.ingest.on_written(Written({SESSION_ID: stream.session.next_position}))
        await self.quiet()

    def stall(self) -> None:
        """Let no consumer read: nothing can be written to it, nor past its queue."""
        for outbox in self.hub.subscribers:
            self._through.setdefault(outbox, outbox._socket)
            outbox.close_through()
        for pipe in self.consumers.values():
            if isinstance(pipe.protocol, WebSocketConnection):
                pipe.protocol.pause_writing()

    def read_on(self) -> None:
        """Let all consumers read again."""
        for pipe in self.consumers.values():
            if isinstance(pipe.protocol, WebSocketConnection):
                pipe.protocol.resume_writing()
        for outbox, through in self._through.items():
            if through:
                outbox.open_through(through)
        self._through.clear()

    async def play(self, clock: Clock) -> None:
        """Play the story to its end."""
        clock.now_us = T0_US
        await self.open()
        for name, data in self.story.steps:
            await self.do(name, data, clock)
        await self.do("turn", b"", clock)

    async def end(self) -> None:
        """Let everybody go."""
        self.read_on()
        for pipe in self.pipes:
            pipe.lose()
        for _ in range(1000):
            if not self.listener.tasks:
                break
            await self.quiet()
        assert not self.listener.tasks, "an endpoint does not end"
        self.journals.own.log.__dict__.pop("write", None)
        self.journals.own.log.__dict__.pop("probe", None)
        end = self.journals.own.log.end
        self.journals.own.commit(end)


def _no_room(*_: object) -> int:
    raise OSError(28, "No space left on device")
