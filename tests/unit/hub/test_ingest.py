"""Taking in: what relays send is recorded, buffered and delivered, in this order; with a sink that is a list."""

from __future__ import annotations

import json

import numpy as np
import pytest
from msgspec.structs import replace

from support.hub_items import NOW_US, everything, messages, outline, raw, take_features
from support.hubs import DEVICE, House, Sample
from zander.delivery.outbox import Outbox
from zander.errors import BadMessage, CloseCode, Unavailable
from zander.journal.batch import Written
from zander.journal.records import GapRecord, PredictionRecord, SessionRecord
from zander.wire.chunk import RawIn
from zander.wire.connection import NOBODY, Client
from zander.wire.messages import Auth

pytestmark = pytest.mark.usefixtures("today")


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
    assert house.streams.online() == []


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


async def test_a_relay_that_is_turned_away_ends_where_there_was_no_room(house: House) -> None:
    """What it keeps is not lost: it sends that again."""
    stream = await house.relay(ack=True)
    house.ingest.take_raw(stream, raw(3))
    house.recorder.takes = False
    house.ingest.take_raw(stream, raw(2))
    assert house.recorder[-1].next_position == 3
    assert house.recorder.of(GapRecord) == []


async def test_a_relay_is_not_let_in_where_others_took_the_room_while_its_session_was_looked_up(house: House) -> None:
    asked: list[tuple[str, str]] = []

    def takes_from(user_id: str, kind: str = "samples", client: object = None) -> bool:
        assert client == NOBODY
        asked.append((user_id, kind))
        return len(asked) < 4

    house.recorder.takes_from = takes_from  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await house.relay()
    assert asked == [("me", "samples"), ("me", "sessions")] * 2
    assert house.recorder == []
    assert house.ingest.n_turned_away == 1


async def test_every_record_of_a_user_is_of_the_client_whose_relay_it_is(house: House) -> None:
    """The end of a session too, that a relay of another client takes over."""
    clients: list[Client] = []

    def record(record: SessionRecord | GapRecord) -> None:
        assert isinstance(record, SessionRecord)
        clients.append(house.streams.client_of(record.user_id))

    house.recorder.record = record  # type: ignore[method-assign]
    for address in ("one", "two", "three"):
        await house.ingest.connect(Auth("me"), DEVICE, Outbox("me", types=()), Client("key", address))
    house.disconnect(house.streams["me"])
    assert [client.address for client in clients] == ["one", "one", "two", "two", "three", "three"]
    assert house.streams.client_of("somebody else") == NOBODY


async def test_a_session_whose_row_was_gone_is_recorded_once_more(house: House) -> None:
    stream = await house.relay()
    house.ingest.take_raw(stream, raw(3))
    session_id = stream.session.session_id
    house.hub.ingest.on_written(Written({session_id: 3}, restored={session_id}))
    assert house.recorder[-1] == replace(house.recorder[0], next_position=3)
    house.disconnect(stream)
    n_records = len(house.recorder)
    house.hub.ingest.on_written(Written({session_id: 3}, restored={session_id, "another"}))
    assert len(house.recorder) == n_records  # its end is recorded


async def test_a_relay_is_never_told_that_less_is_durable(house: House) -> None:
    stream = await house.relay(ack=True)
    session_id = stream.session.session_id
    for durable in (5, 3, 5, 6):
        house.hub.ingest.on_written(Written({session_id: durable}))
    assert stream.relay
    assert [message["durable"] for message in messages(stream.relay)] == [5, 5, 6]
    assert stream.durable == 6


async def test_a_clock_that_was_set_back_is_told_once_and_counted(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    stream = await house.relay()
    relay = stream.relay
    assert relay
    for position, ahead_us in enumerate([30_000_000, 0, 10, -5_000_000]):
        house.ingest.take_raw(stream, RawIn(position, NOW_US + ahead_us, np.zeros((1, 2), np.float32)))
    said = [json.loads(frame) for frame in relay.take()]
    assert [(message["type"], message["code"]) for message in said] == [("error", "clamped")]
    assert said[0]["message"].startswith("a time 30.0 s before the one before it")
    assert not relay.closed.done()
    assert (house.ingest.n_clamped, stream.stats().raw.clamped) == (3, 3)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert len(set(stream.ring.times_us[:4].tolist())) == 4


async def test_a_network_that_delays_chunks_is_no_clock_that_was_set_back(house: House) -> None:
    stream = await house.relay()
    relay = stream.relay
    assert relay
    for _ in range(3):
        house.ingest.take_raw(stream, RawIn(None, None, np.zeros((500, 2), np.float32)))
    assert relay.take() == []
    assert house.ingest.n_clamped > 0
