from __future__ import annotations

from msgspec import structs

from support.samples import ORIGIN, OTHER, PREDICTION, SESSION, T0_US, batch, chunk, gap
from zander.journal.batch import Settled, Watermark, settle
from zander.journal.pgcopy import decode_rows, first_of_rows

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
    assert batch(0, 9, chunk(0, 5), chunk(7, 3)).watermarks() == {(ONE, 0): Watermark(0, 10, last_us, is_whole=False)}
    assert batch(0, 9, gap(5, 7), chunk(7, 3)).watermarks() == {(ONE, 0): Watermark(5, 10, last_us)}
    assert batch(0, 9, chunk(7, 3), gap(10, 12), gap(12, 15)).watermarks() == {(ONE, 0): Watermark(7, 15, last_us)}
    assert batch(0, 9, gap(5, 7, fence=2)).watermarks() == {(ONE, 2): Watermark(5, 7, None)}


def test_an_end_reaches_to_where_its_session_stands() -> None:
    ended = structs.replace(SESSION, end_us=T0_US, next_position=9)
    assert batch(0, 9, ended).watermarks() == {(ONE, 0): Watermark(9, 9, None)}
    assert batch(0, 9, chunk(5, 4), ended).watermarks()[ONE, 0].is_whole
    assert not batch(0, 9, chunk(5, 3), ended).watermarks()[ONE, 0].is_whole
    assert not batch(0, 9, chunk(5, 3), chunk(7, 2)).watermarks()[ONE, 0].is_whole


def test_what_lies_before_the_durable_position_is_cut_off_and_what_is_missing_behind_it_is_lost() -> None:
    records = batch(0, 9, chunk(0, 4), gap(4, 6), chunk(8, 4), chunk(10, 4), gap(16, 18, "lost")).leases()[ONE, 0]
    assert settle(records, 0).lost == [(6, 8), (14, 16)]
    assert settle(records, 5).gaps == [gap(5, 6), gap(16, 18, "lost")]
    found = settle(records, 9)
    assert [(record.position, record.end) for record in found.raw] == [(9, 12), (12, 14)]
    assert [decode_rows(r.rows, r.end - r.position).samples[:, 0].tolist() for r in found.raw] == [
        [9, 10, 11],
        [12, 13],
    ]
    assert settle(records, 18) == Settled([], [], [])
    assert settle(records, 20) == Settled([], [], [])
    assert settle([], 20) == Settled([], [], [])


def test_a_gap_that_is_told_again_and_longer_is_one() -> None:
    assert settle(batch(0, 9, gap(0, 5), gap(0, 7), gap(7, 8)).leases()[ONE, 0], 0).gaps == [gap(0, 7), gap(7, 8)]


def test_a_row_says_whose_it_is_and_when() -> None:
    (record,) = batch(0, 9, chunk(3, 2, OTHER)).raw[TWO, 0]
    assert first_of_rows(record.rows) == ("other", T0_US + 3 * 7812)
