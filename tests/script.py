"""The bytes that a relay sends, right and wrong, and how a story of them is kept in a file."""

from __future__ import annotations

import struct
from itertools import cycle

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
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
    position: int = -1,
    time_us: int = -(1 << 63),
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
    parts = [payload[start:end] for start, end in zip(places, places[1:], strict=False)]
    opcodes = [opcode] + [CONTINUATION] * (len(parts) - 1)
    return [masked(part, op, first=0x80 * (i == len(parts) - 1)) for i, (part, op) in enumerate(zip(parts, opcodes))]


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """Cut bytes into pieces of these sizes, round and round."""
    pieces, at = [], 0
    for size in cycle(sizes):
        if at >= len(data):
            return pieces
        pieces.append(data[at : at + size])
        at += size
    return [data]
