"""A real Zander for tests: served by its own thread on a free port, stopped with the test."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from typing import Any, Self

from services import eventually

from zander.app import create_app
from zander.server import Server, listen
from zander.settings import Settings


class Node:
    """One node, from construction to `stop`."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(port=0, **settings)
        listener = listen(self.settings.host, 0)
        port = listener.getsockname()[1]
        self.http = f"http://127.0.0.1:{port}"
        self.ws = f"ws://127.0.0.1:{port}"
        self.app = create_app(self.settings)
        self._server = Server(self.app)
        self._thread = threading.Thread(target=self._server.run, args=([listener],))
        self._thread.start()
        eventually(lambda: self._server.started)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Drain and end, as SIGTERM does."""
        self._server.should_exit = True
        self._thread.join()

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        """GET a path; return the status and the JSON."""
        status, _, body = self.fetch(path, **headers)
        return status, json.loads(body)

    def fetch(self, path: str, **headers: str) -> tuple[int, Any, bytes]:
        """GET a path; return status, headers and body."""
        request = urllib.request.Request(self.http + path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def ready(self) -> bool:
        """Whether the database (and Redis, if set) is there."""
        return self.get("/health/ready")[0] == 200
