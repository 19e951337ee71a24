"""The bytes that a relay sends, right and wrong, and how a story of them is kept in a file."""

from __future__ import annotations

import struct
from itertools import cycle, pairwise

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
NO_POSITION, NO_TIME = -1, -(1 << 63)  # in a chunk that the server is to count and stamp
MASK = b"\x37\xfa\x21\x3d"


def masked(payload: bytes, opcode: int, mask: bytes | None = MASK, *, first: int = 0x80, form: int = 0) -> bytes:
    """Write a client's frame; `first` has the bits before the opcode, `form` a length longer than needed (126, 127)."""
    n = len(payload)
    form = form or (n if n < 126 else 126 if n < 1 << 16 else 127)
    length = struct.pack("!H", n) if form == 126 else struct.pack("!Q", n) if form == 127 else b""
    head = bytes((first | opcode, form | (0x80 if mask else 0))) + length
    if not mask:
        return head + payload
    return head + mask + xored(payload, mask)


def xored(payload: bytes, mask: bytes) -> bytes:
    """Mask a payload."""
    key = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(len(payload), "big")


def chunk(
    values: bytes,
    n_channels: int = 2,
    n_samples: int | None = None,
    *,
    position: int = NO_POSITION,
    time_us: int = NO_TIME,
    head: bytes = b"\1\1\1\0",
) -> bytes:
    """Write a binary chunk, with whatever header."""
    if n_samples is None:
        n_samples = len(values) // (4 * n_channels)
    return head + struct.pack("<HHqq", n_channels, n_samples, position, time_us) + values


def floats(*values: float) -> bytes:
    """Write float32."""
    return struct.pack(f"<{len(values)}f", *values)


def text(*messages: str | bytes) -> bytes:
    """Write text messages as frames."""
    return b"".join(masked(m.encode() if isinstance(m, str) else m, TEXT) for m in messages)


def binary(*messages: bytes) -> bytes:
    """Write binary messages as frames."""
    return b"".join(masked(m, BINARY) for m in messages)


def fragmented(payload: bytes, opcode: int, *cuts: int) -> list[bytes]:
    """Write a message in fragments, cut at places."""
    places = [0, *sorted(min(cut, len(payload)) for cut in cuts), len(payload)]
    parts = [payload[start:end] for start, end in pairwise(places)]
    opcodes = [opcode] + [CONTINUATION] * (len(parts) - 1)
    return [
        masked(part, op, first=0x80 * (i == len(parts) - 1))
        for i, (part, op) in enumerate(zip(parts, opcodes, strict=True))
    ]


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """Cut bytes into pieces of these sizes, round and round."""
    pieces: list[bytes] = []
    at = 0
    for size in cycle(sizes):
        if at >= len(data):
            return pieces
        pieces.append(data[at : at + size])
        at += size
    return [data]


class Cutter:
    """Cuts what a relay sends behind every frame.

    The standard parser forgets the whole messages that it got together with a frame that breaks a rule; the native path
    has taken them by then, as the parser has when they come one by one.
    """

    def __init__(self) -> None:
        self._head = bytearray()
        self._left = 0

    def cut(self, data: bytes) -> list[bytes]:
        """Return the same bytes in pieces."""
        pieces, at, start = [], 0, 0
        while at < len(data):
            if not self._left:
                self._head.append(data[at])
                at += 1
                self._left = self._rest()
                if self._left < 0:  # the header goes on
                    self._left = 0
                    continue
                self._head.clear()
            n = min(self._left, len(data) - at)
            at += n
            self._left -= n
            if not self._left:
                pieces.append(data[start:at])
                start = at
        return [*pieces, data[start:]] if start < len(data) else pieces

    def _rest(self) -> int:
        """How many bytes follow the header; -1 when it is not all there."""
        head = self._head
        if len(head) < 2:
            return -1
        size = {126: 2, 127: 8}.get(head[1] & 0x7F, 0)
        if len(head) < 2 + size + (4 if head[1] & 0x80 else 0):
            return -1
        return int.from_bytes(head[2 : 2 + size], "big") if size else head[1] & 0x7F
