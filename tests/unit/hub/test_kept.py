"""What is kept of relays that have gone: bounded in time and in bytes, and nothing is lost by it."""

from __future__ import annotations

import pytest

from support.clock import Clock
from support.hub_items import PREDICTION, outline, raw, take_features
from support.hubs import House, build
from zander.hub.kept import FORGOTTEN_AT_ONCE, STREAM_BYTES
from zander.journal.batch import Written
from zander.streams.stream import Stream
from zander.wire.codec import decode_prediction, memory_bytes

pytestmark = pytest.mark.usefixtures("today")

RING_BYTES = 10 * (2 * 4 + 8)
DEVICE_BYTES = memory_bytes({"firmware": "7"})


async def gone(house: House, user_id: str, n: int = 3, n_stored: int | None = None) -> Stream:
    """A user whose relay has sent samples and gone; all are stored unless it is said how many."""
    stream = await house.relay(user_id)
    if n:
        house.ingest.take_raw(stream, raw(n))
    stored(house, stream, n if n_stored is None else n_stored)
    house.disconnect(stream)
    return stream


def stored(house: House, stream: Stream, n: int) -> None:
    house.ingest.on_written(Written({stream.session.session_id: n}))


async def test_the_oldest_make_room_for_the_newest() -> None:
    house = build(buffer_keep_bytes=3 * (STREAM_BYTES + RING_BYTES + DEVICE_BYTES))
    for user_id in ("a", "b", "c", "d", "e"):
        await gone(house, user_id)
    assert list(house.streams) == ["c", "d", "e"]
    kept = house.ingest.kept
    assert (len(kept), kept.n_evicted) == (3, 2)
    assert kept.n_bytes == 3 * (STREAM_BYTES + RING_BYTES + DEVICE_BYTES)
    assert [said for said in house.peers.said if said[2] is None] == [("announce", "a", None), ("announce", "b", None)]


async def test_a_relay_that_is_back_does_not_count_and_is_not_evicted() -> None:
    house = build(buffer_keep_bytes=2 * (STREAM_BYTES + RING_BYTES + DEVICE_BYTES))
    back = await gone(house, "a")
    await gone(house, "b")
    assert await house.relay("a", session_id=back.session.session_id) is back
    for user_id in ("c", "d", "e"):
        await gone(house, user_id)
    assert sorted(house.streams) == ["a", "d", "e"]
    assert outline(await house.consumer("a", last=5)) == ["online", 0, 1, 2]


async def test_what_the_database_does_not_have_yet_keeps_its_place_and_loses_only_its_buffers() -> None:
    house = build(buffer_keep_bytes=0)
    stream = await gone(house, "a", n=3, n_stored=1)
    assert house.streams == {"a": stream}
    assert (len(house.ingest.kept), house.ingest.kept.n_bytes, stream.ring.nbytes) == (0, 0, 0)
    again = await house.relay("a", session_id=stream.session.session_id)
    assert again is stream
    assert house.archive.n_asked == 0
    house.ingest.take_raw(again, raw(2, 3))
    assert again.session.next_position == 5
    assert outline(await house.consumer("a", last=9)) == ["online", 3, 4]


async def test_it_is_forgotten_once_the_database_has_it() -> None:
    house = build(buffer_keep_bytes=0)
    stream = await gone(house, "a", n=3, n_stored=0)
    stored(house, stream, 2)
    assert house.streams == {"a": stream}
    stored(house, stream, 3)
    assert house.streams == {}
    assert house.peers.said[-1] == ("announce", "a", None)


async def test_what_is_not_stored_when_its_time_is_over_keeps_its_place(clock: Clock) -> None:
    house = build(buffer_keep_seconds=60.0)
    stream = await gone(house, "a", n=3, n_stored=0)
    clock.now_s += 61
    house.hub.tick()
    assert house.streams == {"a": stream}
    assert stream.ring.nbytes == 0
    stored(house, stream, 3)
    assert house.streams == {}
    assert house.ingest.kept.n_evicted == 0


async def test_notes_count_too_also_those_that_come_afterwards() -> None:
    house = build()
    stream = await house.relay("a")
    take_features(house, stream)
    house.disconnect(stream)
    kept = house.ingest.kept
    assert kept.n_bytes == STREAM_BYTES + stream.nbytes > STREAM_BYTES + DEVICE_BYTES
    before = kept.n_bytes
    house.ingest.take_prediction(stream, decode_prediction(PREDICTION), "me")
    assert kept.n_bytes == STREAM_BYTES + stream.nbytes > before


async def test_a_user_without_samples_has_no_ring() -> None:
    house = build()
    stream = await gone(house, "a", n=0)
    assert stream.ring.nbytes == 0
    assert house.ingest.kept.n_bytes == STREAM_BYTES + DEVICE_BYTES


async def test_not_all_are_forgotten_in_one_tick(clock: Clock) -> None:
    house = build(buffer_keep_seconds=60.0)
    for n in range(FORGOTTEN_AT_ONCE + 7):
        await gone(house, f"u{n}", n=0)
    clock.now_s += 61
    house.hub.tick()
    assert len(house.streams) == 7
    house.hub.tick()
    assert house.streams == {}
