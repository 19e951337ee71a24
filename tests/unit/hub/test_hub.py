"""Who streams, who listens and the order of events: with a recorder that is a list, and no Redis."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from support.clock import Clock
from support.hubs import House, Sample, build
from zander.delivery.outbox import STALLED_SECONDS, Outbox
from zander.delivery.queue import Format
from zander.errors import BadMessage, CloseCode, NotFound
from zander.journal.records import PredictionRecord, SessionRecord
from zander.streams import clock as room
from zander.streams.query import Query
from zander.streams.stream import Stream
from zander.wire.chunk import RawIn
from zander.wire.codec import decode_fields, decode_prediction, decode_relay
from zander.wire.messages import Features

NOW_US = 1_764_000_000_000_000
FEATURES = '{"type":"features","workload":0.65,"confidence":0.89,"band_powers":{"alpha":0.35},"model":"mine"}'
PREDICTION = (
    '{"type":"prediction","prediction_type":"workload_azure_lstm","classifier_name":"azure_ml_lstm_v2",'
    '"version":"v2.1.0","data":{"workload_prediction":0.72,"confidence":0.94},"note":"kept"}'
)


@pytest.fixture
async def house() -> House:
    return build()


@pytest.fixture(autouse=True)
def today(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "time", lambda: NOW_US / 1e6)


def raw(n: int = 1, position: int | None = None, *, first: int = 0, n_channels: int = 2) -> RawIn:
    """`n` samples; the first channel counts from `first`, or is their position."""
    samples = np.zeros((n, n_channels), np.float32)
    samples[:, 0] = np.arange(n) + (first if position is None else position)
    return RawIn(position, None, samples)


def take_features(house: House, stream: Stream, text: str = FEATURES) -> None:
    features = decode_relay(text)
    assert isinstance(features, Features)
    house.ingest.take_features(stream, features, decode_fields(text))


def messages(outbox: Outbox) -> list[Any]:
    """Everything that waits, read; the sample's index is its position."""
    read = []
    while outbox.waits:
        read += [json.loads(frame) for frame in outbox.take()]
    for message in read:
        if message["type"] == "raw":
            assert message["channels"][0] == message["position"]
    return read


def outline(outbox: Outbox) -> list[Any]:
    """Everything that waits, in short: a position for a sample, (from, to) for a gap, else the type."""
    short: dict[str, Callable[[Any], Any]] = {
        "raw": lambda message: message["position"],
        "gap": lambda message: (message["from"], message["to"]),
        "status": lambda message: "online" if message["online"] else "offline",
    }
    return [short.get(message["type"], lambda message: message["type"])(message) for message in messages(outbox)]


def everything(house: House, stream: Stream) -> tuple[Any, ...]:
    """All that a message may change."""
    session, buffers = stream.session, stream.buffers
    return (
        *(session.next_position, session.n_gaps, session.n_duplicates, session.n_channels, session.last_time_us),
        *(buffer.n_written for buffer in buffers),
        *(stream.n_notes, house.ingest.n_samples, house.subscribers.n_samples_out, len(house.recorder)),
        len(house.peers.said),
    )


# Relays.


async def test_a_relay_begins_a_session_that_is_recorded_and_announced(house: House) -> None:
    stream = await house.relay()
    session_id = stream.session.session_id
    assert house.streams == {"me": stream}
    assert house.recorder == [SessionRecord(session_id, "me", NOW_US, None, '{"firmware":"7"}')]
    assert house.peers.said == [("announce", "me", True)]


async def test_consumers_hear_of_a_relay_that_comes_and_goes(house: House) -> None:
    azure, other = await house.consumer(), await house.consumer("other")
    stream = await house.relay()
    house.disconnect(stream)
    assert outline(azure) == ["offline", "online", "offline"]
    assert outline(other) == ["offline"]


async def test_a_status_says_what_the_relay_said_of_its_device(house: House) -> None:
    stream = await house.relay()
    [status] = messages(await house.consumer())
    assert status == {
        "type": "status",
        "user_id": "me",
        "online": True,
        "session_id": stream.session.session_id,
        "device_info": {"firmware": "7"},
    }


async def test_a_relay_that_goes_ends_its_session_once(house: House) -> None:
    stream = await house.relay()
    relay = stream.relay
    house.disconnect(stream, relay)
    house.disconnect(stream, relay)
    session_id = stream.session.session_id
    assert house.recorder[1:] == [SessionRecord(session_id, "me", NOW_US, NOW_US, '{"firmware":"7"}')]
    assert house.peers.said == [("announce", "me", True), ("announce", "me", False)]
    assert house.streams == {"me": stream}
    assert house.hub.online() == []


async def test_a_newer_relay_takes_over(house: House) -> None:
    azure = await house.consumer()
    old = await house.relay()
    old_outbox = old.relay
    house.ingest.take_raw(old, raw(3))
    new = await house.relay()
    assert old_outbox
    assert old_outbox.closed.result() == CloseCode.TAKEN_OVER
    assert not old.online
    assert house.streams == {"me": new}
    ends = [(record.session_id, record.end_us) for record in house.recorder.of(SessionRecord)]
    old_id, new_id = old.session.session_id, new.session.session_id
    assert ends == [(old_id, None), (old_id, NOW_US), (new_id, None)]
    assert [message["session_id"] for message in messages(azure)] == [None, *[old_id] * 4, new_id]
    house.ingest.take_raw(new, raw(1))
    assert outline(azure) == [0]


async def test_the_old_relay_that_then_goes_changes_nothing(house: House) -> None:
    old = await house.relay()
    relay = old.relay
    new = await house.relay()
    azure = await house.consumer()
    before = list(house.recorder), list(house.peers.said)
    house.disconnect(old, relay)
    assert (list(house.recorder), house.peers.said) == before
    assert house.streams == {"me": new}
    assert outline(azure) == ["online"]


async def test_what_still_comes_from_the_old_relay_reaches_nobody(house: House) -> None:
    """Its socket is closed a turn of the loop later; until then a message of it may be read."""
    old = await house.relay()
    new = await house.relay()
    azure = await house.consumer()
    before = everything(house, new)
    house.ingest.take_raw(old, raw(1))
    take_features(house, old)
    assert outline(azure) == ["online"]
    assert everything(house, new) == before


async def test_a_user_that_is_superseded_elsewhere_is_given_up(house: House) -> None:
    stream = await house.relay()
    relay = stream.relay
    house.ingest.supersede("me")
    house.ingest.supersede("nobody")
    assert house.streams == {}
    assert relay
    assert relay.closed.result() == CloseCode.TAKEN_OVER
    assert [record.end_us for record in house.recorder.of(SessionRecord)] == [None, NOW_US]


async def test_a_sample_is_buffered_delivered_published_and_recorded(house: House) -> None:
    stream, azure = await house.relay(), await house.consumer()
    house.ingest.take_raw(stream, raw(3))
    house.ingest.take_raw(stream, raw(1, first=3))
    assert outline(azure) == ["online", 0, 1, 2, 3]
    assert [run.position for run in stream.ring.last(4)] == [0]
    assert house.peers.said[1:] == [("publish", "me", range(3)), ("publish", "me", range(3, 4))]
    assert house.recorder.of(Sample) == [Sample(stream.session.session_id, position) for position in range(4)]
    assert (house.ingest.n_samples, house.subscribers.n_samples_out) == (4, 4)


async def test_samples_reach_every_consumer_of_the_user_and_no_other(house: House) -> None:
    stream = await house.relay()
    mine, mine_too, other = await house.consumer(), await house.consumer(), await house.consumer("other")
    house.ingest.take_raw(stream, raw(2))
    assert outline(mine) == outline(mine_too) == ["online", 0, 1]
    assert outline(other) == ["offline"]
    assert house.subscribers.n_samples_out == 4


async def test_a_gap_is_announced_before_the_samples_after_it(house: House) -> None:
    stream, azure = await house.relay(), await house.consumer()
    house.ingest.take_raw(stream, raw(2, 0))
    house.ingest.take_raw(stream, raw(2, 5))
    read = messages(azure)
    session_id = stream.session.session_id
    assert read[3] == {"type": "gap", "session_id": session_id, "from": 2, "to": 5, "reason": "relay"}
    assert [message.get("position") for message in read[1:]] == [0, 1, None, 5, 6]
    assert house.peers.said[1:] == [
        ("publish", "me", range(2)),
        ("publish", "me", range(5, 7)),
    ]


async def test_duplicates_reach_nobody(house: House) -> None:
    stream, azure = await house.relay(), await house.consumer()
    house.ingest.take_raw(stream, raw(3, 0))
    house.ingest.take_raw(stream, raw(3, 0))
    house.ingest.take_raw(stream, raw(3, 1))
    assert outline(azure) == ["online", 0, 1, 2, 3]
    assert len(house.recorder.of(Sample)) == 4
    assert (stream.session.n_duplicates, house.ingest.n_samples) == (5, 4)


async def test_a_long_chunk_is_cut_where_it_would_be_too_large_for_a_message(house: House) -> None:
    stream, azure = await house.relay(), await house.consumer(format="binary", types=["raw"])
    house.ingest.take_raw(stream, raw(20_000))
    frames = [azure.take(), azure.take(), azure.take(), azure.take()]
    assert [len(taken) for taken in frames] == [1, 1, 1, 0]
    assert len(house.recorder.of(Sample)) == house.ingest.n_samples == 20_000


@pytest.mark.parametrize(
    "bad",
    [
        raw(1, n_channels=3),
        raw(1, (1 << 53) - 1),
        RawIn(None, -1, np.zeros((1, 2), np.float32)),
        RawIn(9, 2 * NOW_US, np.zeros((1, 2), np.float32)),
    ],
)
async def test_bad_raw_changes_nothing(house: House, bad: RawIn) -> None:
    stream, azure = await house.relay(), await house.consumer()
    house.ingest.take_raw(stream, raw(2))
    before = everything(house, stream)
    with pytest.raises(BadMessage):
        house.ingest.take_raw(stream, bad)
    assert everything(house, stream) == before
    assert outline(azure) == ["online", 0, 1]


async def test_features_are_forwarded_with_all_their_fields(house: House) -> None:
    stream, azure = await house.relay(), await house.consumer()
    take_features(house, stream)
    assert messages(azure)[1] == {
        "type": "features",
        "workload": 0.65,
        "confidence": 0.89,
        "band_powers": {"alpha": 0.35},
        "model": "mine",
        "user_id": "me",
        "session_id": stream.session.session_id,
        "timestamp": NOW_US / 1e6,
    }
    assert house.peers.said[1:] == [("publish", "me", "features")]
    assert len(stream.features) == 1


async def test_features_are_recorded_as_a_prediction_of_the_edge(house: House) -> None:
    stream = await house.relay()
    take_features(house, stream)
    [record] = house.recorder.of(PredictionRecord)
    assert replace(record, data="") == PredictionRecord(
        time_us=NOW_US,
        session_id=stream.session.session_id,
        user_id="me",
        prediction_type="workload_edge",
        classifier_name="edge_relay",
        data="",
        confidence=0.89,
        classifier_version=None,
    )
    fields = {"workload": 0.65, "confidence": 0.89, "band_powers": {"alpha": 0.35}, "model": "mine"}
    assert json.loads(record.data) == fields


async def test_features_keep_the_time_they_have(house: House) -> None:
    stream, azure = await house.relay(), await house.consumer()
    take_features(house, stream, '{"type":"features","timestamp":1763999999.5}')
    assert messages(azure)[1]["timestamp"] == 1763999999.5
    [record] = house.recorder.of(PredictionRecord)
    assert (record.time_us, record.data) == (1_763_999_999_500_000, "{}")


async def test_a_relay_cannot_speak_for_another_user_or_session(house: House) -> None:
    stream, azure = await house.relay(), await house.consumer()
    take_features(house, stream, '{"type":"features","user_id":"you","session_id":"forged"}')
    message = messages(azure)[1]
    assert (message["user_id"], message["session_id"]) == ("me", stream.session.session_id)


@pytest.mark.parametrize("timestamp", [-1, 1764100000, 1e12, 1e15])
async def test_bad_features_change_nothing(house: House, timestamp: float) -> None:
    stream, azure = await house.relay(), await house.consumer()
    before = everything(house, stream)
    with pytest.raises(BadMessage):
        take_features(house, stream, json.dumps({"type": "features", "timestamp": timestamp}))
    assert everything(house, stream) == before
    assert outline(azure) == ["online"]


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
    found = await house.hub.answer(Query("me", "latest", "raw"))
    assert json.loads(found.body)["position"] == 2
    house.disconnect(stream)
    found = await house.hub.answer(Query("me", "last", "raw", n=2))
    assert json.loads(found.body)["n"] == 2
    with pytest.raises(NotFound):
        await house.hub.answer(Query("nobody", "latest", "raw"))


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
    assert [house.hub.enter(), house.hub.enter()] == [1, 2]
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
