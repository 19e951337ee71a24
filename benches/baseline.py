"""The ordinary service: what a good developer writes from the original README, for Zander to be measured against.

FastAPI on uvloop and httptools, a pydantic model per message, a Redis PUBLISH per message with a Redis subscription
per consumer, and batches of 50 records or 5 s through SQLAlchemy. What the original does not promise it does not do:
no chunks, acks, positions, resume or gaps, and what a crash finds in memory is gone.

    DATABASE_URL=… REDIS_URL=… python benches/baseline.py     (and HOST, PORT, EDGE_API_KEY)
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from secrets import compare_digest
from time import time
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI, HTTPException, WebSocket, WebSocketDisconnect
from pydantic import SerializeAsAny, ValidationError
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from sqlalchemy.ext.asyncio import create_async_engine

from baseline_models import FROM_RELAY, Auth, Event, Ping, Prediction, Raw, metadata, sessions

BATCH_RECORDS, BATCH_S = 50, 5.0
BUFFER_SAMPLES = 1000
API_KEY = os.environ.get("EDGE_API_KEY", "")

engine = create_async_engine(sa.make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg"))
redis = Redis.from_url(os.environ["REDIS_URL"], decode_responses=True, max_connections=5000)  # one per consumer
relays: dict[str, tuple[UUID, WebSocket]] = {}
buffers: dict[tuple[str, str], deque[Event]] = defaultdict(lambda: deque(maxlen=BUFFER_SAMPLES))
batches: dict[sa.Table, list[dict[str, Any]]] = defaultdict(list)
batch_is_full = asyncio.Event()
counts = {"samples_in": 0}


async def take(event: Event, user_id: str, session_id: UUID) -> None:
    """Buffer what a user sent, batch it for the database, and publish it."""
    event.user_id, event.session_id = user_id, session_id
    buffers[user_id, event.type].append(event)
    whose = {"session_id": session_id, "user_id": user_id}
    batch = batches[event.table]
    batch.append({"timestamp": datetime.fromtimestamp(event.timestamp, UTC), **whose, **event.record()})
    if len(batch) >= BATCH_RECORDS:
        batch_is_full.set()
    await redis.publish(f"stream:{user_id}", event.model_dump_json())


async def write_batches() -> None:
    """Write whenever 50 records are there, or after 5 s."""
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(batch_is_full.wait(), BATCH_S)
        batch_is_full.clear()
        try:
            await flush()
        except Exception:
            logging.exception("a batch was not written and is tried again")
            await asyncio.sleep(1)


async def flush() -> None:
    """Write all that is there; it is forgotten once it is committed."""
    for table, batch in list(batches.items()):
        if n := len(batch):
            async with engine.begin() as connection:
                await connection.execute(sa.insert(table), batch[:n])
            del batch[:n]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Make the tables, write while the service runs, and write the rest at its end."""
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE SCHEMA IF NOT EXISTS baseline"))
        await connection.run_sync(metadata.create_all)
    writer = asyncio.create_task(write_batches())
    yield
    writer.cancel()
    await asyncio.wait([writer])
    await flush()
    await engine.dispose()
    await redis.aclose()


app = FastAPI(title="Ordinary ingestion server", lifespan=lifespan)


@app.websocket("/stream")
async def stream(websocket: WebSocket) -> None:
    """Serve a relay."""
    await websocket.accept()
    try:
        auth = Auth.model_validate_json(await websocket.receive_text())
    except ValidationError:
        return await websocket.close(4500)
    if API_KEY and not compare_digest(auth.api_key.encode(), API_KEY.encode()):
        return await websocket.close(4501)
    user_id, session_id = auth.user_id, uuid4()
    session = {"session_id": session_id, "user_id": user_id, "device_info": auth.device_info}
    async with engine.begin() as connection:
        await connection.execute(sa.insert(sessions).values(**session, start_time=datetime.now(UTC)))
    relays[user_id] = session_id, websocket
    await websocket.send_json({"type": "auth_ok", "session_id": str(session_id), "user_id": user_id})
    try:
        async for text in websocket.iter_text():
            await hear(websocket, text, user_id, session_id)
    finally:
        if relays.get(user_id) == (session_id, websocket):
            del relays[user_id]
        ended = sa.update(sessions).where(sessions.c.session_id == session_id).values(end_time=datetime.now(UTC))
        async with engine.begin() as connection:
            await connection.execute(ended)


async def hear(websocket: WebSocket, text: str, user_id: str, session_id: UUID) -> None:
    """Take one message of a relay."""
    received = time()
    try:
        message = FROM_RELAY.validate_json(text)
    except ValidationError as error:
        await websocket.send_json({"type": "error", "code": "bad_message", "message": str(error)})
        return
    if isinstance(message, Ping):
        await websocket.send_json({"type": "pong", "t0": message.t0, "t1": received, "t2": time()})
        return
    counts["samples_in"] += isinstance(message, Raw)
    await take(message, user_id, session_id)


@app.websocket("/subscribe/{user_id}")
async def subscribe(websocket: WebSocket, user_id: str) -> None:
    """Serve a consumer."""
    async with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(f"stream:{user_id}")
        await websocket.accept()
        forwarding = asyncio.create_task(forward(pubsub, websocket))
        try:
            async for text in websocket.iter_text():
                await predict(websocket, text, user_id)
        finally:
            forwarding.cancel()


async def forward(pubsub: PubSub, websocket: WebSocket) -> None:
    """Send a consumer what is published."""
    with suppress(WebSocketDisconnect):
        async for message in pubsub.listen():
            await websocket.send_text(message["data"])


async def predict(websocket: WebSocket, text: str, user_id: str) -> None:
    """Take a prediction of a consumer, and send it to the relay."""
    try:
        prediction = Prediction.model_validate_json(text)
    except ValidationError as error:
        await websocket.send_json({"type": "error", "code": "bad_message", "message": str(error)})
        return
    if user_id in relays:
        session_id, relay = relays[user_id]
        await take(prediction, user_id, session_id)
        await relay.send_text(prediction.model_dump_json())


@app.get("/health/ready")
async def ready() -> dict[str, str]:
    """Say whether the database and Redis are there."""
    async with engine.connect() as connection:
        await connection.execute(sa.text("SELECT 1"))
    await redis.ping()
    return {"status": "ready"}


@app.get("/buffer/{user_id}/last/{n}")
async def last(user_id: str, n: int, sample_type: str = "features") -> list[SerializeAsAny[Event]]:
    """Give the last of what a user sent."""
    if not (buffer := buffers.get((user_id, sample_type))):
        raise HTTPException(404)
    return list(buffer)[-n:]


@app.get("/stats")
async def stats() -> dict[str, Any]:
    """Count."""
    return {"relays": len(relays), "database": {"pending_records": sum(map(len, batches.values()))}, **counts}


if __name__ == "__main__":
    uvicorn.run(app, host=os.environ.get("HOST", "127.0.0.1"), port=int(os.environ.get("PORT", "8000")))
