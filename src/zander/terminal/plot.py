"""The last seconds of a signal as text: bars in one line, Braille dots in several."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zander.wire.chunk import Samples

DOTS_ACROSS, DOTS_DOWN = 2, 4  # in a Braille character
BARS_CUT = 0.03  # of the values, at either end
_BARS = "▁▂▃▄▅▆▇█"
_BITS = np.array([[0x01, 0x02, 0x04, 0x40], [0x08, 0x10, 0x20, 0x80]], np.uint16)
_BLANK = 0x2800

Envelope = tuple[Samples, Samples]  # lowest and highest, each (n_bins, n_channels)


class Window:
    """The newest `capacity` samples by position; positions that never came are NaN."""

    def __init__(self, capacity: int, n_channels: int) -> None:
        self._samples = np.full((capacity, n_channels), np.nan, np.float32)
        self.end = 0  # position after the newest sample

    @property
    def n_channels(self) -> int:
        """Width of a sample."""
        return self._samples.shape[1]

    def write(self, position: int, samples: Samples) -> None:
        """Add samples; what lies between the end and `position` is a hole."""
        capacity = len(self._samples)
        hole = np.arange(max(self.end, position - capacity), position)
        self._samples[hole % capacity] = np.nan
        newest = samples[-capacity:]
        self.end = position + len(samples)
        self._samples[np.arange(self.end - len(newest), self.end) % capacity] = newest

    def newest(self) -> Samples:
        """Return the newest sample."""
        latest: Samples = self._samples[(self.end - 1) % len(self._samples)]
        return latest

    def envelope(self, n_bins: int, per_bin: int) -> Envelope:
        """Return the range of each of the last `n_bins` spans of `per_bin` samples, NaN where nothing came.

        A span starts at a multiple of its length, so that a trace moves by whole dots instead of shimmering.
        """
        capacity = len(self._samples)
        end = -(-self.end // per_bin) * per_bin
        positions = np.arange(end - n_bins * per_bin, end)
        known = (positions >= max(0, self.end - capacity)) & (positions < self.end)
        values = np.where(known[:, None], self._samples[positions % capacity], np.nan)
        binned = values.reshape(n_bins, per_bin, -1)
        return np.fmin.reduce(binned, axis=1), np.fmax.reduce(binned, axis=1)


def draw(low: NDArray[np.float32], high: NDArray[np.float32], width: int, height: int) -> list[str]:
    """Draw one channel's envelope of `2 * width` bins into `height` lines, scaled to its own range."""
    if np.isnan(low).all():
        return [" " * width] * height
    wide = low.astype(np.float64), high.astype(np.float64)  # the largest float32 has no sum or difference
    return [_bars(*wide, width)] if height == 1 else _braille(*wide, width, height)


def _bars(low: NDArray[np.float64], high: NDArray[np.float64], width: int) -> str:
    """Draw a bar for every two bins. Braille has only four levels in a line, and a peak would flatten the rest."""
    middle = (low + high) / 2
    bottom, top = np.nanquantile(middle, BARS_CUT), np.nanquantile(middle, 1 - BARS_CUT)
    scale = (len(_BARS) - 1) / (top - bottom) if top > bottom else 0.0
    heights = np.rint((np.clip(np.fmax(middle[::2], middle[1::2]), bottom, top) - bottom) * scale)
    return "".join(" " if np.isnan(bar) else _BARS[int(bar)] for bar in heights)


def _braille(low: NDArray[np.float64], high: NDArray[np.float64], width: int, height: int) -> list[str]:
    """Draw a line of dots, one column for a bin; neighbours are joined, so that a steep signal stays one line."""
    bottom, top = float(np.fmin.reduce(low)), float(np.fmax.reduce(high))
    low, high = np.fmin(low, _shifted(high)), np.fmax(high, _shifted(low))
    n_levels = DOTS_DOWN * height
    scale = (n_levels - 1) / (top - bottom) if top > bottom else 0.0
    level = np.arange(n_levels)[::-1, None]  # the top line first
    lowest, highest = np.rint((low - bottom) * scale), np.rint((high - bottom) * scale)
    dots = (level >= lowest) & (level <= highest)  # NaN is in no range, that is what is wanted
    cells = dots.reshape(height, DOTS_DOWN, width, DOTS_ACROSS)
    codes = np.einsum("hdwa,ad->hw", cells.astype(np.uint16), _BITS) + _BLANK
    return ["".join(map(chr, line)).replace(chr(_BLANK), " ") for line in codes.tolist()]


def _shifted(edge: NDArray[np.float64]) -> NDArray[np.float64]:
    """The bin before, NaN before the first; a hole joins nothing."""
    return np.concatenate([[np.nan], edge[:-1]])
