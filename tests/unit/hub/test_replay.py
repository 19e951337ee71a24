"""A consumer that resumes: memory, the database, the journal, and then live, without a hole or a repeat."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from support.clock import Clock
from support.hubs import House, build, session_of
from zander.delivery.outbox import Outbox
from zander.delivery.queue import FORMATS, Format
from zander.errors import CloseCode
from zander.hub import replay as room
from zander.hub.replay import PATIENCE_SECONDS, Replays
from zander.streams.session import StoredSession
from zander.streams.stream import Stream
from zander.wire.chunk import Chunk, Origin, RawIn
from zander.wire.messages import Gap

S, T, U = (str(UUID(int=n)) for n in (1, 2, 3))
NAMES = {S: "s", T: "t", U: "u"}


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of patience; asking again and resting take a turn of the loop."""
    clock = Clock()
    monkeypatch.setattr(room, "monotonic", clock)
    monkeypatch.setattr(room, "POLL_SECONDS", 0)
    monkeypatch.setattr(room, "thread_time", clock)
    return clock


def raw(*positions: range) -> list[RawIn]:
    """Samples that say their position."""
    return [RawIn(found.start, None, np.array([[n, 0] for n in found], np.float32)) for found in positions]


def stored(session_id: str = S, ended: bool = True, durable: int = 0, user_id: str = "me") -> StoredSession:
    start_us = UUID(session_id).int * 1000
    device = {"sampling_rate": 128, "of": session_id}
    return StoredSession(session_id, user_id, start_us, start_us + 1 if ended else None, device, durable, start_us, 1)


def chunk(positions: range, session_id: str = S) -> Chunk:
    """Stored samples."""
    samples = raw(positions)[0].samples
    times_us = np.arange(len(positions)) + 1000 * UUID(session_id).int
    return Chunk(Origin("me", session_id, 7812.5), positions.start, times_us, samples)


async def streaming(house: House, session_id: str, *positions: range) -> Stream:
    """A relay that has sent these."""
    stream = await house.relay(session_id=session_id)
    for one in raw(*positions):
        house.ingest.take_raw(stream, one)
    return stream


def durable(house: House, stream: Stream, position: int) -> None:
    """Commit what a stream's relay has sent before a position."""
    session_id = stream.session.session_id
    committed = [it for it in house.recorder.items if session_of(it) == session_id and it.end <= position]
    house.recorder.items = [it for it in house.recorder.items if it not in committed]
    house.archive.put(structs.replace(house.archive.sessions[session_id], durable_position=position), committed)


class Listener:
    """A consumer that reads all it gets, in short: (session, position), (session, from, to, reason), a status."""

    def __init__(self, house: House, format: Format = "chunks", **options: Any) -> None:
        self.house = house
        self.outbox = Outbox("me", format=format, **options)
        self.heard: list[Any] = []
        self.session: str  # that of what comes next

    @property
    def listens(self) -> bool:
        return self.outbox in self.house.subscribers.consumers("me")

    def read(self) -> None:
        """Read what waits."""
        while self.outbox.waits:
            for frame in self.outbox.take():
                self.heard += self._short(frame)

    async def resume(self, session_id: str, position: int, replays: Replays | None = None) -> list[Any]:
        """Read until it listens or is closed, and return what it heard."""
        replaying = (replays or self.house.replays).start(self.outbox, session_id, position)
        while not replaying.done():
            await asyncio.sleep(0)
            self.read()
        await replaying
        self.read()
        return self.heard

    def _short(self, frame: str | bytes) -> list[Any]:
        if isinstance(frame, bytes):
            positions = np.frombuffer(frame, "<f4", offset=24)[::2].astype(int).tolist()
            return [(self.session, position) for position in positions]
        message = json.loads(frame)
        match message["type"]:
            case "raw":
                assert message["session_id"] == self.session
                return [(self.session, int(sample[0])) for sample in message.get("samples", [message.get("channels")])]
            case "gap":
                assert message["session_id"] == self.session
                return [(self.session, message["from"], message["to"], message["reason"])]
            case "status":
                self.session = message["session_id"]
                return ["online" if message["online"] else "offline"]
            case _:
                return [message.get("code", message["type"])]


async def turns(n: int) -> None:
    """Let the others have their turns."""
    for _ in range(n):
        await asyncio.sleep(0)


def samples(*positions: range, session_id: str = S) -> list[Any]:
    return [(session_id, position) for found in positions for position in found]


# One session.


@pytest.mark.parametrize("format", FORMATS)
async def test_what_memory_has_comes_without_asking_the_database(format: Format) -> None:
    house = build()
    await streaming(house, S, range(8))
    house.archive.n_asked = 0
    listener = Listener(house, format)
    assert await listener.resume(S, 3) == ["online", "online", *samples(range(3, 8))]
    assert (listener.listens, house.archive.n_asked) == (True, 0)


@pytest.mark.parametrize("format", FORMATS)
async def test_what_memory_has_no_more_comes_from_the_database_and_then_memory_goes_on(format: Format) -> None:
    house = build()
    stream = await streaming(house, S, range(1000), range(1000, 1015))
    durable(house, stream, 1015)
    listener = Listener(house, format)
    assert await listener.resume(S, 3) == ["online", *samples(range(3, 1015)), "online"]
    house.ingest.take_raw(stream, raw(range(1015, 1016))[0])
    listener.read()
    assert listener.heard[-1] == (S, 1015)


async def test_what_is_not_committed_yet_comes_from_the_journal() -> None:
    house = build()
    stream = await streaming(house, S, range(20), range(20, 40), range(40, 60))
    durable(house, stream, 20)
    heard = await Listener(house).resume(S, 0)
    assert [event for event in heard if event != "online"] == samples(range(60))


async def test_a_commit_between_two_looks_makes_no_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    house = build()
    stream = await streaming(house, S, range(20), range(20, 40), range(40, 60))
    pending = house.recorder.pending

    async def commit_first(*what: Any) -> list[Chunk | Gap]:
        durable(house, stream, 40)
        return await pending(*what)

    monkeypatch.setattr(house.recorder, "pending", commit_first)
    heard = await Listener(house).resume(S, 0)
    assert [event for event in heard if event != "online"] == samples(range(60))


async def test_samples_that_go_on_coming_are_caught_up_with() -> None:
    house = build()
    stream = await streaming(house, S, range(600))
    durable(house, stream, 600)
    listener = Listener(house)
    resuming = asyncio.create_task(listener.resume(S, 0))
    n = 600
    while not resuming.done():
        if n < 900:
            house.ingest.take_raw(stream, raw(range(n, n + 1))[0])
            n += 1
            durable(house, stream, n - n % 7)
        await asyncio.sleep(0)
    heard = await resuming
    assert [event for event in heard if event != "online"] == samples(range(n))


async def test_a_hole_that_the_relay_left_is_one_wherever_it_comes_from() -> None:
    house = build()
    stream = await streaming(house, S, range(2, 5), range(8, 20), range(25, 40), range(44, 45))
    durable(house, stream, 25)
    heard = await Listener(house).resume(S, 0)
    assert [event for event in heard if len(event) == 4] == [
        (S, 0, 2, "relay"),
        (S, 5, 8, "relay"),
        (S, 20, 25, "relay"),
        (S, 40, 44, "relay"),
    ]


async def test_a_consumer_may_be_ahead_of_what_is_there() -> None:
    house = build()
    stream = await streaming(house, S, range(5))
    listener = Listener(house)
    assert await listener.resume(S, 7) == ["online", "online"]
    house.ingest.take_raw(stream, raw(range(5, 9))[0])
    listener.read()
    assert listener.heard[2:] == samples(range(7, 9))


# From one session to the next.


async def test_after_a_session_that_has_ended_come_the_later_ones_each_behind_its_status() -> None:
    house = build()
    house.archive.put(stored(S, durable=4), [chunk(range(4))])
    house.archive.put(stored(T, durable=3), [Gap(T, 0, 1, "relay"), chunk(range(1, 3), T)])
    house.archive.put(stored(str(UUID(int=9)), durable=3, user_id="other"), [])
    await streaming(house, U, range(2))
    house.archive.sessions[U].start_us = 3000
    assert await Listener(house).resume(S, 2) == [
        "offline",
        *samples(range(2, 4)),
        "offline",
        (T, 0, 1, "relay"),
        *samples(range(1, 3), session_id=T),
        "online",
        "online",
        *samples(range(2), session_id=U),
    ]


async def test_a_session_that_the_database_does_not_have_yet_comes_too() -> None:
    house = build()
    house.archive.put(stored(S, durable=4), [chunk(range(4))])
    stream = await house.relay()
    for one in raw(range(1), range(1, 2)):
        house.ingest.take_raw(stream, one)
    heard = await Listener(house).resume(S, 4)
    assert heard == ["offline", "online", "online", *samples(range(2), session_id=stream.session.session_id)]


async def test_while_nobody_streams_the_next_session_is_waited_for() -> None:
    house = build()
    house.archive.put(stored(S, durable=4), [chunk(range(4))])
    listener = Listener(house)
    assert await listener.resume(S, 4) == ["offline", "offline"]
    assert listener.listens
    await streaming(house, U, range(2))
    listener.read()
    assert listener.heard[2:] == ["online", *samples(range(2), session_id=U)]


async def test_a_session_that_ends_while_it_is_replayed_is_left_for_the_next() -> None:
    house = build()
    stream = await streaming(house, S, range(1000))
    durable(house, stream, 1000)
    house.archive.sessions[S].start_us = 1000
    listener = Listener(house)
    replaying = house.replays.start(listener.outbox, S, 0)
    await turns(20)
    listener.read()
    await turns(20)
    assert listener.outbox.waits  # it has not read more than that yet
    await streaming(house, U, range(2))
    house.archive.sessions[U].start_us = 3000
    house.archive.sessions[S].end_us = 2000
    while not replaying.done():
        listener.read()
        await turns(1)
    listener.read()
    heard = [event for event in listener.heard if event not in ("online", "offline")]
    assert heard == [*samples(range(1000)), *samples(range(2), session_id=U)]


async def test_what_was_lost_at_the_end_of_a_session_is_announced() -> None:
    house = build()
    house.archive.put(stored(S, durable=9), [chunk(range(4))])
    assert await Listener(house).resume(S, 2) == ["offline", *samples(range(2, 4)), (S, 4, 9, "lost"), "offline"]


async def test_a_session_whose_end_nobody_stored_is_waited_for_but_not_for_ever(clock: Clock) -> None:
    house = build()
    house.archive.put(stored(S, ended=False, durable=4), [chunk(range(4))])
    listener = Listener(house)
    resuming = asyncio.create_task(listener.resume(S, 0))
    await turns(20)
    assert not listener.listens
    house.archive.put(stored(S, ended=False, durable=6), [chunk(range(4, 6))])
    await turns(20)
    assert not listener.listens
    clock.now_s += PATIENCE_SECONDS
    assert await resuming == ["offline", *samples(range(6)), "offline"]


async def test_an_older_session_that_goes_on_comes_from_then_on() -> None:
    house = build()
    house.archive.put(stored(T, durable=4), [chunk(range(4), T)])
    house.archive.put(stored(S, durable=4, ended=False), [chunk(range(4))])
    stream = await streaming(house, S, range(4, 6))
    listener = Listener(house)
    assert await listener.resume(T, 2) == ["offline", *samples(range(2, 4), session_id=T), "online"]
    house.ingest.take_raw(stream, raw(range(6, 7))[0])
    listener.read()
    assert listener.heard[4:] == samples(range(6, 7))


# What cannot be had.


async def test_an_unknown_session_is_told_and_closes(clock: Clock) -> None:
    house = build()
    house.archive.put(stored(T, user_id="other"), [])
    for session_id in (T, str(uuid4())):
        listener = Listener(house)
        resuming = asyncio.create_task(listener.resume(session_id, 0))
        await turns(5)
        clock.now_s += PATIENCE_SECONDS
        assert await resuming == ["not_found"]
        assert listener.outbox.closed.result() == CloseCode.BAD_MESSAGES


async def test_a_session_may_be_so_new_that_the_database_does_not_have_it_yet() -> None:
    house = build()
    listener = Listener(house)
    resuming = asyncio.create_task(listener.resume(S, 0))
    await turns(10)
    house.archive.put(stored(S, durable=4), [chunk(range(4))])
    assert await resuming == ["offline", *samples(range(4)), "offline"]


async def test_a_database_that_comes_back_in_time_costs_nothing() -> None:
    house = build()
    stream = await streaming(house, S, range(100))
    durable(house, stream, 100)
    house.archive.is_away = True
    listener = Listener(house)
    resuming = asyncio.create_task(listener.resume(S, 0))
    await turns(20)
    assert listener.heard == ["online"]
    house.archive.is_away = False
    assert [event for event in await resuming if event != "online"] == samples(range(100))


async def test_while_the_database_stays_away_what_it_alone_has_is_lost_and_live_goes_on(clock: Clock) -> None:
    house = build()
    stream = await streaming(house, S, range(50), range(50, 70), range(70, 90))
    durable(house, stream, 50)
    house.archive.is_away = True
    listener = Listener(house)
    resuming = asyncio.create_task(listener.resume(S, 20))
    await turns(20)
    assert listener.heard == ["online"]
    clock.now_s += PATIENCE_SECONDS
    heard = await resuming
    lost = [event for event in heard if len(event) == 4]
    assert lost[0][1] == 20
    assert [(S, start, end, reason) for (_, start, end, reason) in lost if reason == "lost"] == lost
    end = lost[0][2]
    assert end in (50, 80)
    assert [event for event in heard if len(event) == 2] == samples(range(end, 90))
    assert listener.listens


async def test_without_the_database_a_session_that_is_not_in_memory_can_be_asked_for_later(clock: Clock) -> None:
    house = build()
    house.archive.put(stored(S, durable=4), [chunk(range(4))])
    house.archive.is_away = True
    listener = Listener(house)
    resuming = asyncio.create_task(listener.resume(S, 0))
    await turns(20)
    assert not listener.outbox.closed.done()
    clock.now_s += PATIENCE_SECONDS
    assert await resuming == ["unavailable"]
    assert listener.outbox.closed.result() == CloseCode.TRY_LATER


async def test_a_mistake_of_ours_closes_the_consumer_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    house = build()

    async def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(house.archive, "session", fail)
    listener = Listener(house)
    await listener.resume(S, 0)
    assert caplog.messages == ["a replay has failed"]
    assert listener.outbox.closed.result() == CloseCode.TRY_LATER


# Its pace.


async def test_a_consumer_gets_no_more_than_it_has_taken() -> None:
    house = build()
    house.archive.put(stored(S, durable=5000), [chunk(range(5000))])
    slow = Listener(house, max_bytes=10_000)
    replaying = house.replays.start(slow.outbox, S, 0)
    for n_pieces in range(4):
        await turns(100)
        slow.read()
        assert slow.heard == ["offline", *samples(range(n_pieces * room.PIECE_SAMPLES))]
    replaying.cancel()


async def test_a_slow_consumer_holds_up_no_other_and_nothing_of_it_is_dropped() -> None:
    house = build()
    house.archive.put(stored(S, durable=2000), [chunk(range(2000))])
    replays = house.replays
    slow, quick = Listener(house, "json", max_bytes=10_000), Listener(house)
    replaying = replays.start(slow.outbox, S, 0)
    assert await quick.resume(S, 0, replays) == ["offline", *samples(range(2000)), "offline"]
    assert not slow.listens
    while not replaying.done():
        slow.read()
        await asyncio.sleep(0)
    slow.read()
    assert slow.heard == quick.heard


async def test_replays_rest_three_times_as_long_as_they_work(monkeypatch: pytest.MonkeyPatch) -> None:
    house = build()
    house.archive.put(stored(S, durable=2000), [chunk(range(2000))])
    rests: list[float] = []
    now = [0.0]

    async def rest(seconds: float) -> None:
        rests.append(seconds)
        await asyncio.sleep(0)

    def tick() -> float:
        now[0] += 0.5
        return now[0]

    monkeypatch.setattr(room, "thread_time", tick)
    monkeypatch.setattr(room, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": rest}))  # nobody else's
    listener = Listener(house)
    replaying = house.replays.start(listener.outbox, S, 0)
    while not replaying.done():
        listener.read()
        await asyncio.sleep(0)
    assert rests == [1.5] * len(rests)
    assert len(rests) >= 2000 // room.PIECE_SAMPLES


async def test_one_that_is_replayed_is_counted_but_does_not_listen() -> None:
    house = build()
    house.archive.put(stored(S, durable=2000), [chunk(range(2000))])
    listener = Listener(house)
    replaying = house.replays.start(listener.outbox, S, 0)
    await turns(5)
    assert list(house.subscribers) == [listener.outbox]
    assert "me" not in house.subscribers
    house.hub.unsubscribe(listener.outbox)
    assert len(house.subscribers) == 0
    replaying.cancel()


# All of it.


class Case(NamedTuple):
    """What a relay sends in runs, how many of them are committed and how many sent before the consumer comes."""

    runs: list[tuple[int, int]]
    n_durable: int
    n_before: int
    position: int
    capacity: int
    moves: bool


CASES = st.builds(
    Case,
    runs=st.lists(st.tuples(st.sampled_from([0, 0, 3]), st.integers(1, 40)), min_size=1, max_size=8),
    n_durable=st.integers(0, 8),
    n_before=st.integers(1, 8),
    position=st.integers(0, 200),
    capacity=st.integers(1, 60),
    moves=st.booleans(),
)


@given(CASES)
async def test_wherever_a_consumer_goes_on_it_gets_all_from_there_once(case: Case) -> None:
    house = build(buffer_samples=case.capacity)
    ranges, n = list[range](), 0
    for jump, length in case.runs:
        ranges.append(range(n + jump, n + jump + length))
        n = ranges[-1].stop
    before, after = ranges[: case.n_before], ranges[case.n_before :]
    stream = await streaming(house, S, *before)
    durable(house, stream, max((found.stop for found in before[: case.n_durable]), default=0))
    listener = Listener(house)
    resuming = asyncio.create_task(listener.resume(S, case.position))
    await asyncio.sleep(0)
    if case.moves:  # another node had it in between, and its relay sends again from where the database is
        house.ingest.supersede("me")
        stream = await house.relay(session_id=S)
        after = [found for found in ranges if found.start >= stream.session.next_position]
    for one in raw(*after):
        house.ingest.take_raw(stream, one)
        await asyncio.sleep(0)
    await resuming
    listener.read()
    heard = [event for event in listener.heard if event not in ("online", "offline")]
    covered = [found for event in heard for found in (range(*event[1:3]) if len(event) == 4 else [event[1]])]
    assert covered == list(range(case.position, n))
    assert {event[1] for event in heard if len(event) == 2} <= {found for one in ranges for found in one}
    assert {event[3] for event in heard if len(event) == 4} <= {"relay"}


def test_of_what_the_journal_has_chunks_that_follow_each_other_are_joined() -> None:
    gap = Gap(S, 8, 9, "relay")
    parts = [chunk(found) for found in (range(5, 7), range(7, 8), range(9, 10), range(11, 13), range(13, 14))]
    items: list[Chunk | Gap] = [*parts[:2], gap, *parts[2:]]
    found = [(it.position, it.end) if isinstance(it, Chunk) else it for it in room.joined(items)]
    assert found == [(5, 8), gap, (9, 10), (11, 14)]
    assert room.joined([]) == []
