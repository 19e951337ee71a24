"""Messages between nodes over Redis: to all of them or to one, each delivered once and in order, or the link breaks.

Redis keeps nothing for us. A connection that breaks may have lost messages on either side, and redis-py would
subscribe again in silence; so retries are off, both directions end together, and whoever listens is told when the
link opens anew. A node hears its own messages to all: when it hears nothing for DEAF_SECONDS, the link is broken.

Channels begin with the cluster's name and the version of the messages, so that other clusters on the same Redis, and
nodes of a version that writes them otherwise, are not heard. A database number of Redis does not separate channels.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Literal
from uuid import uuid4

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from zander.retry import Backoff

REPLICA_CHECK_SECONDS = 5.0
DEAF_SECONDS = 3.0
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.1, 2.0  # between two attempts to connect
STABLE_SECONDS = 10.0  # a link that lived so long makes the next pause short again
PENDING_MAX_BYTES = 64 << 20  # a link that is so far behind is as good as broken

log = logging.getLogger(__name__)


class LinkError(Exception):
    """The link does not keep up or went deaf."""


class RedisLink:
    """This node's connection to the others of its cluster; `version` is that of the messages."""

    def __init__(self, url: str, cluster_name: str, version: int) -> None:
        self.node_id = uuid4().hex
        self._prefix = f"{cluster_name}:{version}"
        self.state: Literal["up", "down"] = "down"
        self._url = url
        self._pending: list[tuple[str, bytes]] = []
        self._pending_bytes = 0
        self._has_pending = asyncio.Event()
        self._flushed = asyncio.Event()

    def send(self, payload: bytes, node_id: str | None = None) -> None:
        """Send to one node or to all, this one included. While the link is down, nothing is kept."""
        if self.state == "up":
            self._pending.append((self._channel(node_id), payload))
            self._pending_bytes += len(payload)
            self._has_pending.set()

    async def flush(self, seconds: float) -> None:
        """Wait until everything sent is with Redis, but not for ever."""
        self._flushed.clear()
        self._has_pending.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._flushed.wait(), seconds)

    async def run(self, opened: Callable[[], None], receive: Callable[[bytes], None]) -> None:
        """Keep the link up until cancelled; `opened` is called each time it is anew."""
        backoff = Backoff(FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS)
        was_up = True
        while True:
            began = monotonic()
            try:
                await self._live(opened, receive)
            except* (RedisError, OSError, LinkError, RuntimeError) as errors:  # uvloop raises the last when closed
                if was_up or self.state == "up":
                    log.warning("Redis is away, this node goes on alone: %s", errors.exceptions[0])
                was_up = False
            self.state = "down"
            self._pending.clear()
            if monotonic() - began > STABLE_SECONDS:
                backoff.reset()
            await asyncio.sleep(backoff.next_s())

    def _channel(self, node_id: str | None) -> str:
        return f"{self._prefix}:node:{node_id}" if node_id else f"{self._prefix}:all"

    async def _live(self, opened: Callable[[], None], receive: Callable[[bytes], None]) -> None:
        client = Redis.from_url(self._url, retry=Retry(NoBackoff(), 0), socket_timeout=5, socket_connect_timeout=5)
        async with client, client.pubsub() as pubsub:
            await _require_primary(client)
            await pubsub.subscribe(self._channel(None), self._channel(self.node_id))
            self.state = "up"
            self._pending_bytes = 0
            log.info("Redis is there")
            opened()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write(client))
                tasks.create_task(_read(pubsub, receive))
                tasks.create_task(_keep_primary(client))

    async def _write(self, client: Redis) -> None:
        """Publish what waits, all in one pipeline; what comes meanwhile waits together for the next."""
        task = asyncio.current_task()
        while task and not task.cancelling():  # redis-py swallows a cancellation that comes with a reply
            await self._has_pending.wait()
            self._has_pending.clear()
            if self._pending_bytes > PENDING_MAX_BYTES:
                raise LinkError(f"{self._pending_bytes} bytes wait to be published")
            pending, self._pending, self._pending_bytes = self._pending, [], 0
            async with client.pipeline(transaction=False) as pipeline:
                for channel, payload in pending:
                    pipeline.publish(channel, payload)
                await pipeline.execute()
            self._flushed.set()


async def _keep_primary(client: Redis) -> None:
    """Look now and then whether the server has become a replica."""
    task = asyncio.current_task()
    while task and not task.cancelling():  # as in `_write`
        await asyncio.sleep(REPLICA_CHECK_SECONDS)
        await _require_primary(client)


async def _require_primary(client: Redis) -> None:
    """LinkError when the server is a replica: what is published there reaches nobody on the primary.

    In a Redis Cluster it reaches everybody. A server that does not tell is taken as it is.
    """
    try:
        answer = await client.execute_command("HELLO")  # type: ignore[no-untyped-call] # redis-py gives it no types
    except ResponseError:  # older than Redis 6, or a proxy
        return
    found = answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=False))
    about = {_text(name): _text(value) for name, value in found.items()}
    if about.get("role") in ("replica", "slave") and about.get("mode") != "cluster":
        raise LinkError("REDIS_URL leads to a replica, and nobody on the primary would hear this node")


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


async def _read(pubsub: PubSub, receive: Callable[[bytes], None]) -> None:
    while True:
        message = await pubsub.get_message(timeout=DEAF_SECONDS)
        if message is None:
            raise LinkError(f"nothing heard for {DEAF_SECONDS:g} s, not even our own beat")
        if message["type"] == "message":
            receive(message["data"])
