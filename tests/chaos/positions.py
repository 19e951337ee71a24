"""Positions as masks, and as spans that a sentence can name; samples compared to the bit."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from chaos.damage import Span
from chaos.history import Values

Mask = NDArray[np.bool_]


def mask(some: Iterable[Span], end: int) -> Mask:
    """Mark the positions of spans, up to `end`."""
    found = np.zeros(end, np.bool_)
    for start, stop in some:
        found[start:stop] = True
    return found


def marked(positions: NDArray[np.int64], end: int) -> Mask:
    """Mark positions, up to `end`."""
    found = np.zeros(end, np.bool_)
    found[positions[positions < end]] = True
    return found


def spans(some: NDArray[np.int64] | Mask) -> list[Span]:
    """Join positions, or the marked ones, to spans."""
    positions = np.unique(np.flatnonzero(some) if some.dtype == np.bool_ else some)
    if not len(positions):
        return []
    runs = np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1)
    return [(int(run[0]), int(run[-1]) + 1) for run in runs]


def say(start: int, end: int) -> str:
    """Name a span."""
    return f"position {start}" if end == start + 1 else f"positions {start} to {end - 1}"


def same_bits(one: Values, other: Values) -> bool:
    """Whether two arrays are equal to the bit; a NaN is a NaN."""
    if one.shape != other.shape:
        return False
    alike = np.ascontiguousarray(one).view(np.uint32) == np.ascontiguousarray(other).view(np.uint32)
    return bool((alike | (np.isnan(one) & np.isnan(other))).all())
