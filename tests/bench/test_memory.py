"""The memory bench: it weighs each kind of connection, and says what is wanted of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MEMORY = Path(__file__).parents[2] / "benches" / "memory.py"


@pytest.mark.timeout(150)
def test_each_kind_is_weighed(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, str(MEMORY), "--each=20", "--no-redis", f"--json={file}"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("goal: under") == 2
    assert list(json.loads(file.read_text())) == ["idle consumer", "relay without samples", "user with 1,000 samples"]
