"""A real Zander for tests: served by its own thread on a free port, stopped with the test."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette

from support.services import eventually
from zander.app import create_app
from zander.server import Server, listen
from zander.settings import Settings
from zander.wire.messages import MAX_MESSAGE_BYTES


class Http:
    """What is asked of a node over HTTP, in-process or not; `http` is its address."""

    @property
    def http(self) -> str:
        """Its address."""
        raise NotImplementedError

    @property
    def ws(self) -> str:
        """Its address for WebSockets."""
        return self.http.replace("http", "ws", 1)

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        """GET a path; return the status and the JSON."""
        status, _, body = self.fetch(path, **headers)
        return status, json.loads(body)

    def fetch(self, path: str, **headers: str) -> tuple[int, Any, bytes]:
        """GET a path; return status, headers and body."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.http + path, headers=named), timeout=10) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def ready(self) -> bool:
        """Whether the database (and Redis, if set) is there."""
        return self.get("/health/ready")[0] == 200


class OtherServer(uvicorn.Server):
    """Another ASGI server than ours, which closes WebSockets with 1012 too."""

    def __init__(self, app: Starlette) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                ws="websockets-sansio",
                ws_max_size=MAX_MESSAGE_BYTES,
                ws_per_message_deflate=False,
                timeout_graceful_shutdown=2,
            )
        )
        self._app = app

    def stop(self) -> None:
        """End as SIGTERM does."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._app.state.service.hub.close_all(4.0)
        await super().shutdown(sockets)


class Node(Http):
    """One node in a thread, from construction to `stop`."""

    def __init__(self, *, on_another_server: bool = False, **settings: Any) -> None:
        """Serve with the settings."""
        self._folder = tempfile.TemporaryDirectory(prefix="zander-data-")
        defaults: dict[str, Any] = {"port": 0, "data_dir": Path(self._folder.name), "max_age_days": 1e5}
        self.settings = Settings(**(defaults | settings))
        listener = listen(self.settings.host, 0)
        self._port = int(listener.getsockname()[1])
        self.app = create_app(self.settings)
        self.server = OtherServer(self.app) if on_another_server else Server(self.app)
        self._thread = threading.Thread(target=self.server.run, args=([listener],))
        self._thread.start()
        eventually(lambda: self.server.started)

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that it runs in."""
        return self.server.servers[0].get_loop() if isinstance(self.server, OtherServer) else self.server.loop

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Drain and end, as SIGTERM does."""
        self.server.stop()
        self._thread.join()
        self._folder.cleanup()
