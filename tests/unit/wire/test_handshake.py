"""`Usual` against `websockets`: what it reads, that accepts with the same result; all else is left to that."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.http11 import Request
from websockets.server import ServerProtocol

from zander.wire.handshake import MAX_USUAL_BYTES, Usual

LINE = b"GET /subscribe/me?types=raw HTTP/1.1"
HEADERS = (
    b"Host: 127.0.0.1:8000",
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Version: 13",
)
BROWSERS = (
    *HEADERS[:2],
    b"Connection: keep-alive, Upgrade",
    *HEADERS[3:],
    b"Origin: http://127.0.0.1:8000",
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
    b"Accept-Language: de-DE,de;q=0.9",
)
STRANGE = (
    b"Upgrade: websocket, h2c",
    b"Upgrade: websocket",
    b"Connection: close",
    b"Connection: Upgrade",
    b"Content-Length: 0",
    b"Content-Length: 5",
    b"Transfer-Encoding: chunked",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR==",
    b"Sec-WebSocket-Key: short",
    b"Sec-WebSocket-Version: 12",
    b"Cookie: a=b",
    b"X: \t padded \t ",
    b"X:",
    b"X : y",
    b"X: \xe9",
    b"X: a\x00b",
    b" folded",
    b"nothing",
)


def head(line: bytes, headers: tuple[bytes, ...] | list[bytes]) -> bytes:
    return b"\r\n".join([line, *headers, b"", b""])


def judged(request: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], str] | None:
    """Return target, headers and accept key of what `websockets` accepts."""
    protocol = ServerProtocol()
    protocol.receive_data(request)
    found = next(iter(protocol.events_received()), None)
    if not isinstance(found, Request):
        return None
    response = protocol.accept(found)
    if response.status_code != 101:
        return None
    raw = found.headers.raw_items()
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in raw]
    return found.path.encode("latin-1"), headers, response.headers["Sec-WebSocket-Accept"]


def agrees(request: bytes) -> bool:
    """Return whether it is read with the result of `websockets`, or left to it."""
    usual = Usual.read(request)
    if usual is None:
        return True
    accept = usual.response.rpartition(b"Accept: ")[2].strip().decode()
    return usual.response.startswith(b"HTTP/1.1 101 ") and judged(request) == (usual.target, usual.headers, accept)


@pytest.mark.parametrize("headers", [HEADERS, BROWSERS, tuple(reversed(BROWSERS))])
def test_the_handshakes_of_clients_and_browsers_are_usual(headers: tuple[bytes, ...]) -> None:
    assert Usual.read(head(LINE, headers))
    assert agrees(head(LINE, headers))


def test_a_long_handshake_is_left_to_websockets() -> None:
    long = head(LINE, [*HEADERS, b"X: " + MAX_USUAL_BYTES * b"a"])
    assert Usual.read(long) is None
    assert judged(long)


@given(
    line=st.sampled_from([LINE, b"POST / HTTP/1.1", b"GET / HTTP/1.0", b"GET  / HTTP/1.1", b"GET /\xff HTTP/1.1"]),
    headers=st.lists(st.sampled_from(HEADERS + STRANGE), max_size=9).map(lambda more: [*HEADERS, *more]),
    left_out=st.sets(st.sampled_from(HEADERS), max_size=1),
)
def test_what_is_read_is_accepted_by_websockets_with_the_same_result(
    line: bytes, headers: list[bytes], left_out: set[bytes]
) -> None:
    assert agrees(head(line, [header for header in headers if header not in left_out]))


@given(st.binary(max_size=30), st.integers(0, len(head(LINE, BROWSERS))))
def test_any_bytes_in_a_handshake_are_judged_the_same(inserted: bytes, at: int) -> None:
    request = head(LINE, BROWSERS)
    assert agrees(request[:at] + inserted + request[at:])
