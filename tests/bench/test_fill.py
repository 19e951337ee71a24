"""The fill bench: both ways are measured, and nothing is lost on either."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from zander.native import IS_NATIVE, WHY_NOT

BENCH = Path(__file__).parents[2] / "benches" / "fill.py"


def _bench(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.skipif(not IS_NATIVE, reason=f"the native path is not there: {WHY_NOT}")
@pytest.mark.timeout(120)
def test_a_run_measures_both_ways_and_loses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    run = _bench("--samples=1000", "--sessions=10", "--rounds=1", f"--json={file}")
    assert run.returncode == 0, run.stdout + run.stderr
    for line in ("psql \\copy", "samples into the database, /s", "PostgreSQL CPU per sample", "nothing lost"):
        assert line in run.stdout
    found = json.loads(file.read_text())
    assert list(found) == ["psql \\copy", "Zander"]
    assert all(fill["samples_per_s"] > 0 for fills in found.values() for fill in fills)


def test_fewer_samples_than_sessions_end_with_2() -> None:
    assert _bench("--samples=1", "--sessions=2").returncode == 2


@pytest.mark.skipif(not IS_NATIVE, reason=f"the native path is not there: {WHY_NOT}")
@pytest.mark.timeout(120)
def test_a_database_of_another_server_is_measured_too_unless_it_has_samples(database_url: str) -> None:
    given = ("--samples=1000", "--sessions=10", "--rounds=1", f"--database-url={database_url}")
    run = _bench(*given)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "samples into the database, /s" in run.stdout
    assert "PostgreSQL CPU" not in run.stdout
    again = _bench(*given)
    assert (again.returncode, "expected a database without samples" in again.stderr) == (2, True)
