"""Thousands of connections of one attacker in one epoll set."""

from __future__ import annotations

import select
import socket
from collections import Counter
from contextlib import suppress
from time import monotonic

from attack.line import KEPT_BYTES, Order, Report, close_code, refusal

LOOK_SECONDS = 0.05


class Crowd:
    """Connections that all begin at once; each sends what it opens with and then, bit by bit, what it drips."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._poll = select.epoll()
        self._members: dict[int, _Member] = {}
        self._endings: Counter[str] = Counter()
        self._longest_s = 0.0
        self._n_sent = 0

    def run(self, opening: bytes = b"", *, drip: bytes = b"", every_s: float = 1.0, wanted: bytes = b"") -> Report:
        """Hold them until the server has ended all, it is time, or each has got what is wanted."""
        began_s, until_s = monotonic(), self._order.ends_s()
        self._connect()
        n_dripped, served_s = 0, None
        while self._members and monotonic() < until_s:
            self._look(opening, wanted)
            if wanted and not self._endings and all(member.is_served for member in self._members.values()):
                served_s = monotonic() - began_s
                break
            if drip and monotonic() > began_s + (n_dripped + 1) * every_s:
                self._send_all(drip[n_dripped % len(drip) :][:1])
                n_dripped += 1
        return self._report(served_s)

    def _connect(self) -> None:
        for _ in range(self._order.n_connections):
            member = _Member(self._order.port)
            self._members[member.socket.fileno()] = member
            self._poll.register(member.socket, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP)

    def _look(self, opening: bytes, wanted: bytes) -> None:
        for number, events in self._poll.poll(LOOK_SECONDS, 1024):
            member = self._members[number]
            if not member.is_open and events & select.EPOLLOUT and not events & select.EPOLLERR:
                member.is_open = True
                self._send(member, opening)
                self._poll.modify(number, select.EPOLLIN | select.EPOLLRDHUP)
            elif events & ~select.EPOLLOUT:
                self._read(member, wanted)

    def _read(self, member: _Member, wanted: bytes) -> None:
        try:
            data = member.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            self._end(member, "reset")
            return
        member.said = (member.said + data)[-KEPT_BYTES:]
        if wanted and wanted in member.said:
            member.is_served = True
        if not data:
            self._end(member, "closed")
        elif code := member.refusal():
            self._end(member, code)

    def _send_all(self, data: bytes) -> None:
        for member in [member for member in self._members.values() if member.is_open]:
            self._send(member, data)

    def _send(self, member: _Member, data: bytes) -> None:
        with suppress(OSError):  # no room, or an end: the next look sees that, and what was said before
            self._n_sent += member.socket.send(data) if data else 0

    def _end(self, member: _Member, how: str) -> None:
        del self._members[member.socket.fileno()]
        self._endings[member.refusal() or how] += 1
        self._longest_s = max(self._longest_s, monotonic() - member.began_s)
        member.socket.close()

    def _report(self, served_s: float | None) -> Report:
        for member in list(self._members.values()):
            self._end(member, "open")
        self._poll.close()
        return Report(self._n_sent, dict(self._endings), self._longest_s, served_s)


class _Member:
    __slots__ = ("began_s", "is_open", "is_served", "said", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex(("127.0.0.1", port))
        self.is_open = self.is_served = False
        self.said = b""
        self.began_s = monotonic()

    def refusal(self) -> str:
        if b"HTTP/1.1 101" in self.said or (self.said and not self.said.startswith(b"HTTP")):
            return close_code(self.said)
        return refusal(self.said)
