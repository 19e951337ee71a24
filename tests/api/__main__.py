"""`python -m api --seed 7 --max-examples 1000`: schemathesis against a server with some of everything; its options."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

from support.clients import consumer, relay
from support.nodes import Node
from support.services import PostgresServer, eventually

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")

# These are in the configuration too.
KEY = "a key for the tests"
ADA, BEN = "ada", "ben"
SESSION = "5f0c6a52-8d0e-4c55-9a2f-0b1f6f3c2d11"
T0 = 1764000000


def main() -> int:
    """Run schemathesis; 1 when an answer is not what the document says."""
    with PostgresServer() as postgres, Node(database_url=postgres.dsn, edge_api_key=(KEY,)) as node:
        eventually(node.ready)
        return asyncio.run(_run(node))


async def _run(node: Node) -> int:
    for n_channels in (3, 4):  # two sessions that cannot be one array
        async with _recording(node, BEN, str(uuid4()), n_channels):
            pass
    async with _recording(node, ADA, SESSION, 2):
        eventually(lambda: node.get("/stats", X_API_Key=KEY)[1]["database"]["pending_records"] == 0)
        with tempfile.TemporaryDirectory(prefix="zander-api-") as folder:  # it keeps what it finds where it runs
            program = Path(sys.executable).with_name("schemathesis")
            options = "--config-file", CONFIGURATION, "run", "--checks", "all", f"{node.http}/openapi.json"
            run = await asyncio.create_subprocess_exec(program, *options, *sys.argv[1:], cwd=folder)
            return await run.wait()


@asynccontextmanager
async def _recording(node: Node, user: str, session_id: str, n_channels: int) -> AsyncIterator[None]:
    """Send some of everything, with a gap, and keep the relay connected."""
    device = {"device_type": "test", "sampling_rate": 100, "channel_count": n_channels}
    key = {"X-API-Key": KEY}
    async with (
        relay(node.ws, user, device, session_id=session_id, api_key=KEY) as edge,
        consumer(node.ws, user, "?types=status", additional_headers=key) as classifier,
    ):
        for position in (0, 50):
            samples = [[i / 10] * n_channels for i in range(20)]
            await edge.send({"type": "raw", "samples": samples, "position": position, "timestamp": T0 + position / 100})
        for i in range(5):
            await edge.send({"type": "features", "workload": i / 5, "timestamp": T0 + i})
            prediction = {"prediction_type": "a", "classifier_name": "b", "data": {"i": i}}
            await classifier.send({"type": "prediction", **prediction})
            await edge.until("prediction")
        yield


if __name__ == "__main__":
    sys.exit(main())
