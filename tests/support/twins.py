"""Two worlds that get the same bytes: one with the native path, one without. What came of them has to be the same.

Each has a real hub, journal and `WebSocketProtocol`, on transports that are lists; the clock stands still.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import uvicorn
from msgspec import Struct
from msgspec.json import encode
from starlette.applications import Starlette
from uvicorn.server import ServerState

from support.hubs import ListedPeers, Shelf
from support.memory_database import MemoryStorage
from support.relay_bytes import TEXT, Cutter, masked
from support.samples import T0_US
from zander.delivery.queue import FORMATS
from zander.delivery.subscribers import Subscribers
from zander.hub.hub import Hub
from zander.hub.ingest import Ingest
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
from zander.wire.messages import MAX_MESSAGE_BYTES
from zander.wire.websocket import WebSocketProtocol

if IS_NATIVE:
    from zander._native import FrameReader
    from zander.hub import fastpath

USER = "üser-1"
SESSION_ID = str(uuid.UUID(int=0x1234_5678_9ABC_4DEF_8123_4567_89AB_CDEF))
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
    rooms = [f"zander.{name}.time" for name in ("routes.stream", "delivery.subscribers", "delivery.outbox")]
    rooms += [
        f"zander.{name}.monotonic"
        for name in ("hub.hub", "hub.ingest", "delivery.outbox", "streams.stream", "journal.writer", "journal.recorder")
    ]
    with ExitStack() as patched:
        for room in rooms:
            patched.enter_context(patch(room, clock.seconds))
        patched.enter_context(patch("zander.hub.ingest.now_us", lambda: clock.now_us))
        if IS_NATIVE:
            patched.enter_context(
                patch.object(fastpath, "FrameReader", lambda stream: FrameReader(stream, lambda: clock.now_us))
            )
        yield clock


class Pipe(asyncio.Transport):
    """A peer's transport: what was written to it, and what is read from it."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False
        self.crash = ""
        self._unread: list[bytes] = []
        self._paused = False
        self.protocol: WebSocketProtocol = make()
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

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        asyncio.get_running_loop().call_soon(self._read_on)

    @property
    def is_intercepted(self) -> bool:
        """Whether the native path gets the bytes, and they count."""
        interceptor: Any = self.protocol._interceptor
        return "data_received" in vars(self.protocol) and not interceptor.is_over

    def feed(self, data: bytes) -> None:
        """Let the peer send."""
        self._unread.append(data)
        self._read_on()

    def _read_on(self) -> None:
        while self._unread and not self._paused and not self.closed:
            if data := self._unread.pop(0):
                try:
                    self.protocol.data_received(data)
                except AssertionError as error:  # uvicorn's, of bytes behind a close; asyncio cuts the connection
                    self.crash = repr(error)
                    self.close()


async def quiet() -> None:
    """Let the loop turn until nothing is left to do."""
    ready: Any = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    for _ in range(2):
        await asyncio.sleep(0)
        while ready:  # noqa: ASYNC110 - what it waits for is that nothing happens
            await asyncio.sleep(0)


class Stage:
    """What stays from story to story: for each world a journal, and the app on its server."""

    def __init__(self, clock: Clock, folder: Path) -> None:
        self.clock = clock
        self.journals = {native: Journals(folder / str(native), 1 << 30) for native in (True, False)}
        self.errors: list[str] = []
        self.app = Starlette(routes=ROUTES)
        self.server = ServerState()
        self.config = uvicorn.Config(
            self.app,
            interface="asgi3",
            log_config=None,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_per_message_deflate=False,
            ws_ping_interval=None,
        )
        self.config.loaded_app = self.app
        self.config.loaded = True

    def close(self) -> None:
        for journals in self.journals.values():
            journals.close()


class _Errors(logging.Handler):
    def __init__(self, stage: Stage) -> None:
        super().__init__(logging.ERROR)
        self.stage = stage

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what uvicorn says of an endpoint that failed."""
        self.stage.errors.append(f"{record.getMessage()}{record.exc_info and record.exc_info[1]!r}")


@contextmanager
def stage() -> Iterator[Stage]:
    """Set a stage; nobody else plays meanwhile."""
    uvicorn_log, own_log = logging.getLogger("uvicorn.error"), logging.getLogger("zander")
    with pinned() as clock, tempfile.TemporaryDirectory(prefix="zander-twins-") as folder, ExitStack() as patched:
        stage = Stage(clock, Path(folder))
        for log, handlers in ((uvicorn_log, [_Errors(stage)]), (own_log, [logging.NullHandler()])):
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
        self.ingest = Ingest(streams, subscribers, writer, self.archive, self.peers, buffer_samples=capacity)
        self.hub = Hub(self.ingest, subscribers, self.peers, buffer_keep_seconds=900.0)
        replays = Replays(self.hub, subscribers, self.archive, writer)
        self.recorder = Recorder(
            MemoryStorage(),
            self.journals,
            writer,
            max_seconds=60.0,
            linger_seconds=0.0,
            on_written=self.ingest.on_written,
        )
        if not native:
            self.ingest.fast_path.interceptor = lambda stream, relay: None  # type: ignore[method-assign]
        settings = Settings(outbox_max_bytes=story.outbox_bytes, buffer_samples=capacity)
        stage.app.state.service = Service(settings, self.hub, self.recorder, self.archive, None, replays, 0.0)  # type: ignore[arg-type]
        self._server, self._config = stage.server, stage.config
        self.relays: list[Pipe] = []
        self.consumers: dict[str, Pipe] = {}
        self.errors = stage.errors = []

    def pipe(self, path: str) -> Pipe:
        """Connect a peer; its upgrade is on its way."""
        pipe = Pipe(lambda: WebSocketProtocol(self._config, self._server, {}))
        pipe.feed(
            f"GET {path} HTTP/1.1\r\nHost: zander\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
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
        await quiet()
        self.connect_relay()
        if not self.story.eager:
            await quiet()

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
            if not self.relays[-1].protocol.handshake_complete:
                await quiet()  # uvicorn has something to log of who goes before
            self.relays[-1].close()
            return
        if name == "again-at-once":
            self.connect_relay()
            return
        await quiet()
        clock.now_us += STEP_US
        stream, log = self.ingest.streams.get(USER), self.journals.own.log
        if name == "full":
            log.write = log.probe = _no_room  # type: ignore[method-assign, assignment]
        elif name == "room":
            log.__dict__.pop("write", None)
            log.__dict__.pop("probe", None)
            clock.now_us += 2_000_000
        elif name == "stall":
            for pipe in self.consumers.values():
                pipe.protocol.pause_writing()
        elif name == "read":
            for pipe in self.consumers.values():
                pipe.protocol.resume_writing()
        elif name == "again":
            self.connect_relay()
            await quiet()
        elif name == "late":
            clock.now_us += 60_000_000
        elif name == "early":
            clock.now_us -= 3_600_000_000
        elif name == "written" and stream:
            self.ingest.on_written(Written({SESSION_ID: stream.session.next_position}))
        await quiet()

    async def play(self, clock: Clock) -> None:
        """Play the story to its end."""
        clock.now_us = T0_US
        await self.open()
        for name, data in self.story.steps:
            await self.do(name, data, clock)
        await self.do("turn", b"", clock)

    async def end(self) -> None:
        """Let everybody go."""
        for pipe in (*self.relays, *self.consumers.values()):
            pipe.protocol.resume_writing()
            pipe.close()
        for _ in range(1000):
            if not self._server.tasks:
                break
            await quiet()
        assert not self._server.tasks, "an endpoint does not end"
        self.journals.own.log.__dict__.pop("write", None)
        self.journals.own.log.__dict__.pop("probe", None)
        end = self.journals.own.log.end
        self.journals.own.commit(end)


def _no_room(*_: object) -> int:
    raise OSError(28, "No space left on device")
