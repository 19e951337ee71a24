"""One connection of an attacker: a raw socket, as cheap as Python has it."""

from __future__ import annotations

import json
import re
import select
import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import repeat
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.request import Request, urlopen
from uuid import uuid4

from support.relay_bytes import CLOSE, TEXT, masked

KEY = "attacked-by-them-all"  # of relays and consumers; whoever has it is let in
NEIGHBOUR_KEY = "of-those-beside-them"  # of the neighbour and the visitors: it may do the same
OPEN_SECONDS = 10.0
BLOCK_BYTES = 1 << 18  # of one send: what the attack costs is then what the server makes of it
TURN_SECONDS = 0.005  # of one of several connections
SMALL_BUFFER = 4096  # in the kernel, of a peer that does not read
KEPT_BYTES = 4096  # of what the server said last
GONE = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR  # without the first, known once it is read
REFUSAL = re.compile(rb"HTTP/1\.1 ([45]\d\d) ")
DEVICE = {"device_type": "attack", "sampling_rate": 128, "channel_count": 8}


class Order(NamedTuple):
    """The extent of an attack."""

    port: int
    seconds: float  # that it goes on, unless the server ends it before
    n_bytes: int  # that it sends at most, in all
    n_connections: int = 1
    neighbour: str = ""  # its user_id

    def ends_s(self) -> float:
        """Return when it is over, if it begins now."""
        return monotonic() + self.seconds


class Report(NamedTuple):
    """The result of an attack, as the attacker sees it.

    `endings`: how many connections ended with which HTTP status or close code, `closed` or `reset`, or are `open`.
    """

    n_sent: int  # bytes
    endings: dict[str, int]
    longest_s: float  # that a connection lived
    served_s: float | None = None  # until the last of a crowd had what it came for; None: not all had
    harm: str = ""  # that the attacker itself has seen: a sentence


class Line:
    """A connection, from its construction to its `ending`; one that does not `read` only sees whether it is cut."""

    def __init__(self, port: int, *, reads: bool = True) -> None:
        self.socket = socket.socket()
        if not reads:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        self.socket.settimeout(OPEN_SECONDS)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setblocking(False)
        self.ending = ""
        self.said = b""  # by the server, the end of it
        self.n_sent = 0
        self._rest = memoryview(b"")  # that was to be sent
        self._reads = reads
        self._is_websocket = False
        self._began_s = monotonic()
        self._ended_s = 0.0
        self._poll = select.poll()
        self._poll.register(self.socket, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def open_websocket(self, path: str, key: str = "") -> Self:
        """Ask for a WebSocket, and wait for it."""
        self.ask(handshake(path, key), b"\r\n\r\n")
        if not self.said.startswith(b"HTTP/1.1 101"):
            raise ConnectionError(self.said.decode(errors="replace"))
        self.said = self.said.partition(b"\r\n\r\n")[2]
        self._is_websocket = True
        return self

    def open_relay(self, user_id: str, device: Mapping[str, Any] = DEVICE) -> Self:
        """Be let in as a relay."""
        self.come_as_relay(user_id, device)
        self.listen_for(b'"auth_ok"')
        return self

    def come_as_relay(self, user_id: str, device: Mapping[str, Any] = DEVICE) -> None:
        """Ask to be let in as a relay, and wait for no answer."""
        self._is_websocket = True
        self.pour([handshake("/stream") + text(auth(user_id) | {"device_info": device})], monotonic() + OPEN_SECONDS)

    def open_consumer(self, user_id: str, query: str = "") -> Self:
        """Be let in as a consumer."""
        self.open_websocket(f"/subscribe/{user_id}{query}", KEY)
        self.listen_for(b'"status"')
        return self

    def ask(self, request: bytes, answer: bytes) -> None:
        """Send a request, and wait until this is in what the server says."""
        self.pour([request], monotonic() + OPEN_SECONDS)
        self.listen_for(answer)

    def listen_for(self, answer: bytes) -> None:
        """Wait until this is in what the server says; ConnectionError when it never is."""
        until_s = monotonic() + OPEN_SECONDS
        while answer not in self.said:
            self._wait(select.POLLIN, until_s)
            if self.ending or monotonic() > until_s:
                raise ConnectionError(f"expected {answer!r}, got {self.ending} {self.said!r}")

    def pour(self, blocks: Iterable[bytes], until_s: float, n_bytes: int = 1 << 62) -> None:
        """Send blocks until they are at an end, so many bytes are out, it is time, or the server ends it.

        What is left of a block goes before the blocks of the next call.
        """
        last = self.n_sent + n_bytes
        coming = iter(blocks)
        events = select.POLLOUT | (select.POLLIN if self._reads else 0)
        while not self.ending and self.n_sent < last and monotonic() < until_s:
            if not self._rest and not (data := next(coming, b"")):
                return
            self._rest = self._rest or memoryview(data)
            if self._wait(events, until_s) & select.POLLOUT and not self.ending:
                self._rest = self._rest[self._send(self._rest) :]

    def hold(self, until_s: float) -> None:
        """Keep it open until the server ends it, or it is time; look at least once."""
        while not self.ending:
            self._wait(select.POLLIN if self._reads else 0, until_s)
            if monotonic() >= until_s:
                return

    def _wait(self, events: int, until_s: float) -> int:
        self._poll.modify(self.socket, events | GONE)
        found = self._poll.poll(max(0.0, until_s - monotonic()) * 1000)
        happened = found[0][1] if found else 0
        if happened & events & select.POLLIN:
            self._read()
        elif happened & GONE:
            self._read_to_the_end()
        return happened

    def _send(self, data: memoryview) -> int:
        try:
            n = self.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._read_to_the_end()
            return 0
        self.n_sent += n
        return n

    def _read_to_the_end(self) -> None:
        """Read what the server said before it was gone."""
        while not self._ended_s:
            self._read()

    def _read(self) -> None:
        try:
            data = self.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            self._end("reset")
            return
        self.said = (self.said + data)[-KEPT_BYTES:]
        if not data:
            self._end("closed")
        elif (refusal := self._refusal()) and not self.ending:
            self.ending = refusal

    def _end(self, how: str) -> None:
        self._ended_s = monotonic()
        self.ending = self.ending or self._refusal() or how

    def _refusal(self) -> str:
        return close_code(self.said) if self._is_websocket else refusal(self.said)

    def report(self) -> Report:
        """Say what became of it."""
        return Report(self.n_sent, {self.ending or "open": 1}, (self._ended_s or monotonic()) - self._began_s)


def pour_all(lines: list[Line], what: bytes, until_s: float, n_bytes: int) -> None:
    """Send a block again and again over all of them, in turns: each may be held up."""
    while any(not line.ending for line in lines) and monotonic() < until_s:
        if (left := n_bytes - sum(line.n_sent for line in lines)) <= 0:
            return
        for line in lines:
            line.pour(repeat(what), min(until_s, monotonic() + TURN_SECONDS), max(1, left // len(lines)))


def hold_all(lines: list[Line], until_s: float) -> Report:
    """Keep all of them open until the server has ended each, or it is time, and say what became of them."""
    for line in lines:
        line.hold(until_s)
    reports = [line.report() for line in lines]
    for line in lines:
        line.socket.close()
    return joined(reports)


def joined(reports: list[Report]) -> Report:
    """Sum up what became of several connections, or of several crowds."""
    endings: Counter[str] = Counter()
    for report in reports:
        endings.update(report.endings)
    return Report(
        sum(report.n_sent for report in reports),
        dict(endings),
        max((report.longest_s for report in reports), default=0.0),
    )


def refusal(said: bytes) -> str:
    """Return the HTTP status of the last refusal; nothing when there is none."""
    found = REFUSAL.findall(said)
    return found[-1].decode() if found else ""


def close_code(said: bytes) -> str:
    """Return the code of the close that a server's frames end with; nothing when they do not."""
    end = len(said)
    for at in range(end - 4, max(-1, end - 128), -1):
        if said[at] == 0x80 | CLOSE and said[at + 1] == end - at - 2:
            return str(int.from_bytes(said[at + 2 : at + 4], "big"))
    return ""


def told(port: int, path: str) -> Any:
    """Ask over REST, and return the JSON of the answer; OSError when it is a refusal."""
    asked = Request(f"http://127.0.0.1:{port}{path}", headers={"Authorization": f"Bearer {KEY}"})
    with urlopen(asked, timeout=OPEN_SECONDS) as answer:
        return json.loads(answer.read())


def handshake(path: str, key: str = "") -> bytes:
    """Write a request for a WebSocket; no key: as somebody who has none."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n{_authorization(key)}\r\n"
    ).encode()


def request(path: str, key: str = "", *, is_last: bool = False) -> bytes:
    """Write a GET; where it is the last one, the server ends the connection."""
    ends = "Connection: close\r\n" if is_last else ""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{ends}{_authorization(key)}\r\n".encode()


def _authorization(key: str) -> str:
    return f"Authorization: Bearer {key}\r\n" if key else ""


def auth(user_id: str, key: str = KEY) -> dict[str, Any]:
    """Make a relay's first message."""
    return {"type": "auth", "api_key": key, "user_id": user_id, "device_info": DEVICE}


def text(message: dict[str, Any]) -> bytes:
    """Write a message as one frame."""
    return masked(json.dumps(message).encode(), TEXT)


def block(what: bytes) -> bytes:
    """Repeat bytes until they are worth a send."""
    return what * max(1, BLOCK_BYTES // len(what))


def any_user() -> str:
    """Name a user that nobody else has."""
    return f"attacker-{uuid4().hex[:12]}"
