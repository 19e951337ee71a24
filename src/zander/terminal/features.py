"""Features as a relay sends them: band powers of the last seconds, and ratios of them from the literature.

For demonstrations and tests: no artefact is rejected and nothing is calibrated to a person.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zander.wire.chunk import Samples

WINDOW_S = 2.0  # resolves 0.5 Hz
BANDS_HZ = {"delta": (1, 4), "theta": (4, 8), "alpha": (8, 13), "beta": (13, 30), "gamma": (30, 45)}


def band_powers(samples: Samples, sampling_rate_hz: float) -> dict[str, float] | None:
    """Return each band's share of the power from 1 to 45 Hz, averaged over the channels.

    Shares, so that a channel with large values does not drown the others. Channels that are flat or have
    missing values are left out; None when no channel is left. A band above half the sampling rate has 0.
    """
    usable = samples[:, np.isfinite(samples).all(axis=0)].astype(np.float64)
    window = np.hanning(len(usable))[:, None]
    power = np.abs(np.fft.rfft((usable - usable.mean(axis=0)) * window, axis=0)) ** 2
    frequency_hz = np.fft.rfftfreq(len(usable), 1 / sampling_rate_hz)
    bands = np.array([_sum(power, frequency_hz, *band) for band in BANDS_HZ.values()])
    total = bands.sum(axis=0)
    if not (total > 0).any():
        return None
    shares = (bands[:, total > 0] / total[total > 0]).mean(axis=1)
    return dict(zip(BANDS_HZ, map(float, shares), strict=True))


def features(samples: Samples, sampling_rate_hz: float) -> dict[str, Any] | None:
    """Return the fields of a `features` message; None when no channel can be used.

    `workload` is θ/(θ+α): the task load index θ/α of Gevins & Smith (2003, Theoretical Issues in Ergonomics
    Science 4:113), brought into 0 to 1. Theirs is frontal θ over parietal α, this is over all channels.
    `engagement` is β/(α+θ) of Pope, Bogart & Bartolome (1995, Biological Psychology 40:187).
    `confidence` stays null: there is no model here that could know it.
    """
    shares = band_powers(samples, sampling_rate_hz)
    if shares is None:
        return None
    theta, alpha, beta = shares["theta"], shares["alpha"], shares["beta"]
    return {
        "workload": _ratio(theta, theta + alpha),
        "confidence": None,
        "band_powers": {band: round(share, 4) for band, share in shares.items()},
        "metrics": {
            "theta_alpha_ratio": _ratio(theta, alpha),
            "theta_beta_ratio": _ratio(theta, beta),
            "engagement": _ratio(beta, alpha + theta),
        },
    }


def _sum(
    power: NDArray[np.floating[Any]], frequency_hz: NDArray[np.floating[Any]], low: float, high: float
) -> NDArray[np.floating[Any]]:
    return np.asarray(power[(frequency_hz >= low) & (frequency_hz < high)].sum(axis=0))


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole > 0 else None
