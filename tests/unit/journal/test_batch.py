from __future__ import annotations

from msgspec import structs

from support.samples import ORIGIN, OTHER, PREDICTION, SESSION, T0_US, batch, chunk, gap
from zander.journal.batch import Watermark

ONE, TWO = ORIGIN.session_id, OTHER.session_id


def test_samples_are_counted_one_by_one() -> None:
    assert batch(0, 9, chunk(0, 10), chunk(10), gap(11, 90), SESSION, PREDICTION).n_records == 14


def test_samples_are_sorted_by_session_and_fence() -> None:
    mixed = batch(0, 9, chunk(0, 2), chunk(0, 3, OTHER), chunk(2, 2))
    for records in batch(0, 9, chunk(1, 2), fence=1).raw.values():
        mixed.add(records[0])
    spans = {hold: [(record.position, record.end) for record in records] for hold, records in mixed.raw.items()}
    assert spans == {(ONE, 0): [(0, 2), (2, 4)], (TWO, 0): [(0, 3)], (ONE, 1): [(1, 3)]}


def test_the_last_word_on_a_session_counts_unless_it_is_a_former_nodes() -> None:
    ended, resumed = structs.replace(SESSION, end_us=T0_US), structs.replace(SESSION, fence=1)
    assert batch(0, 9, SESSION, ended).sessions == {ONE: ended}
    assert batch(0, 9, ended, SESSION).sessions == {ONE: SESSION}
    assert batch(0, 9, SESSION, resumed).sessions == {ONE: resumed}
    assert batch(0, 9, resumed, ended).sessions == {ONE: resumed}


def test_a_session_reaches_to_its_last_sample_or_gap() -> None:
    last_us = T0_US + 9 * 7812
    assert batch(0, 9, SESSION, PREDICTION).watermarks() == {}
    assert batch(0, 9, chunk(0, 5), chunk(7, 3)).watermarks() == {(ONE, 0): Watermark(10, last_us)}
    assert batch(0, 9, gap(5, 7), chunk(7, 3)).watermarks() == {(ONE, 0): Watermark(10, last_us)}
    assert batch(0, 9, chunk(7, 3), gap(10, 12), gap(12, 15)).watermarks() == {(ONE, 0): Watermark(15, last_us)}
    assert batch(0, 9, gap(5, 7, fence=2)).watermarks() == {(ONE, 2): Watermark(7, None)}
