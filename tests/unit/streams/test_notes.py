"""The last features or predictions, bounded in number and in bytes."""

from __future__ import annotations

from zander.streams.notes import MAX_BYTES, History, note_bytes
from zander.wire.messages import Note


def note(time_us: int, text: str = "{}") -> Note:
    return Note("features", time_us, text)


def filled(capacity: int, n: int) -> History:
    history = History(capacity)
    for time_us in range(n):
        history.write(note(time_us))
    return history


EMPTY_BYTES = note_bytes(note(0, ""))


def times_us(notes: list[Note]) -> list[int]:
    return [note.time_us for note in notes]


def test_an_empty_history_has_nothing() -> None:
    history = History(3)
    assert (len(history), history.n_written, history.nbytes, history.span_us) == (0, 0, 0, None)
    assert history.last(1) == history.between(0, 1 << 62) == []


def test_what_one_gets_another_that_was_as_empty_does_not() -> None:
    one, other = History(3), History(3)
    one.write(note(0))
    assert (times_us(one.last(3)), len(other)) == ([0], 0)
    other.write(note(1))
    assert (times_us(one.last(3)), times_us(other.last(3))) == ([0], [1])


def test_it_spans_from_the_oldest_to_the_newest() -> None:
    assert filled(3, 5).span_us == (2, 4)


def test_the_oldest_make_room() -> None:
    history = filled(3, 5)
    assert (len(history), history.n_written, history.nbytes) == (3, 5, 3 * (EMPTY_BYTES + 2))
    assert times_us(history.last(3)) == [2, 3, 4]


def test_long_ones_make_more_room() -> None:
    history = filled(1000, 10)
    history.write(note(10, "x" * (MAX_BYTES - 4 - 3 * EMPTY_BYTES)))
    assert times_us(history.last(1000)) == [8, 9, 10]
    history.write(note(11, "x" * (MAX_BYTES - EMPTY_BYTES)))
    assert times_us(history.last(1000)) == [11]
    assert history.nbytes == MAX_BYTES


def test_one_that_is_longer_than_all_the_room_is_kept_alone() -> None:
    history = filled(1000, 3)
    history.write(note(3, "x" * (MAX_BYTES + 1)))
    assert times_us(history.last(9)) == [3]
    history.write(note(4))
    assert times_us(history.last(9)) == [4]
    assert history.nbytes == EMPTY_BYTES + 2


def test_what_counts_is_the_memory_that_a_text_takes() -> None:
    history = History(1000)
    for time_us in range(20):
        history.write(note(time_us, "x" * 65_000 + "🧠"))
    assert times_us(history.last(1000)) == [16, 17, 18, 19]
    assert 4 * 4 * 65_000 < history.nbytes <= MAX_BYTES


def test_the_last_n_are_the_newest_oldest_first() -> None:
    history = filled(5, 5)
    assert [times_us(history.last(n)) for n in (0, 1, 2, 5, 9)] == [[], [4], [3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]


def test_a_range_holds_its_start_and_not_its_end() -> None:
    history = filled(5, 5)
    assert times_us(history.between(1, 3)) == [1, 2]
    assert times_us(history.between(3, 3)) == []
    assert times_us(history.between(-9, 99)) == [0, 1, 2, 3, 4]


def test_a_range_finds_notes_whose_times_run_backwards() -> None:
    history = History(5)
    for time_us in (5, 3, 4):
        history.write(note(time_us))
    assert times_us(history.between(3, 5)) == [3, 4]
