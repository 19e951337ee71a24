"""What came of a story in a world, in a form in which two can be compared."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any, NamedTuple

import numpy as np
from msgspec import structs

from support.twins import SESSION_ID, USER, Pipe, Plug, Stage, Story, World
from zander.hub.fastpath import PathStats
from zander.journal.reader import split_records, split_records_as_twin
from zander.journal.records import RawRecord, decode
from zander.wire.chunk import MAX_DRIFT_US, decode_binary

RULES = (b"\x03\xea", b"\x03\xef", b"\x03\xf1")  # 1002, 1007, 1009
TAKEN_OVER = b"\x11\x9d"  # 4509
NEAR_THE_END = 90  # bad messages; of what comes behind them it is chance how much is read before an end
OWN_CODES = b"\x03\xf4"  # 1012 and above are those that the service closes with


class Outcome(NamedTuple):
    """`same` has to be equal in both worlds, to the bit; the rest is how it came about."""

    same: dict[str, Any]
    path: PathStats
    drift_us: float
    n_dropped: int

    @property
    def behaviour(self) -> tuple[Any, ...]:
        """What kind of story it was."""
        path, same = self.path, self.same
        codes = [reply["code"] for reply in same["answers"] if reply.get("type") == "error"]
        kinds = {type(record).__name__ for record in same["journal"]}
        counts = (path.intercepted, path.passed_frames, path.passed_messages, path.passed_sessions)
        session = same["session"] or {}
        return (
            tuple(map(bool, counts)),
            tuple(sorted(set(codes)))[:1],
            tuple(sorted(kinds)),
            tuple(sorted({close[:2] for close in same["closes"]})),
            tuple(bool(session.get(name)) for name in ("n_gaps", "n_duplicates")),
            bool(same["counts"]["dropped_records"]),
        )


async def compare(stage: Stage, story: Story) -> tuple[Outcome, str]:
    """Play a story in both worlds; return what came of it in the native one, and what differs."""
    outcomes = []
    for is_native in (True, False):
        world = World(stage, story, is_native)
        try:
            await world.play(stage.clock)
            outcomes.append(outcome(world))
        finally:
            await world.end()
    native, twin = outcomes
    assert not twin.path.intercepted
    return native, differences(native, twin)


def differences(native: Outcome, twin: Outcome) -> str:
    """Say what differs; nothing when all is well."""
    found = []
    for name, there in twin.same.items():
        here = native.same[name]
        if here != there:
            found.append(f"{name}:\n    native {_short(here, there)}\n    twin   {_short(there, here)}")
    if native.drift_us > MAX_DRIFT_US + 1:
        found.append(f"drift: native {native.drift_us} µs, twin {twin.drift_us} µs")
    return "\n".join(found)


def _short(value: Any, other: Any) -> str:
    """Show a value from where it differs."""
    if isinstance(value, dict) and isinstance(other, dict):
        return repr({key: value[key] for key in value if value[key] != other.get(key)})[:800]
    if isinstance(value, list | bytes) and isinstance(other, list | bytes):
        n = next((i for i, (a, b) in enumerate(zip(value, other, strict=False)) if a != b), min(len(value), len(other)))
        return f"{len(value)} long, from {n}: {value[max(0, n - 1) : n + (3 if isinstance(value, list) else 300)]!r}"
    return repr(value)[:800]


def outcome(world: World) -> Outcome:
    """Look at a world that is quiet."""
    hub, story = world.hub, world.story
    stream = hub.ingest.streams.get(USER)
    lines = world.recorder.stats()
    turns_away = story.ack and ("full", b"") in story.steps  # of what finds no room then, only the first sample counts
    is_over = turns_away or hub.ingest.n_bad_messages >= NEAR_THE_END or story.eager  # near the end
    replies = [_replies(pipe, is_over) for pipe in world.relays]
    heard = {name: messages(pipe)[0] for name, pipe in world.consumers.items()}
    times = {
        m["position"]: round(m["timestamp"] * 1e6) for m in map(_json, heard.get("json", [])) if m.get("type") == "raw"
    }
    flat, drifts = {}, [0.0]
    for format in ("chunks", "binary"):
        flat[format] = list(_flat(heard.get(format, []), times, 1e6 / story.rate if story.rate else 0.0, drifts))
    listeners = hub.subscribers.consumers(USER)
    same = {
        "session": stream and _session(stream.session),
        "ring": stream and _ring(stream.ring),
        "stream": stream and (stream.online, stream.lost_from, stream.durable, stream.n_notes, stream.acks),
        "journal": journal(world),
        "relays": [_written(pipe, is_over) for pipe in world.relays],
        "answers": [_json(message) for reply in replies for message in reply],
        "closes": [_written(pipe, is_over)[1] for pipe in world.relays],
        "closed": [pipe.closed for pipe in world.relays],
        "json": got(world.consumers["json"]) if "json" in heard else b"",
        **flat,
        "counts": {
            "in": None if turns_away else hub.ingest.n_samples,
            "out": hub.n_samples_out,
            "bad": hub.ingest.n_bad_messages if hub.ingest.n_bad_messages < NEAR_THE_END else None,
            "pending_records": lines.pending_records,
            "dropped_records": None if turns_away else lines.dropped_records,
            "waiting": sorted((outbox.queue.format, outbox.cursor.position, outbox.waits) for outbox in listeners),
        },
        "said": list(_said(world.peers.said, story.followed)),
    }
    assert not world.errors, world.errors
    return Outcome(same, hub.ingest.fast_path.stats(), max(drifts), sum(outbox.queue.n_dropped for outbox in listeners))


def journal(world: World) -> list[Any]:
    """Return what the journal has, raw that follows as one record."""
    log = world.journals.own.log
    records: list[Any] = []
    at = world.journal_start
    while (frames := log.read(at, 1 << 30)).payloads:
        records += map(decode, frames.payloads)
        at = frames.end
    assert at == log.end, "a frame's checksum is wrong"
    native, twin = ([log.read_by(how, world.journal_start, 1 << 30)] for how in (split_records, split_records_as_twin))
    assert native == twin, "the journal is not read as by the twin"
    return merged(records)


def merged(records: list[Any]) -> list[Any]:
    """Join raw records that follow each other."""
    whole: list[Any] = []
    for record in records:
        last = whole[-1] if whole else None
        if isinstance(record, RawRecord) and isinstance(last, RawRecord):
            same = (last.session_id, last.fence, last.end) == (record.session_id, record.fence, record.position)
            if same and len(last.rows) * len(range(record.position, record.end)) == len(record.rows) * len(
                range(last.position, last.end)
            ):
                rows = last.rows + record.rows
                whole[-1] = structs.replace(last, end=record.end, last_us=record.last_us, rows=rows)
                continue
        whole.append(record)
    return whole


def _written(pipe: Pipe | Plug, is_over: bool) -> tuple[Any, bytes]:
    """What a relay got, and its close.

    Of several things in one read that end the connection it is chance which one does. When it `is_over` here, or the
    first came with the auth, a ping behind that may be answered.
    """
    found, pongs, close = _read(pipe)
    if _ends_by_rule(close, is_over):
        return _replies(pipe, is_over), b"rule"
    return (found, pongs), close  # a pong is written at once, an answer when it is its turn


def _replies(pipe: Pipe | Plug, is_over: bool) -> list[str | bytes]:
    """What a relay got; of answers behind the first it is chance which are sent before a rule ends it."""
    found, close = messages(pipe)
    return found[:1] if _ends_by_rule(close, is_over) else found


def _ends_by_rule(close: bytes, is_over: bool) -> bool:
    return close[:2] in RULES or (is_over and bool(close) and (close < OWN_CODES or close[:2] == TAKEN_OVER))


def got(pipe: Pipe | Plug) -> bytes:
    """Return what a peer got, but for when."""
    return re.sub(rb"Date: [^\r]*\r\n", b"", bytes(pipe.written), count=1)


def messages(pipe: Pipe | Plug) -> tuple[list[str | bytes], bytes]:
    """Take the messages out of what a peer got, and how it was closed."""
    found, _, closed = _read(pipe)
    return found, closed


def _read(pipe: Pipe | Plug) -> tuple[list[str | bytes], list[bytes], bytes]:
    data = got(pipe)
    if b"HTTP/1.1 101" not in data:
        return [], [], data
    at = data.index(b"\r\n\r\n") + 4
    found: list[str | bytes] = []
    pongs: list[bytes] = []
    closed = b""
    while at < len(data):
        first, length = data[at], data[at + 1]
        at += 2
        if length > 125:
            size = 2 if length == 126 else 8
            length = int.from_bytes(data[at : at + size], "big")
            at += size
        payload, at = data[at : at + length], at + length
        assert at <= len(data)
        if first == 0x81:
            found.append(payload.decode())
        elif first == 0x82:
            found.append(payload)
        elif first == 0x88:
            closed = payload
        else:
            assert first == 0x8A, first
            pongs.append(payload)
    return found, pongs, closed


def _json(message: str | bytes) -> dict[str, Any]:
    return json.loads(message) if isinstance(message, str) else {}


def _flat(heard: list[str | bytes], times: dict[int, int], period_us: float, drifts: list[float]) -> Any:
    """Cut chunks into samples: their bounds need not be the same. A chunk's time is that of its first sample."""
    for message in heard:
        fields = _json(message)
        if isinstance(message, bytes):
            raw = decode_binary(message)
            position, time_us, samples = raw.position or 0, raw.time_us or 0, raw.samples
        elif fields["type"] == "raw":
            position, time_us = fields["position"], round(fields["timestamp"] * 1e6)
            samples = np.array(fields["samples"], np.float32)
        else:
            yield message
            continue
        if position in times:
            assert time_us == times[position]
        for i, sample in enumerate(samples):
            if position + i in times:
                drifts.append(abs(time_us + i * period_us - times[position + i]))
            yield position + i, sample.tobytes()


def _session(session: Any) -> dict[str, Any]:
    names = ("next_position", "count", "last_time_us", "n_gaps", "n_duplicates", "n_bad", "n_channels", "fence")
    values = {name: getattr(session, name) for name in names}
    assert session.session_id == SESSION_ID
    return values | {"types": [type(value).__name__ for value in values.values()]}


def _ring(ring: Any) -> dict[str, Any]:
    runs = [(run.position, run.times_us.tolist(), run.samples.tobytes()) for run in ring.last(ring.capacity)]
    at = (ring.n_written, ring.next_position, ring.first_position, ring.span_us)
    return {"runs": runs, "at": at, "memory": (ring.samples.tobytes(), ring.times_us.tobytes())}


def _said(said: list[tuple[Any, ...]], followed: bool) -> Any:
    """What the neighbours were told, samples that follow each other as one."""
    for is_raw, group in itertools.groupby(said, lambda what: what[0] == "publish" and isinstance(what[2], range)):
        if not is_raw:
            yield from group
            continue
        start = end = None
        for _, _, positions in group if followed else ():
            if positions.start != end:
                if start is not None:
                    yield "raw", start, end
                start = positions.start
            end = positions.stop
        if start is not None:
            yield "raw", start, end
