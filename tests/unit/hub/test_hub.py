"""Giving out: consumers, predictions and dashboards, with a sink that is a list, and no Redis."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.clock import Clock
from support.hub_items import FEATURES, NOW_US, PREDICTION, everything, messages, outline, raw, take_features
from support.hubs import House, Sample, build
from zander.delivery.outbox import STALLED_SECONDS, Outbox
from zander.delivery.queue import Format
from zander.errors import BadMessage, CloseCode, NotFound
from zander.journal.batch import Written
from zander.journal.records import PredictionRecord, SessionRecord
from zander.streams.query import Query, answer
from zander.streams.stream import Stream
from zander.wire.codec import decode_prediction

pytestmark = pytest.mark.usefixtures("today")


# Consumers.


async def test_a_consumer_of_nobody_waits(house: House) -> None:
    azure = await house.consumer("nobody", last=5)
    assert messages(azure) == [
        {"type": "status", "user_id": "nobody", "online": False, "session_id": None, "device_info": None}
    ]


async def test_the_last_samples_come_first(house: House) -> None:
    stream = await house.relay()
    house.ingest.take_raw(stream, raw(15))
    take_features(house, stream)
    assert outline(await house.consumer(last=3)) == ["online", "features", 12, 13, 14]
    assert outline(await house.consumer(last=99)) == ["online", "features", *range(5, 15)]
    assert outline(await house.consumer()) == ["online"]
    house.disconnect(stream)
    assert outline(await house.consumer(last=1)) == ["offline", "features", 14]


@given(
    formats=st.lists(st.sampled_from(["json", "chunks", "binary"]), min_size=1, max_size=4),
    moments=st.lists(st.integers(0, 12), min_size=4, max_size=4),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    last=st.integers(0, 12),
)
async def test_the_last_samples_and_the_live_ones_join_without_a_hole_or_a_repeat(
    formats: list[Format], moments: list[int], lengths: list[int], last: int
) -> None:
    house = build()
    stream = await house.relay()
    joined: list[tuple[Outbox, int]] = []
    n = 0
    for moment, length in enumerate([*lengths, 1]):
        for format, at in zip(formats, moments, strict=False):
            if at == moment:
                joined.append((await house.consumer(last=last, format=format, types=["raw"]), n))
        house.ingest.take_raw(stream, raw(length, first=n))
        n += length
    for outbox, n_before in joined:
        first = n_before - min(last, n_before, stream.ring.capacity)
        assert positions(outbox) == list(range(first, n))


def positions(outbox: Outbox) -> list[int]:
    found: list[int] = []
    for frame in outbox.take():
        if isinstance(frame, bytes):
            found += np.frombuffer(frame, "<f4", offset=24)[::2].astype(int).tolist()
        else:
            message = json.loads(frame)
            found += [int(sample[0]) for sample in message.get("samples", [message.get("channels")])]
    return found


async def test_a_consumer_goes_on_where_it_stands_if_memory_reaches_back_there(house: House) -> None:
    stream = await house.relay()
    house.ingest.take_raw(stream, raw(15))
    for position, first in ((5, None), (4, 5), (12, None), (20, None)):
        azure = Outbox("me")
        azure.cursor.seek(stream.session.session_id, position)
        assert await house.hub.join(azure, False) == first
        assert outline(azure) == ([] if first else ["online", *range(position, 15)])
    house.ingest.take_raw(stream, raw(6, first=15))
    assert outline(azure) == [20]  # it stands ahead


async def test_at_a_loss_it_goes_on_with_what_memory_has(house: House) -> None:
    stream, azure = await house.relay(), Outbox("me")
    house.ingest.take_raw(stream, raw(15))
    azure.cursor.seek(stream.session.session_id, 1)
    assert await house.hub.join(azure, True) is None
    assert outline(azure) == ["online", (1, 5), *range(5, 15)]


async def test_it_does_not_go_on_in_another_session(house: House) -> None:
    await house.relay()
    azure = Outbox("me")
    azure.cursor.seek("another", 0)
    assert await house.hub.join(azure, True) == 0
    assert not azure.waits


async def test_a_hole_that_the_relay_left_reaches_every_consumer_as_one(house: House) -> None:
    stream = await house.relay()
    house.ingest.take_raw(stream, raw(2, 3))
    first, later = Outbox("me"), Outbox("me")
    for azure, position in ((first, 0), (later, 2)):
        azure.cursor.seek(stream.session.session_id, position)
        assert await house.hub.join(azure, False) is None
    house.ingest.take_raw(stream, raw(1, 8))
    assert outline(first) == ["online", (0, 3), 3, 4, (5, 8), 8]
    assert outline(later) == ["online", (2, 3), 3, 4, (5, 8), 8]


async def test_a_session_that_comes_back_goes_on_for_those_who_had_some_of_it(house: House) -> None:
    """As when another node had it in between: its relay sends again from where the database is."""
    session_id = str(uuid4())
    azure, dashboard = await house.consumer(), await house.consumer()
    house.ingest.take_raw(await house.relay(session_id=session_id), raw(7))
    house.hub.unsubscribe(dashboard)
    house.ingest.supersede("me")
    late = await house.consumer()
    house.archive.sessions[session_id].durable_position = 5
    stream = await house.relay(session_id=session_id)
    house.ingest.take_raw(stream, raw(4, 5))
    assert outline(azure) == ["offline", "online", *range(7), "online", 7, 8]
    assert outline(late) == ["offline", "online", 5, 6, 7, 8]
    dashboard.preload(stream.items_since(dashboard.cursor.position, stream.n_notes))
    assert outline(dashboard) == ["offline", "online", *range(9)]


async def test_a_consumer_that_has_gone_gets_nothing_more(house: House) -> None:
    stream, azure, other = await house.relay(), await house.consumer(), await house.consumer()
    house.hub.unsubscribe(azure)
    assert house.peers.said == [("announce", "me", True)]
    house.ingest.take_raw(stream, raw(1))
    assert outline(azure) == ["online"]
    assert outline(other) == ["online", 0]
    house.hub.unsubscribe(other)
    assert house.peers.said[-1] == ("unfollow", "me")
    assert "me" not in house.subscribers
    assert len(house.subscribers) == 0
    house.hub.unsubscribe(other)
    assert house.peers.said.count(("unfollow", "me")) == 1


async def test_a_slow_consumer_costs_nobody_else_a_sample(house: House) -> None:
    stream = await house.relay()
    slow, fast = await house.consumer(max_bytes=2000), await house.consumer()
    got = []
    for position in range(1000):
        house.ingest.take_raw(stream, raw(1, position))
        got += outline(fast)
    assert got == ["online", *range(1000)]
    start, *rest = outline(slow)[1:]
    assert start == (0, rest[0])
    assert rest == list(range(rest[0], 1000))
    assert len(house.recorder.of(Sample)) == 1000


async def test_a_prediction_goes_to_the_relay_and_to_all_consumers_but_its_sender(house: House) -> None:
    stream = await house.relay()
    sender, other = await house.consumer(consumer_id="azure"), await house.consumer(consumer_id="other")
    assert await house.hub.predict("me", decode_prediction(PREDICTION), PREDICTION, "azure") is True
    expected = json.loads(PREDICTION) | {"user_id": "me", "timestamp": NOW_US / 1e6}
    assert stream.relay
    assert messages(stream.relay) == [expected]
    assert messages(other)[1:] == [expected]
    assert messages(sender)[1:] == []
    assert house.peers.said[1:] == [("publish", "me", "prediction")]
    assert len(stream.predictions) == 1


async def test_a_prediction_is_recorded(house: House) -> None:
    stream = await house.relay()
    await house.hub.predict("me", decode_prediction(PREDICTION), PREDICTION, "azure")
    [record] = house.recorder.of(PredictionRecord)
    assert record == PredictionRecord(
        time_us=NOW_US,
        session_id=stream.session.session_id,
        user_id="me",
        prediction_type="workload_azure_lstm",
        classifier_name="azure_ml_lstm_v2",
        data='{"workload_prediction":0.72,"confidence":0.94}',
        confidence=0.94,
        classifier_version="v2.1.0",
    )


async def test_a_prediction_is_stored_while_the_relay_is_away(house: House) -> None:
    stream = await house.relay()
    house.disconnect(stream)
    assert await house.hub.predict("me", decode_prediction(PREDICTION), PREDICTION, "azure") is False
    assert len(house.recorder.of(PredictionRecord)) == 1


async def test_a_prediction_for_nobody_is_not_found(house: House) -> None:
    with pytest.raises(NotFound):
        await house.hub.predict("nobody", decode_prediction(PREDICTION), PREDICTION, "azure")
    assert house.recorder == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        FEATURES,
        '{"type":"prediction"}',
        PREDICTION + "x",
        PREDICTION.replace("kept", "\\u0000"),
        PREDICTION.replace("0.94", "[" * 900 + "]" * 900),
    ],
)
async def test_a_bad_prediction_changes_nothing(house: House, text: str) -> None:
    stream, azure = await house.relay(), await house.consumer()
    before = everything(house, stream)
    with pytest.raises(BadMessage):
        await house.hub.predict("me", decode_prediction(text), text, "azure")
    assert everything(house, stream) == before
    assert stream.relay
    assert not stream.relay.waits
    assert outline(azure) == ["online"]


async def test_a_prediction_with_a_number_beyond_every_type_is_taken_or_refused_as_a_whole(house: House) -> None:
    stream = await house.relay()
    assert stream.relay
    text, n_taken = PREDICTION.replace("0.94", "1" + "0" * 400), 0
    with suppress(BadMessage):
        n_taken = int(await house.hub.predict("me", decode_prediction(text), text, "azure"))
    assert len(messages(stream.relay)) == len(house.recorder.of(PredictionRecord)) == n_taken


# Dashboards.


async def test_a_dashboard_is_answered_from_the_buffer(house: House) -> None:
    stream = await house.relay()
    house.ingest.take_raw(stream, raw(3))
    query = Query("me", "latest", "raw")
    assert json.loads(b"".join(answer(query, await house.hub.find(query)).pieces))["position"] == 2
    house.disconnect(stream)
    query = Query("me", "last", "raw", n=2)
    assert json.loads(b"".join(answer(query, await house.hub.find(query)).pieces))["n"] == 2
    with pytest.raises(NotFound):
        await house.hub.find(Query("nobody", "latest", "raw"))


async def test_who_is_online_is_listed_by_user(house: House) -> None:
    for user_id in ("c", "a", "b", "gone"):
        stream = await house.relay(user_id)
    house.disconnect(stream)
    assert [summary.user_id for summary in await house.hub.streams()] == ["a", "b", "c"]


# Life.


async def test_a_buffer_is_kept_for_a_while_after_the_relay_has_gone(clock: Clock) -> None:
    house = build(buffer_keep_seconds=60.0)
    stream = await house.relay()
    house.ingest.take_raw(stream, raw(3))
    house.ingest.on_written(Written({stream.session.session_id: 3}))
    clock.now_s += 1000
    house.hub.tick()
    house.disconnect(stream)
    clock.now_s += 60
    house.hub.tick()
    assert outline(await house.consumer(last=5)) == ["offline", 0, 1, 2]
    clock.now_s += 0.1
    house.hub.tick()
    assert house.streams == {}
    assert house.peers.said[-1] == ("announce", "me", None)
    assert outline(await house.consumer(last=5)) == ["offline"]


async def test_a_relay_that_comes_back_begins_a_new_session_that_is_kept(clock: Clock) -> None:
    house = build(buffer_keep_seconds=60.0)
    house.disconnect(await house.relay())
    clock.now_s += 59
    stream = await house.relay()
    clock.now_s += 59
    house.hub.tick()
    assert house.streams == {"me": stream}


async def test_a_consumer_that_reads_nothing_for_a_minute_is_closed(house: House, clock: Clock) -> None:
    stream = await house.relay()
    slow, idle = await house.consumer(), await house.consumer("nobody")
    slow.take()
    idle.take()
    house.ingest.take_raw(stream, raw(1))
    clock.now_s += STALLED_SECONDS + 1
    house.hub.tick()
    assert slow.closed.result() == CloseCode.TOO_SLOW
    assert not idle.closed.done()


async def test_a_consumer_of_a_quiet_user_is_not_closed_at_the_first_sample(house: House, clock: Clock) -> None:
    stream, azure = await house.relay(), await house.consumer()
    azure.take()
    clock.now_s += STALLED_SECONDS + 1
    house.ingest.take_raw(stream, raw(1))
    house.hub.tick()
    assert not azure.closed.done()


async def test_when_the_server_stops_consumers_get_their_last_samples(house: House) -> None:
    stream, azure = await house.relay(), await house.consumer()
    relay = stream.relay
    house.ingest.take_raw(stream, raw(1))
    await house.hub.close_all(0)
    assert relay
    assert relay.closed.result() == azure.closed.result() == CloseCode.RESTART
    assert outline(azure) == ["online", 0, "offline"]
    assert [record.end_us for record in house.recorder.of(SessionRecord)] == [None, NOW_US]


async def test_connections_are_counted_and_waited_for(house: House) -> None:
    house.hub.enter()
    house.hub.enter()
    assert house.hub.n_connections == 2
    house.hub.leave()
    house.hub.leave()
    assert house.hub.n_connections == 0
    await house.hub.close_all(1e9)


# The order of events.


def act(house: House, stream: Stream) -> dict[str, Callable[[int], None]]:
    """What a relay may do; the number is the next position."""
    return {
        "sample": lambda n: house.ingest.take_raw(stream, raw(1, first=n)),
        "chunk": lambda n: house.ingest.take_raw(stream, raw(4, n)),
        "jump": lambda n: house.ingest.take_raw(stream, raw(2, n + 3)),
        "repeat": lambda n: house.ingest.take_raw(stream, raw(2, max(0, n - 1))),
        "features": lambda _: take_features(house, stream),
    }


@given(st.lists(st.sampled_from(["sample", "chunk", "jump", "repeat", "features"]), max_size=30))
async def test_consumers_the_ring_and_the_recorder_get_the_same_samples(acts: list[str]) -> None:
    house = build(buffer_samples=1000)
    stream = await house.relay()
    azure = await house.consumer()
    for name in acts:
        act(house, stream)[name](stream.session.next_position)
    _, *heard = outline(azure)
    samples = [event for event in heard if isinstance(event, int)]
    assert house.recorder.of(Sample) == [Sample(stream.session.session_id, position) for position in samples]
    held = [position for run in stream.ring.last(1000) for position in run.samples[:, 0].astype(int).tolist()]
    assert held == samples
    covered = [
        position
        for event in heard
        if event != "features"
        for position in (range(*event) if isinstance(event, tuple) else [event])
    ]
    assert covered == list(range(stream.session.next_position))
    assert heard.count("features") == acts.count("features") == len(house.recorder.of(PredictionRecord))
