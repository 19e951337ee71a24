"""RFC 6455 by section: what a frame does to the samples around it, with our WebSocket class and with uvicorn's.

Each row is sent between raw messages, over real sockets and, where each read is to end at one byte and no other, into a
connection of the same server that has no socket. A client-side parser that forgives nothing reads the answers.

In one point the standard parser is free: of a read in which it finds an error it may drop what was whole before. So a
sample has to get in where its read ended before the error, and may otherwise.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import random
import socket
import struct
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import groupby, pairwise
from typing import Any, NamedTuple, Self, cast

import numpy as np
import pytest
from websockets.exceptions import InvalidState

from support.clients import DEVICE
from support.nodes import Node
from support.services import PostgresServer, eventually
from zander.delivery.queue import TAKE_BYTES
from zander.server import Server
from zander.wire.chunk import RawIn, encode_binary
from zander.wire.inbox import MAX_MESSAGES
from zander.wire.listener import FirstRequest
from zander.wire.messages import MAX_MESSAGE_BYTES

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = b"\x9a\x3c\x00\xf7"
WAIT_SECONDS = 10.0
HELD = 1000  # samples that are remembered
LONG = 2000  # from which on bytes are not sent one by one


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    key: bytes | None = KEY,
    bits: int | None = None,
    length: int | None = None,
) -> bytes:
    """Write one frame of a client, as wrong as it is wanted; `bits` of the length: 7, 16, 64, or as few as will do."""
    n = len(payload) if length is None else length
    bits = bits or (7 if n < 126 else 16 if n < 1 << 16 else 64)
    masked = 0 if key is None else 0x80
    head = bytes([fin << 7 | rsv << 4 | opcode, masked | {7: n, 16: 126, 64: 127}[bits]])
    size = {7: b"", 16: struct.pack("!H", n & 0xFFFF), 64: struct.pack("!Q", n)}[bits]
    return head + size + (payload if key is None else key + mask(payload, key))


def mask(payload: bytes, key: bytes) -> bytes:
    n = len(payload)
    return (int.from_bytes(payload) ^ int.from_bytes((key * (n // 4 + 1))[:n])).to_bytes(n)


def sample(value: float, n_bytes: int = 0, more: bytes = b"") -> bytes:
    """Write a sample as JSON, of `n_bytes` with the spaces after it; `more` are fields nobody knows."""
    return (b'{"type":"raw","channels":[%r,0]%s}' % (value, more)).ljust(n_bytes)


def chunk(value: float, n: int = 1) -> bytes:
    return encode_binary(RawIn(None, None, np.full((n, 2), value, np.float32)))


def fragments(opcode: int, *payloads: bytes, between: bytes = b"") -> bytes:
    """Write a message in fragments, and something between them."""
    last = len(payloads) - 1
    return between.join(frame(CONT if i else opcode, part, fin=i == last) for i, part in enumerate(payloads))


def cut(payload: bytes, *places: int) -> list[bytes]:
    return [payload[start:end] for start, end in pairwise((0, *places, len(payload)))]


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


def end(code: int, reason: bytes = b"") -> bytes:
    return struct.pack("!H", code) + reason


class Case(NamedTuple):
    """What is sent; the samples in it; what is answered: pongs, error codes and a close.

    A code is that of the server's own close; bytes are the payload of a close that is an answer; None: it goes on.
    """

    name: str
    sent: bytes
    values: tuple[float, ...] = ()
    pongs: tuple[bytes, ...] = ()
    errors: tuple[str, ...] = ()
    close: int | bytes | None = None

    @property
    def is_control(self) -> bool:
        """Whether it has no whole message in it, so that it means the same to a consumer's end."""
        return not self.values and not self.errors


RAW = sample(5)
FRAGMENTED = fragments(TEXT, *cut(RAW, 9))
OPENED = frame(TEXT, RAW[:9], fin=False)
REST = frame(CONT, RAW[9:])


def base_framing() -> Iterator[Case]:
    for rsv in range(1, 8):
        yield Case(f"reserved bits {rsv:03b} on text", frame(TEXT, RAW, rsv=rsv), close=1002)
    for bit in (1, 2, 4):
        yield Case(f"reserved bit {bit:03b} on a binary", frame(BINARY, chunk(5), rsv=bit), close=1002)
        yield Case(f"reserved bit {bit:03b} on a ping", frame(PING, b"a", rsv=bit), close=1002)
        yield Case(f"reserved bit {bit:03b} on a close", frame(CLOSE, end(1000), rsv=bit), close=1002)
        yield Case(f"reserved bit {bit:03b} on a first fragment", frame(TEXT, RAW, fin=False, rsv=bit), close=1002)
        yield Case(f"reserved bit {bit:03b} on a last one", OPENED + frame(CONT, RAW[9:], rsv=bit), close=1002)
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        yield Case(f"reserved opcode {opcode:x}", frame(opcode, RAW), close=1002)
    yield Case("a reserved opcode that goes on", frame(3, RAW, fin=False), close=1002)
    for n in (125, 126, 127, 128, 65535, 65536):
        yield Case(f"text of {n} bytes", frame(TEXT, sample(5, n)), (5,))
    for n in (12, 13, 8188, 8189):
        yield Case(f"binary of {len(chunk(5, n))} bytes", frame(BINARY, chunk(5, n)), (5,) * n)
    for bits in (16, 64):
        yield Case(f"a short text with {bits} bits of length", frame(TEXT, RAW, bits=bits), (5,))
        yield Case(f"a short binary with {bits} bits of length", frame(BINARY, chunk(5), bits=bits), (5,))
        yield Case(f"a ping with {bits} bits of length", frame(PING, b"a", bits=bits), pongs=(b"a",))
        yield Case(f"a close with {bits} bits of length", frame(CLOSE, end(1000), bits=bits), close=end(1000))
        yield Case(f"nothing with {bits} bits of length", frame(TEXT, bits=bits), errors=("bad_json",))
    yield Case("300 bytes with 64 bits of length", frame(TEXT, sample(5, 300), bits=64), (5,))
    for length in (1 << 63, (1 << 63) + len(RAW), (1 << 64) - 1):
        for opcode in (TEXT, BINARY):
            yield Case(f"a length of {length:x} on {opcode}", frame(opcode, RAW, length=length, bits=64), close=1009)
    yield Case("an empty text", frame(TEXT), errors=("bad_json",))
    yield Case("an empty binary", frame(BINARY), errors=("bad_length",))


def masking() -> Iterator[Case]:
    keys = {"zero": bytes(4), "ones": b"\xff" * 4, "half zero": b"\0\0\xff\xff", "like the payload": RAW[:4]}
    for name, key in keys.items():
        yield Case(f"a text masked with {name}", frame(TEXT, RAW, key=key), (5,))
        yield Case(f"a binary masked with {name}", frame(BINARY, chunk(5), key=key), (5,))
    dice = random.Random(6455)
    texts = [frame(TEXT, sample(100 + n, 32 + n), key=dice.randbytes(4)) for n in range(100)]
    yield Case("texts of every length, each with its mask", b"".join(texts), tuple(range(100, 200)))
    binaries = [frame(BINARY, chunk(n, n), key=dice.randbytes(4)) for n in range(1, 30)]
    yield Case("binaries of many lengths", b"".join(binaries), tuple(n for n in range(1, 30) for _ in range(n)))
    each = [frame(TEXT, sample(n), key=bytes([n, 255 - n, 0, n])) for n in range(256)]
    yield Case("every byte in a mask", b"".join(each), tuple(range(256)))
    bare = {
        "text": frame(TEXT, RAW, key=None),
        "empty text": frame(TEXT, key=None),
        "text that looks masked": frame(TEXT, KEY + mask(RAW, KEY), key=None),
        "binary": frame(BINARY, chunk(5), key=None),
        "ping": frame(PING, b"a", key=None),
        "pong": frame(PONG, b"a", key=None),
        "close": frame(CLOSE, end(1000), key=None),
        "first fragment": frame(TEXT, RAW[:9], fin=False, key=None),
        "last fragment": OPENED + frame(CONT, RAW[9:], key=None),
    }
    for name, sent in bare.items():
        yield Case(f"an unmasked {name}", sent, close=1002)


def fragmentation() -> Iterator[Case]:
    for opcode, payload in ((TEXT, RAW), (BINARY, chunk(5))):
        name = "text" if opcode == TEXT else "binary"
        yield Case(f"{name} in 2 fragments", fragments(opcode, *cut(payload, 9)), (5,))
        yield Case(f"{name} in 3 fragments", fragments(opcode, *cut(payload, 9, 20)), (5,))
        yield Case(f"{name} byte by byte", fragments(opcode, *cut(payload, *range(1, len(payload)))), (5,))
        yield Case(f"{name} after an empty fragment", fragments(opcode, b"", payload), (5,))
        yield Case(f"{name} whole before an empty fragment", fragments(opcode, payload, b""), (5,))
        yield Case(f"{name} around empty fragments", fragments(opcode, payload[:9], b"", b"", payload[9:]), (5,))
        yield Case(f"{name} of nothing in fragments", fragments(opcode, b"", b""), errors=(_EMPTY[opcode],))
        control = frame(PING, b"a") + frame(PONG, b"b") + frame(PING, payload)
        yield Case(
            f"{name} around pings and a pong",
            fragments(opcode, *cut(payload, 9, 20), between=control),
            (5,),
            (b"a", payload) * 2,
        )
        for other in (TEXT, BINARY):
            new = frame(other, RAW if other == TEXT else chunk(6))
            yield Case(f"{name} open and a whole {other}", frame(opcode, payload[:9], fin=False) + new, close=1002)
            yield Case(f"{name} open and empty, then {other}", frame(opcode, fin=False) + new, close=1002)
            opened = frame(opcode, payload[:9], fin=False)
            yield Case(f"{name} open, a ping and {other}", opened + frame(PING, b"a") + new, pongs=(b"a",), close=1002)
            yield Case(f"{name} open, a pong and {other}", opened + frame(PONG) + new + REST, close=1002)
            middle = frame(CONT, payload[9:12], fin=False)
            yield Case(f"{name} open, a fragment more and {other}", opened + middle + new, close=1002)
            longer = frame(opcode, payload[:9], fin=False, bits=64)
            yield Case(f"{name} open with 64 bits of length, then {other}", longer + new, close=1002)
        within = frame(opcode, payload[:9], fin=False) + frame(opcode, payload) + frame(CONT, payload[9:])
        yield Case(f"{name} open and a whole one, then its rest", within, close=1002)
        yield Case(f"{name} open twice", frame(opcode, payload[:9], fin=False) * 2, close=1002)
        yield Case(f"{name} as a last fragment alone", frame(CONT, payload), close=1002)
        yield Case(f"{name} as a middle fragment alone", frame(CONT, payload, fin=False), close=1002)
        yield Case(f"{name} and one fragment more", fragments(opcode, *cut(payload, 9)) + frame(CONT), (5,), close=1002)
        yield Case(f"{name} whole and one fragment more", frame(opcode, payload) + frame(CONT), (5,), close=1002)
    yield Case("an empty continuation of nothing", frame(CONT), close=1002)
    yield Case("two whole samples as fragments of one", fragments(TEXT, RAW, RAW), errors=("bad_json",))
    yield Case("a sample as the last fragment", fragments(TEXT, b"  ", b" ", RAW), (5,))
    yield Case("fragmented and whole by turns", (FRAGMENTED + frame(TEXT, sample(6))) * 5, (5, 6) * 5)
    yield Case("fragmented after fragmented", FRAGMENTED + fragments(BINARY, *cut(chunk(6), 25)), (5, 6))
    yield Case("a close between fragments", OPENED + close(1000) + REST, close=1002)
    yield Case("a binary that goes on as what looks like text", fragments(BINARY, chunk(5)[:9], chunk(5)[9:]), (5,))


_EMPTY = {TEXT: "bad_json", BINARY: "bad_length"}


def control() -> Iterator[Case]:
    for payload in (b"", b"a", bytes(range(125)), b"\xff" * 125, RAW, frame(TEXT, RAW)):
        yield Case(f"a ping of {len(payload)} bytes {payload[:1]!r}", frame(PING, payload), pongs=(payload,))
        yield Case(f"a pong of {len(payload)} bytes {payload[:1]!r}", frame(PONG, payload))
    by_turns = frame(PING, b"a") + frame(TEXT, RAW) + frame(PING, b"b") + frame(BINARY, chunk(6)) + frame(PING, b"c")
    yield Case("pings and samples by turns", by_turns, (5, 6), (b"a", b"b", b"c"))
    many = [b"%d" % n for n in range(200)]
    yield Case("many pings", b"".join(frame(PING, payload) for payload in many), pongs=tuple(many))
    yield Case("a ping before a close", frame(PING, b"a") + close(1000), pongs=(b"a",), close=end(1000))
    yield Case("a ping before an error", frame(PING, b"a") + frame(3), pongs=(b"a",), close=1002)
    for opcode, name in ((PING, "ping"), (PONG, "pong"), (CLOSE, "close")):
        payload = end(1000) + b"x" * 124
        yield Case(f"a {name} of 126 bytes", frame(opcode, payload), close=1002)
        yield Case(f"a {name} of 126 bytes, 64 bits of length", frame(opcode, payload, bits=64), close=1002)
        yield Case(f"a {name} in fragments", fragments(opcode, end(1000), b""), close=1002)
        yield Case(f"a {name} of more than a message", frame(opcode, payload, length=MAX_MESSAGE_BYTES + 1), close=1009)


def closes() -> Iterator[Case]:
    good = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4509, 4999)
    for code in good:
        yield Case(f"code {code}", close(code), close=end(code))
    for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535):
        yield Case(f"invalid code {code}", close(code), close=1002)
    yield Case("without a code", frame(CLOSE), close=b"")
    yield Case("with a reason", close(1000, "é".encode()), close=end(1000, "é".encode()))
    yield Case("with the longest reason", close(1000, b"x" * 123), close=end(1000, b"x" * 123))
    yield Case("one that looks like a sample", close(4000, RAW), close=end(4000, RAW))
    yield Case("of one byte", frame(CLOSE, b"\x03"), close=1002)
    for bad in (b"\xff", b"\xc3", b"\xed\xa0\x80"):
        yield Case(f"with {bad.hex()} as its reason", close(1000, bad), close=1007)
    yield Case("twice", close(1000) + close(1001), close=end(1000))
    yield Case("and a ping", close(1000) + frame(PING, b"a"), close=end(1000))
    yield Case("and an error", close(1000) + frame(3), close=end(1000))
    yield Case("and a fragmented sample", close(1000) + FRAGMENTED, close=end(1000))


NOT_UTF8 = {
    "a byte that never is": b"\xff",
    "a continuation alone": b"\x80",
    "a truncated é": b"\xc3",
    "a truncated €": b"\xe2\x82",
    "a truncated emoji": b"\xf0\x9f\x98",
    "an overlong slash": b"\xc0\xaf",
    "an overlong NUL": b"\xc0\x80",
    "an overlong slash of three": b"\xe0\x80\xaf",
    "an overlong of four": b"\xf0\x80\x80\xaf",
    "a high surrogate": b"\xed\xa0\x80",
    "a low surrogate": b"\xed\xbf\xbf",
    "a pair of surrogates": b"\xed\xa0\xbd\xed\xb8\x80",
    "beyond the last code point": b"\xf4\x90\x80\x80",
    "five bytes": b"\xf8\x88\x80\x80\x80",
}


def utf8() -> Iterator[Case]:
    for name, bad in NOT_UTF8.items():
        yield Case(f"{name} in a field nobody knows", frame(TEXT, sample(5, more=b',"x":"%s"' % bad)), close=1007)
        yield Case(f"{name} at the end", frame(TEXT, RAW + bad), close=1007)
    bad = b"\xff"
    yield Case("alone", frame(TEXT, bad), close=1007)
    yield Case("in a key", frame(TEXT, sample(5, more=b',"%s":1' % bad)), close=1007)
    yield Case("before the sample", frame(TEXT, bad + RAW), close=1007)
    yield Case("in a nested field", frame(TEXT, sample(5, more=b',"x":[{"y":["%s"]}]' % bad)), close=1007)
    yield Case("far in a long one", frame(TEXT, sample(5, 3000) + bad), close=1007)
    yield Case("at the end of the last fragment", fragments(TEXT, RAW, b" \xe2\x82"), close=1007)
    yield Case("in the first fragment", fragments(TEXT, b"\xff", RAW), close=1007)
    yield Case("once and again", frame(TEXT, bad) * 2, close=1007)
    yield Case("after a sample and before another", frame(TEXT, RAW) + frame(TEXT, bad), (5,), close=1007)
    for name, good in {"é": "é", "€": "€", "emoji": "😀", "last": "\U0010ffff", "not a character": "\ufffe"}.items():
        whole = sample(5, more=b',"x":"%s"' % good.encode())
        yield Case(f"{name} is fine", frame(TEXT, whole), (5,))
        yield Case(f"{name} cut by fragments is fine", fragments(TEXT, *cut(whole, *range(36, len(whole) - 1))), (5,))
    binary = encode_binary(RawIn(None, None, np.array([[5, -1e38]], np.float32)))
    yield Case("a binary is not text", frame(BINARY, binary), (5,))
    yield Case("a byte order mark", frame(TEXT, b"\xef\xbb\xbf" + RAW), errors=("bad_json",))


def data() -> Iterator[Case]:
    yield Case("JSON in a binary", frame(BINARY, RAW), errors=("bad_header",))
    yield Case("a binary chunk as text", frame(TEXT, chunk(5)[:4]), errors=("bad_json",))
    yield Case("a sample and more", frame(TEXT, RAW + b"x"), errors=("bad_json",))
    yield Case("two samples in a frame", frame(TEXT, RAW + RAW), errors=("bad_json",))
    yield Case("a cut sample", frame(TEXT, RAW[:-1]), errors=("bad_json",))
    yield Case("a NUL after it", frame(TEXT, RAW + b"\0"), errors=("bad_json",))
    yield Case("a cut chunk", frame(BINARY, chunk(5)[:-1]), errors=("bad_length",))
    yield Case("a long chunk", frame(BINARY, chunk(5) + b"\0"), errors=("bad_length",))
    yield Case("another device", frame(TEXT, b'{"type":"raw","channels":[1]}'), errors=("bad_channels",))
    yield Case("space around it", frame(TEXT, b" \t\r\n" + RAW + b"\n"), (5,))
    yield Case("another order", frame(TEXT, b'{"channels":[5,0],"type":"raw"}'), (5,))
    yield Case("an escaped type", frame(TEXT, b'{"typ\\u0065":"r\\u0061w","channels":[5,0]}'), (5,))
    yield Case("a chunk in JSON", frame(TEXT, b'{"type":"raw","samples":[[5,0],[6,0]]}'), (5, 6))
    yield Case("an error before a sample", frame(TEXT, b"x") + frame(TEXT, RAW), (5,), errors=("bad_json",))
    yield Case(
        "errors and samples by turns", (frame(BINARY) + frame(TEXT, RAW)) * 2, (5, 5), errors=("bad_length",) * 2
    )


def oversize() -> Iterator[Case]:
    most = MAX_MESSAGE_BYTES
    half = sample(5, most // 2)
    yield Case("a text at the bound", frame(TEXT, sample(5, most)), (5,))
    yield Case("a text at the bound in fragments", fragments(TEXT, half, b" " * (most // 2)), (5,))
    yield Case("a binary at the bound", frame(BINARY, bytes(most)), errors=("bad_header",))
    yield Case("a text over it", frame(TEXT, sample(5, most + 1)), close=1009)
    yield Case("a binary over it", frame(BINARY, chunk(5, 65535) + bytes(most)), close=1009)
    yield Case("a length over it", frame(TEXT, RAW, length=most + 1), close=1009)
    yield Case("fragments over it", fragments(TEXT, half, b" " * (most // 2 + 1)), close=1009)
    yield Case("one byte over it in a last fragment", fragments(TEXT, sample(5, most), b" "), close=1009)
    yield Case("many fragments over it", fragments(TEXT, *[half[: most // 16]] * 16, b" "), close=1009)


TABLE: dict[str, list[Case]] = {
    "5.2": [*base_framing()],
    "5.3": [*masking()],
    "5.4": [*fragmentation()],
    "5.5": [*control()],
    "5.5.1": [*closes()],
    "5.6": [*data()],
    "8.1": [*utf8()],
    "10.4": [*oversize()],
}
ROWS = [pytest.param(name, case, id=f"{name} {case.name}") for name, cases in TABLE.items() for case in cases]

TWO = (frame(TEXT, sample(1)), frame(BINARY, chunk(2)))
BEFORE = b"".join(TWO)
AFTER = frame(BINARY, chunk(8)) + frame(TEXT, sample(9))
PROBE = frame(TEXT, b'{"type":"ping","t0":0}')


def kind(message: Any) -> str:
    """Say what a message is; what is binary is raw."""
    return "raw" if isinstance(message, bytes) else str(message["type"])


class Heard:
    """What a server has answered: a client's reading of it, strict in all that the RFC asks of a server."""

    def __init__(self) -> None:
        self.head = b""
        self.pongs: list[bytes] = []
        self.messages: list[Any] = []
        self.close: bytes | None = None
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        self._data += data
        if not self.head:
            head, found, rest = self._data.partition(b"\r\n\r\n")
            if not found:
                return
            self.head, self._data = bytes(head), rest
        while self._frame():
            pass

    @property
    def n_probes(self) -> int:
        return self.kinds.count("pong")

    @property
    def kinds(self) -> list[str]:
        return [kind(message) for message in self.messages]

    @property
    def errors(self) -> tuple[str, ...]:
        return tuple(message["code"] for message in self.messages if message["type"] == "error")

    def _frame(self) -> bool:
        if len(self._data) < 2:
            return False
        first, n = self._data[:2]
        assert n < 128, "a server does not mask"
        size = {126: 2, 127: 8}.get(n, 0)
        if len(self._data) < 2 + size:
            return False
        if size:
            n = int.from_bytes(self._data[2 : 2 + size])
            assert n >= {2: 126, 8: 1 << 16}[size], "a longer length than needed"
        if len(self._data) < 2 + size + n:
            return False
        payload = bytes(self._data[2 + size : 2 + size + n])
        del self._data[: 2 + size + n]
        self._take(first, payload)
        return True

    def _take(self, first: int, payload: bytes) -> None:
        assert self.close is None, "a frame after the close"
        assert first & 0x80, "this server has no need of fragments"
        opcode = first & 0x7F
        assert opcode in (TEXT, BINARY, CLOSE, PONG), f"reserved bits, an unknown opcode or a ping: {first:x}"
        assert opcode < CLOSE or len(payload) <= 125
        if opcode == PONG:
            self.pongs.append(payload)
        elif opcode == CLOSE:
            payload[2:].decode()
            self.close = payload
        else:
            self.messages.append(json.loads(payload) if opcode == TEXT else payload)


def request(path: str, changed: dict[str, str | None] | None = None, line: str = "GET {} HTTP/1.1") -> bytes:
    """Ask for a WebSocket; a changed header of None is left out, one with a newline is there twice."""
    fields: dict[str, str | None] = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    lines = [
        f"{name}: {part}" for name, value in (fields | (changed or {})).items() if value for part in value.split("\n")
    ]
    return "\r\n".join([line.format(path), *lines, "", ""]).encode()


def auth(user: str, device: dict[str, Any] = DEVICE) -> bytes:
    return frame(TEXT, json.dumps({"type": "auth", "user_id": user, "device_info": device}).encode())


class Client:
    """A raw socket to the server, and what was heard over it."""

    def __init__(self, node: Node, path: str, **options: int) -> None:
        self.socket = socket.socket()
        for name, value in options.items():
            self.socket.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        self.socket.settimeout(WAIT_SECONDS)
        host, _, port = node.http.removeprefix("http://").partition(":")
        self.socket.connect((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.heard = Heard()
        self.socket.sendall(request(path))
        self.until(lambda heard: heard.head)
        assert self.heard.head.startswith(b"HTTP/1.1 101 ")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        """Send, in a write each; a server that has closed meanwhile is not our concern."""
        with suppress(ConnectionError):
            for part in parts:
                self.socket.sendall(part)

    def until(self, condition: Callable[[Heard], object]) -> None:
        while not condition(self.heard):
            assert self._read(), "the server has closed"

    def to_the_end(self) -> None:
        """Read until the server has closed the connection."""
        while self._read():
            pass

    def _read(self) -> bool:
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionResetError:  # it closed before it had read all that was sent
            return False
        self.heard.feed(data)
        return bool(data)


def relay(node: Node, user: str) -> Client:
    client = Client(node, "/stream")
    client.send(auth(user))
    client.until(lambda heard: heard.messages)
    assert client.heard.messages.pop()["type"] == "auth_ok"
    return client


class Wire(asyncio.Transport):
    """A connection of a served node without a socket: each read is what the test says it is."""

    def __init__(self, node: Node, path: str) -> None:
        super().__init__()
        server: Any = node.server
        self.heard = Heard()
        self.protocol: Any
        if is_ours(node):
            tasks, self.protocol = server.listener.tasks, FirstRequest(server.listener)
            server.listener.n_connections += 1
        else:
            tasks, self.protocol = (
                server.server_state.tasks,
                server.config.ws_protocol_class(
                    config=server.config, server_state=server.server_state, app_state=server.lifespan.state
                ),
            )
        self._closing = False
        self._reads = asyncio.Event()
        self._reads.set()
        self._written = asyncio.Event()
        self.protocol.connection_made(self)
        self._all_tasks, self._others = tasks, set(tasks)
        self.protocol.data_received(request(path))

    async def feed(self, parts: Iterable[bytes]) -> None:
        """Let the server read, as long as it does and wants to."""
        for part in parts:
            await self._reads.wait()
            if self._closing:
                return
            try:
                self.protocol.data_received(part)
            except Exception:
                self.close()
                raise
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[Heard], object]) -> None:
        while not condition(self.heard):
            assert not self._closing, "the server has closed"
            await self._something()

    async def to_the_end(self) -> None:
        """Wait until the server has closed, and done with what it had read."""
        while not self._closing:
            await self._something()
        if tasks := self._all_tasks - self._others:
            await asyncio.wait(tasks)

    async def _something(self) -> None:
        self._written.clear()
        await self._written.wait()

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, data: Any) -> None:
        self.heard.feed(bytes(data))
        self._written.set()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._written.set()
            self._reads.set()
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._closing

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None:
        self._reads.clear()

    def resume_reading(self) -> None:
        self._reads.set()


async def wired(node: Node, path: str) -> Wire:
    wire = Wire(node, path)
    await wire.until(lambda heard: heard.head)
    return wire


async def wired_relay(node: Node, user: str) -> Wire:
    wire = await wired(node, "/stream")
    await wire.feed([auth(user)])
    await wire.until(lambda heard: heard.messages)
    assert wire.heard.messages.pop()["type"] == "auth_ok"
    return wire


def hub(node: Node) -> Any:
    return node.app.state.service.hub


def protocol_of(node: Node, client: Client) -> Any:
    """Return the server's end of a socket."""
    address, server = client.socket.getsockname(), cast(Any, node.server)
    if is_ours(node):
        (found,) = [each for each in server.listener.open if each.transport.get_extra_info("peername") == address]
    else:
        (found,) = [each for each in server.server_state.connections if each.client == address]
    return found


def inside(node: Node, work: Any) -> Any:
    """Run something where the server runs, and return what it gives."""

    async def bounded() -> Any:
        async with asyncio.timeout(WAIT_SECONDS):
            return await work

    return asyncio.run_coroutine_threadsafe(bounded(), node.loop).result()


def values(node: Node, user: str, since: int = 0) -> list[float]:
    """Return the first channel of the samples that got in."""
    runs = hub(node).ingest.streams[user].ring.since(since)
    return [value for run in runs for value in run.samples[:, 0].tolist()]


def got_in(node: Node, user: str) -> list[float]:
    """Return the first channel of the samples that got in, as a dashboard asks for them."""
    status, found = node.get(f"/buffer/{user}/last/{HELD}?sample_type=raw")
    return [message["channels"][0] for message in found["samples"]] if status == 200 else []


def is_offline(node: Node, user: str) -> bool:
    return not node.get(f"/buffer/{user}/stats")[1]["online"]


def check(section: str, case: Case, heard: Heard, got: list[float], n_certain: int = 0) -> None:
    """Check what was answered and what got in: of what a read ended with an error, `n_certain` samples at least."""
    assert tuple(heard.pongs) == case.pongs
    expected = [1, 2, *case.values]
    if case.close is None:
        assert heard.errors == case.errors
        expected += [8, 9]
    elif isinstance(case.close, bytes):
        assert heard.close == case.close
    else:
        assert heard.close is not None
        assert heard.close[:2] == end(case.close)
        if section != "8.1":  # there it is the whole message that is wrong, not what the parser reads
            assert n_certain <= len(got) <= len(expected)
            del expected[len(got) :]
    assert got == expected[-HELD:]


def one_by_one(data: bytes) -> list[bytes]:
    """Cut into bytes, or where that would take too long into pieces of some size."""
    n = 1 if len(data) < LONG else len(data) // 97
    return [data[i : i + n] for i in range(0, len(data), n)]


def boundaries(sent: bytes, n_most: int) -> Collection[int]:
    """Choose places to cut: around where frames begin and end, and as many others as there may be."""
    marks = [len(BEFORE), len(sent) - len(PROBE) - len(AFTER), len(TWO[0])]
    near = [mark + n for n in (0, 1, 2, 6, -1, 3, 4, 7, 10, 14, 5, 8) for mark in marks]
    rest = random.Random(len(sent)).sample(range(1, len(sent)), min(n_most, len(sent) - 1))
    return list(dict.fromkeys(near + rest))[:n_most]


def is_ours(node: Node) -> bool:
    return isinstance(node.server, Server)


@pytest.fixture(scope="module", params=[False, True], ids=["ours", "uvicorns"])
def served(request: pytest.FixtureRequest, postgres: PostgresServer) -> Iterator[Node]:
    """A node with one of the two classes."""
    url = postgres.create_database()
    settings: dict[str, Any] = {"database_url": url, "outbox_max_bytes": 1 << 16, "buffer_samples": HELD}
    with Node(on_another_server=request.param, **settings) as node:
        eventually(node.ready)
        yield node


@pytest.fixture(autouse=True)
def nothing_breaks(served: Node, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Let no error be logged; uvicorn's class has a traceback for text that is not UTF-8."""
    yield
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert set(told) <= {"Invalid UTF-8 sequence received from client."}
    assert not (told and is_ours(served))


@pytest.mark.parametrize(("section", "case"), ROWS)
def test_a_frame_between_samples(served: Node, user: str, section: str, case: Case) -> None:
    sent = BEFORE + case.sent + AFTER + PROBE
    for parts in ([sent], cut(sent, len(BEFORE) + len(case.sent) // 2)):
        _over_a_socket(served, user, section, case, parts)
    inside(served, (_goes_on if case.close is None else _closes)(served, user, section, case, sent))


def _over_a_socket(node: Node, user: str, section: str, case: Case, parts: list[bytes]) -> None:
    with relay(node, user) as client:
        client.send(*parts)
        if case.close is None:
            client.until(lambda heard: heard.n_probes)
            check(section, case, client.heard, values(node, user))
            client.send(close(1000))
        client.to_the_end()
    inside(node, _offline(node, user))
    if case.close is None:
        assert client.heard.close == end(1000)
    else:
        check(section, case, client.heard, values(node, user))


async def _offline(node: Node, user: str) -> None:
    while hub(node).ingest.streams[user].online:  # noqa: ASYNC110 (a turn or two)
        await asyncio.sleep(0)


async def _goes_on(node: Node, user: str, section: str, case: Case, sent: bytes) -> None:
    wire = await wired_relay(node, user)
    session = hub(node).ingest.streams[user].session
    cuts = (cut(sent, place) for place in boundaries(sent, 4 if len(sent) > LONG else 16))
    for parts in ([sent], *cuts, one_by_one(sent)):
        wire.heard.pongs.clear()
        wire.heard.messages.clear()
        position = session.next_position
        await wire.feed(parts)
        await wire.until(lambda heard: heard.n_probes)
        check(section, case, wire.heard, values(node, user, position))
    await wire.feed([close(1000)])
    await wire.to_the_end()
    assert wire.heard.close == end(1000)


async def _closes(node: Node, user: str, section: str, case: Case, sent: bytes) -> None:
    both, first = len(BEFORE), len(TWO[0])
    ways = [([sent], 0), ([BEFORE, *one_by_one(sent[both:])], 2 + len(case.values))]
    for place in boundaries(sent, 3 if len(sent) > LONG else 5):
        ways.append((cut(sent, place), (place >= first) + (place == both) if place <= both else 0))
    for parts, n_certain in ways:
        wire = await wired_relay(node, user)
        await wire.feed(parts)
        await wire.to_the_end()
        check(section, case, wire.heard, values(node, user), n_certain)


@pytest.mark.parametrize("n_channels", [1, 3, 8])
def test_binaries_that_end_anywhere_in_a_mask(served: Node, user: str, n_channels: int) -> None:
    dice = random.Random(n_channels)
    samples = [np.arange(n * n_channels, dtype=np.float32).reshape(n, n_channels) + n for n in range(1, 20)]
    with Client(served, "/stream") as client:
        client.send(auth(user, {"channel_count": n_channels, "sampling_rate": 128}))
        for each in samples:
            client.send(frame(BINARY, encode_binary(RawIn(None, None, each)), key=dice.randbytes(4)))
        client.send(PROBE)
        client.until(lambda heard: heard.n_probes)
    found = np.concatenate([run.samples for run in hub(served).ingest.streams[user].ring.since(0)])
    assert found.tolist() == np.concatenate(samples).tolist()


def prediction(n: int) -> bytes:
    fields = {"type": "prediction", "prediction_type": "a", "classifier_name": "b", "data": {"é": "€"}, "id": n}
    return json.dumps(fields, ensure_ascii=False).encode()


CONTROLS = [pytest.param(row.values[1], id=row.id) for row in ROWS if cast(Case, row.values[1]).is_control]


@pytest.mark.parametrize("case", CONTROLS)
def test_a_frame_between_the_predictions_of_a_consumer(served: Node, user: str, case: Case) -> None:
    with Client(served, f"/subscribe/{user}?types=gap") as client:
        client.send(frame(TEXT, prediction(1)) + case.sent + frame(TEXT, prediction(2)))
        if case.close is None:
            client.until(lambda heard: heard.kinds.count("prediction_ack") == 2)
            client.send(close(1000))
        client.to_the_end()
        assert tuple(client.heard.pongs) == case.pongs
        expected = case.close if isinstance(case.close, bytes) else end(case.close or 1000)
        assert client.heard.close is not None
        assert client.heard.close[: len(expected) or None] == expected


def test_predictions_in_fragments_around_pings(served: Node, user: str) -> None:
    with relay(served, user), Client(served, f"/subscribe/{user}?types=gap") as client:
        payload = prediction(7)
        ways = [fragments(TEXT, *cut(payload, place), between=frame(PING, b"a")) for place in range(1, len(payload))]
        client.send(b"".join(ways))
        client.until(lambda heard: heard.kinds.count("prediction_ack") == len(ways))
        assert client.heard.pongs == [b"a"] * len(ways)
        assert {message["delivered"] for message in client.heard.messages} == {True}


HANDSHAKES: dict[str, tuple[dict[str, str | None], int]] = {
    "as it should be": ({}, 101),
    "in other case": ({"Upgrade": "WebSocket", "Connection": "keep-alive, UPGRADE"}, 101),
    "with an extension": ({"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}, 101),
    "with a subprotocol": ({"Sec-WebSocket-Protocol": "chat"}, 101),
    "without a key": ({"Sec-WebSocket-Key": None}, 400),
    "with a key that is not base64": ({"Sec-WebSocket-Key": "not base64!"}, 400),
    "with a short key": ({"Sec-WebSocket-Key": base64.b64encode(b"x" * 15).decode()}, 400),
    "with two keys": ({"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==\neHh4eHh4eHh4eHh4eHh4eA=="}, 400),
    "without a version": ({"Sec-WebSocket-Version": None}, 400),
    "with an old version": ({"Sec-WebSocket-Version": "8"}, 400),
    "with another upgrade": ({"Upgrade": "h2c"}, 404),
    "without an upgrade": ({"Upgrade": None}, 404),
    "without a connection": ({"Connection": "keep-alive"}, 426),
}


@pytest.mark.parametrize("path", ["/stream", "/subscribe/someone"])
@pytest.mark.parametrize(("changed", "status"), HANDSHAKES.values(), ids=HANDSHAKES.keys())
def test_a_handshake(served: Node, path: str, changed: dict[str, str | None], status: int) -> None:
    head = _ask(served, request(path, changed))
    assert int(head[0].split()[1]) == (404 if status == 426 and not is_ours(served) else status)
    if status == 101:
        accept = hashlib.sha1(b"dGhlIHNhbXBsZSBub25jZQ==258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        assert f"sec-websocket-accept: {base64.b64encode(accept).decode()}".lower() in map(str.lower, head)
        assert not [line for line in head if line.lower().startswith(("sec-websocket-ext", "sec-websocket-prot"))]


@pytest.mark.parametrize(
    ("line", "status"),
    [("POST {} HTTP/1.1", 405), ("GET /x{} HTTP/1.1", 403)],
)
def test_a_request_that_is_no_handshake_of_ours(served: Node, line: str, status: int) -> None:
    assert int(_ask(served, request("/stream", line=line))[0].split()[1]) == status


def _ask(node: Node, asked: bytes) -> list[str]:
    host, _, port = node.http.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), WAIT_SECONDS) as connection:
        connection.sendall(asked)
        answer = b""
        while b"\r\n\r\n" not in answer:
            data = connection.recv(4096)
            assert data, answer
            answer += data
    return answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")


UNFINISHED = {
    "between frames": b"",
    "after one byte": frame(TEXT, RAW)[:1],
    "in a mask": frame(TEXT, RAW)[:4],
    "in a sample": frame(TEXT, RAW)[:-1],
    "in a length": frame(TEXT, sample(5, 300))[:3],
    "between fragments": OPENED,
    "in a fragment": OPENED + REST[:-1],
    "in a close": close(1000)[:-1],
}


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("unfinished", UNFINISHED.values(), ids=UNFINISHED.keys())
def test_a_relay_that_ends_without_a_close_goes_offline(
    served: Node, user: str, unfinished: bytes, reset: bool
) -> None:
    with relay(served, user) as client:
        client.send(BEFORE + PROBE + unfinished)
        client.until(lambda heard: heard.n_probes)
        if reset:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.socket.close()
        else:
            client.socket.shutdown(socket.SHUT_WR)
            client.to_the_end()
            assert client.heard.close is None
    eventually(lambda: is_offline(served, user))
    assert got_in(served, user) == [1, 2]


def test_what_came_before_the_end_is_taken_in(served: Node, user: str) -> None:
    with relay(served, user) as client:
        client.send(b"".join(frame(TEXT, sample(n)) for n in range(500)) + OPENED)
        client.socket.shutdown(socket.SHUT_WR)
        client.to_the_end()
    eventually(lambda: is_offline(served, user))
    assert got_in(served, user) == [*range(500)]


def test_after_the_close_of_the_server_nothing_is_taken_until_the_peers(served: Node, user: str) -> None:
    async def work() -> None:
        wire = await wired_relay(served, user)
        await wire.feed([frame(TEXT, b"junk")] * 100)
        await wire.until(lambda heard: heard.close)
        assert wire.heard.close == end(4500)
        position = hub(served).ingest.streams[user].session.next_position
        await wire.feed([*TWO, FRAGMENTED, BEFORE[:7], BEFORE[7:] + AFTER])
        assert not wire.is_closing()
        await wire.feed([close(4500)])
        await wire.to_the_end()
        assert hub(served).ingest.streams[user].session.next_position == position == 0

    inside(served, work())


@pytest.mark.parametrize("path", ["/stream", "/subscribe/{}"])
def test_text_that_is_not_utf8_in_one_read_with_a_close_ends_the_connection_and_breaks_nothing(
    served: Node, user: str, path: str, request: pytest.FixtureRequest
) -> None:
    if not is_ours(served):
        request.applymarker(pytest.mark.xfail(reason="uvicorn answers the close, then fails", raises=InvalidState))

    async def work() -> None:
        wire = await wired_relay(served, user) if path == "/stream" else await wired(served, path.format(user))
        await wire.feed([BEFORE + frame(TEXT, RAW + b"\xff") + AFTER + close(1000)])
        await wire.to_the_end()
        assert wire.heard.close in (end(1007), end(1000))
        if path == "/stream":
            assert values(served, user) == [1, 2]

    inside(served, work())


def test_what_came_in_one_read_before_a_mistake_is_taken_and_answered(
    served: Node, user: str, request: pytest.FixtureRequest
) -> None:
    if not is_ours(served):
        request.applymarker(pytest.mark.xfail(reason="uvicorn drops it", raises=AssertionError))

    async def work() -> None:
        wire = await wired_relay(served, user)
        await wire.feed([BEFORE + FRAGMENTED + frame(PING, b"a") + frame(3, b"") + AFTER])
        await wire.to_the_end()
        assert values(served, user) == [1, 2, 5]
        assert wire.heard.pongs == [b"a"]
        assert wire.heard.close is not None
        assert wire.heard.close[:2] == end(1002)

    inside(served, work())


@pytest.mark.parametrize("query", ["", f"?last={HELD}"], ids=["nothing waits", "a backlog waits"])
def test_what_a_consumer_sent_in_one_read_with_its_close_is_taken(served: Node, user: str, query: str) -> None:
    answer = b'{"type":"prediction","prediction_type":"workload","classifier_name":"c","data":{}}'
    with relay(served, user) as edge:
        edge.send(b"".join(frame(TEXT, sample(i)) for i in range(HELD)) + PROBE)
        edge.until(lambda heard: heard.n_probes)

        async def work() -> None:
            wire = Wire(served, f"/subscribe/{user}{query}")
            await wire.feed([frame(TEXT, answer) + close(1000)])
            await wire.to_the_end()

        inside(served, work())
        edge.until(lambda heard: "prediction" in heard.kinds)


def test_of_a_relay_that_was_taken_over_nothing_more_is_taken(served: Node, user: str) -> None:
    with relay(served, user) as old, relay(served, user) as new:
        old.until(lambda heard: heard.close)
        assert old.heard.close == end(4509)
        old.send(BEFORE + close(4509))
        old.to_the_end()
        new.send(AFTER + PROBE)
        new.until(lambda heard: heard.n_probes)
        assert got_in(served, user) == [8, 9]


@pytest.mark.parametrize("sent", [*TWO, FRAGMENTED], ids=["text", "binary", "fragments"])
def test_a_sample_before_the_auth_closes_and_is_not_taken(served: Node, user: str, sent: bytes) -> None:
    with Client(served, "/stream") as client:
        client.send(sent + auth(user) + AFTER)
        client.until(lambda heard: heard.close)
        assert client.heard.close == end(4501)
        assert served.get(f"/buffer/{user}/stats")[0] == 404


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after the answer"])
def test_samples_in_one_read_with_the_auth_are_taken_and_so_is_the_rest(served: Node, user: str, waits: bool) -> None:
    async def work() -> None:
        first = auth(user)
        sent = first + BEFORE + FRAGMENTED + AFTER + PROBE
        ways = [cut(sent, place) for place in range(len(first), len(sent), 3)]
        for parts in ways if waits else [[sent], *ways, one_by_one(sent)]:
            wire = await wired(served, "/stream")
            await wire.feed(parts[:1] if waits else parts)
            await wire.until(lambda heard: heard.messages)
            await wire.feed(parts[1:] if waits else [])
            await wire.until(lambda heard: heard.n_probes)
            assert values(served, user) == [1, 2, 5, 8, 9]
            await wire.feed([close(1000)])
            await wire.to_the_end()

    inside(served, work())


@pytest.mark.parametrize("query", ["", "?format=chunks", "?format=binary"])
def test_what_is_sent_in_one_write_reaches_a_consumer_in_its_order(served: Node, user: str, query: str) -> None:
    features = frame(TEXT, b'{"type":"features","workload":0.5}')
    with relay(served, user) as edge, Client(served, f"/subscribe/{user}{query}") as azure:
        azure.until(lambda heard: heard.messages)
        assert azure.heard.messages.pop()["type"] == "status"
        sent = [BEFORE, features, FRAGMENTED, frame(TEXT, b"junk"), features, frame(PING, b"a"), AFTER, features]
        edge.send(b"".join(sent) + PROBE)
        azure.until(lambda heard: heard.kinds.count("features") == 3)
        assert [which for which, _ in groupby(azure.heard.kinds)] == ["raw", "features"] * 3
        edge.until(lambda heard: heard.n_probes)
        assert (edge.heard.pongs, edge.heard.errors) == ([b"a"], ("bad_json",))


def test_a_relay_that_floods_a_busy_server_is_slowed_and_loses_nothing(
    served: Node, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, n_bytes = 600, 1 << 16
    free = threading.Event()
    ingest = hub(served).ingest
    connect = ingest.connect

    async def busy(*args: Any) -> Any:
        await asyncio.to_thread(free.wait, WAIT_SECONDS)
        return await connect(*args)

    monkeypatch.setattr(ingest, "connect", busy)
    with Client(served, "/stream", SO_SNDBUF=1 << 16) as client:
        flood = memoryview(auth(user) + b"".join(frame(TEXT, sample(i, n_bytes)) for i in range(n)) + PROBE)
        n_sent = 0
        client.socket.setblocking(False)

        def send_more() -> bool:
            nonlocal n_sent
            n_before = n_sent
            with suppress(BlockingIOError):
                n_sent += client.socket.send(flood[n_sent : n_sent + (1 << 20)])
            return n_sent > n_before

        protocol = protocol_of(served, client)
        eventually(lambda: not send_more() and (protocol.is_paused if is_ours(served) else protocol.read_paused))
        assert n_sent < len(flood) / 2
        assert (len(protocol._inbox) if is_ours(served) else protocol.queue.qsize()) <= MAX_MESSAGES
        client.socket.settimeout(WAIT_SECONDS)
        free.set()
        client.socket.sendall(flood[n_sent:])
        client.until(lambda heard: heard.n_probes)
        assert got_in(served, user) == [*range(n)]


def has_probes(n: int, heard: Heard) -> bool:
    return heard.n_probes == n


async def _size(transport: asyncio.Transport) -> int:
    return transport.get_write_buffer_size()


def test_a_consumer_that_does_not_read_costs_no_more_than_its_bound(served: Node, user: str) -> None:
    n, n_chunk = 40_000, 2000
    with relay(served, user) as edge, Client(served, f"/subscribe/{user}?types=raw,gap", SO_RCVBUF=1 << 16) as azure:
        eventually(lambda: hub(served).subscribers.consumers(user))
        (outbox,) = hub(served).subscribers.consumers(user)
        for i in range(0, n, n_chunk):
            edge.send(frame(BINARY, chunk(i, n_chunk)) + PROBE)
            edge.until(partial(has_probes, i // n_chunk + 1))
            assert outbox.queue.nbytes <= outbox.max_bytes
        assert outbox.queue.n_dropped
        transport = protocol_of(served, azure).transport
        assert inside(served, _size(transport)) < 4 * TAKE_BYTES
        edge.send(frame(PING, b"still here"))
        edge.until(lambda heard: heard.pongs)
        position = 0
        while position < n:
            azure.until(lambda heard: heard.messages)
            for message in azure.heard.messages:
                if message["type"] == "raw":
                    assert message["position"] == position
                    position += 1
                else:
                    assert (message["from"], message["reason"]) == (position, "slow")
                    position = message["to"]
            azure.heard.messages.clear()
