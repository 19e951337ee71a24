"""Which relay gets a session, when the database takes its time to answer."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from support.hubs import DEVICE, House, build
from zander.delivery.outbox import Outbox
from zander.errors import CloseCode, Forbidden, Unavailable
from zander.hub import session_lookup
from zander.streams.session import StoredSession
from zander.streams.stream import Stream
from zander.wire.connection import NOBODY
from zander.wire.messages import Auth


class Gate:
    """Lets the questions to the database through one by one, in any order."""

    def __init__(self, house: House) -> None:
        self._ask = house.archive.resume
        self.waiting: list[asyncio.Event] = []
        house.archive.resume = self.resume  # type: ignore[method-assign]

    async def resume(self, user_id: str, session_id: str, now_us: int, device_info: str) -> StoredSession:
        self.waiting.append(event := asyncio.Event())
        await event.wait()
        return await self._ask(user_id, session_id, now_us, device_info)


def come(house: House, session_id: UUID) -> tuple[Outbox, asyncio.Task[Stream]]:
    relay = Outbox("me", types=())
    auth = Auth("me", device_info={"sampling_rate": 128, "channel_count": 2}, session_id=session_id, ack=True)
    return relay, asyncio.create_task(house.ingest.connect(auth, DEVICE, relay, NOBODY))


async def waits(gate: Gate, n: int) -> None:
    while len(gate.waiting) < n:  # noqa: ASYNC110 - the next turn of the loop
        await asyncio.sleep(0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_the_newest_relay_wins_in_whatever_order_the_database_answers(order: tuple[int, int]) -> None:
    house, session_id = build(), uuid4()
    gate = Gate(house)
    relays = [come(house, session_id), come(house, session_id)]
    await waits(gate, 2)
    for i in order:
        gate.waiting[i].set()
        await asyncio.wait({relays[i][1]})
    (old, _), (new, connected) = relays
    assert connected.result().relay is new
    assert house.streams["me"].relay is new
    assert not new.closed.done()
    if order == (0, 1):
        assert old.closed.result() == CloseCode.TAKEN_OVER  # it was let in first
    else:
        assert isinstance(relays[0][1].exception(), Unavailable)


async def test_a_relay_that_has_gone_meanwhile_takes_nothing_over() -> None:
    house, session_id = build(), uuid4()
    gate = Gate(house)
    relay, connected = come(house, session_id)
    await waits(gate, 1)
    relay.close(CloseCode.TRY_LATER)
    gate.waiting[0].set()
    with pytest.raises(Unavailable):
        await connected
    assert not house.streams


async def test_a_database_that_does_not_answer_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_lookup, "LOOKUP_SECONDS", 0.01)
    house, session_id = build(), uuid4()
    Gate(house)
    _, connected = come(house, session_id)
    with pytest.raises(Unavailable):
        await connected
    monkeypatch.setattr(session_lookup, "LOOKUP_SECONDS", 10)
    gate = Gate(house)
    relay, connected = come(house, session_id)
    await waits(gate, 1)
    gate._ask = build().archive.resume
    gate.waiting[0].set()
    assert (await connected).relay is relay


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_a_relay_that_has_gone_meanwhile_turns_none_away_that_came_before(order: tuple[int, int]) -> None:
    house, session_id = build(), uuid4()
    gate = Gate(house)
    relays = [come(house, session_id), come(house, session_id)]
    await waits(gate, 2)
    (old, connected), (new, _) = relays
    new.close(CloseCode.TRY_LATER)
    for i in order:
        gate.waiting[i].set()
        await asyncio.wait({relays[i][1]})
    assert isinstance(relays[1][1].exception(), Unavailable)
    assert connected.result().relay is old
    assert not old.closed.done()


@pytest.mark.parametrize("is_gone", [False, True])
async def test_a_session_that_is_in_no_database_yet_belongs_to_its_user(is_gone: bool) -> None:
    house = build()
    stream = await house.relay("ann")
    if is_gone:
        house.disconnect(stream)
    house.archive.is_away = True
    with pytest.raises(Forbidden):
        await house.relay("bob", session_id=stream.session.session_id)
    assert house.streams == {"ann": stream}
    assert await house.relay("ann", session_id=stream.session.session_id) is stream


async def test_a_session_that_another_node_holds_belongs_to_its_user() -> None:
    house = build()
    session_id = str(uuid4())
    house.peers.users[session_id] = "ann"
    with pytest.raises(Forbidden):
        await house.relay("bob", session_id=session_id)
    assert house.archive.sessions == {}
    assert (await house.relay("ann", session_id=session_id)).session.user_id == "ann"
