"""What a connection and a user take of the server's memory: what is resident more with a thousand of them.

    python benches/memory.py [options]

An idle consumer listens to a user without a relay. A user is a relay that is connected, with its last 1,000 samples of
7 channels in memory, all sent one by one as JSON, and written to the database. The server is weighed once nothing waits
and its memory stands still, and has served a hundred of each before, so that what it needs once is there. Ends with 2
when the bench could not run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic

from websockets.asyncio.client import ClientConnection, connect

from drive import blaming, house, stats
from frames import Load, raw_frames
from options import add_against, add_rounds, at_least, run, save
from parts import BenchError, Checkout, checkouts, machine, rss_bytes
from report import lines, medians

N_WARM = 100
N_SAMPLES = 1000  # what the server buffers of a user
N_CHANNELS = 7
N_AT_ONCE = 50  # connections that are made, and relays that are sent to before others have their turn
STILL_BYTES = 256 << 10  # of memory that comes or goes in STILL_S of a server that stands still
STILL_S = 2.0
PATIENCE_S = 120.0
GOALS_KB = {"idle consumer": 16.0, "user with 1,000 samples": 48.0}
LOAD = Load(  # one sample per message; all users send the same
    port=0,
    relays=1,
    consumers=0,
    listened=0,
    rate_hz=128.0,
    n_channels=N_CHANNELS,
    format="json",
    n_chunk=1,
    features_hz=0.0,
    duration_s=N_SAMPLES / 128.0,
    warmup_s=0.0,
    seed=1,
)


class Server:
    """The service, and all who are connected to it until the block ends."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid
        self.n_sent = 0
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Server:
        await self._stack.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def consumers(self, name: str, n: int) -> None:
        """Connect consumers of users that have no relay."""
        for first in range(0, n, N_AT_ONCE):
            paths = [f"/subscribe/{name}-{i}" for i in range(first, min(n, first + N_AT_ONCE))]
            await asyncio.gather(*map(self._connect, paths))

    async def relays(self, name: str, n: int) -> list[ClientConnection]:
        """Connect relays, each of its own user."""
        found: list[ClientConnection] = []
        for first in range(0, n, N_AT_ONCE):
            users = [f"{name}-{i}" for i in range(first, min(n, first + N_AT_ONCE))]
            found += await asyncio.gather(*map(self._relay, users))
        return found

    async def users(self, name: str, n: int) -> None:
        """Connect relays that send their samples: all the first one, then all the second."""
        relays = await self.relays(name, n)
        for frame in raw_frames(LOAD, 0):
            for first in range(0, n, N_AT_ONCE):
                for relay in relays[first : first + N_AT_ONCE]:
                    relay.transport.write(frame)  # a frame already: nothing is made a thousand times
                await asyncio.sleep(0)
        self.n_sent += n * N_SAMPLES

    async def settled(self) -> int:
        """Wait until all is taken in and written and the memory stands still; return how much it is."""
        deadline_s, still_s, n_bytes = monotonic() + PATIENCE_S, monotonic(), 0
        while monotonic() - still_s < STILL_S:
            if monotonic() > deadline_s:
                raise BenchError(f"the service did not settle within {PATIENCE_S:g} s")
            counts = await asyncio.to_thread(stats, self.port)
            is_done = counts["samples_in"] == self.n_sent and not counts["database"]["pending_records"]
            n_bytes, n_before = rss_bytes(self.pid), n_bytes
            if not is_done or abs(n_bytes - n_before) > STILL_BYTES:
                still_s = monotonic()
            await asyncio.sleep(0.2)
        return n_bytes

    async def _connect(self, path: str) -> ClientConnection:
        socket = connect(f"ws://127.0.0.1:{self.port}{path}", compression=None, ping_interval=None)
        return await self._stack.enter_async_context(socket)

    async def _relay(self, user: str) -> ClientConnection:
        socket = await self._connect("/stream")
        device = {"device_type": "bench", "sampling_rate": LOAD.rate_hz, "channel_count": N_CHANNELS}
        await socket.send(json.dumps({"type": "auth", "api_key": "none", "user_id": user, "device_info": device}))
        if "auth_ok" not in (answer := str(await socket.recv())):
            raise BenchError(f"{user}: expected auth_ok, got {answer}")
        return socket


async def measure(port: int, pid: int, n: int) -> dict[str, float]:
    """Return what one of each kind takes of the server's memory, in KB."""
    async with Server(port, pid) as server:
        await server.consumers("warm-idle", N_WARM)
        await server.users("warm", N_WARM)
        kinds = {
            "idle consumer": server.consumers,
            "relay without samples": server.relays,
            "user with 1,000 samples": server.users,
        }
        found, before = {}, await server.settled()
        for kind, bring in kinds.items():
            await bring(kind.partition(" ")[0], n)
            after = await server.settled()
            found[kind] = (after - before) / 1000 / n
            before = after
        return found


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--each", type=at_least(1), default=1000, metavar="N", help="connections of each kind (1000)")
    parser.add_argument("--no-redis", action="store_true", help="run the node alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE too")
    add_against(parser)
    add_rounds(parser)
    options = parser.parse_args()
    versions = checkouts(options.against)
    for name, checkout in versions.items():
        print(f"{checkout.title} ({name})")
    print(f"{machine()}\n{options.each} of each\n", flush=True)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
    for _ in range(options.rounds):
        for name, checkout in versions.items():
            runs[name].append(weigh(checkout, options))
    columns = {name: medians(found) for name, found in runs.items()}
    print(lines({name: {f"{kind}, KB": n_kb for kind, n_kb in column.items()} for name, column in columns.items()}))
    print("\n".join(f"goal: under {n_kb:g} KB for {kind}" for kind, n_kb in GOALS_KB.items()))
    save(options.json, columns if len(columns) > 1 else next(iter(columns.values())))
    return 0


def weigh(checkout: Checkout, options: argparse.Namespace) -> dict[str, float]:
    """Measure a fresh service."""
    settings = {"MAX_CONNECTIONS": str(3 * options.each + 3 * N_WARM)}
    place = house(checkout, None, has_redis=not options.no_redis, settings=settings)
    with place as (port, _, pids, server), blaming(server):
        return asyncio.run(measure(port, pids["server"], options.each))


if __name__ == "__main__":
    run(main)
