"""Traces: what is kept of a signal, and how it is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from zander.terminal.plot import Window, draw


def _samples(start: int, end: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Two channels: the position, and its negative."""
    positions = np.arange(start, end, dtype=np.float32)
    return np.stack([positions, -positions], axis=1)


def test_an_envelope_holds_the_range_of_each_span() -> None:
    window = Window(100, 2)
    window.write(0, _samples(0, 40))
    low, high = window.envelope(4, 10)
    np.testing.assert_array_equal(low[:, 0], [0, 10, 20, 30])
    np.testing.assert_array_equal(high[:, 0], [9, 19, 29, 39])
    np.testing.assert_array_equal(high[:, 1], [0, -10, -20, -30])
    np.testing.assert_array_equal(window.newest(), [39, -39])


def test_spans_start_at_multiples_of_their_length_so_that_traces_move_by_whole_dots() -> None:
    window = Window(100, 2)
    window.write(0, _samples(0, 43))
    low, high = window.envelope(3, 10)
    np.testing.assert_array_equal(low[:, 0], [20, 30, 40])
    np.testing.assert_array_equal(high[:, 0], [29, 39, 42])


def test_only_the_newest_samples_are_kept_however_they_come() -> None:
    at_once, in_pieces = Window(64, 2), Window(64, 2)
    at_once.write(0, _samples(0, 500))
    for start in range(0, 500, 7):
        in_pieces.write(start, _samples(start, min(500, start + 7)))
    for window in (at_once, in_pieces):
        low, _ = window.envelope(100, 1)
        np.testing.assert_array_equal(low[:36, 0], np.full(36, np.nan))
        np.testing.assert_array_equal(low[36:, 0], np.arange(436, 500))


@pytest.mark.parametrize("hole", [1, 5, 64, 1000])
def test_a_hole_stays_empty(hole: int) -> None:
    window = Window(64, 2)
    window.write(0, _samples(0, 64))
    window.write(64 + hole, _samples(64 + hole, 70 + hole))
    low, _ = window.envelope(64, 1)
    expected = np.arange(6 + hole, 70 + hole, dtype=np.float32)
    expected[(expected >= 64) & (expected < 64 + hole)] = np.nan
    np.testing.assert_array_equal(low[:, 0], expected)


def test_one_line_is_bars() -> None:
    edge = np.repeat(np.arange(8), 2).astype(np.float32)
    assert draw(edge, edge, 8, 1) == ["▁▂▃▄▅▆▇█"]


def test_several_lines_are_dots_joined_to_each_other() -> None:
    edge = np.array([0, 1, 2, 3, 4, 5, 6, 7], np.float32)
    assert draw(edge, edge, 4, 2) == ["  ⣠⠞", "⣠⠞⠁ "]


@pytest.mark.parametrize("height", [1, 2, 5])
def test_every_line_has_the_width_whatever_the_signal(height: int) -> None:
    empty, flat = np.full(40, np.nan, np.float32), np.full(40, 3, np.float32)
    holed = np.where(np.arange(40) % 7 < 3, np.nan, np.arange(40)).astype(np.float32)
    huge = np.linspace(-3e38, 3e38, 40).astype(np.float32)
    for edge in (empty, flat, holed, huge):
        assert [len(line) for line in draw(edge, edge, 20, height)] == [20] * height
    assert draw(empty, empty, 20, height) == [" " * 20] * height
