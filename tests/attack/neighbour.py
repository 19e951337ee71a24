"""The neighbour: one relay and its consumer, in a process of their own, at 128 Hz beside what is done to the server.

    python -m attack.neighbour PORT USER

Open loop: the time of each sample is fixed beforehand. A line on stdin marks where a phase begins, its end is the end;
then it waits for what is on its way, and writes a `Heard` as JSON.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from contextlib import suppress
from time import monotonic
from typing import NamedTuple

from attack.line import NEIGHBOUR_KEY, auth, close_code, handshake, text
from support.relay_bytes import CLOSE

RATE_HZ = 128
OPEN_SECONDS = 10.0
PATIENCE_SECONDS = 20.0  # after the last was sent; what is missing then does not come any more
READY = "the neighbour streams"


class Heard(NamedTuple):
    """Times of what was sent and of what came, in seconds of one clock; of a sample that did not come, None."""

    due_s: list[float]
    left_s: list[float]
    came_s: list[float | None]
    phases: list[int]  # the first position of each
    n_repeated: int
    n_misplaced: int
    ending: str  # of the relay or the consumer: a close code, `closed` or `reset`


class _Neighbour:
    def __init__(self, port: int, user: str) -> None:
        self._relay = _opened(port, handshake("/stream"), b"\r\n\r\n")
        self._relay.sendall(text(auth(user, NEIGHBOUR_KEY)))
        _until(self._relay, b'"auth_ok"')
        self._consumer = _opened(port, handshake(f"/subscribe/{user}", NEIGHBOUR_KEY), b'"status"')
        for side in (self._relay, self._consumer):
            side.setblocking(False)
        self._heard = Heard([], [], [], [], 0, 0, "")
        self._rest = bytearray()
        self._next = 0  # position that the consumer gets
        self._is_over = False
        self._unsent = b""

    def run(self) -> Heard:
        """Stream until stdin ends, and wait for what is on its way."""
        poll = select.poll()
        for file in (self._relay, self._consumer, sys.stdin):
            poll.register(file, select.POLLIN)
        due_s = began_s = monotonic()
        while not self._heard.ending:
            if not self._is_over and monotonic() >= due_s:
                self._send(due_s)
                due_s = began_s + len(self._heard.due_s) / RATE_HZ
            if self._is_over and (self._is_whole() or monotonic() > due_s + PATIENCE_SECONDS):
                break
            for number, _ in poll.poll(50 if self._is_over else max(0.0, due_s - monotonic()) * 1000):
                if number == sys.stdin.fileno():
                    self._is_over = self._mark() or self._is_over
                    if self._is_over:
                        poll.unregister(sys.stdin)
                elif number == self._consumer.fileno():
                    self._receive()
                else:
                    self._listen()
        return self._heard

    def _send(self, due_s: float) -> None:
        position = len(self._heard.due_s)
        message = text({"type": "raw", "position": position, "channels": [position, 1, 2, 3, 4, 5, 6, 7]})
        try:
            n = self._relay.send(self._unsent + message)
        except BlockingIOError:
            n = 0
        except OSError:
            self._end("reset")
            return
        self._unsent = (self._unsent + message)[n:]
        self._heard.due_s.append(due_s)
        self._heard.left_s.append(monotonic())
        self._heard.came_s.append(None)

    def _receive(self) -> None:
        self._rest += self._read(self._consumer)
        now_s = monotonic()
        while found := _first_frame(self._rest):
            opcode, payload, n_bytes = found
            del self._rest[:n_bytes]
            if opcode == CLOSE:
                self._end(str(int.from_bytes(payload[:2], "big")))
            elif payload.startswith(b'{"type":"raw"'):
                self._take(json.loads(payload)["position"], now_s)

    def _take(self, position: int, now_s: float) -> None:
        heard = self._heard
        is_repeated, is_misplaced = heard.came_s[position] is not None, position < self._next
        heard.came_s[position] = heard.came_s[position] or now_s
        self._next = position + 1
        self._heard = heard._replace(
            n_repeated=heard.n_repeated + is_repeated, n_misplaced=heard.n_misplaced + is_misplaced
        )

    def _listen(self) -> None:
        if code := close_code(self._read(self._relay)):
            self._end(code)

    def _read(self, side: socket.socket) -> bytes:
        try:
            data = side.recv(1 << 18)
        except BlockingIOError:
            return b""
        except OSError:
            self._end("reset")
            return b""
        if not data:
            self._end("closed")
        return data

    def _end(self, how: str) -> None:
        self._heard = self._heard._replace(ending=self._heard.ending or how)

    def _mark(self) -> bool:
        """Begin a phase; True at the end."""
        is_over = not os.read(sys.stdin.fileno(), 100)
        if not is_over:
            self._heard.phases.append(len(self._heard.due_s))
        return is_over

    def _is_whole(self) -> bool:
        return self._next == len(self._heard.due_s)


def _first_frame(data: bytearray) -> tuple[int, bytes, int] | None:
    """Return opcode and payload of the server's first frame, and its length; None when it is not all there."""
    if len(data) < 2:
        return None
    start = {126: 4, 127: 10}.get(data[1], 2)
    size = data[1] if start == 2 else int.from_bytes(data[2:start], "big")
    if len(data) < start + size:
        return None
    return data[0] & 0x0F, bytes(data[start : start + size]), start + size


def _opened(port: int, asked: bytes, answer: bytes) -> socket.socket:
    side = socket.create_connection(("127.0.0.1", port), timeout=OPEN_SECONDS)
    side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    side.sendall(asked)
    _until(side, answer)
    return side


def _until(side: socket.socket, answer: bytes) -> None:
    said = b""
    while answer not in said:
        data = side.recv(65536)
        if not data:
            raise ConnectionError(f"expected {answer!r}, got {said!r}")
        said += data


def main() -> None:
    """Stream as one user of a server."""
    with suppress(OSError):
        os.nice(-10)  # where it may: it measures the server, not how the machine shares its cores
    neighbour = _Neighbour(int(sys.argv[1]), sys.argv[2])
    print(READY, flush=True)
    print(json.dumps(neighbour.run()._asdict()), flush=True)


if __name__ == "__main__":
    main()
