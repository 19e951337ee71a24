"""What nodes say to each other comes out as it went in."""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha256
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zander.cluster import messages as peers
from zander.cluster.directory import Holding
from zander.errors import BadMessage, ClientError, Conflict, NotFound, Unavailable
from zander.streams.query import Query
from zander.streams.stream import StreamSummary
from zander.wire.chunk import Chunk, Origin
from zander.wire.codec import decode_auth
from zander.wire.messages import Gap, Note

ORIGIN = Origin("me", "s", 7812.5)
HOLDING = Holding("me", "s", 3, 7, True, {"sampling_rate": 128, "names": ["C3", None, "Zoë"], "nested": {"x": 1.5}})
EVENTS: list[peers.Event] = [
    peers.RawEvent(5, bytes(8), bytes(8)),
    peers.NoteEvent("features", 1_764_000_000_000_000, "{}", "azure"),
]
SUMMARY = StreamSummary("me", "s", 1764000000.0, 128.0, 5, {"sampling_rate": 128})

MESSAGES: list[peers.Message] = [
    peers.Beat("node", 1, 2),
    peers.Hello("node"),
    peers.State("node", 1, 2, [HOLDING, HOLDING]),
    peers.Changed("node", 3, "me", HOLDING),
    peers.Changed("node", 3, "me", None),
    peers.Bye("node"),
    peers.Follow("node", "me", 10, call=7),
    peers.Follow("node", "me", position=(1 << 53) - 1, n_notes=4, call=7),
    peers.Unfollow("node", "me"),
    peers.Followed(
        "node",
        session_id="s",
        period_us=7812.5,
        first_position=2,
        next_position=6,
        n_notes=4,
        events=EVENTS,
        call=7,
    ),
    peers.Events("node", "me", "s", EVENTS),
    peers.Ask("node", Query("me", "last", "raw", 5, 1, 2, "npy"), call=7),
    peers.Predict("node", "me", "{}", "azure", call=7),
    peers.AskStreams("node", call=7),
    peers.HasFound("node", "s", 2, ["C3", "Zö"], EVENTS, "{}", call=7),
    peers.Answered("node", delivered=True, streams=[SUMMARY], call=7),
    peers.Failed("node", 404, "not_found", "no stream of user me", call=7),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_is_read_as_it_was_written(message: peers.Message) -> None:
    got = peers.decode(peers.encode(message))
    assert type(got) is type(message)
    assert got == message


def test_every_message_is_in_this_test() -> None:
    assert {type(message) for message in MESSAGES} == set(peers.Message.__args__)


@pytest.mark.parametrize("serial", ["18446744073709551616", "-9223372036854775809", "1" + "0" * 30])
def test_whatever_a_relay_may_say_of_its_device_can_be_told_to_the_other_nodes(serial: str) -> None:
    """JSON has numbers that msgpack has not."""
    try:
        auth, _ = decode_auth(f'{{"type":"auth","user_id":"me","device_info":{{"serial":{serial}}}}}')
    except BadMessage:
        return
    told = peers.Changed("node", 1, "me", Holding("me", "s", 3, 7, True, auth.device_info))
    assert peers.decode(peers.encode(told)) == told


@given(st.binary(max_size=60))
def test_bytes_that_are_no_message_are_refused_in_one_way(data: bytes) -> None:
    with suppress(msgspec.DecodeError):
        peers.decode(data)


@given(st.sampled_from(MESSAGES), st.data())
def test_a_damaged_message_is_another_one_or_refused(message: peers.Message, data: st.DataObject) -> None:
    damaged = bytearray(peers.encode(message))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with suppress(msgspec.DecodeError):
        peers.decode(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
        peers.decode(bytes(damaged))


@pytest.mark.parametrize(
    "error",
    [NotFound("no stream of me"), Unavailable("away"), BadMessage("bad_format", "no"), Conflict("bad_format", "no")],
)
def test_an_error_is_the_same_on_the_other_node(error: ClientError) -> None:
    got = peers.decode(peers.encode(peers.Failed("node", error.status, error.code, error.message)))
    assert isinstance(got, peers.Failed)
    told = got.error()
    assert (told.status, told.code, told.message) == (error.status, error.code, error.message)


FLOAT32 = st.floats(width=32, allow_infinity=False)


@given(st.lists(st.lists(FLOAT32, min_size=3, max_size=3), min_size=1, max_size=5), st.integers(0, (1 << 53) - 10))
def test_samples_have_the_same_bits_on_the_other_node(values: list[list[float]], position: int) -> None:
    samples = np.array(values, np.float32)
    times_us = 1_764_000_000_000_000 + np.arange(len(samples)) * 7812
    packed = peers.to_event(Chunk(ORIGIN, position, times_us, samples))
    told = peers.decode(peers.encode(peers.Events("node", "me", "s", [packed])))
    assert isinstance(told, peers.Events)
    got = peers.from_event(told.events[0], ORIGIN)
    assert isinstance(got, Chunk)
    assert (got.origin, got.position) == (ORIGIN, position)
    assert got.times_us.tolist() == times_us.tolist()
    assert (got.samples.shape, got.samples.dtype) == (samples.shape, samples.dtype)
    assert got.samples.tobytes() == samples.tobytes()


def test_samples_that_were_cut_out_of_a_chunk_are_packed_alone() -> None:
    samples = np.arange(12, dtype=np.float32).reshape(6, 2)
    cut = Chunk(ORIGIN, 0, np.arange(6), samples).since(4)
    got = peers.from_event(peers.to_event(cut), ORIGIN)
    assert isinstance(got, Chunk)
    assert (got.position, got.times_us.tolist(), got.samples.tolist()) == (4, [4, 5], [[8, 9], [10, 11]])


def test_a_gap_is_the_same_on_the_other_node() -> None:
    gap = Gap(ORIGIN.session_id, 5, 8, "relay")
    assert peers.from_event(peers.to_event(gap), ORIGIN) == gap


def test_a_note_is_the_same_on_the_other_node() -> None:
    note = Note("prediction", 1_764_000_000_000_000, '{"type":"prediction","note":"Zoë"}', "azure")
    assert peers.from_event(peers.to_event(note), ORIGIN) == note


def bare(schema: Any) -> Any:
    """A schema without the words in it."""
    if isinstance(schema, dict):
        return {name: bare(value) for name, value in schema.items() if name not in ("title", "description")}
    return [bare(value) for value in schema] if isinstance(schema, list) else schema


def test_a_change_of_the_messages_is_a_new_version() -> None:
    """Else nodes of both versions would hear each other: raise VERSION, and write what this finds beside it."""
    schema = msgspec.json.encode(bare(msgspec.json.schema(peers.Message)), order="sorted")
    assert (peers.VERSION, sha256(schema).hexdigest()[:16]) == (1, "82396ebd16b6221b")
