"""The scale bench: it measures with its own generator, and refuses what would measure something else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from zander.native import IS_NATIVE, WHY_NOT

IS_REQUIRED = os.environ.get("ZANDER_REQUIRE_NATIVE") == "1"
if not shutil.which("cargo") and not IS_REQUIRED:
    pytest.skip("the load generator needs Rust, and there is no cargo", allow_module_level=True)

BENCHES = Path(__file__).parents[2] / "benches"
sys.path.append(str(BENCHES))

from scale import arguments  # noqa: E402

has_native = pytest.mark.skipif(not IS_NATIVE and not IS_REQUIRED, reason=f"the native path is not there: {WHY_NOT}")
LOAD = ("--relays=5", "--consumers=2", "--duration=1", "--warmup=0.5")


def _bench(*options: str, native: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHES / "scale.py"), *options]
    environment = os.environ | {"ZANDER_NATIVE": "" if native else "0"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


@has_native
@pytest.mark.timeout(150)  # the generator may have to be built first
@pytest.mark.parametrize(("format", "n_messages"), [("json", 192), ("binary", 24)])
def test_a_run_measures_and_loses_nothing(format: str, n_messages: int, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    run = _bench(f"--format={format}", "--chunk-samples=8", *LOAD, f"--json={file}")
    assert run.returncode == 0, run.stdout + run.stderr
    for line in (
        "latency p99, ms",
        "latency from sent p99, ms",
        "messages in, per s",
        "server CPU per",
        "generator CPU per",
        "nothing lost",
    ):
        assert line in run.stdout
    found = json.loads(file.read_text())
    figures = found["figures"]
    assert figures["sent_samples"] == 5 * 192
    assert figures["expected_samples"] == 2 * 192
    assert 0 < figures["latency_ms"]["p50"] <= figures["latency_ms"]["max"]
    assert 0 < found["heard"]["latency_from_sent_ms"]["max"] <= figures["latency_ms"]["max"]
    assert found["path"]["intercepted"] + found["path"]["passed_sessions"] == 5 * n_messages
    assert found["server_us_per_message"] > 0


@pytest.mark.timeout(150)
def test_a_service_without_its_native_path_is_not_measured() -> None:
    run = _bench(*LOAD, native=False)
    assert run.returncode == 2
    assert "without its native path" in run.stderr


@has_native
@pytest.mark.timeout(150)
def test_consumers_of_one_relay_get_all_of_it_without_a_database(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    run = _bench("--relays=5", "--consumers=3", "--listened=1", "--no-database", *LOAD[2:], f"--json={file}")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 consumers of 1 relays, no database" in run.stdout
    found = json.loads(file.read_text())
    assert found["figures"]["expected_samples"] == 3 * 192
    assert found["figures"]["waiting_s"] > 1  # all of it stays in the journal


@has_native
@pytest.mark.timeout(150)
def test_those_that_never_read_are_no_loss_and_stand_beside_a_run_without_them(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    run = _bench(*LOAD, "--stalled=4", f"--json={file}")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "4 that never read: " in run.stdout
    found = json.loads(file.read_text())
    assert [one["figures"]["expected_samples"] for one in found.values()] == [2 * 192, 2 * 192]
    assert [one["served"] for one in found.values()] == [2, 6]


@pytest.mark.parametrize(
    ("words", "n_listened"),
    [(["--relays=5", "--consumers=2"], 2), (["--relays=2", "--consumers=3"], 2), (["--listened=1"], 1)],
)
def test_consumers_are_of_as_many_relays_as_there_are_unless_it_is_said(words: list[str], n_listened: int) -> None:
    assert arguments(words).listened == n_listened


@pytest.mark.parametrize(
    "words",
    [
        ["--relays=2", "--listened=3"],
        ["--search", "--stalled=1"],
        ["--no-database", "--database-url=postgresql://localhost/zander"],
    ],
)
def test_what_does_not_go_together_ends_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        arguments(words)
