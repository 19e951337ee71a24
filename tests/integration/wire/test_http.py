"""Plain HTTP of the server, byte for byte: what is whole is answered, and what is wrong, large or late refused."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator

import pytest

from support.nodes import Node
from zander.wire.http import MAX_HEAD_BYTES, MAX_REQUEST_BYTES, MAX_REQUESTS

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Line:
    """A TCP connection to a node."""

    def __init__(self, node: Node) -> None:
        host, port = node.http.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), 20)

    def answer(self) -> tuple[int, bytes]:
        """Read one answer; return its status and body."""
        response = http.client.HTTPResponse(self.socket)
        response.begin()
        return response.status, response.read()

    def rest(self) -> bytes:
        """Read until the server closes."""
        found = b""
        while data := self.socket.recv(1 << 16):
            found += data
        return found


@pytest.fixture
def line(node: Node) -> Iterator[Line]:
    line = Line(node)
    with line.socket:
        yield line


def test_requests_on_one_connection_are_answered_one_after_the_other(line: Line) -> None:
    for _ in range(3):
        line.socket.sendall(HEALTH)
        assert line.answer() == (200, b'{"status":"ok"}')


def test_requests_in_one_write_are_all_answered(line: Line) -> None:
    line.socket.sendall(HEALTH * 50 + HEALTH.replace(b"Host", b"Connection: close\r\nHost"))
    assert line.rest().count(b'{"status":"ok"}') == 51


def test_a_request_may_come_byte_by_byte(line: Line) -> None:
    for i in range(len(HEALTH)):
        line.socket.sendall(HEALTH[i : i + 1])
    assert line.answer()[0] == 200


def test_a_head_is_answered_without_a_body(line: Line) -> None:
    line.socket.sendall(HEALTH.replace(b"GET", b"HEAD").replace(b"Host", b"Connection: close\r\nHost"))
    head, _, body = line.rest().partition(b"\r\n\r\n")
    assert (head.partition(b"\r\n")[0], body) == (b"HTTP/1.1 200 OK", b"")


def test_an_old_client_gets_its_answer_and_the_end(line: Line) -> None:
    line.socket.sendall(b"GET /health HTTP/1.0\r\n\r\n")
    assert line.rest().endswith(b'{"status":"ok"}')


@pytest.mark.parametrize("first", [b"", HEALTH], ids=["at once", "after another request"])
@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /" + b"a" * MAX_HEAD_BYTES,
        b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_HEAD_BYTES,
        b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * (MAX_HEAD_BYTES // 6 + 1),
    ],
    ids=["a path", "a header", "headers"],
)
def test_a_head_without_an_end_is_refused(line: Line, first: bytes, request_bytes: bytes) -> None:
    line.socket.sendall(first)
    if first:
        assert line.answer()[0] == 200
    line.socket.sendall(request_bytes + b"a" * 100)
    assert b" 431 " in line.rest().partition(b"\r\n")[0]


def test_a_body_that_is_too_large_is_refused(line: Line) -> None:
    line.socket.sendall(b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000\r\n\r\n")
    line.socket.sendall(b"a" * (MAX_REQUEST_BYTES + 1))
    assert b" 413 " in line.rest().partition(b"\r\n")[0]


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nBad\r\n\r\n"]
)
def test_what_is_no_request_is_refused(line: Line, garbage: bytes) -> None:
    line.socket.sendall(garbage)
    assert b" 400 " in line.rest().partition(b"\r\n")[0]


@pytest.mark.parametrize(
    "sent", [b"", b"GET /hea", HEALTH], ids=["nothing", "half a request", "a request, then nothing"]
)
def test_who_lets_its_time_pass_is_closed(line: Line, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr("zander.wire.pending.REQUEST_SECONDS", 0.0)
    late = Line.__new__(Line)
    late.socket = socket.create_connection(line.socket.getpeername(), 20)
    with late.socket:
        late.socket.sendall(sent)
        said = late.rest()
    assert said.split()[1:2] == {b"": [], b"GET /hea": [b"408"], HEALTH: [b"200"]}[sent]


def test_a_connection_has_an_end_however_much_it_asks(line: Line) -> None:
    line.socket.sendall(HEALTH * (MAX_REQUESTS + 10))
    assert line.rest().count(b'{"status":"ok"}') == MAX_REQUESTS
