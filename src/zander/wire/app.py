"""ASGI app that the server runs, and the scope of a request to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal
from urllib.parse import unquote

App = Callable[[Any, Any, Any], Awaitable[None]]


def scope(
    kind: Literal["http", "websocket"],
    target: bytes,
    headers: Iterable[tuple[bytes, bytes]],
    client: tuple[str, int] | None,
    http_version: str,
) -> dict[str, Any]:
    """Return what an app is told of a request; `target` is its path and query, the names of headers are lower-case."""
    path, _, query = target.partition(b"?")
    return {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": http_version,
        "scheme": "ws" if kind == "websocket" else "http",
        "path": unquote(path.decode("latin-1")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": list(headers),
        "client": client,
        "server": None,
    }
