"""Outboxes: a consumer gets everything in order, once, bounded, and every hole announced."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.clock import Clock
from zander.delivery import queue
from zander.delivery.cursor import MAX_SESSIONS
from zander.delivery.outbox import STALLED_SECONDS, Outbox
from zander.delivery.preloads import Preloads
from zander.delivery.queue import FORMATS, TAKE_BYTES, Format
from zander.errors import CloseCode
from zander.wire.chunk import MAX_CHUNK_BYTES, MAX_DRIFT_US, Chunk, Origin, decode_binary
from zander.wire.messages import Gap, Item, Kind, Note

PERIOD_US = 10_000
A, B = Origin("me", "a", PERIOD_US), Origin("me", "b", PERIOD_US)
COALESCING: list[Format] = ["chunks", "binary"]


def chunk(position: int, n: int = 1, origin: Origin = A, *, late_us: int = 0, n_channels: int = 2) -> Chunk:
    """Samples whose first channel is their position and whose second is their session."""
    samples = np.full((n, n_channels), ord(origin.session_id), np.float32)
    samples[:, 0] = np.arange(position, position + n)
    times_us = np.arange(position, position + n) * PERIOD_US + late_us
    return Chunk(origin, position, times_us, samples)


def half_late() -> Chunk:
    """Four samples, the last two later than their places say."""
    whole = chunk(0, 4)
    times_us = whole.times_us + np.array([0, 0, MAX_DRIFT_US + 1, MAX_DRIFT_US + 1])
    return Chunk(A, 0, times_us, whole.samples)


def skipped(start: int, end: int, session_id: str = "a") -> Gap:
    """Positions that the relay sent past."""
    return Gap(session_id, start, end, "relay")


def note(name: str, kind: Kind = "features", n_bytes: int = 0, sender: str = "") -> Note:
    return Note(kind, 0, json.dumps({"type": kind, "name": name}).ljust(n_bytes), sender)


class Raw(NamedTuple):
    """One sample as a consumer sees it; a binary chunk does not say of which session, but its second channel does."""

    session_id: str
    position: int


class Hole(NamedTuple):
    """A gap as a consumer sees it."""

    session_id: str
    start: int
    end: int
    reason: str = "slow"


Seen = Raw | Hole | str  # a str is the name of a note


def seen(frames: Iterable[str | bytes]) -> list[Seen]:
    """What a consumer understands of frames."""
    return [event for frame in frames for event in _seen(frame)]


def _seen(frame: str | bytes) -> list[Seen]:
    if isinstance(frame, bytes):
        raw = decode_binary(frame)
        assert raw.position is not None
        assert raw.time_us is not None
        return _samples(raw.position, raw.time_us, raw.samples.tolist())
    message = json.loads(frame)
    match message["type"]:
        case "raw":
            samples = message["samples"] if "samples" in message else [message["channels"]]
            events = _samples(message["position"], round(message["timestamp"] * 1e6), samples)
            assert {event.session_id for event in events} == {message["session_id"]}
            return [*events]
        case "gap":
            return [Hole(message["session_id"], message["from"], message["to"], message["reason"])]
        case _:
            return [message["name"]]


def _samples(position: int, time_us: int, samples: list[list[float]]) -> list[Any]:
    assert abs(time_us - position * PERIOD_US) <= MAX_DRIFT_US * 2
    assert [sample[0] for sample in samples] == list(range(position, position + len(samples)))
    return [Raw(chr(int(sample[1])), int(sample[0])) for sample in samples]


def raws(session_id: str, *positions: range) -> list[Seen]:
    return [Raw(session_id, position) for chunk in positions for position in chunk]


# Offering, and what a consumer does not want.


async def test_an_empty_outbox_has_nothing_to_take() -> None:
    outbox = Outbox("me")
    assert not outbox.ready.is_set()
    assert not outbox.waits
    assert outbox.take() == []


@pytest.mark.parametrize("format", FORMATS)
async def test_what_is_offered_is_taken_in_order(format: Format) -> None:
    outbox = Outbox("me", format=format)
    outbox.offer(chunk(0, 2))
    outbox.offer(note("one"))
    outbox.offer(chunk(2, 1))
    outbox.say(note("two").text)
    assert seen(outbox.take()) == [*raws("a", range(2)), "one", *raws("a", range(2, 3)), "two"]
    assert not outbox.waits
    assert outbox.queue.nbytes == 0


async def test_what_one_gets_another_that_was_as_empty_does_not() -> None:
    one, other = Outbox("me"), Outbox("me")
    for i in range(3):
        one.offer(chunk(2 * i, 2))
        one.offer(note(str(i)))
        assert other.take() == []
        assert seen(one.take()) == [*raws("a", range(2 * i, 2 * i + 2)), str(i)]
    other.say(note("other").text)
    assert (one.waits, seen(other.take())) == (False, ["other"])


async def test_types_are_told_once_and_in_their_order() -> None:
    assert Outbox("me", types=["gap", "raw", "gap"]).types == ("raw", "gap")


@pytest.mark.parametrize("format", FORMATS)
async def test_frames_are_those_of_the_chunk(format: Format) -> None:
    outbox, one = Outbox("me", format=format), chunk(0, 2)
    outbox.offer(one)
    assert outbox.take() == {"json": one.json_frames, "chunks": [one.chunk_frame], "binary": [one.binary_frame]}[format]


async def test_a_consumer_gets_the_types_it_asked_for() -> None:
    outbox = Outbox("me", types=["features", "gap"])
    outbox.offer(chunk(0))
    for kind in ("features", "prediction", "gap", "status"):
        outbox.offer(note(kind, kind if kind != "gap" else "features"))
    assert seen(outbox.take()) == ["features", "gap"]


async def test_a_relay_gets_only_what_is_said_to_it() -> None:
    outbox = Outbox("me", types=())
    outbox.offer(chunk(0))
    outbox.offer(note("prediction", "prediction"))
    assert not outbox.ready.is_set()
    outbox.say(note("said").text)
    assert seen(outbox.take()) == ["said"]


async def test_a_note_does_not_come_back_to_its_sender() -> None:
    outbox = Outbox("me", "consumer-1")
    outbox.offer(note("mine", "prediction", sender="consumer-1"))
    outbox.offer(note("yours", "prediction", sender="consumer-2"))
    outbox.offer(note("nobody's", "prediction"))
    assert seen(outbox.take()) == ["yours", "nobody's"]


async def test_a_note_without_a_sender_reaches_an_outbox_without_a_consumer() -> None:
    outbox = Outbox("me")
    outbox.offer(note("features"))
    assert seen(outbox.take()) == ["features"]


@pytest.mark.parametrize("format", FORMATS)
async def test_what_was_buffered_comes_first_and_does_not_count(format: Format) -> None:
    outbox = Outbox("me", format=format, max_bytes=1024)
    outbox.preload([note("status", "status"), note("features", n_bytes=5000), chunk(0, 300), chunk(305, 300)])
    assert outbox.queue.nbytes == 0
    outbox.offer(note("live"))
    outbox.offer(chunk(605, 1))
    expected = ["status", "features", *raws("a", range(300)), Hole("a", 300, 305, "lost"), *raws("a", range(305, 605))]
    expected += ["live", *raws("a", range(605, 606))]
    taken = []
    while outbox.waits:
        taken += seen(outbox.take())
    assert taken == expected
    assert outbox.queue.nbytes == 0
    assert outbox.queue.n_dropped == 0


@pytest.mark.parametrize("format", COALESCING)
async def test_what_was_buffered_keeps_its_times(format: Format) -> None:
    outbox = Outbox("me", format=format)
    late = half_late()
    outbox.preload([late])
    assert [len(seen([frame])) for frame in outbox.take()] == [2, 2]


@pytest.mark.parametrize("format", COALESCING)
async def test_what_comes_as_one_and_was_not_measured_so_keeps_its_times(format: Format) -> None:
    outbox = Outbox("me", format=format)
    late = half_late()
    outbox.offer(late)
    assert [len(seen([frame])) for frame in outbox.take() + outbox.take()] == [2, 2]


async def test_of_what_was_buffered_a_consumer_gets_the_types_it_asked_for() -> None:
    outbox = Outbox("me", types=["raw"])
    outbox.preload([note("status", "status"), chunk(0)])
    assert seen(outbox.take()) == raws("a", range(1))


async def test_an_outbox_with_nothing_preloaded_is_not_ready() -> None:
    outbox = Outbox("me", types=["raw"])
    outbox.preload([note("status", "status")])
    assert not outbox.ready.is_set()


# Where the consumer stands.


@pytest.mark.parametrize("format", FORMATS)
async def test_what_repeats_is_left_out(format: Format) -> None:
    outbox = Outbox("me", format=format)
    for positions in (range(3), range(3), range(1, 5), range(2), range(5, 6)):
        outbox.offer(chunk(positions.start, len(positions)))
    assert seen(outbox.take()) == raws("a", range(6))


async def test_what_the_relay_sent_past_and_what_was_lost_are_told_apart() -> None:
    outbox = Outbox("me")
    outbox.offer(chunk(0))
    outbox.offer(skipped(4, 7))
    outbox.offer(chunk(7))
    outbox.offer(skipped(8, 10))
    outbox.offer(chunk(10))
    outbox.offer(chunk(12))
    assert seen(outbox.take()) == [
        *raws("a", range(1)),
        Hole("a", 1, 4, "lost"),
        Hole("a", 4, 7, "relay"),
        *raws("a", range(7, 8)),
        Hole("a", 8, 10, "relay"),
        *raws("a", range(10, 11)),
        Hole("a", 11, 12, "lost"),
        *raws("a", range(12, 13)),
    ]


async def test_a_session_is_expected_from_its_start_and_a_resumed_one_from_where_its_relay_is() -> None:
    outbox = Outbox("me")
    outbox.cursor.enter("a", 0)
    outbox.offer(chunk(2))
    outbox.cursor.enter("b", 5)
    outbox.offer(chunk(7, origin=B))
    assert seen(outbox.take()) == [
        Hole("a", 0, 2, "lost"),
        *raws("a", range(2, 3)),
        Hole("b", 5, 7, "lost"),
        *raws("b", range(7, 8)),
    ]


async def test_a_consumer_gets_nothing_of_what_lies_before_where_it_stands() -> None:
    outbox = Outbox("me")
    outbox.cursor.seek("a", 4)
    outbox.offer(chunk(0, 3))
    outbox.preload([chunk(0, 4)])
    assert not outbox.waits
    outbox.offer(chunk(0, 6))
    assert seen(outbox.take()) == raws("a", range(4, 6))


async def test_it_may_stand_before_the_first_samples_of_what_comes() -> None:
    outbox = Outbox("me")
    outbox.seek_before("a", [note("one"), chunk(7), chunk(8)], 20)
    assert (outbox.cursor.session_id, outbox.cursor.position) == ("a", 7)
    outbox.seek_before("b", [note("one")], 20)
    assert (outbox.cursor.session_id, outbox.cursor.position) == ("b", 20)


async def test_in_a_session_that_goes_on_after_another_it_stands_where_it_stood() -> None:
    outbox = Outbox("me")
    outbox.offer(chunk(0, 5))
    outbox.offer(chunk(0, 2, B))
    assert [outbox.cursor.position_in(session_id) for session_id in "abc"] == [5, 2, None]
    outbox.offer(chunk(3, 4))
    assert seen(outbox.take()) == [*raws("a", range(5)), *raws("b", range(2)), *raws("a", range(5, 7))]
    assert outbox.cursor.position_in("b") == 2


async def test_it_does_not_remember_sessions_for_ever() -> None:
    outbox = Outbox("me")
    for n in range(MAX_SESSIONS + 2):
        outbox.cursor.seek(str(n), 1)
    assert (outbox.cursor.position_in("0"), outbox.cursor.position_in("1")) == (None, 1)


async def test_a_consumer_of_gaps_alone_gets_them() -> None:
    outbox = Outbox("me", types=["gap"])
    outbox.offer(chunk(0))
    outbox.offer(skipped(1, 5))
    outbox.offer(chunk(5))
    assert outbox.ready.is_set()
    assert seen(outbox.take()) == [Hole("a", 1, 5, "relay")]


async def test_what_is_skipped_is_announced_once() -> None:
    outbox = Outbox("me")
    outbox.cursor.seek("a", 3)
    outbox.skip(3, "lost")
    outbox.skip(8, "lost")
    outbox.skip(5, "relay")
    outbox.offer(chunk(8))
    assert seen(outbox.take()) == [Hole("a", 3, 8, "lost"), *raws("a", range(8, 9))]


async def test_one_may_wait_until_all_was_taken() -> None:
    outbox = Outbox("me")
    await outbox.emptied()
    outbox.offer(chunk(0, 3000))
    waiting = asyncio.create_task(outbox.emptied())
    while outbox.waits:
        await asyncio.sleep(0)
        assert not waiting.done()
        outbox.take()
    await waiting
    outbox.offer(note("again"))
    first, second = asyncio.create_task(outbox.emptied()), asyncio.create_task(outbox.emptied())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    outbox.take()
    await second


# Closing.


async def test_a_closed_outbox_is_ready_and_keeps_what_waits() -> None:
    outbox = Outbox("me")
    outbox.offer(note("last word"))
    outbox.close(CloseCode.RESTART)
    assert seen(outbox.take()) == ["last word"]
    assert outbox.ready.is_set()
    assert outbox.closed.result() == CloseCode.RESTART


async def test_a_closed_outbox_takes_no_more() -> None:
    outbox = Outbox("me", max_bytes=1000)
    while not outbox.closed.done():
        outbox.offer(note("too much", n_bytes=100))
    n_bytes = outbox.queue.nbytes
    outbox.offer(note("later", n_bytes=100))
    outbox.offer(chunk(5, 3))
    outbox.say("later")
    assert outbox.queue.nbytes == n_bytes
    assert set(seen(outbox.take())) == {"too much"}
    assert outbox.closed.result() == CloseCode.TOO_SLOW


async def test_it_is_closed_once() -> None:
    outbox = Outbox("me")
    outbox.close(CloseCode.TAKEN_OVER)
    outbox.close(CloseCode.RESTART)
    assert outbox.closed.result() == CloseCode.TAKEN_OVER


async def test_it_is_stalled_when_something_has_waited_for_a_minute(clock: Clock) -> None:
    outbox = Outbox("me")
    outbox.offer(chunk(0))
    clock.now_s += STALLED_SECONDS
    outbox.offer(chunk(1))
    assert not outbox.stalled()
    clock.now_s += 0.1
    assert outbox.stalled()


async def test_it_is_not_stalled_when_something_was_taken_meanwhile(clock: Clock) -> None:
    outbox = Outbox("me")
    for position in range(0, 2 * TAKE_BYTES // 100):
        outbox.offer(chunk(position))
    clock.now_s += STALLED_SECONDS
    outbox.take()
    assert outbox.waits
    clock.now_s += STALLED_SECONDS
    assert not outbox.stalled()


async def test_it_is_not_stalled_when_nothing_waited_for_long(clock: Clock) -> None:
    outbox = Outbox("me")
    clock.now_s += 10 * STALLED_SECONDS
    assert not outbox.stalled()
    outbox.offer(chunk(0))  # its consumer had no turn yet to take it
    assert not outbox.stalled()
    outbox.take()
    clock.now_s += 10 * STALLED_SECONDS
    outbox.say("{}")
    assert not outbox.stalled()


# Taking.


@pytest.mark.parametrize("format", FORMATS)
async def test_one_take_is_a_small_bite(format: Format) -> None:
    outbox = Outbox("me", format=format, max_bytes=1 << 30)
    largest = chunk(0, MAX_CHUNK_BYTES // 8).pieces()[0]
    n = 200 * TAKE_BYTES // len(chunk(0).json_frames[0])
    for position in range(n):
        outbox.offer(chunk(position))
    taken, n_takes = [], 0
    while frames := outbox.take():
        n_takes += 1
        assert sum(map(len, frames)) <= TAKE_BYTES + len(largest.chunk_frame)
        taken += seen(frames)
    assert taken == raws("a", range(n))
    assert n_takes >= (200 if format == "json" else 2)


@pytest.mark.parametrize("format", COALESCING)
async def test_samples_at_hand_are_one_message(format: Format) -> None:
    outbox = Outbox("me", format=format)
    for position in range(100):
        outbox.offer(chunk(position))
    frames = outbox.take()
    assert len(frames) == 1
    assert seen(frames) == raws("a", range(100))


@pytest.mark.parametrize("format", COALESCING)
async def test_a_note_a_hole_a_session_or_a_pause_begins_a_new_message(format: Format) -> None:
    outbox = Outbox("me", format=format)
    outbox.offer(chunk(0, 2))
    outbox.offer(chunk(2))
    outbox.offer(note("one"))
    outbox.offer(chunk(3))
    outbox.offer(chunk(5, 2))  # after a hole
    outbox.offer(chunk(7, 1, late_us=MAX_DRIFT_US))
    outbox.offer(chunk(8, 1, late_us=MAX_DRIFT_US + 1))  # from 5 on, it is too late
    outbox.offer(chunk(0, 1, B))
    frames = outbox.take()
    groups = [seen([frame]) for frame in frames]
    assert groups == [
        raws("a", range(3)),
        ["one"],
        raws("a", range(3, 4)),
        [Hole("a", 4, 5, "lost")],
        raws("a", range(5, 8)),
        raws("a", range(8, 9)),
        raws("b", range(1)),
    ]


@pytest.mark.parametrize("format", COALESCING)
async def test_a_coalesced_message_is_no_larger_than_a_piece(format: Format) -> None:
    outbox = Outbox("me", format=format, max_bytes=1 << 30)
    n = MAX_CHUNK_BYTES // 8
    for position in range(0, 3 * n, 7):
        outbox.offer(chunk(position, 7))
    frames = []
    while outbox.waits:
        frames += outbox.take()
    assert len(frames) == 4
    assert all(len(seen([frame])) <= n for frame in frames)


# Dropping.


@pytest.mark.parametrize("format", FORMATS)
async def test_the_oldest_raw_makes_room_and_the_hole_is_announced_in_its_place(format: Format) -> None:
    outbox = Outbox("me", format=format, max_bytes=2000)
    for position in range(1000):
        outbox.offer(chunk(position))
        assert outbox.queue.nbytes <= 2000
    frames = outbox.take()
    kept = 1000 - outbox.queue.n_dropped
    assert seen(frames) == [Hole("a", 0, 1000 - kept), *raws("a", range(1000 - kept, 1000))]
    assert 10 <= kept <= 250


async def test_a_consumer_that_wants_no_gaps_gets_none() -> None:
    outbox = Outbox("me", types=["raw"], max_bytes=2000)
    for position in range(1000):
        outbox.offer(chunk(position))
    assert not any(isinstance(event, Hole) for event in seen(outbox.take()))
    assert not outbox.waits


async def test_notes_are_kept_while_raw_is_dropped() -> None:
    outbox = Outbox("me", max_bytes=20_000)
    for position in range(1000):
        outbox.offer(chunk(position))
        if position % 10 == 0:
            outbox.offer(note(str(position)))
    assert outbox.queue.n_dropped > 500
    names = []
    while frames := outbox.take():
        names += [event for event in seen(frames) if isinstance(event, str)]
    assert names == [str(position) for position in range(0, 1000, 10)]


async def test_a_hole_is_announced_before_the_note_that_came_after_it() -> None:
    outbox = Outbox("me", format="binary", max_bytes=1000)
    outbox.offer(chunk(0, 120))
    outbox.offer(note("after 120"))
    outbox.offer(chunk(120, 100))
    assert outbox.queue.n_dropped == 120
    assert seen(outbox.take()) == [Hole("a", 0, 120), "after 120", *raws("a", range(120, 220))]


async def test_a_hole_of_one_session_is_announced_before_the_samples_of_the_next() -> None:
    outbox = Outbox("me", format="binary", max_bytes=1000)
    outbox.offer(chunk(0, 100))
    outbox.offer(chunk(0, 80, B))
    outbox.offer(chunk(80, 80, B))
    assert outbox.queue.n_dropped == 180
    assert seen(outbox.take()) == [Hole("a", 0, 100), Hole("b", 0, 80), *raws("b", range(80, 160))]


async def test_a_hole_of_one_session_is_not_held_back_by_what_another_drops() -> None:
    outbox = Outbox("me", format="binary", max_bytes=1000)
    outbox.offer(chunk(0, 100))
    for position in range(0, 80, 20):
        outbox.offer(chunk(position, 20, B))
    outbox.offer(chunk(80, 60, B))  # drops a, and some of b: some of b is left
    taken = seen(outbox.take())
    assert taken[0] == Hole("a", 0, 100)
    assert isinstance(taken[1], Hole)
    assert taken[1].session_id == "b"
    assert taken[2:] == raws("b", range(taken[1].end, 140))


async def test_a_hole_on_either_side_of_one_that_the_relay_left_is_announced_by_itself_and_in_order() -> None:
    outbox = Outbox("me", format="binary", max_bytes=1000)
    outbox.offer(chunk(0, 60))
    outbox.offer(skipped(60, 70))
    outbox.offer(chunk(70, 60))
    outbox.offer(chunk(130, 90))
    assert seen(outbox.take()) == [
        Hole("a", 0, 60),
        Hole("a", 60, 70, "relay"),
        Hole("a", 70, 130),
        *raws("a", range(130, 220)),
    ]


async def test_notes_alone_beyond_the_bound_close_it_as_too_slow() -> None:
    outbox = Outbox("me", max_bytes=1000)
    outbox.offer(chunk(0))
    outbox.offer(note("big", n_bytes=1000))
    assert not outbox.closed.done()
    assert outbox.queue.n_dropped == 1
    outbox.offer(note("drop"))
    assert outbox.closed.result() == CloseCode.TOO_SLOW


async def test_one_note_that_is_larger_than_the_bound_closes_nobody_who_keeps_up() -> None:
    outbox = Outbox("me", max_bytes=1000)
    for n_waiting in (0, 1):
        for i in range(n_waiting):
            outbox.offer(note(f"{i}", n_bytes=500))
        outbox.offer(note("big", n_bytes=5000))
        assert not outbox.closed.done()
        assert seen(outbox.take()) == [*(f"{i}" for i in range(n_waiting)), "big"]
    for _ in range(2):
        outbox.offer(note("big", n_bytes=5000))
    assert outbox.closed.result() == CloseCode.TOO_SLOW


async def test_one_chunk_beyond_the_bound_is_a_hole() -> None:
    outbox = Outbox("me", format="binary", max_bytes=1000)
    outbox.offer(chunk(0, 500))
    assert outbox.queue.nbytes == 0
    assert outbox.ready.is_set()
    assert seen(outbox.take()) == [Hole("a", 0, 500)]


# What is preloaded.


WIDE = Origin("me", "a", PERIOD_US)


def wide(position: int, n: int) -> Chunk:
    """Samples of 1,024 channels."""
    narrow = chunk(position, n, WIDE)
    return Chunk(WIDE, position, narrow.times_us, np.tile(narrow.samples, (1, 1024 // narrow.samples.shape[1])))


async def test_what_is_preloaded_and_not_taken_counts_in_what_all_consumers_hold() -> None:
    preloads = Preloads(3_000_000)
    first, second = (Outbox("me", f"{i}", max_bytes=100_000, preloads=preloads) for i in range(2))
    for outbox in (first, second):
        outbox.preload(wide(position, 16) for position in range(0, 320, 16))
        assert outbox.queue.nbytes == 0
    assert preloads.stats().consumers == 2
    assert 2 * 320 * 4096 < preloads.stats().bytes < 3_000_000
    while first.waits:
        first.take()
        assert preloads.stats().bytes == first.queue.preloaded_bytes + second.queue.preloaded_bytes
    while second.waits:
        second.take()
    assert (preloads.stats().consumers, preloads.stats().bytes, preloads.stats().cut) == (0, 0, 0)


async def test_of_all_preloads_that_are_too_much_the_one_that_was_not_read_for_longest_is_cut() -> None:
    preloads = Preloads(2_000_000)
    stalled, reading, new = (Outbox("me", f"{i}", max_bytes=200_000, preloads=preloads) for i in range(3))
    for outbox in (stalled, reading, new):
        outbox.preload(wide(position, 16) for position in range(0, 160, 16))
    assert preloads.stats().cut == 0
    reading.take()
    new.take()
    other = Outbox("you", "3", max_bytes=200_000, preloads=preloads)
    other.preload([wide(0, 16)])
    assert preloads.stats().cut == 1
    assert 1_900_000 < preloads.stats().bytes < 2_000_000  # it makes no more room than is needed
    assert stalled.queue.nbytes == 0
    assert seen(stalled.take())[0] == Hole("a", 0, 16)
    for outbox in (reading, new):
        assert outbox.queue.n_dropped == 0
    preloads.forget(other)
    assert preloads.stats().consumers == 3


async def test_all_preloads_that_nobody_reads_are_bounded_together() -> None:
    preloads = Preloads(2_000_000)
    unread = [Outbox("me", f"{i}", preloads=preloads) for i in range(20)]
    for outbox in unread:
        outbox.preload(wide(position, 16) for position in range(0, 160, 16))
        held = sum(outbox.queue.preloaded_bytes + outbox.queue.nbytes for outbox in unread)
        assert held == preloads.stats().bytes <= 2_000_000
    assert preloads.stats().cut == 17
    assert seen(unread[0].take()) == [Hole("a", 0, 160)]
    assert seen(unread[-1].take())[0] == Raw("a", 0)
    assert preloads.stats().consumers == 3


async def test_a_preload_of_notes_alone_counts_where_all_are_too_much() -> None:
    preloads = Preloads(1000)
    stalled, other = (Outbox("me", f"{i}", max_bytes=500, preloads=preloads) for i in range(2))
    stalled.preload([chunk(0, 1), note("of before", n_bytes=400)])
    other.preload([note("later", n_bytes=900)])
    assert (stalled.queue.nbytes, stalled.queue.preloaded_bytes) == (len(note("of before", n_bytes=400).text), 0)
    assert not stalled.closed.done()
    assert seen(stalled.take()) == [Hole("a", 0, 1), "of before"]


async def test_a_preload_of_many_channels_is_taken_and_encoded_a_few_samples_at_once() -> None:
    outbox = Outbox("me")
    outbox.preload([wide(0, 16)])
    positions: list[int] = []
    while frames := outbox.take():
        assert sum(map(len, frames[:-1])) < TAKE_BYTES
        positions += [json.loads(frame)["position"] for frame in frames]
    assert positions == list(range(16))
    assert outbox.queue.preloaded_bytes == 0


# All of it.


class Offer(NamedTuple):
    """Samples of a session, `jump` positions after the ones before, or that much again; the relay left the hole."""

    session: int
    jump: int
    n: int
    n_relay: int


class Say(NamedTuple):
    """A note of some bytes."""

    n_bytes: int


class Take(NamedTuple):
    """The consumer takes."""


OPERATIONS = st.lists(
    st.builds(
        Offer,
        st.sampled_from([0, 0, 0, 1, 2]),
        st.sampled_from([0, 0, 0, 0, 1, 3, -1, -5]),
        st.integers(1, 9),
        st.integers(0, 2),
    )
    | st.builds(Say, st.integers(0, 90))
    | st.builds(Take),
    max_size=60,
)


class Model:
    """What was offered, as it came first."""

    def __init__(self) -> None:
        self.events: list[Raw | str] = []
        self.ends = {"a": 0, "b": 0, "c": 0}

    def items(self, offer: Offer) -> Iterator[Item]:
        origin = Origin("me", "abc"[offer.session], PERIOD_US)
        end = self.ends[origin.session_id]
        position = max(0, end + offer.jump)
        start = max(0, position - offer.n_relay)
        if start < position:
            self.ends[origin.session_id] = max(position, end)
            yield skipped(start, position, origin.session_id)
        one = chunk(position, offer.n, origin)
        self.events += [Raw(origin.session_id, index) for index in range(max(position, end), one.end)]
        self.ends[origin.session_id] = max(one.end, end)
        yield one

    def note(self, n_bytes: int) -> Note:
        name = f"note {len(self.events)}"
        self.events.append(name)
        return note(name, n_bytes=n_bytes)


@given(
    format=st.sampled_from(FORMATS),
    max_bytes=st.integers(200, 3000),
    take_bytes=st.sampled_from([1, 100, 500, TAKE_BYTES]),
    n_buffered=st.integers(0, 2),
    operations=OPERATIONS,
)
async def test_every_sample_comes_once_and_in_order_or_is_in_one_announced_hole(
    format: Format, max_bytes: int, take_bytes: int, n_buffered: int, operations: list[Offer | Say | Take]
) -> None:
    outbox, model = Outbox("me", format=format, max_bytes=max_bytes), Model()
    taken: list[Seen] = []
    with patch.object(queue, "TAKE_BYTES", take_bytes):
        if n_buffered:
            outbox.cursor.enter("a", 0)
            first = model.note(0)
            outbox.preload([first, *(item for _ in range(n_buffered) for item in model.items(Offer(0, 1, 5, 1)))])
        for operation in operations:
            match operation:
                case Offer():
                    outbox.cursor.enter("abc"[operation.session], 0)
                    for item in model.items(operation):
                        outbox.offer(item)
                        if outbox.closed.done():
                            break
                case Say():
                    outbox.offer(model.note(operation.n_bytes))
                case Take():
                    taken += seen(outbox.take())
            assert outbox.ready.is_set() == (outbox.waits or outbox.closed.done())
            if outbox.closed.done():
                assert outbox.closed.result() == CloseCode.TOO_SLOW
                break
            assert outbox.queue.nbytes <= max_bytes
        while outbox.waits:
            taken += seen(outbox.take())
    assert outbox.queue.nbytes == 0
    judge(model, taken, outbox.queue.n_dropped)


def judge(model: Model, taken: list[Seen], n_dropped: int) -> None:
    """Hold what was taken against what was offered."""
    arrived = [event for event in taken if not isinstance(event, Hole)]
    offered = {event for event in model.events if isinstance(event, Raw)}
    dropped = offered - set(arrived)
    assert [event for event in model.events if event not in dropped] == arrived  # nothing else is missing, all in order
    assert len(dropped) == n_dropped
    ends = dict.fromkeys(model.ends, 0)
    for event in taken:
        match event:
            case Raw(session_id, position):
                assert position == ends[session_id]
                ends[session_id] += 1
            case Hole(session_id, start, end, reason):
                assert ends[session_id] == start < end
                hole = {Raw(session_id, position) for position in range(start, end)}
                assert hole <= dropped if reason == "slow" else not hole & offered
                ends[session_id] = end
    assert ends == model.ends
