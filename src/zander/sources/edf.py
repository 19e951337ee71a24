"""Recordings in EDF or BDF files: the signals of the most common rate, in µV, read block by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from zander.errors import ZanderError
from zander.wire.chunk import Samples

EXAMPLE = "test_subsecond.edf"  # in pyedflib's wheel: Fp1, 128 Hz, 698 s
ANNOTATIONS = ("EDF Annotations", "BDF Annotations")
MICROVOLTS = {"nv": 1e-3, "uv": 1.0, "µv".casefold(): 1.0, "mv": 1e3, "v": 1e6}


class RecordingError(ZanderError):
    """The file cannot be read as a recording; the message says why."""


class Signal(NamedTuple):
    """One signal of a file. Its values times `microvolts` are in µV; None when its unit is not one of voltage."""

    number: int
    name: str
    rate_hz: float
    unit: str
    microvolts: float | None


class Recording:
    """An open file. A process can open the same file only once at a time: close it, or use `with`.

    `signals` are those at the most common rate, or at the highest of several that are equally common. `notes` are
    sentences about what was left out and what is not in µV.
    """

    def __init__(self, path: Path) -> None:
        """Open a file; RecordingError when it cannot be read, has no signals, or pyedflib is not installed."""
        self.path = path
        self._reader = _open(path)
        signals = _signals(self._reader)
        self.signals = _at_common_rate(signals)
        if not self.signals:
            self.close()
            raise RecordingError(f"{path}: expected at least one signal besides annotations")
        self.sampling_rate_hz = self.signals[0].rate_hz
        self.n_samples = int(min(self._reader.getNSamples()[signal.number] for signal in self.signals))
        self.notes = _left_out(signals, self.signals) + _not_voltage(self.signals)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    @property
    def duration_s(self) -> float:
        """Length of the recording."""
        return self.n_samples / self.sampling_rate_hz

    @property
    def device_info(self) -> dict[str, Any]:
        """The `device_info` of the protocol; the device is the equipment named in the header, or else the file."""
        return {
            "device_type": self._reader.getEquipment().strip() or self.path.name,
            "sampling_rate": self.sampling_rate_hz,
            "channel_names": [signal.name for signal in self.signals],
            "channel_count": len(self.signals),
        }

    def read(self, start: int, n_samples: int) -> Samples:
        """Return samples from the position `start` on, float32 `(n, n_channels)`; fewer at the end of the file."""
        n = max(0, min(n_samples, self.n_samples - start))
        samples = np.empty((n, len(self.signals)), np.float32)
        for column, signal in enumerate(self.signals):
            values = self._reader.readSignal(signal.number, start, n)
            samples[:, column] = values * (1.0 if signal.microvolts is None else signal.microvolts)
        return samples

    def blocks(self, n_samples: int, start: int = 0) -> Iterator[Samples]:
        """Yield the samples from `start` to the end, `n_samples` at a time: a whole night does not fit into memory."""
        for position in range(start, self.n_samples, n_samples):
            yield self.read(position, n_samples)


def example() -> Recording:
    """Open the recording that comes with pyedflib."""
    try:
        data = files("pyedflib") / "tests" / "data" / EXAMPLE
    except ModuleNotFoundError:
        raise _no_pyedflib() from None
    with as_file(data) as path:  # a wheel is installed unpacked, so the file stays
        return Recording(path)


def _open(path: Path) -> Any:
    try:
        from pyedflib import EdfReader  # noqa: PLC0415 - an extra, needed only to read recordings
    except ModuleNotFoundError:
        raise _no_pyedflib() from None
    try:
        path.open("rb").close()  # says more plainly than pyedflib what is wrong
        return EdfReader(str(path))
    except OSError as error:
        why = error.strerror or f"expected an EDF or BDF file: {str(error).removeprefix(f'{path}: ')}"
        raise RecordingError(f"{path}: {why}") from None


def _no_pyedflib() -> RecordingError:
    return RecordingError("reading recordings needs pyedflib: install `zander-eeg[local]`")


def _signals(reader: Any) -> list[Signal]:
    rates = reader.getSampleFrequencies()
    found = []
    for index, label in enumerate(reader.getSignalLabels()):
        unit = reader.getPhysicalDimension(index).strip()
        name = label.strip() or f"signal {index + 1}"
        found.append(Signal(index, name, float(rates[index]), unit, MICROVOLTS.get(unit.casefold())))
    return found


def _at_common_rate(signals: list[Signal]) -> list[Signal]:
    candidates = [signal for signal in signals if signal.name not in ANNOTATIONS]
    counts = Counter(signal.rate_hz for signal in candidates)
    rate_hz = max(counts, key=lambda rate: (counts[rate], rate), default=0.0)
    return [signal for signal in candidates if signal.rate_hz == rate_hz]


def _left_out(signals: list[Signal], taken: list[Signal]) -> list[str]:
    notes = []
    for signal in signals:
        if signal.name in ANNOTATIONS:
            notes.append(f"left out: {signal.name}")
        elif signal not in taken:
            notes.append(f"left out: {signal.name}, at {signal.rate_hz:g} Hz instead of {taken[0].rate_hz:g} Hz")
    return notes


def _not_voltage(taken: list[Signal]) -> list[str]:
    units: dict[str, list[str]] = {}
    for signal in taken:
        if signal.microvolts is None:
            units.setdefault(signal.unit, []).append(signal.name)
    return [f"sent as they are, in {unit!r} instead of µV: {', '.join(names)}" for unit, names in units.items()]
