"""EDF and BDF files, real ones and ones written here, and the features of real EEG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pyedflib import EdfWriter

from zander.sources.edf import Recording, RecordingError, example
from zander.terminal.features import features

STEP = 200 / 65_535  # of the 16 bits that an EDF has for -100 to 100; the writer rounds down

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write an EDF of signals, each (name, unit, rate in Hz, values)."""

    def write(*signals: tuple[str, str, int, NDArray[np.float64]], equipment: str = "") -> Path:
        path = tmp_path / "written.edf"
        with EdfWriter(str(path), len(signals)) as writer:
            writer.setEquipment(equipment)
            writer.setSignalHeaders([_header(name, unit, rate) for name, unit, rate, _ in signals])
            writer.writeSamples([values for *_, values in signals])
        return path

    return write


def _header(name: str, unit: str, rate: int) -> dict[str, Any]:
    limits = {"physical_max": 100, "physical_min": -100, "digital_max": 32767, "digital_min": -32768}
    header = {"label": name, "dimension": unit, "sample_frequency": rate, "transducer": "", "prefilter": ""}
    return header | limits


def _ramp(n: int) -> NDArray[np.float64]:
    return np.linspace(-50, 50, n)


def test_the_sample_is_698_s_of_one_channel_of_eeg() -> None:
    with example() as recording:
        assert recording.device_info == {
            "device_type": "test_subsecond.edf",
            "sampling_rate": 128.0,
            "channel_names": ["Fp1"],
            "channel_count": 1,
        }
        assert (recording.n_samples, recording.duration_s, recording.notes) == (89_344, 698.0, [])
        samples = np.concatenate(list(recording.blocks(1000)))
        assert samples.shape == (89_344, 1)
        assert samples.dtype == np.float32
        assert 5 < samples.std() < 100, "not the µV of an EEG"


def test_blocks_are_the_recording_cut_in_pieces(write: Write) -> None:
    with Recording(write(("C3", "uV", 100, _ramp(250)))) as recording:
        n_samples = recording.n_samples  # whole records: the last one is filled up
        blocks = list(recording.blocks(64))
        assert [len(block) for block in blocks[:-1]] == [64] * (len(blocks) - 1)
        np.testing.assert_array_equal(np.concatenate(blocks), recording.read(0, n_samples))
        assert recording.read(n_samples - 1, 64).shape == (1, 1)
        assert recording.read(n_samples, 64).shape == (0, 1)


@pytest.mark.parametrize(("unit", "factor"), [("uV", 1), ("mV", 1e3), ("V", 1e6), ("nV", 1e-3), ("UV", 1)])
def test_volts_of_any_size_become_microvolts(write: Write, unit: str, factor: float) -> None:
    with Recording(write(("C3", unit, 100, _ramp(200)), ("C4", unit, 100, -_ramp(200)))) as recording:
        samples = recording.read(0, 200) / factor
        assert recording.notes == []
    np.testing.assert_allclose(samples, np.stack([_ramp(200), -_ramp(200)], axis=1), atol=STEP)


def test_another_unit_is_sent_as_it_is_and_said(write: Write) -> None:
    path = write(("C3", "mV", 100, _ramp(200)), ("Temp", "degC", 100, _ramp(200)), ("Mark", "", 100, _ramp(200)))
    with Recording(path) as recording:
        np.testing.assert_allclose(recording.read(0, 200)[:, 1], _ramp(200), atol=STEP)
        assert recording.notes == [
            "sent as they are, in 'degC' instead of µV: Temp",
            "sent as they are, in '' instead of µV: Mark",
        ]


def test_signals_at_another_rate_are_left_out_and_said(write: Write) -> None:
    path = write(
        ("C3", "uV", 100, _ramp(200)), ("ECG", "uV", 400, _ramp(800)), ("C4", "uV", 100, _ramp(200)), equipment="Cap_8"
    )
    with Recording(path) as recording:
        assert recording.device_info["channel_names"] == ["C3", "C4"]
        assert recording.device_info["device_type"] == "Cap 8"  # EDF+ has no spaces
        assert recording.sampling_rate_hz == 100
        assert recording.notes == ["left out: ECG, at 400 Hz instead of 100 Hz"]


def test_of_equally_common_rates_the_highest_is_taken(write: Write) -> None:
    with Recording(write(("slow", "uV", 50, _ramp(100)), ("fast", "uV", 200, _ramp(400)))) as recording:
        assert [signal.name for signal in recording.signals] == ["fast"]


@pytest.mark.parametrize("content", [b"", b"not an EDF", b"0" * 100_000])
def test_a_file_that_is_no_recording_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "wrong.edf"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=r"wrong\.edf: expected an EDF or BDF file"):
        Recording(path)


def test_a_file_that_is_not_there_is_refused_in_plain_words(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"nowhere\.edf: No such file or directory"):
        Recording(tmp_path / "nowhere.edf")
    with pytest.raises(RecordingError, match="Is a directory"):
        Recording(tmp_path)


def _sine(hz: float, rate_hz: int = 256) -> NDArray[np.float32]:
    return np.sin(2 * np.pi * hz * np.arange(2 * rate_hz) / rate_hz).astype(np.float32)


@pytest.mark.parametrize(("hz", "band"), [(2, "delta"), (6, "theta"), (10, "alpha"), (20, "beta"), (40, "gamma")])
def test_a_sine_has_its_power_in_its_band(hz: float, band: str) -> None:
    found = features(_sine(hz)[:, None] * 30 + 1000, 256)
    assert found is not None
    assert found["band_powers"].pop(band) > 0.99
    assert max(found["band_powers"].values()) < 0.01


def test_a_large_channel_counts_no_more_than_a_small_one() -> None:
    found = features(np.stack([_sine(10) * 1e6, _sine(6)], axis=1), 256)
    assert found is not None
    assert found["band_powers"]["theta"] == pytest.approx(0.5, abs=0.01)
    assert found["workload"] == pytest.approx(0.5, abs=0.01)
    assert found["metrics"]["theta_alpha_ratio"] == pytest.approx(1, abs=0.05)
    assert found["confidence"] is None


def test_flat_and_broken_channels_are_left_out() -> None:
    flat, broken = np.full(512, 7, np.float32), _sine(6).copy()
    broken[100] = np.nan
    found = features(np.stack([_sine(10), flat, broken], axis=1), 256)
    assert found is not None
    assert found["band_powers"]["alpha"] > 0.99
    assert features(np.stack([flat, broken], axis=1), 256) is None


def test_the_band_powers_of_real_eeg_are_shares() -> None:
    with example() as recording:
        for block in recording.blocks(12_800):
            found = features(block[:256], 128)
            assert found is not None
            assert sum(found["band_powers"].values()) == pytest.approx(1, abs=0.001)
            assert 0 <= found["workload"] <= 1
