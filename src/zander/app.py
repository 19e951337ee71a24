"""`create_app`: the only place that builds things. One lifespan opens them and closes them, in order."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from time import monotonic

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from zander.auth import Refusals
from zander.cluster.cluster import Cluster
from zander.cluster.link import RedisLink
from zander.cluster.messages import VERSION
from zander.cluster.node import Node
from zander.cluster.single import NoPeers
from zander.database.connection import Pool
from zander.database.history import History
from zander.database.sessions import DatabaseSessions
from zander.database.writer import DatabaseWriter
from zander.delivery.subscribers import Subscribers
from zander.errors import ClientError
from zander.hub.hub import Hub
from zander.hub.ingest import Ingest
from zander.hub.kept import Kept
from zander.hub.replay import Replays
from zander.journal.journal import FOLDER, Journals
from zander.journal.recorder import Recorder
from zander.journal.writer import JournalWriter
from zander.routes import ROUTES
from zander.routes.answers import Answers
from zander.routes.context import Service, json_response
from zander.routes.questions import Questions
from zander.settings import Settings
from zander.streams import clock
from zander.streams.stream import Streams

CANCEL_SECONDS = 1.0
READING_CONNECTIONS = 4
RESUMING_CONNECTIONS = 2  # apart, so that no relay waits for somebody's history
DRAIN_SECONDS = 5.0  # for the database, of the 15 s that a stop may take
ERROR_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "1"}}

log = logging.getLogger(__name__)


def create_app(settings: Settings) -> Starlette:
    """Build the service; `settings.database_url` must be set."""
    return Starlette(
        routes=ROUTES,
        lifespan=lambda app: _lifespan(app, settings),
        exception_handlers={ClientError: _client_error, HTTPException: _http_error, Exception: _our_error},
    )


@asynccontextmanager
async def _lifespan(app: Starlette, settings: Settings) -> AsyncIterator[None]:
    assert settings.database_url
    storage = _storage(settings, settings.database_url)
    journals = Journals(settings.data_dir / FOLDER, settings.journal_max_bytes, settings.journal_keep_bytes)
    streams, subscribers = Streams(), Subscribers()
    writer = _writer(settings, journals, streams)
    reading = Pool(settings.database_url, READING_CONNECTIONS)
    resuming = Pool(settings.database_url, RESUMING_CONNECTIONS)
    replica = _replica(settings)
    sessions = DatabaseSessions(reading, resuming, replica)
    looked_at = DatabaseSessions(replica, resuming) if replica else sessions
    cluster = _cluster(settings, streams, subscribers)
    peers = cluster or NoPeers(subscribers)
    kept = Kept(streams, peers, max_bytes=settings.buffer_keep_bytes, seconds=settings.buffer_keep_seconds)
    ingest = Ingest(
        *(streams, subscribers, writer, sessions, peers),
        kept=kept,
        buffer_samples=settings.buffer_samples,
        max_bytes_per_second=settings.relay_max_bytes_per_second,
        max_age_us=settings.max_age_us,
    )
    hub = Hub(ingest, subscribers, peers)
    replays = Replays(hub, subscribers, sessions, writer)
    recorder = _recorder(settings, storage, journals, writer, ingest)
    parts = (settings, hub, recorder, looked_at, History(replica or reading), replays)
    app.state.service = Service(*parts, Answers(), Questions(), Refusals(), monotonic())
    syncing = journals.keep_synced(settings.journal_fsync_seconds)
    async with _running(recorder.run()), _running(_tick(hub)), _running(syncing), _running(replays.run()):
        if cluster:
            async with _running(Node(cluster, ingest).run()):
                yield
                await cluster.close()
        else:
            yield
        await recorder.drain(DRAIN_SECONDS)
    recorder.log_remaining()
    await storage.close()
    await asyncio.gather(*(pool.close() for pool in (reading, resuming, replica) if pool))
    journals.close()


def _writer(settings: Settings, journals: Journals, streams: Streams) -> JournalWriter:
    return JournalWriter(
        journals,
        max_bytes=settings.journal_max_bytes,
        batch_records=settings.batch_max_records,
        client_of=streams.client_of,
    )


def _storage(settings: Settings, database_url: str) -> DatabaseWriter:
    return DatabaseWriter(
        database_url,
        retention_days=settings.retention_days,
        columnstore_after_hours=settings.columnstore_after_hours,
        chunk_hours=settings.chunk_hours,
    )


def _replica(settings: Settings) -> Pool | None:
    if not settings.read_database_url:
        return None
    return Pool(settings.read_database_url, READING_CONNECTIONS, "READ_DATABASE_URL", "the read replica")


def _cluster(settings: Settings, streams: Streams, subscribers: Subscribers) -> Cluster | None:
    """Build the way to the other nodes; None where this one is alone."""
    if not settings.redis_url:
        return None
    return Cluster(RedisLink(settings.redis_url, settings.cluster_name, VERSION), streams, subscribers)


def _recorder(
    settings: Settings, store: DatabaseWriter, journals: Journals, writer: JournalWriter, ingest: Ingest
) -> Recorder:
    """Build what is built last: it tells the relays, by way of `ingest`, what is durable."""
    return Recorder(
        store,
        journals,
        writer,
        max_seconds=settings.batch_max_seconds,
        linger_seconds=settings.batch_linger_seconds,
        on_written=ingest.on_written,
    )


@asynccontextmanager
async def _running(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    task.add_done_callback(_stop_if_dead)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_SECONDS)


def _stop_if_dead(task: asyncio.Task[None]) -> None:
    """Stop the whole service, drain and all, when a part of it has died: half of it would lose data in silence."""
    if not task.cancelled() and (error := task.exception()):
        log.critical("a part of the service has died, stopping", exc_info=error)
        signal.raise_signal(signal.SIGTERM)


async def _tick(hub: Hub) -> None:
    system = clock.Follower()
    while True:
        await asyncio.sleep(1)
        system.follow()
        hub.tick()


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return json_response({"error": {"code": code, "message": message}}, status, headers)


async def _client_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ClientError)
    return _error(error.status, error.code, error.message, ERROR_HEADERS.get(error.status))


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail.lower().replace(" ", "_"), error.detail, dict(error.headers or {}))


async def _our_error(_: Request, error: Exception) -> Response:
    return _error(500, "internal_error", "something went wrong here; the log says what")
