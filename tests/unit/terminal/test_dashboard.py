"""The screen of `zander watch`, at any size and whatever a peer calls its things."""

from __future__ import annotations

import re

import numpy as np
import pytest

from zander.client import Raw
from zander.terminal.dashboard import View, microvolts, render

STYLE = re.compile(r"\x1b\[\d*m")


def _view(n_channels: int, names: list[str] | None = None) -> View:
    view = View("me")
    names = names or [f"E{number}" for number in range(1, n_channels + 1)]
    device = {"device_type": "cap", "sampling_rate": 100, "channel_names": names}
    view.add({"type": "status", "online": True, "session_id": "s-1", "device_info": device})
    samples = np.random.default_rng(1).normal(0, 20, (300, n_channels)).astype(np.float32)
    view.add(Raw(0, 1_764_000_000_000_000, samples))
    return view


@pytest.mark.parametrize("n_channels", [1, 2, 8, 139])
@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (120, 40), (300, 90), (20, 5), (1, 1)])
def test_the_dashboard_fits_the_terminal(n_channels: int, columns: int, lines: int) -> None:
    drawn = [STYLE.sub("", line) for line in render(_view(n_channels), columns, lines)]
    assert len(drawn) <= lines
    assert max(map(len, drawn)) <= columns


def test_the_channels_that_do_not_fit_are_counted() -> None:
    drawn = [STYLE.sub("", line) for line in render(_view(139), 80, 24)]
    assert len(drawn) == 24
    n_shown = sum(line.startswith("E") for line in drawn)
    assert drawn[-1] == f"… and {139 - n_shown} more"


def test_a_peer_cannot_steer_the_terminal() -> None:
    view = _view(2, ["\x1b[2J", "C4\r\n"])
    evil = "\x1b]0;x\x07"
    view.add({"type": "features", "workload": evil, "band_powers": {evil: evil}})
    view.add({"type": "prediction", "prediction_type": evil, "classifier_name": evil, "data": {evil: evil}})
    view.add({"type": "error", "code": evil, "message": evil})
    assert not any(re.search(r"[\x00-\x1f\x7f]", STYLE.sub("", line)) for line in render(view, 200, 30))


def test_what_is_missing_is_said() -> None:
    view = View("me")
    text = "\n".join(render(view, 80, 24))
    assert "no connection" in text
    view.add({"type": "status", "online": False})
    text = "\n".join(render(view, 80, 24))
    assert "offline" in text
    assert "waiting for raw samples" in text


def test_gaps_and_losses_are_shown() -> None:
    view = _view(2)
    view.add({"type": "gap", "session_id": "s-1", "from": 300, "to": 340, "reason": "slow"})
    assert "1 gap (40 samples, last: slow)" in "\n".join(render(view, 120, 24))
    view.note_lost("the server restarts (1012)", 1.5)
    text = "\n".join(render(view, 120, 24))
    assert "the server restarts (1012); trying again in 1.5 s" in text
    assert "no connection" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.0"), (-12.34, "-12.3"), (999.96, "1000"), (-99999, "-99999"), (-3e38, "-3e+38"), (float("nan"), "–")],
)
def test_a_value_is_short(value: float, text: str) -> None:
    assert microvolts(value) == text
