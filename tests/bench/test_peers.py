"""The bench of Zander and its peers: one load for all, and what is not installed is left out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zander.native import IS_NATIVE, WHY_NOT

IS_REQUIRED = os.environ.get("ZANDER_REQUIRE_NATIVE") == "1"
if not shutil.which("cargo") and not IS_REQUIRED:
    pytest.skip("the load generator needs Rust, and there is no cargo", allow_module_level=True)

BENCHES = Path(__file__).parents[2] / "benches"
sys.path.append(str(BENCHES))

from brokers import BROKERS, FLOOR, PLACES, Broker  # noqa: E402
from parts import BenchError  # noqa: E402
from peers import arguments  # noqa: E402

LOAD = ("--loads=5,3,2", "--duration=1", "--warmup=0.5")
has_native = pytest.mark.skipif(not IS_NATIVE and not IS_REQUIRED, reason=f"the native path is not there: {WHY_NOT}")


def _table(file: Path, *systems: str) -> dict[str, dict[str, float]]:
    """Run the bench; return its table, a row for each title."""
    command = [sys.executable, str(BENCHES / "peers.py"), *LOAD, f"--json={file}", "--systems", *systems]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=140)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "5 producers, 3 consumers of 2" in run.stdout
    told: dict[str, Any] = json.loads(file.read_text())
    found: dict[str, dict[str, float]] = told["5,3,2"]
    assert all(f"\n{title} " in run.stdout for title in found)
    return found


def _assert_all_came(cells: dict[str, float]) -> None:
    assert cells["delivered, per s"] > 0
    assert cells["lost, "] == 0
    assert 0 < cells["latency, p50 ms"] <= cells["latency, max"]
    assert cells["from sent, p50 ms"] <= cells["latency, max"]


@has_native
@pytest.mark.timeout(150)  # the generator may have to be built first
def test_the_floor_and_zander_stand_in_one_table_and_lose_nothing(tmp_path: Path) -> None:
    found = _table(tmp_path / "figures.json", FLOOR, "zander", "zander-no-database")
    assert list(found) == ["floor", "Zander, no database", "Zander"]
    for cells in found.values():
        _assert_all_came(cells)
    assert found["Zander"]["÷ Zander, p50"] == 1
    assert found["floor"]["memory, MiB"] < found["Zander"]["memory, MiB"]


@pytest.mark.timeout(150)
@pytest.mark.parametrize("name", [name for name in BROKERS if name != FLOOR])
def test_a_broker_delivers_all_that_the_generator_sends_in_its_dialect(name: str, tmp_path: Path) -> None:
    if not shutil.which(BROKERS[name].program, path=PLACES):
        pytest.skip(f"there is no {BROKERS[name].program}")
    [(title, cells)] = _table(tmp_path / "figures.json", name).items()
    assert title.startswith(BROKERS[name].title)
    _assert_all_came(cells)


@pytest.mark.parametrize(
    ("broker", "advice"),
    [
        (Broker("Nobody", "mqtt", "nobody-has-this", package="Debian's package nobody"), "Debian's package nobody"),
        (Broker("Nobody", "nats", "nobody-has-this", module="nobody.invalid/this@v1"), "or Go, which can build it"),
    ],
)
def test_a_broker_that_is_missing_says_what_to_install(
    broker: Broker, advice: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no Go there
    with pytest.raises(BenchError, match=f"there is no nobody-has-this.*{advice}"):
        broker.find()


@pytest.mark.parametrize("load", ["e", "5", "5,3", "5,3,6", "5,1,2"])
def test_a_load_that_makes_no_sense_ends_with_2(load: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        arguments(["--loads", load])
