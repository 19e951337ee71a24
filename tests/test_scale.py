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

BENCHES = Path(__file__).parents[1] / "benches"
LOAD = ("--relays=5", "--consumers=2", "--duration=1", "--warmup=0.5")


def _bench(*options: str, native: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHES / "scale.py"), *options]
    environment = os.environ | {"ZANDER_NATIVE": "" if native else "0"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


@pytest.mark.skipif(not IS_NATIVE and not IS_REQUIRED, reason=f"the native path is not there: {WHY_NOT}")
@pytest.mark.timeout(150)  # the generator may have to be built first
@pytest.mark.parametrize(("format", "n_messages"), [("json", 192), ("binary", 24)])
def test_a_run_measures_and_loses_nothing(format: str, n_messages: int, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    run = _bench(f"--format={format}", "--chunk-samples=8", *LOAD, f"--json={file}")
    assert run.returncode == 0, run.stdout + run.stderr
    for line in ("latency p99, ms", "messages in, per s", "server CPU per", "generator CPU per", "nothing lost"):
        assert line in run.stdout
    found = json.loads(file.read_text())
    figures = found["figures"]
    assert figures["sent_samples"] == 5 * 192
    assert figures["expected_samples"] == 2 * 192
    assert 0 < figures["latency_ms"]["p50"] <= figures["latency_ms"]["max"]
    assert found["path"]["peeled"] + found["path"]["passed_sessions"] == 5 * n_messages
    assert found["server_us_per_message"] > 0


@pytest.mark.timeout(150)
def test_a_service_without_its_native_path_is_not_measured() -> None:
    run = _bench(*LOAD, native=False)
    assert run.returncode == 2
    assert "without its native path" in run.stderr


def test_more_consumers_than_relays_end_with_2() -> None:
    assert _bench("--relays=2", "--consumers=3").returncode == 2
