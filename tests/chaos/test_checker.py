"""The checker of `make chaos` finds each broken promise, by an example, and none in a clean run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from chaos.checker import check, n_announced_though_there, n_lost, n_missed
from chaos.history import Gap, History, Samples, Seen, Sent, Stored
from chaos.positions import spans

N = 20
VALUES = np.random.default_rng(3).normal(0, 50, (N, 2)).astype(np.float32)
VALUES[:, 0] = np.arange(N)
VALUES[5, 1] = np.nan

Break = Callable[[History], object]


def _sent(session_id: str, **more: Any) -> Sent:
    fields: dict[str, Any] = {"numbered": session_id == "numbered", "acked": 0}
    return Sent("u", session_id, VALUES, **(fields | more))


def _stored(*, without: tuple[int, ...] = ()) -> Stored:
    positions = np.array([i for i in range(N) if i not in without], np.int64)
    return Stored("u", N, positions, positions * 7812, [VALUES[i] for i in positions])


def _clean() -> History:
    """A numbered relay and then an original one of the same user; a consumer got all of it."""
    sent = [_sent("numbered", acked=N), _sent("original", taken=N, n_features=4, features_taken=3)]
    events: list[Samples | Gap] = [
        Samples(one.session_id, i, VALUES[i : i + 5]) for one in sent for i in range(0, N, 5)
    ]
    original = replace(_stored(), features=[0, 2, 1])
    return History(sent, {"numbered": _stored(), "original": original}, [Seen("c", "u", events)])


def test_a_clean_run_passes() -> None:
    assert check(_clean()) == []


def test_a_hole_that_the_relay_made_and_everybody_was_told_of_passes() -> None:
    history = _clean()
    history.sent[0].left_out = [(5, 10)]
    _rows(history, "numbered", without=tuple(range(5, 10)))
    history.stored["numbered"].gaps = [(5, 10, "relay")]
    history.seen[0].events[1] = Gap("numbered", 5, 10, "relay")
    assert check(history) == []


def test_a_relay_that_died_may_have_lost_what_was_not_acked() -> None:
    history = _clean()
    history.sent[0] = _sent("numbered", lived=False, acked=10)
    _rows(history, "numbered", without=tuple(range(12, 20)))
    assert check(history) == []


def test_an_original_relay_may_have_sent_what_nobody_read() -> None:
    history = _clean()
    history.sent[1].taken = 10
    _rows(history, "original", without=tuple(range(15, 20)))
    history.seen[0].events.pop()
    assert check(history) == []


def test_on_a_full_disk_an_original_relay_may_lose_with_a_gap() -> None:
    history = _clean()
    _rows(history, "original", without=(15, 16))
    history.stored["original"].gaps = [(15, 17, "lost")]
    assert check(history) != []
    assert check(replace(history, may_lose=True)) == []


def test_dead_with_a_full_disk_it_may_have_forgotten_the_end_of_an_original_session_and_no_more() -> None:
    history = replace(_clean(), may_lose=True, may_forget=True)
    _rows(history, "original", without=(18, 19))
    history.stored["original"].durable = 18
    assert check(history) == []
    _rows(history, "original", without=(17, 19))
    assert len(check(history)) == 2


def test_poison_counts_as_there_when_there_was_some() -> None:
    history = _clean()
    _rows(history, "numbered", without=(7,))
    history.stored["numbered"].refused = [7]
    assert "dead_letters" in check(history)[0]
    assert check(replace(history, may_refuse=True)) == []
    history.stored["numbered"].gaps = [(7, 8, "lost")]
    assert check(replace(history, may_refuse=True)) == []


def test_what_a_fault_destroyed_may_be_lost_with_a_gap_and_no_more() -> None:
    history = _clean()
    history.damage.note_span("original", 5, 8)
    _rows(history, "original", without=(6, 7))
    assert "positions 6 to 7 not in the database, and no gap is stored" in check(history)[0]
    history.stored["original"].gaps = [(6, 8, "lost")]
    assert check(history) == []
    assert n_lost(history) == 2
    _rows(history, "original", without=(6, 7, 8))
    history.stored["original"].gaps = [(6, 9, "lost")]
    assert "position 8, never announced" in check(history)[0]


def test_destroyed_at_its_end_a_session_may_have_no_trace_of_it_unless_it_was_acked() -> None:
    history = _clean()
    for session_id in ("original", "numbered"):
        history.damage.note_span(session_id, 17, 20)
    _rows(history, "original", without=(17, 18, 19))
    assert check(history) == []
    _rows(history, "numbered", without=(17, 18, 19))
    assert "positions 17 to 19 not in the database though acked" in check(history)[0]


def test_features_that_were_destroyed_are_no_loss_of_ours() -> None:
    history = _clean()
    history.stored["original"].features = [0, 2]
    history.damage.features["original"] = {1}
    assert check(history) == []


def _rows(history: History, session_id: str, *, without: tuple[int, ...]) -> None:
    """Take rows out of the database, and the durable position back to what is left."""
    old, new = history.stored[session_id], _stored(without=without)
    end = N if max(without, default=0) < N - 1 else min(without)
    history.stored[session_id] = replace(new, durable=end, gaps=old.gaps, features=old.features)


def _twice(history: History) -> None:
    stored = history.stored["numbered"]
    stored.positions = np.append(stored.positions, 4)
    stored.times_us = np.append(stored.times_us, stored.times_us[4])
    stored.values.append(VALUES[4])


def _bit(history: History) -> None:
    changed = VALUES[8].copy()
    changed.view(np.uint32)[1] ^= 1
    history.stored["original"].values[8] = changed


def _swapped(history: History) -> None:
    values = history.stored["original"].values
    values[3], values[4] = values[4], values[3]


def _earlier(history: History) -> None:
    history.stored["numbered"].times_us[11] = 0


def _set(session_id: str, **more: Any) -> Break:
    """Change what is in the database of a session."""

    def change(history: History) -> None:
        history.stored[session_id] = replace(history.stored[session_id], **more)

    return change


def _events(change: Callable[[list[Samples | Gap]], object]) -> Break:
    """Change what the consumer got: numbered 0–3, original 4–7, five samples each."""
    return lambda history: change(history.seen[0].events)


def _dead(acked: int) -> Break:
    def change(history: History) -> None:
        history.sent[0] = _sent("numbered", lived=False, acked=acked)
        _rows(history, "numbered", without=tuple(range(10, 20)))

    return change


BROKEN: dict[str, tuple[Break, str]] = {
    "twice": (_twice, "position 4 more than once in the database"),
    "a bit": (_bit, "in the database position 8 as"),
    "swapped": (_swapped, "in the database position 3 as"),
    "another length": (lambda h: h.stored["original"].values.__setitem__(2, VALUES[2][:1]), "position 2 as"),
    "time": (_earlier, "position 11 has an earlier time"),
    "sent, not there": (lambda h: _rows(h, "numbered", without=(7, 8)), "positions 7 to 8 not in the database"),
    "last sent, not there": (lambda h: _rows(h, "numbered", without=(19,)), "position 19 not in the database"),
    "acked, not there": (_dead(12), "positions 10 to 11 not in the database though acked"),
    "a hole in an original": (lambda h: _rows(h, "original", without=(7,)), "position 7 not in the database"),
    "taken, not there": (lambda h: _rows(h, "original", without=(19,)), "position 19 not in the database"),
    "no session": (lambda h: h.stored.pop("original"), "no row in sessions"),
    "another's session": (_set("numbered", user_id="v"), "belongs to v"),
    "invented gap": (_set("numbered", gaps=[(20, 22, "relay")]), "positions 20 to 21, never announced"),
    "gap over rows": (_set("original", gaps=[(3, 5, "lost")]), "gap is stored over positions 3 to 4, in the database"),
    "gap past the end": (_set("original", gaps=[(20, 25, "lost")]), "gap is stored up to position 25"),
    "durable too high": (_set("numbered", durable=25), "durable_position is 25, there is something up to 20"),
    "durable too low": (_set("numbered", durable=19), "acked up to 20, durable_position is 19"),
    "acked too much": (lambda h: setattr(h.sent[0], "acked", 30), "acked up to 30, sent were only 20"),
    "never sent": (lambda h: setattr(h.sent[0], "values", VALUES[:15]), "position 15, sent were only 15"),
    "left out and there": (lambda h: h.sent[0].left_out.append((3, 4)), "position 3, which the relay left out"),
    "features twice": (_set("original", features=[0, 1, 2, 1]), "features 1 are more than once"),
    "features missing": (_set("original", features=[0, 2]), "features 1 are not in the database"),
    "features never sent": (
        _set("original", features=[0, 1, 2, 4]),
        "features 4 are in the database, sent were only 4",
    ),
    "dead letter": (_set("original", refused=[25]), "1 samples in dead_letters"),
    "dead letter and row": (_set("original", refused=[5]), "both in the database and in dead_letters"),
    "dead letter twice": (_set("original", refused=[5, 5]), "more than once in dead_letters"),
    "out of order": (_events(lambda e: e.insert(0, e.pop(1))), "positions 0 to 4 passed over without a gap"),
    "repeated": (_events(lambda e: e.insert(2, e[1])), "samples from 5 to 10 after position 10 was reached"),
    "a hole": (_events(lambda e: e.pop(1)), "positions 5 to 9 passed over without a gap"),
    "the start missing": (_events(lambda e: e.pop(4)), "positions 0 to 4 passed over without a gap"),
    "the end missing": (_events(lambda e: e.pop()), "ended at 15, the database goes up to 20"),
    "a session missing": (_events(lambda e: e.__delitem__(slice(4, 8))), "ended at 0, the database goes up to 20"),
    "a gap over samples": (_events(lambda e: e.insert(2, Gap("numbered", 5, 10, "lost"))), "a gap from 5 to 10 after"),
    "samples in a gap": (_events(lambda e: e.insert(1, Gap("numbered", 5, 10, "lost"))), "samples from 5 to 10 after"),
    "wrong blame": (_events(lambda e: e.__setitem__(1, Gap("numbered", 5, 10, "relay"))), "left out positions 5 to 9"),
    "back again": (_events(lambda e: e.append(e.pop(3))), "went back to session numbered after original"),
    "a stranger": (_events(lambda e: e.append(Samples("x", 0, VALUES))), "session x, which no relay knows"),
    "another value": (_events(lambda e: e.__setitem__(1, Samples("numbered", 5, VALUES[6:11]))), "got position 5 as"),
    "seen, not there": (lambda h: _rows(h, "original", without=(19,)), "got position 19, which the database lacks"),
}


@pytest.mark.parametrize(("change", "sentence"), BROKEN.values(), ids=BROKEN)
def test_a_broken_promise_is_found(change: Break, sentence: str) -> None:
    history = _clean()
    change(history)
    assert any(sentence in found for found in check(history)), check(history)


def test_a_gap_is_excused_but_where_nothing_happened() -> None:
    history = _clean()
    history.seen[0].events[1] = Gap("numbered", 5, 10, "lost")
    assert check(history) == []
    assert n_announced_though_there(history) == 5
    (found,) = check(replace(history, gapless=True))
    assert "positions 5 to 9 were given up (lost) for no reason" in found


def test_a_session_that_only_a_node_that_was_away_knew_is_missed_and_counted() -> None:
    history = _clean()
    history.sent.insert(1, _sent("unheard", taken=N))
    history.stored["unheard"] = _stored()
    (found,) = check(history)
    assert "ended at 0, the database goes up to 20" in found
    history.may_miss = True
    assert check(history) == []
    assert n_missed(history) == N
    history.seen[0].events = history.seen[0].events[:4]  # nothing later has been seen
    assert len(check(history)) == 2


def test_many_of_a_kind_are_counted() -> None:
    history = _clean()
    history.stored["numbered"].values = [VALUES[0]] * N
    found = check(history)
    assert len(found) == 4
    assert found[-1].endswith("and 16 more like this")


def test_positions_are_joined_to_spans() -> None:
    assert spans(np.array([7, 3, 4, 4, 9, 5])) == [(3, 6), (7, 8), (9, 10)]
    assert spans(np.array([], np.int64)) == []
