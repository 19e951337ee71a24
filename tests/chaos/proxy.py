"""A small TCP proxy that misbehaves: between relays, consumers and nodes, and between nodes and what they stand on."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Self

RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: a close sends RST instead of FIN

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Proxy:
    """A port of 127.0.0.1 that leads to the port `target` names at the time of each connection; 0: to nobody."""

    def __init__(self, target: Callable[[], int]) -> None:
        self.delay_s = 0.0  # for each piece that passes, in either direction
        self.n_connections = 0
        self._target = target
        self._pairs: set[_Pair] = set()
        self._server: asyncio.Server | None = None
        self._deaf = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*(pair.ended.wait() for pair in self._pairs))

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def cut(self, *, reset: bool = True) -> None:
        """End all connections on both sides, by RST or by FIN."""
        for pair in list(self._pairs):
            pair.frozen = True
            pair.passing.set()
            pair.client.end(reset=reset)
            pair.server.end(reset=reset)

    def freeze(self) -> None:
        """Swallow everything from now on, in both directions and of new connections too, and close nothing."""
        self._deaf = True
        for pair in self._pairs:
            pair.frozen = True

    def thaw(self) -> None:
        """Let new connections through again; frozen ones have lost bytes, and are cut."""
        self._deaf = False
        self.cut()

    def orphan(self) -> None:
        """Cut the clients, and leave the server's ends open and silent: half-open links."""
        for pair in self._pairs:
            pair.frozen = True
            pair.client.end(reset=True)

    def stall(self) -> None:
        """Hold what comes, as a link without reception does."""
        for pair in self._pairs:
            pair.passing.clear()

    def desert(self) -> None:
        """Cut the clients; what is held of theirs still arrives."""
        for pair in self._pairs:
            pair.client.end(reset=True)

    def resume(self) -> None:
        """Deliver what was held, late."""
        for pair in self._pairs:
            pair.passing.set()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        try:
            server = await asyncio.open_connection("127.0.0.1", self._target())
        except OSError:
            _end(writer, reset=True)
            return
        pair = _Pair(self, (reader, writer), server, frozen=self._deaf)
        self._pairs.add(pair)
        try:
            await pair.run()
        finally:
            self._pairs.discard(pair)


class _Side:
    """One of the two connections of a pair."""

    def __init__(self, streams: Streams) -> None:
        self.reader, self.writer = streams

    def end(self, *, reset: bool) -> None:
        _end(self.writer, reset=reset)


class _Pair:
    """A client's connection and the one made for it."""

    def __init__(self, proxy: Proxy, client: Streams, server: Streams, *, frozen: bool) -> None:
        self.client = _Side(client)
        self.server = _Side(server)
        self.frozen = frozen
        self.passing = asyncio.Event()
        self.passing.set()
        self.ended = asyncio.Event()
        self._proxy = proxy

    async def run(self) -> None:
        """Pass bytes both ways until both directions have ended; the end of one ends the other, unless frozen."""
        try:
            await asyncio.gather(self._pass(self.client, self.server), self._pass(self.server, self.client))
        finally:
            self.client.end(reset=True)
            self.server.end(reset=True)
            self.ended.set()

    async def _pass(self, source: _Side, sink: _Side) -> None:
        with suppress(OSError):
            while data := await source.reader.read(1 << 16):
                await self._forward(data, sink)
        await self.passing.wait()
        if not self.frozen:
            sink.end(reset=False)

    async def _forward(self, data: bytes, sink: _Side) -> None:
        if self._proxy.delay_s:
            await asyncio.sleep(self._proxy.delay_s)
        await self.passing.wait()
        if not self.frozen and not sink.writer.is_closing():
            sink.writer.write(data)
            await sink.writer.drain()


def _end(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    """Close a connection: by FIN after what is still to be written, or by RST at once."""
    if not reset:
        writer.close()
        return
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    writer.transport.abort()
