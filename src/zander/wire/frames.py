"""Frames of a WebSocket (RFC 6455, 5): messages out of them, and a server's message as one."""

from __future__ import annotations

from struct import Struct

from websockets.frames import Frame, Opcode

from zander.errors import CloseCode
from zander.wire.connection import Message

MAX_FRAGMENTS = 1 << 14  # of one message: empty ones have no size that could be bounded
PING = b"\x89\x00"

_LENGTH_16 = Struct("!BBH").pack
_LENGTH_64 = Struct("!BBQ").pack


class WrongMessage(Exception):
    """Frames that follow the rules, but make no message; `code` is what the connection closes with."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Messages:
    """The messages of a connection, put together from its frames."""

    __slots__ = ("_fragments", "_is_text", "_n_fragments")

    def __init__(self) -> None:
        self._is_text = False
        self._fragments: bytearray | None = None  # of a message that is not whole
        self._n_fragments = 0

    def add(self, frame: Frame) -> Message | None:
        """Return the message that a text, binary or continuation frame ends; WrongMessage."""
        if frame.opcode is not Opcode.CONT:
            self._is_text = frame.opcode is Opcode.TEXT
            if frame.fin:
                return self._message(bytes(frame.data))
            self._fragments, self._n_fragments = bytearray(frame.data), 1
            return None
        assert self._fragments is not None
        self._fragments += frame.data
        self._n_fragments += 1
        if frame.fin:
            payload, self._fragments = bytes(self._fragments), None
            return self._message(payload)
        if self._n_fragments == MAX_FRAGMENTS:
            raise WrongMessage(CloseCode.TOO_BIG, f"expected fewer than {MAX_FRAGMENTS} fragments")
        return None

    def _message(self, payload: bytes) -> Message:
        try:
            return payload.decode() if self._is_text else payload
        except UnicodeDecodeError:
            raise WrongMessage(CloseCode.NOT_UTF8, "expected UTF-8") from None


def frame(message: Message) -> bytes:
    """Write a message as one frame of a server, unmasked (RFC 6455, 5.2)."""
    first, payload = (0x81, message.encode()) if isinstance(message, str) else (0x82, message)
    n_bytes = len(payload)
    if n_bytes < 126:
        return bytes((first, n_bytes)) + payload
    if n_bytes < 1 << 16:
        return _LENGTH_16(first, 126, n_bytes) + payload
    return _LENGTH_64(first, 127, n_bytes) + payload
