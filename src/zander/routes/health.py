"""`/health`, `/health/ready`, `/streams`, `/stats`: how the service is."""

from __future__ import annotations

from importlib.metadata import version
from time import monotonic
from typing import Annotated

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from zander.delivery.preloads import PreloadStats
from zander.hub.fastpath import PathStats
from zander.hub.interfaces import LinkState
from zander.journal.recorder import RecorderStats
from zander.routes.answers import AnswerStats
from zander.routes.context import json_response, require_consumer, service
from zander.routes.questions import QuestionStats
from zander.streams.stream import StreamSummary
from zander.wire.bodies import list_answer

REDIS_IS = "`up` or `down`; `off` where no REDIS_URL is set"


class Health(Struct):
    """The process runs."""

    status: Annotated[str, Meta(description="`ok`")]


class Readiness(Struct):
    """`ready` when the database, Redis where one is set, and room in the journal are there; else `degraded`.

    Without the database or Redis ingest and delivery go on; with a full journal relays are refused.
    """

    status: Annotated[str, Meta(description="`ready` or `degraded`")]
    database: Annotated[str, Meta(description="`up` or `down`")]
    redis: Annotated[LinkState, Meta(description=REDIS_IS)]
    journal: Annotated[str, Meta(description="`up`, or `full` while it takes nothing")]
    reason: Annotated[str | None, Meta(description="why the journal takes nothing")] = None


class Streams(Struct):
    """The streams that are online, on all nodes."""

    streams: Annotated[list[StreamSummary], Meta(description="by user")]


class ServerStats(Struct):
    """This node, since it started."""

    version: Annotated[str, Meta(description="of Zander")]
    uptime_seconds: Annotated[float, Meta(description="since the start")]
    connections: Annotated[int, Meta(description="open WebSockets")]
    relays: Annotated[int, Meta(description="users whose relay is connected to this node")]
    consumers: Annotated[int, Meta(description="consumers connected to this node")]
    kept_streams: Annotated[int, Meta(description="users whose relay has gone and whose buffers are kept")]
    kept_bytes: Annotated[int, Meta(description="memory that these take")]
    evicted_streams: Annotated[int, Meta(description="given up before their time, for BUFFER_KEEP_BYTES")]
    samples_in: Annotated[int, Meta(description="samples received")]
    samples_out: Annotated[int, Meta(description="samples given to consumers")]
    bad_messages: Annotated[int, Meta(description="messages that broke a rule and were dropped")]
    clamped: Annotated[int, Meta(description="samples whose time ran backwards and was moved")]
    turned_away: Annotated[
        int, Meta(description="how often a relay was told to come back later, since what it sends could not be kept")
    ]
    wrong_keys: Annotated[int, Meta(description="requests and WebSockets that were refused: a wrong key, or none")]
    redis: Annotated[LinkState, Meta(description=REDIS_IS)]
    peers: Annotated[int, Meta(description="other nodes that this one hears")]
    answers: Annotated[AnswerStats, Meta(description="answers over REST that are being sent")]
    questions: Annotated[QuestionStats, Meta(description="questions to the database, over REST")]
    preloads: Annotated[PreloadStats, Meta(description="samples of before that consumers have not taken yet")]
    path: Annotated[PathStats, Meta(description="how the relays' messages came in")]
    database: Annotated[RecorderStats, Meta(description="what is written, and what waits to be")]


async def health(_: Request) -> Response:
    """Answer while the process runs."""
    return json_response(Health("ok"))


async def ready(request: Request) -> Response:
    """Say whether the database and Redis are there, and room in the journal: 200, or 503."""
    context = service(request)
    database, redis, writer = context.recorder.online, context.hub.peers.state, context.recorder.writer
    is_ready = database and redis != "down" and writer.takes
    state = Readiness(
        "ready" if is_ready else "degraded",
        "up" if database else "down",
        redis,
        "full" if writer.full else "up",
        writer.full and writer.full.reason,
    )
    return json_response(state, 200 if is_ready else 503)


async def streams(request: Request) -> Response:
    """List who is online, with device and rate."""
    service = require_consumer(request)
    await service.answers.make_room(request)
    return service.answers.response(list_answer({}, "streams", await service.hub.streams()), request)


async def stats(request: Request) -> Response:
    """Count connections, samples, batches and errors."""
    context = require_consumer(request)
    hub = context.hub
    found = ServerStats(
        version=version("zander-eeg"),
        uptime_seconds=round(monotonic() - context.started_at, 3),
        connections=hub.n_connections,
        relays=len(hub.ingest.streams.connected),
        consumers=len(hub.subscribers),
        kept_streams=len(hub.ingest.kept),
        kept_bytes=hub.ingest.kept.n_bytes,
        evicted_streams=hub.ingest.kept.n_evicted,
        samples_in=hub.ingest.n_samples,
        samples_out=hub.n_samples_out,
        bad_messages=hub.ingest.n_bad_messages,
        clamped=hub.ingest.n_clamped,
        turned_away=hub.ingest.n_turned_away,
        wrong_keys=context.refusals.n_refused,
        redis=hub.peers.state,
        peers=hub.peers.n_peers,
        answers=context.answers.stats(),
        questions=context.questions.stats(),
        preloads=hub.subscribers.preloads.stats(),
        path=hub.ingest.fast_path.stats(),
        database=context.recorder.stats(),
    )
    return json_response(found)
