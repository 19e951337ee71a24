from __future__ import annotations

import pytest

from support.clock import Clock
from zander.errors import StorageError
from zander.journal import recorder as recorder_module
from zander.journal.recorder import FIRST_SECONDS, MAX_REASONS, MAX_SECONDS, REMIND_SECONDS, Outage, error_text


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(recorder_module, "monotonic", clock)
    return clock


def test_pauses_double_up_to_a_bound_and_begin_anew() -> None:
    outage = Outage()
    pauses = [outage.note(StorageError("away")) for _ in range(12)]
    for n, pause in enumerate(pauses):
        longest = min(FIRST_SECONDS * 2**n, MAX_SECONDS)
        assert longest / 2 <= pause <= longest
    outage.over(0)
    assert outage.note(StorageError("away")) <= FIRST_SECONDS


def test_an_outage_is_said_once_at_each_end(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    outage.over(0)
    for _ in range(5):
        outage.note(StorageError("no route to host"))
        clock.now_s += 1.5
    outage.over(4711)
    outage.over(0)
    assert caplog.messages == [
        "the database is away: no route to host",
        "the database is back after 7.5 s, 4711 bytes waited in the journal",
    ]


def test_another_reason_is_said_too_but_not_without_end(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    for n in range(3 * MAX_REASONS):
        outage.note(StorageError(f"reason {n % (2 * MAX_REASONS)}"))
    assert caplog.messages[:2] == ["the database is away: reason 0", "the database is still away: reason 1"]
    assert len(caplog.messages) == MAX_REASONS
    outage.over(0)
    outage.note(StorageError("reason 0"))
    assert caplog.messages[-1] == "the database is away: reason 0"


def test_an_outage_that_lasts_is_told_again_now_and_then(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    for _ in range(4 * int(REMIND_SECONDS)):
        outage.note(StorageError('DATABASE_URL: unrecognized configuration parameter "made_up"'))
        clock.now_s += 0.5
    assert caplog.messages == [
        'the database is away: DATABASE_URL: unrecognized configuration parameter "made_up"',
        'the database is still away: DATABASE_URL: unrecognized configuration parameter "made_up"',
    ]


def test_a_mistake_of_ours_comes_with_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    outage.note(StorageError("away"))
    outage.note(ZeroDivisionError("a mistake"))
    assert [bool(record.exc_info) for record in caplog.records] == [False, True]


def test_an_error_without_a_word_has_a_name() -> None:
    assert error_text(TimeoutError()) == "TimeoutError"
    assert error_text(StorageError("why")) == "why"
