"""The promise itself: relays, two nodes and a database through crashes at any step, against a simple model.

Real: `Session`, `Ring`, `Recording`, `JournalWriter`, `Recorder`, `Journals` on a real disk. In memory: the relays, and
a database that keeps the contract of `BatchStore` and `SessionStore.resume`, that fails before and after its commits,
and whose transactions may commit long after whoever sent them has given up.
"""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from collections.abc import Coroutine
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from support.memory_database import Database, MemoryStorage
from support.samples import T0_US
from zander.errors import StorageError, Unavailable
from zander.hub.recording import Recording
from zander.journal import journal, recorder, writer
from zander.journal.batch import Batch, Written
from zander.journal.journal import Journals
from zander.journal.log import frame
from zander.journal.recorder import Recorder
from zander.journal.records import encode, raw_record
from zander.journal.writer import JournalWriter
from zander.streams.ring import Ring
from zander.streams.session import Session, StoredSession, resumed
from zander.wire.chunk import Chunk, RawIn
from zander.wire.messages import DeviceInfo

MAX_JOURNAL_BYTES = 8_000  # some 60 samples: it is full now and then
RING_SAMPLES = 16
PERIOD_US = 8000
DEVICE = DeviceInfo(sampling_rate=125, channel_count=2)
ANSWERS = ("commits", "commits", "commits", "fails", "commits unheard", "is in flight")

_numbers = count()


def values(position: int, n: int, relay: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    samples = np.full((n, 2), relay, np.float32)
    samples[:, 0] = np.arange(position, position + n)
    return samples


class Flight:
    """A transaction whose COMMIT is on its way; until it ends, it holds the locks of its rows."""

    def __init__(self, batch: Batch, commits: bool) -> None:
        self.batch = batch
        self.commits = commits

    def locks(self, writer_id: UUID | None, session_ids: set[str]) -> bool:
        return self.batch.writer_id == writer_id or bool(_sessions(self.batch) & session_ids)


def _sessions(batch: Batch) -> set[str]:
    return batch.sessions.keys() | {session_id for session_id, _ in batch.watermarks()}


class World(Database):
    """The one database, with what is in flight."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = False
        self.flights: list[Flight] = []

    def end(self, flight: Flight) -> None:
        self.flights.remove(flight)
        if flight.commits:
            self.commit(flight.batch)

    def wait_for_locks(self, writer_id: UUID | None, session_ids: set[str]) -> None:
        for flight in [flight for flight in self.flights if flight.locks(writer_id, session_ids)]:
            self.end(flight)

    def durable_of(self, session_id: str) -> StoredSession:
        """Resume a session, as a node does for a relay that comes to it."""
        if self.is_away:
            raise Unavailable("the database is away")
        self.wait_for_locks(None, {session_id})
        row = self.resume(session_id)
        start_us = row.record.start_us if row.record else T0_US
        device: dict[str, Any] = {"sampling_rate": 125, "channel_count": 2}
        return StoredSession(session_id, "user", start_us, None, device, row.durable, row.last_us, row.fence)


class Link(MemoryStorage):
    """A node's way to the database: a write waits until the test says what becomes of it."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.world = world
        self.waits_with: Batch | None = None
        self.answers: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()
        self.fail = self._check

    def _check(self) -> None:
        if self.world.is_away:
            raise StorageError("away")

    async def outcome(self, batch: Batch) -> Written | None:
        self._check()
        self.world.wait_for_locks(batch.writer_id, _sessions(batch))
        return self.world.claim(batch)

    async def write(self, batch: Batch, *, is_alone: bool = False) -> Written:
        self._check()
        self.waits_with = batch
        try:
            how, commits = await self.answers.get()
        finally:
            self.waits_with = None
        return self.answer(batch, how, commits)

    def answer(self, batch: Batch, how: str, commits: bool) -> Written:
        self._check()
        if how == "fails":
            raise StorageError("nothing was written")
        self.world.wait_for_locks(batch.writer_id, _sessions(batch))
        written = self.world.claim(batch)
        if not written and how == "is in flight":
            self.world.flights.append(Flight(batch, commits))
        elif not written:
            written = self.world.commit(batch)
        if how == "commits" and written:
            return written
        raise StorageError("the answer was lost")


class Held:
    """A session on a node: what `Recording` needs of a Stream."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.lost_from: int | None = None
        self.durable = session.next_position
        self.ring = Ring(RING_SAMPLES, session.next_position)
        self.taken: list[Chunk] = []  # by this node, in the journal


class Node:
    """A process with a folder; `crash` leaves of it what kill -9 leaves."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.holds: dict[str, Held] = {}
        self.relays: dict[str, Relay] = {}
        self.is_up = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self.link = Link(self.world)
        self.journals = Journals(self.folder, MAX_JOURNAL_BYTES)
        self.writer = JournalWriter(self.journals, max_bytes=MAX_JOURNAL_BYTES, batch_records=1)
        self.recording = Recording(self.writer)
        self.recorder = Recorder(
            self.link, self.journals, self.writer, max_seconds=0, linger_seconds=0, on_written=self.written
        )
        self.task = loop.create_task(self.recorder.run())
        self.is_up = True

    @property
    def is_settled(self) -> bool:
        stats = self.recorder.stats()
        return bool(self.link.waits_with) or not stats.pending_bytes + stats.pending_records

    async def crash(self) -> None:
        self.is_up = False
        self.task.cancel()
        await asyncio.wait([self.task])
        for left in (*self.journals.orphans, self.journals.own):
            left.log.close()
            os.close(left._lock._fd)
        self._forget_everything()

    async def stop(self) -> None:
        """End as SIGTERM does, with a database that is there or not."""
        for held in list(self.holds.values()):
            self.end(held)
        draining = asyncio.create_task(self.recorder.drain(0.0 if self.world.is_away else 10.0))
        while not draining.done():
            if self.link.waits_with and self.link.answers.empty():
                self.link.answers.put_nowait(("commits", True))
            await asyncio.sleep(0)
        self.task.cancel()
        await asyncio.wait([self.task])
        self.is_up = False
        self.journals.close()
        self._forget_everything()

    def _forget_everything(self) -> None:
        for relay in list(self.relays.values()):
            relay.node = None
        self.holds.clear()
        self.relays.clear()

    def written(self, written: Written) -> None:
        for session_id, held in list(self.holds.items()):
            if session_id in written.durable:
                held.durable = written.durable[session_id]
                if session_id in self.relays:
                    self.relays[session_id].acked = max(self.relays[session_id].acked, held.durable)
            elif (session_id, held.session.fence) in written.fenced:
                self.give_up(session_id)

    def give_up(self, session_id: str) -> None:
        self.end(self.holds.pop(session_id))
        if relay := self.relays.pop(session_id, None):
            relay.node = None

    def end(self, held: Held) -> None:
        self.recording.end(held, held.session.last_time_us)  # type: ignore[arg-type]

    def begin(self, session: Session) -> Held:
        held = self.holds[session.session_id] = Held(session)
        self.recording.begin(session)
        return held

    def ingest(self, held: Held, raw: RawIn) -> bool:
        """Take raw in; False when there was no room."""
        gap, chunk, _ = held.session.accept(raw, T0_US + 1_000_000_000)
        if chunk is None:
            return True
        if not self.recording.raw(held, gap, chunk, int(chunk.times_us[0])):  # type: ignore[arg-type]
            return False
        held.ring.write(chunk.position, chunk.times_us, chunk.samples)
        held.taken.append(chunk)
        return True


class Relay:
    """One that numbers its samples, keeps them until they are durable, and resumes."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.session_id = str(UUID(int=1 + next(_numbers)))
        self.runs: list[tuple[int, int]] = []  # what it has sampled, from and to
        self.end = 0
        self.acked = 0
        self.next_position = 0  # what it sends next
        self.node: Node | None = None

    @property
    def sampled(self) -> set[int]:
        return {position for start, end in self.runs for position in range(start, end)}

    def sample(self, n: int, n_skipped: int) -> None:
        self.runs.append((self.end + n_skipped, self.end + n_skipped + n))
        self.end += n_skipped + n

    def connect(self, node: Node) -> None:
        if self.node:
            self.node.relays.pop(self.session_id, None)
            self.node = None
        if not node.writer.takes:
            return
        held = node.holds.get(self.session_id)
        if not held:
            try:
                stored = node.world.durable_of(self.session_id)
            except Unavailable:
                return
            held = node.begin(resumed(stored, DEVICE))
        else:
            node.recording.begin(held.session)
        row = node.world.sessions.get(self.session_id)
        is_stale = row is not None and row.fence > held.session.fence  # it was elsewhere, and this node has not heard
        assert held.durable <= self.end, "it is asked for what it never had"
        assert self.acked <= held.durable or is_stale, "it is asked for what it has forgotten"
        self.node, self.next_position = node, max(self.acked, held.durable)
        self.acked = max(self.acked, held.durable)
        node.relays[self.session_id] = self
        self.transmit()

    def transmit(self) -> None:
        """Send what is sampled and not sent; the spool begins at what is acked."""
        for first, end in self.runs:
            start = max(first, self.next_position)
            if self.node and start < end:
                held = self.node.holds[self.session_id]
                samples = values(start, end - start, self.number)
                if not self.node.ingest(held, RawIn(start, T0_US + PERIOD_US * start, samples)):
                    assert held.lost_from is not None
                    held.session.next_position, held.lost_from = held.lost_from, None  # it keeps what found no room
                    self.node.give_up(self.session_id)
                    return
                self.next_position = end


class Original:
    """A session of a relay of the original protocol: what the server has read is the server's to keep."""

    def __init__(self, number: int, node: Node) -> None:
        self.number = number
        self.node = node
        self.session_id = str(UUID(int=1 + next(_numbers)))
        session = Session("user", self.session_id, T0_US, DEVICE, {"sampling_rate": 125})
        self.held: Held | None = node.begin(session)
        self.kept: set[int] = set()
        self.refused: set[int] = set()
        self.perhaps: set[int] = set()  # written by a process that died before it knew
        self.ended = False

    def send(self, n: int) -> None:
        assert self.held
        position = self.held.session.next_position
        raw = RawIn(None, T0_US + PERIOD_US * position, values(position, n, self.number))
        took = self.node.ingest(self.held, raw)
        (self.kept if took else self.refused).update(range(position, position + n))


class ExactlyOnce(RuleBasedStateMachine):
    """Whatever happens, and in which order."""

    @initialize()
    def begin(self) -> None:
        self.originals: list[Original] = []
        self.patch = pytest.MonkeyPatch()
        for module, name, value in (
            (recorder, "PING_SECONDS", 0.0),
            (writer, "PAUSE_SECONDS", 0.0),
            (recorder, "FIRST_SECONDS", 0.0),
            (journal, "BATCH_BYTES", 1000),
            (journal, "READ_BYTES", 500),
        ):
            self.patch.setattr(module, name, value)
        self.disk_is_full = False
        pwrite = os.pwrite

        def write(fd: int, data: bytes, offset: int) -> int:
            if self.disk_is_full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return pwrite(fd, data, offset)

        self.patch.setattr("zander.journal.log.os.pwrite", write)
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.world = World()
        self.nodes = [Node(self.world, Path(self.folder.name, str(n))) for n in range(2)]
        for node in self.nodes:
            node.start(self.loop)
        self.relays = [Relay(n) for n in range(2)]

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(work)

    async def settle(self) -> None:
        """Let the recorders come as far as they come without an answer."""
        for n in range(200):
            await asyncio.sleep(0)
            if n > 5 and (self.world.is_away or all(node.is_settled for node in self.nodes if node.is_up)):
                return

    def up(self) -> list[Node]:
        return [node for node in self.nodes if node.is_up]

    # Relays.

    @rule(number=st.integers(0, 1), n=st.integers(1, 12), n_skipped=st.sampled_from([0, 0, 0, 3]))
    def a_relay_samples(self, number: int, n: int, n_skipped: int) -> None:
        relay = self.relays[number]
        relay.sample(n, n_skipped)
        relay.transmit()
        self.run(self.settle())

    @precondition(lambda self: self.up())
    @rule(data=st.data(), number=st.integers(0, 1), is_noticed=st.booleans())
    def a_relay_connects(self, data: st.DataObject, number: int, is_noticed: bool) -> None:
        """To the node it was at, too; `is_noticed`: that saw it go."""
        relay = self.relays[number]
        if is_noticed and relay.node:
            relay.node.end(relay.node.holds[relay.session_id])
        relay.connect(data.draw(st.sampled_from(self.up())))
        self.run(self.settle())

    @precondition(lambda self: any(node.relays for node in self.nodes))
    @rule(data=st.data())
    def a_node_forgets_a_session(self, data: st.DataObject) -> None:
        """As after BUFFER_KEEP_SECONDS, or when another session of the user took over."""
        node = data.draw(st.sampled_from([node for node in self.nodes if node.relays]))
        node.give_up(data.draw(st.sampled_from(sorted(node.relays))))

    @precondition(lambda self: self.up() and sum(bool(original.held) for original in self.originals) < 2)
    @rule(data=st.data())
    def an_original_relay_comes(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(self.up()))
        if node.writer.takes:
            self.originals.append(Original(10 + len(self.originals), node))

    @precondition(lambda self: any(original.held for original in self.originals))
    @rule(data=st.data(), n=st.integers(1, 12))
    def an_original_relay_sends(self, data: st.DataObject, n: int) -> None:
        data.draw(st.sampled_from([original for original in self.originals if original.held])).send(n)
        self.run(self.settle())

    @precondition(lambda self: any(original.held for original in self.originals))
    @rule(data=st.data())
    def an_original_relay_goes(self, data: st.DataObject) -> None:
        original = data.draw(st.sampled_from([original for original in self.originals if original.held]))
        original.node.give_up(original.session_id)
        original.held, original.ended = None, True
        self.run(self.settle())

    # Nodes.

    @precondition(lambda self: any(node.link.waits_with for node in self.up()))
    @rule(data=st.data(), how=st.sampled_from(ANSWERS), commits=st.booleans())
    def a_write_is_answered(self, data: st.DataObject, how: str, commits: bool) -> None:
        node = data.draw(st.sampled_from([node for node in self.up() if node.link.waits_with]))
        node.link.answers.put_nowait((how, commits))
        self.run(self.settle())

    @precondition(lambda self: self.up())
    @rule(
        data=st.data(),
        last_word=st.sampled_from(["fails", "commits unheard", "is in flight"]),
        commits=st.booleans(),
        share=st.sampled_from([0.0, 0.1, 0.5, 0.99, 1.0]),
    )
    def a_node_is_killed(self, data: st.DataObject, last_word: str, commits: bool, share: float) -> None:
        """In the middle of an append, of which a share is in the file, and of a write, which is committed or not."""
        node = data.draw(st.sampled_from(self.up()))
        if (batch := node.link.waits_with) and not self.world.is_away:
            with pytest.raises(StorageError):
                node.link.answer(batch, last_word, commits)
        here = [original for original in self.originals if original.held and original.node is node]
        if here and share:
            self.tear(node, data.draw(st.sampled_from(here)), share)
        for original in self.originals:
            if original.node is node and len(node.writer.in_memory):
                original.ended = False  # a last word may have been in memory, for want of room on the disk
        self.run(node.crash())
        for original in here:
            original.held = None

    def tear(self, node: Node, original: Original, share: float) -> None:
        """Leave a share of one more frame, which nobody was told of, in the last file."""
        assert original.held
        session = original.held.session
        position = session.next_position
        if original.held.lost_from is not None:
            return
        times_us = np.array([T0_US + PERIOD_US * position])
        chunk = Chunk(session.origin, position, times_us, values(position, 1, original.number))
        data = frame(encode(raw_record(chunk, session.fence)))
        with node.journals.own.log.paths[-1].open("ab") as file:
            file.write(data[: round(len(data) * share)])
        if share == 1:
            original.perhaps.add(position)

    @precondition(lambda self: self.up() and not self.disk_is_full)
    @rule(data=st.data())
    def a_node_is_stopped(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(self.up()))
        for original in self.originals:
            if original.held and original.node is node:
                original.held, original.ended = None, True
        self.run(node.stop())

    @precondition(lambda self: len(self.up()) < len(self.nodes))
    @rule(data=st.data())
    def a_node_is_started(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([node for node in self.nodes if not node.is_up])).start(self.loop)
        self.run(self.settle())

    # What they stand on.

    @rule()
    def the_database_goes_or_comes(self) -> None:
        self.world.is_away = not self.world.is_away
        self.run(self.settle())

    @precondition(lambda self: self.world.flights)
    @rule(data=st.data())
    def a_late_commit_ends(self, data: st.DataObject) -> None:
        self.world.end(data.draw(st.sampled_from(self.world.flights)))

    @rule()
    def the_disk_is_full_or_has_room(self) -> None:
        self.disk_is_full = not self.disk_is_full
        self.run(self.settle())

    # What holds at every moment.

    @invariant()
    def nothing_is_there_twice_or_other_than_it_was_sent(self) -> None:
        numbers = {of.session_id: of.number for of in (*getattr(self, "relays", []), *getattr(self, "originals", []))}
        for session_id, table in self.world.raw.items() if numbers else ():
            for position, samples in table.items():
                assert len(samples) == 1, f"position {position} is there {len(samples)} times"
                assert samples[0].values == (position, numbers[session_id])
                assert samples[0].time_us == T0_US + PERIOD_US * position

    @invariant()
    def what_is_durable_is_there(self) -> None:
        for session_id, row in self.world.sessions.items() if hasattr(self, "world") else ():
            there = set(self.world.positions(session_id)) | self.world.in_gaps(session_id)
            assert there >= set(range(row.durable))

    @invariant()
    def what_is_acked_is_durable(self) -> None:
        for relay in getattr(self, "relays", []):
            row = self.world.sessions.get(relay.session_id)
            assert relay.acked <= (row.durable if row else 0)

    @invariant()
    def what_a_node_holds_can_be_read_somewhere(self) -> None:
        """A consumer that resumes finds it in the ring, in the database, or in the journal."""
        for node in getattr(self, "nodes", []):
            for session_id, held in node.holds.items():
                row = self.world.sessions.get(session_id)
                if row and row.fence > held.session.fence:
                    continue  # somebody else's
                found = set(self.world.positions(session_id))
                for run in held.ring.since(held.ring.first_position):
                    assert run.samples[:, 0].tolist() == list(range(run.position, run.position + len(run.samples)))
                    found |= set(range(run.position, run.position + len(run.samples)))
                pending = self.loop.run_until_complete(
                    node.journals.pending(held.session.origin, 0, held.session.next_position)
                )
                for chunk in (item for item in pending if isinstance(item, Chunk)):
                    assert chunk.samples[:, 0].tolist() == list(range(chunk.position, chunk.end))
                    found |= set(range(chunk.position, chunk.end))
                taken = {position for chunk in held.taken for position in range(chunk.position, chunk.end)}
                assert found >= taken

    # What holds in the end.

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.heal()
                self.check()
            finally:
                for node in self.nodes:
                    if node.is_up:
                        self.run(node.crash())
                self.loop.close()
                self.patch.undo()
                self.folder.cleanup()

    def heal(self) -> None:
        self.world.is_away = self.disk_is_full = False
        for node in self.nodes:
            if not node.is_up:
                node.start(self.loop)
        for original in self.originals:
            if original.held:
                original.node.give_up(original.session_id)
                original.ended = True
        for n in range(50):
            for relay in self.relays:
                if relay.node is None and relay.acked < relay.end:
                    relay.connect(self.nodes[n % 2])
            for node in self.nodes:
                self.run(self.drain(node))
        for flight in list(self.world.flights):
            self.world.end(flight)

    async def drain(self, node: Node) -> None:
        for _ in range(1000):
            await asyncio.sleep(0)
            if node.link.waits_with and node.link.answers.empty():
                node.link.answers.put_nowait(("commits", True))
            elif node.is_settled and not node.link.waits_with:
                return
        raise AssertionError(f"it never settles: {node.recorder.stats()}")

    def check(self) -> None:
        self.nothing_is_there_twice_or_other_than_it_was_sent()
        self.what_is_durable_is_there()
        for relay in self.relays:
            assert relay.acked == relay.end, f"of {relay.runs} {relay.acked} are acked, node: {relay.node}"
            assert set(self.world.positions(relay.session_id)) == relay.sampled
            assert self.world.in_gaps(relay.session_id) == set(range(relay.end)) - relay.sampled
        for original in self.originals:
            there, lost = set(self.world.positions(original.session_id)), self.world.in_gaps(original.session_id)
            assert original.kept <= there <= original.kept | original.perhaps
            assert lost <= original.refused
            if original.ended:
                assert lost == original.refused
                row = self.world.sessions[original.session_id]
                assert row.durable == len(there | lost)
                assert row.end_us is not None
        for node in self.nodes:
            stats = node.recorder.stats()
            assert (stats.pending_bytes, stats.pending_records, stats.oldest_pending_seconds) == (0, 0, 0.0)
            assert node.writer.takes
            assert not node.journals.orphans


ExactlyOnce.TestCase.settings = settings(max_examples=150, stateful_step_count=50)
TestExactlyOnce = ExactlyOnce.TestCase
