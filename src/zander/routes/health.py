"""`/health`, `/health/ready`, `/streams`, `/stats`: how the service is."""

from __future__ import annotations

from importlib.metadata import version
from time import monotonic

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from zander.hub.fastpath import PathStats
from zander.hub.interfaces import LinkState
from zander.journal.counts import RecorderStats
from zander.routes.context import json_response, require_consumer, service
from zander.streams.stream import StreamSummary


class Health(Struct):
    """The process runs."""

    status: str


class Readiness(Struct):
    """`ready` when the database, and Redis where one is set, are there; else `degraded`: ingest and delivery go on."""

    status: str
    database: str
    redis: LinkState


class Streams(Struct):
    """Who is online, on all nodes."""

    streams: list[StreamSummary]


class ServerStats(Struct):
    """This node, since it started."""

    version: str
    uptime_seconds: float
    connections: int
    relays: int
    consumers: int
    samples_in: int
    samples_out: int
    bad_messages: int
    redis: LinkState
    peers: int
    path: PathStats
    database: RecorderStats


async def health(_: Request) -> Response:
    """Answer while the process runs."""
    return json_response(Health("ok"))


async def ready(request: Request) -> Response:
    """Say whether the database and Redis are there: 200, or 503."""
    context = service(request)
    database, redis = context.recorder.online, context.hub.peers.state
    is_ready = database and redis != "down"
    state = Readiness("ready" if is_ready else "degraded", "up" if database else "down", redis)
    return json_response(state, 200 if is_ready else 503)


async def streams(request: Request) -> Response:
    """List who is online, with device and rate."""
    return json_response(Streams(await require_consumer(request).hub.streams()))


async def stats(request: Request) -> Response:
    """Count connections, samples, batches and errors."""
    context = require_consumer(request)
    hub = context.hub
    found = ServerStats(
        version=version("zander"),
        uptime_seconds=round(monotonic() - context.started_at, 3),
        connections=hub.n_connections,
        relays=len(hub.online()),
        consumers=len(hub.subscribers),
        samples_in=hub.ingest.n_samples,
        samples_out=hub.subscribers.n_samples_out,
        bad_messages=hub.ingest.n_bad_messages,
        redis=hub.peers.state,
        peers=hub.peers.n_peers,
        path=hub.ingest.fast_path.stats(),
        database=context.recorder.stats(),
    )
    return json_response(found)
