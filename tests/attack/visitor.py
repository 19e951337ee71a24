"""Visitors of a server that is attacked: somebody who asks for /health or a /history, and relays that are new."""

from __future__ import annotations

import socket
from contextlib import suppress
from time import monotonic
from uuid import uuid4

from attack.line import NEIGHBOUR_KEY, auth, handshake, request, text

PATIENCE_SECONDS = 5.0
HISTORY_PATIENCE_SECONDS = 12.0  # a question to the database has 10 s
MANY_SECONDS = 1e9  # of a visitor who got no answer


class Visit:
    """A connection that asks, one after another, for what it must get an answer to; `close` ends it."""

    def __init__(self, port: int, *talk: tuple[bytes, bytes], patience_s: float = PATIENCE_SECONDS) -> None:
        began_s = monotonic()
        self.seconds = MANY_SECONDS
        self._socket = socket.socket()
        with suppress(OSError):  # it got no answer
            self._socket.settimeout(patience_s)
            self._socket.connect(("127.0.0.1", port))
            for question, answer in talk:
                self._socket.sendall(question)
                self._listen_for(answer, began_s + patience_s)
            self.seconds = monotonic() - began_s

    def _listen_for(self, answer: bytes, until_s: float) -> None:
        said = b""
        while answer not in said:
            self._socket.settimeout(max(0.001, until_s - monotonic()))
            data = self._socket.recv(4096)
            if not data:
                raise ConnectionError("closed by the server")
            said += data

    def close(self) -> None:
        self._socket.close()


def ask_for_health(port: int) -> Visit:
    """Ask for /health over a new connection."""
    return Visit(port, (request("/health"), b'"ok"'))


def ask_for_history(port: int, user: str) -> Visit:
    """Ask for the samples of a user over a new connection; the answer names him, whether there are any or not."""
    asked = f"/history/{user}?start=0&end=4000000000&sample_type=raw&limit=100"
    talk = request(asked, NEIGHBOUR_KEY, is_last=True), user.encode()
    return Visit(port, talk, patience_s=HISTORY_PATIENCE_SECONDS)


def come_as_relay(port: int) -> Visit:
    """Come as a relay that was not there before and has the key."""
    first = text(auth(f"newcomer-{uuid4().hex[:12]}", NEIGHBOUR_KEY))
    return Visit(port, (handshake("/stream"), b"\r\n\r\n"), (first, b'"auth_ok"'))
