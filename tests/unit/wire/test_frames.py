"""Messages out of frames: fragments are joined, bounded in number, and text is UTF-8."""

from __future__ import annotations

import pytest
from websockets.frames import Frame, Opcode

from zander.errors import CloseCode
from zander.wire.frames import MAX_FRAGMENTS, Messages, WrongMessage, frame


@pytest.mark.parametrize("n", [0, 1, 125, 126, 127, 65535, 65536, 1 << 20])
def test_a_frame_is_what_the_library_writes(n: int) -> None:
    assert frame("é" * (n // 2)) == Frame(Opcode.TEXT, ("é" * (n // 2)).encode()).serialize(mask=False)
    assert frame(b"x" * n) == Frame(Opcode.BINARY, b"x" * n).serialize(mask=False)


def test_fragments_are_joined_to_what_the_first_says() -> None:
    messages = Messages()
    assert messages.add(Frame(Opcode.TEXT, "é".encode()[:1], fin=False)) is None
    assert messages.add(Frame(Opcode.CONT, b"", fin=False)) is None
    assert messages.add(Frame(Opcode.CONT, "é".encode()[1:])) == "é"
    assert messages.add(Frame(Opcode.BINARY, b"a")) == b"a"


def test_text_that_is_not_utf8_is_no_message() -> None:
    with pytest.raises(WrongMessage) as error:
        Messages().add(Frame(Opcode.TEXT, b"\xff"))
    assert error.value.code == CloseCode.NOT_UTF8


def test_a_message_has_no_more_than_so_many_fragments_however_small() -> None:
    messages = Messages()
    messages.add(Frame(Opcode.BINARY, b"", fin=False))
    for _ in range(MAX_FRAGMENTS - 2):
        messages.add(Frame(Opcode.CONT, b"", fin=False))
    with pytest.raises(WrongMessage) as error:
        messages.add(Frame(Opcode.CONT, b"", fin=False))
    assert error.value.code == CloseCode.TOO_BIG
