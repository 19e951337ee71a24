"""Consumers of a round: they note what they get, and come back where they were."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from random import Random
from typing import Any
from urllib.parse import urlencode

import numpy as np
from websockets.exceptions import ConnectionClosed

from chaos.history import Gap, Samples, Seen
from chaos.load import LOST, Link, opening


class Bare:
    """A consumer over a bare WebSocket, in JSON; after a cut it asks for its session from its position on."""

    def __init__(self, user_id: str, link: Link, chance: Random) -> None:
        self.seen = Seen(f"{user_id}/{link.port}", user_id)
        self.link = link
        self.subscribed = asyncio.Event()
        self.complaints: list[str] = []
        self._chance = chance
        self._format = chance.choice(("json", "chunks"))
        self._session_id = ""
        self._position = 0

    def __str__(self) -> str:
        return f"consumer {self.seen.name}"

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            with suppress(*LOST):
                await self._live()
            await asyncio.sleep(self._chance.uniform(0.02, 0.3))

    async def _live(self) -> None:
        query = {"types": "raw,gap,status", "format": self._format}
        if self._session_id:
            query |= {"session_id": self._session_id, "from": str(self._position)}
        async with opening(f"{self.link.url}/subscribe/{self.seen.user_id}?{urlencode(query)}") as socket:
            try:
                while True:
                    self._note(json.loads(await socket.recv()))
            except ConnectionClosed as error:
                if error.rcvd is not None and error.rcvd.code >= 4500:
                    self.complaints.append(f"{self} was closed with {error.rcvd}")

    def _note(self, message: dict[str, Any]) -> None:
        if message["type"] == "status":
            self.subscribed.set()
            if message.get("session_id") not in {None, self._session_id}:
                self._session_id, self._position = message["session_id"], 0
            return
        session_id = message["session_id"]
        if message["type"] == "gap":
            self.seen.events.append(Gap(session_id, message["from"], message["to"], message["reason"]))
            self._session_id, self._position = session_id, message["to"]
            return
        values = np.array(message.get("samples", [message.get("channels")]), np.float32)
        self.seen.events.append(Samples(session_id, message["position"], values))
        self._session_id, self._position = session_id, message["position"] + len(values)
