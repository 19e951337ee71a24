"""The native path does what its twin in Python does: to the bit, and to the error."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zander.delivery.outbox import Outbox
from zander.native import IS_NATIVE, WHY_NOT
from zander.wire.connection import NOBODY
from zander.wire.messages import Auth

IS_REQUIRED = os.environ.get("ZANDER_REQUIRE_NATIVE") == "1"
if not IS_NATIVE and not IS_REQUIRED:
    pytest.skip(f"the native path is not there: {WHY_NOT}", allow_module_level=True)

from support.frame_readers import Alone, any_values, json_differs  # noqa: E402
from support.hubs import DEVICE, build  # noqa: E402
from support.outcomes import compare, messages  # noqa: E402
from support.relay_bytes import BINARY, CLOSE, PING, TEXT, binary, chunk, floats, fragmented, masked, text  # noqa: E402
from support.samples import T0_US  # noqa: E402
from support.stories import any_story, dumped, loaded  # noqa: E402
from support.twins import Stage, Story, World, stage  # noqa: E402
from support.vectors import CHUNKS, FRAMES, GOOD, text_messages  # noqa: E402
from zander._native import FrameReader, Intake  # noqa: E402
from zander.journal.log import frame as journal_frame  # noqa: E402
from zander.journal.records import encode, raw_record  # noqa: E402
from zander.wire.chunk import MAX_POSITION, Chunk  # noqa: E402
from zander.wire.frames import frame  # noqa: E402

CORPUS = Path(__file__).parent / "corpus"


@pytest.fixture(name="stage")
def the_stage() -> Iterator[Stage]:
    with stage() as one:
        yield one


async def differing(stage: Stage, vectors: list[bytes], **options: object) -> list[str]:
    """Send each between two messages that follow; return what differs."""
    found = []
    for vector in vectors:
        steps = [("feed", text(GOOD) + vector + text(GOOD)), ("turn", b""), ("feed", text(GOOD))]
        _, difference = await compare(stage, Story(steps, formats=("json",), **options))  # type: ignore[arg-type]
        if difference:
            found.append(f"{vector[:200]!r}:\n{difference}")
    return found


@pytest.mark.skipif(not IS_REQUIRED, reason="ZANDER_REQUIRE_NATIVE is not 1")
def test_the_native_path_is_there_where_it_is_required_and_optimised() -> None:
    assert IS_NATIVE, WHY_NOT
    from zander._native import DEBUG  # noqa: PLC0415 - it may not be there

    assert not DEBUG


async def test_every_json_message_is_taken_as_by_the_twin(stage: Stage) -> None:
    assert not await differing(stage, [masked(message, TEXT) for message in text_messages()])


async def test_every_binary_message_is_taken_as_by_the_twin(stage: Stage) -> None:
    assert not await differing(stage, [masked(message, BINARY) for message in CHUNKS])


async def test_every_frame_is_taken_as_by_the_twin(stage: Stage) -> None:
    assert not await differing(stage, FRAMES)


BYE = masked(b"\x03\xe8", CLOSE)


def raw(*positions: int) -> bytes:
    """Numbered samples, a message each."""
    return text(*(f'{{"type":"raw","channels":[{position},1.5],"position":{position}}}' for position in positions))


def unnumbered(n: int) -> bytes:
    """Samples that the server counts."""
    return text(*['{"type":"raw","channels":[0.1,null]}'] * n)


def chunks(*runs: range) -> bytes:
    """Numbered binary chunks."""
    return binary(*(chunk(floats(*range(2 * len(run))), position=run.start) for run in runs))


TURN = ("turn", b"")
FULL, ROOM, CLOSED, LOST, AGAIN = [(name, b"") for name in ("full", "room", "close", "lost", "again")]
BEGUN = [("feed", raw(0, 1, 2)), TURN]

STORIES = {
    "half a message when it is taken over": [
        *BEGUN,
        ("feed", raw(3)[:20]),
        CLOSED,
        ("feed", raw(3)[20:] + raw(4) + BYE),
    ],
    "half a message, then closed": [*BEGUN, ("feed", raw(3)[:20]), CLOSED, TURN, ("feed", raw(3)[20:] + raw(4) + BYE)],
    "half a message when it is lost": [*BEGUN, ("feed", raw(3)[:20]), LOST],
    "waiting when it is taken over": [*BEGUN, ("feed", raw(3)), CLOSED, ("feed", raw(4))],
    "waiting when it is lost": [*BEGUN, ("feed", raw(3)), LOST, ("feed", raw(4))],
    "after its close": [*BEGUN, ("feed", raw(3) + BYE + raw(4)), TURN, ("feed", raw(5))],
    "an unknown opcode, not all there": [("feed", raw(0, 1, 2) + b"\x83\x80")],
    "not masked, not all there": [("feed", raw(0, 1, 2) + b"\x81\x7e")],
    "too large, not all there": [("feed", raw(0, 1, 2) + b"\x81\xff\0\0\0\0\0\x20\0\0")],
    "too many bad messages": [("feed", raw(0, 1) + text(*["x"] * 99) + raw(2) + text("y") + raw(3))],
    "comes back": [*BEGUN, AGAIN, ("feed", raw(0, 1, 2, 3) + unnumbered(2))],
    "comes back while something waits": [
        ("feed", unnumbered(2)),
        ("again-at-once", b""),
        TURN,
        ("feed", unnumbered(3)),
    ],
    "comes back to what is durable": [
        ("feed", raw(0, 1)),
        ("written", b""),
        ("feed", raw(2)),
        AGAIN,
        ("feed", raw(2, 3)),
    ],
    "no room": [*BEGUN, FULL, ("feed", raw(3, 4)), TURN, ("feed", raw(5)), ROOM, ("feed", raw(6)), TURN, LOST],
    "no room for a chunk": [*BEGUN, FULL, ("feed", chunks(range(3, 13))), ROOM, ("feed", raw(13)), TURN, LOST],
    "no room and taken over": [*BEGUN, FULL, ("feed", raw(3, 4)), CLOSED, TURN, ROOM, AGAIN, ("feed", raw(3, 4, 5))],
    "no room and lost": [*BEGUN, FULL, ("feed", raw(3, 4)), LOST, TURN, ROOM, AGAIN, ("feed", raw(3, 4, 5))],
    "nobody reads": [
        *BEGUN,
        ("stall", b""),
        ("feed", raw(3, 4)),
        TURN,
        ("feed", raw(5)),
        ("read", b""),
        ("feed", raw(6)),
    ],
    "more than the ring has": [("feed", raw(*range(25))), TURN, ("feed", raw(25, 26))],
    "a chunk larger than the ring": [*BEGUN, ("feed", chunks(range(3, 20), range(20, 25)) + raw(25))],
    "gaps and repeats": [*BEGUN, ("feed", raw(5, 4, 6) + unnumbered(2) + chunks(range(7, 12), range(15, 17)))],
    "the clock jumps": [*BEGUN, ("late", b""), ("feed", raw(3)), ("early", b""), ("feed", unnumbered(2))],
    "features between": [
        ("feed", raw(0) + text('{"type":"features","x":1}') + raw(1) + text('{"type":"ping","t0":0}'))
    ],
}


@pytest.mark.parametrize("options", [{}, {"ack": True}, {"followed": True, "capacity": 1}], ids=["", "ack", "small"])
@pytest.mark.parametrize("name", STORIES)
async def test_whatever_happens_to_a_relay_is_the_same(name: str, options: dict[str, Any], stage: Stage) -> None:
    assert (await compare(stage, Story(STORIES[name], **options)))[1] == ""


async def test_runs_beyond_64_kib_and_a_ring_that_wraps_are_taken_in_whole(stage: Stage) -> None:
    runs = [range(start, start + 3000) for start in range(0, 60_000, 3000)]
    steps = [
        ("feed", raw(0)),
        ("feed", chunks(*(range(run.start + 1, run.stop + 1) for run in runs))),
        ("feed", raw(60001)),
    ]
    outcome, difference = await compare(stage, Story(steps, capacity=7000, followed=True, formats=("binary",)))
    assert difference == ""
    assert outcome.path.intercepted == 21


async def test_channels_that_are_not_known_yet_are_left_to_the_twin(stage: Stage) -> None:
    story = Story([*BEGUN, ("feed", raw(3)), AGAIN, ("feed", raw(4, 5))], n_channels=None)
    outcome, difference = await compare(stage, story)
    assert difference == ""
    assert outcome.path.intercepted == 2


async def test_a_message_is_taken_wherever_it_is_cut(stage: Stage) -> None:
    data = (
        raw(0, 1) + masked(b"p", PING) + chunks(range(2, 4)) + text("x") + raw(5) + b"".join(fragmented(GOOD, TEXT, 9))
    )
    for n in range(len(data)):
        steps = [("feed", data[:n]), ("feed", data[n:])] if n % 2 else [("feed", data[:n]), TURN, ("feed", data[n:])]
        assert (await compare(stage, Story(steps, formats=("json",))))[1] == "", n
    steps = [("feed", data[i : i + 1]) for i in range(len(data))]
    outcome, difference = await compare(stage, Story(steps))
    assert difference == ""
    assert outcome.path.intercepted == 2


async def test_a_consumer_that_does_not_read_is_bounded_and_told_what_it_missed(stage: Stage) -> None:
    steps = [("feed", raw(0)), ("stall", b""), *[("feed", raw(*range(at, at + 50))) for at in range(1, 1001, 50)]]
    steps = [each for step in steps for each in (step, TURN)]
    world = World(stage, Story([*steps, ("read", b""), TURN], outbox_bytes=20_000, formats=("json",)), True)
    await world.play(stage.clock)
    heard = [json.loads(message) for message in messages(world.consumers["json"])[0]]
    assert max(outbox.queue.nbytes for outbox in world.hub.subscribers) <= 20_000
    await world.end()
    at = 0
    for message in heard:
        if message["type"] == "gap":
            assert (message["from"], message["reason"]) == (at, "slow")
            at = message["to"]
        elif message["type"] == "raw":
            assert (message["position"], message["channels"]) == (at, [at, 1.5])
            at += 1
    assert at == 1001
    assert any(message["type"] == "gap" for message in heard)


@settings(max_examples=100)
@given(seed=st.integers(0, 1 << 32), n_steps=st.sampled_from([3, 10, 30]))
def test_any_story_ends_the_same(seed: int, n_steps: int) -> None:
    story = any_story(Random(seed), n_steps)
    assert asyncio.run(_played(story)) == "", dumped(story)


async def _played(story: Story) -> str:
    with stage() as one:
        return (await compare(one, story))[1]


async def test_what_the_fuzzer_has_found_ends_the_same(stage: Stage) -> None:
    for file in sorted(CORPUS.glob("*.json")):
        assert (await compare(stage, loaded(file.read_text())))[1] == "", file.name


def test_json_is_to_the_byte_what_the_twin_writes() -> None:
    random = np.random.default_rng()
    for _ in range(200):
        assert json_differs(random) == ""


@pytest.mark.parametrize("time_us", [0, 1, 99, 100, 101, 999, 1000, 1001, 999_999, 1_000_000, 1_500_000])
def test_times_near_1970_are_written_as_by_the_twin_or_left_to_it(time_us: int) -> None:
    alone = Alone()
    taken = alone.take(np.zeros((1, 16), np.float32), time_us)
    assert alone.reader.json() in (None, b"".join(map(frame, taken.json_frames)))


@given(
    user_id=st.text(st.characters(codec="utf-8"), min_size=1, max_size=100),
    n_channels=st.integers(1, 40),
    n_samples=st.sampled_from([1, 2, 3, 17, 200]),
    position=st.sampled_from([0, 1, 127, 128, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32, MAX_POSITION - 201]),
    fence=st.sampled_from([0, 1, 127, 128, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32, 1 << 40]),
    time_us=st.sampled_from([0, 5, 255, 1 << 31, 946_684_800_000_000, T0_US]),
)
def test_the_journals_frames_are_to_the_byte_what_the_twin_writes(
    *, user_id: str, n_channels: int, n_samples: int, position: int, fence: int, time_us: int
) -> None:
    alone = Alone(user_id, n_channels, position, fence)
    taken = alone.take(any_values(np.random.default_rng(n_samples), n_samples, n_channels), time_us)
    frames = journal_frame(encode(raw_record(taken, fence)))
    recorded: list[tuple[bytes, int]] = []

    def record(frames: bytes, n_samples: int) -> bool:
        recorded.append((frames, n_samples))
        return False

    refused: list[FrameReader] = []
    Intake(record, refused.append, print, {}, {}).take([alone.reader])
    assert (recorded, refused) == ([(frames, len(taken))], [alone.reader])


def test_control_frames_that_follow_each_other_go_to_the_parser_together() -> None:
    reader = Alone().reader
    pings, sample = masked(b"a", PING) * 3, binary(chunk(floats(*range(16)), n_channels=16))
    data = pings + sample + pings
    for split in range(len(data) + 1):
        passed, n_before = b"", reader.n_intercepted
        for part in (data[:split], data[split:]):
            more = reader.feed(part)
            while more is not None:
                passed += more
                more = reader.feed(b"")
        assert (passed, reader.n_intercepted - n_before) == (pings * 2, 1)
    assert reader.feed(data) == pings
    assert reader.feed(b"") == pings
    assert reader.feed(b"") is None


async def test_what_fails_for_one_does_not_hold_up_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it is: nobody's samples wait for ever, and all are journaled."""
    sent: list[Any] = []

    class Failing:
        def offer(self, event: Any) -> None:
            raise MemoryError("injected")

    class Getting(Failing):
        def offer(self, event: Any) -> None:
            if isinstance(event, Chunk):
                sent.append(event)

    house = build()
    intake = house.ingest.fast_path.intake
    assert intake
    readers = []
    for user_id, follower in (("one", Failing()), ("two", Getting())):
        relay = Outbox(user_id, types=())
        stream = await house.ingest.connect(Auth(user_id), DEVICE, relay, NOBODY)
        stream.ring.allocate(2)
        stream.ring.next_position = 0
        house.subscribers.follow(user_id, follower)
        readers.append(FrameReader())
        house.ingest.fast_path.begin(readers[-1], stream, relay)
    for _ in range(2):
        for reader in readers:
            assert reader.feed(unnumbered(1)) is None
        intake.take(readers)
    assert [chunk.end for chunk in sent] == [1, 2]
    assert not any(reader.has_samples for reader in readers)
    assert len(house.recorder.frames) == 2
    assert caplog.text.count("not all got the samples of one") == 2


async def test_consumers_who_cannot_be_looked_at_do_not_hold_up_those_of_other_relays() -> None:
    class Broken:
        def __iter__(self) -> None:
            raise MemoryError("injected")

    house, readers = build(), []
    intake = house.ingest.fast_path.intake
    assert intake
    for user_id in ("one", "two"):
        relay = Outbox(user_id, types=())
        stream = await house.ingest.connect(Auth(user_id), DEVICE, relay, NOBODY)
        stream.ring.allocate(2)
        stream.ring.next_position = 0
        readers.append(FrameReader())
        house.ingest.fast_path.begin(readers[-1], stream, relay)
        assert readers[-1].feed(unnumbered(1)) is None
    broken: Any = Broken()
    house.subscribers.live["one"] = broken
    other = Outbox("two", "consumer")
    house.subscribers.live["two"] = {other}
    with pytest.raises(MemoryError):
        intake.take(readers)
    assert [json.loads(message)["position"] for message in other.take()] == [0]
    assert [stream.session.next_position for stream in house.ingest.streams.values()] == [1, 1]
