"""What happens to relays: what Hypothesis and the fuzzer make stories of, and how one is kept in a file."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from msgspec import structs

from support.relay_bytes import (
    BINARY,
    CLOSE,
    NO_POSITION,
    NO_TIME,
    PING,
    TEXT,
    binary,
    chunk,
    cut,
    floats,
    fragmented,
    masked,
)
from support.samples import T0_US
from support.twins import Story
from support.vectors import CHUNKS, FRAMES, text_messages

STEPS = ["turn", "turn", "turn", "close", "lost", "again", "again-at-once", "full", "room", "stall", "read"]
STEPS += ["late", "early", "written"]
TEXTS = text_messages()
SMALL_FRAMES = [frame for frame in FRAMES if len(frame) < 1000]


def dumped(story: Story) -> str:
    """Write a story for a file, the bytes of each step as hex."""
    fields = structs.asdict(story)
    fields["steps"] = [[name, data.hex()] for name, data in story.steps]
    return json.dumps(fields)


def loaded(text: str) -> Story:
    """Read a story."""
    fields = json.loads(text)
    fields["steps"] = [(name, bytes.fromhex(data)) for name, data in fields["steps"]]
    fields["formats"] = tuple(fields["formats"])
    return Story(**fields)


def any_story(random: Random, n_steps: int) -> Story:
    """Make up a story."""
    story = Story(
        [],
        random.choice([2, 2, 2, 1, 3, None]),
        random.choice([128.0, 128.0, 250.0, 1000.0, 0.001, 100_000.0, None]),
        random.choice([10, 10, 1, 3, 300]),
        random.random() < 0.3,
        random.random() < 0.2,
        random.random() < 0.5,
        formats=random.choice([("json", "chunks", "binary"), ("json",), ("json", "binary"), ()]),
    )
    teller = _Teller(random, story.n_channels or 2)
    data = b""
    for _ in range(n_steps):
        if random.random() < 0.12:
            story.steps += [("feed", piece) for piece in _pieces(random, data)]
            data = b""
            story.steps.append((random.choice(STEPS), b""))
        else:
            data += teller.message()
    story.steps += [("feed", piece) for piece in _pieces(random, data)]
    return story


def _pieces(random: Random, data: bytes) -> list[bytes]:
    match random.randrange(4):
        case 0:
            return cut(data, [random.choice([1, 2, 3, 7, 40]) for _ in range(5)]) if len(data) < 600 else [data]
        case 1:
            return cut(data, [random.randint(1, 400) for _ in range(9)])
        case 2:
            n = random.randint(0, len(data))
            return [piece for piece in (data[:n], data[n:]) if piece]
    return [data] if data else []


class _Teller:
    """Says what a relay sends next; it mostly goes on where it is."""

    def __init__(self, random: Random, n_channels: int) -> None:
        self._random = random
        self._n_channels = n_channels
        self._position = 0
        self._numbers = random.random() < 0.7

    def message(self) -> bytes:  # noqa: PLR0911
        random = self._random
        mask = random.randbytes(4)
        match random.randrange(40):
            case 0:
                return masked(random.choice(TEXTS), TEXT, mask)
            case 1:
                return masked(random.choice(CHUNKS), BINARY, mask)
            case 2 if random.random() < 0.3:
                return random.choice(SMALL_FRAMES)
            case 3:
                return masked(random.randbytes(random.randrange(4)), PING, mask)
            case 4:
                return masked(b'{"type":"ping","t0":%d}' % random.randrange(9), TEXT, mask)
            case 5:
                return masked(b'{"type":"features","workload":0.%d}' % random.randrange(9), TEXT, mask)
            case 6 | 7:
                payload, opcode = self._raw()
                return b"".join(
                    fragmented(payload, opcode, *(random.randrange(90) for _ in range(random.randrange(3))))
                )
            case 8 if random.random() < 0.2:
                return masked(random.choice([b"", b"\x03\xe8", b"\x03\xe9bye"]), CLOSE, mask)
            case 9 if random.random() < 0.2:
                return b"".join(masked(b"x", TEXT, mask) for _ in range(random.choice([1, 2, 99, 100])))
            case 11 | 12 | 13:
                return b"".join(masked(*self._raw(), random.randbytes(4)) for _ in range(random.randrange(20)))
            case 10:
                return binary(chunk(floats(*range(self._n_channels * 900)), self._n_channels))
        payload, opcode = self._raw()
        return masked(payload, opcode, mask)

    def _raw(self) -> tuple[bytes, int]:
        random = self._random
        n = random.choice([1, 1, 1, 2, 3, 12])
        jump = random.choice([0] * 20 + [1, 5, -1, -2, -n, -100, 1 << 40])
        position = max(0, self._position + jump) if self._numbers and random.random() < 0.95 else None
        self._position = (self._position if position is None else position) + n
        n_channels = self._n_channels if random.random() < 0.98 else self._n_channels + 1
        time_us = random.choice([None, None, T0_US, T0_US + self._position * 7812, T0_US - 10**9, T0_US + 10**6, 0, 5])
        if random.random() < 0.4:
            values = floats(
                *(random.choice([0.0, -0.0, 1.5, float("nan"), 1e-45, 3e38, 1e16]) for _ in range(n * n_channels))
            )
            if random.random() < 0.3:
                values = random.randbytes(4 * n * n_channels)
            numbered = NO_POSITION if position is None else position
            stamped = NO_TIME if time_us is None else time_us
            return chunk(values, n_channels, n, position=numbered, time_us=stamped), BINARY
        samples = [[self._value() for _ in range(n_channels)] for _ in range(n)]
        fields: list[tuple[str, Any]] = [("type", "raw")]
        fields.append(("channels", samples[0]) if n == 1 else ("samples", samples))
        if position is not None or random.random() < 0.1:
            fields.append(("position", position))
        if time_us is not None or random.random() < 0.1:
            fields.append(("timestamp", time_us and time_us / 1e6))
        if random.random() < 0.3:
            random.shuffle(fields)
        separators = random.choice([(",", ":"), (", ", ": "), (" ,\t", "\n: ")])
        return json.dumps(dict(fields), separators=separators).encode(), TEXT

    def _value(self) -> float | None:
        random = self._random
        return random.choice(
            [None, 0, -0.0, 7, random.random(), random.uniform(-1e3, 1e3), random.uniform(-1, 1) * 1e38]
        )
