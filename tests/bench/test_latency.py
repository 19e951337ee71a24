"""The latency bench: it measures, and it does not let a loss pass."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from support.databases import connected

BENCHES = Path(__file__).parents[2] / "benches"
sys.path.append(str(BENCHES))

from frames import BINARY, TEXT, Inbox, Load, lost_samples, raw_frames  # noqa: E402
from parts import Baseline, BenchError  # noqa: E402
from report import Figures, faults, middle, say_faults, table  # noqa: E402
from stored import BASELINE, lost_rows  # noqa: E402

LOAD = Load(
    port=0,
    relays=1,
    consumers=1,
    listened=1,
    rate_hz=8.0,
    n_channels=3,
    format="json",
    n_chunk=1,
    features_hz=1.0,
    duration_s=2.0,
    warmup_s=0.0,
    seed=1,
)
GOOD = Figures(
    latency_ms={"p50": 1.0, "p99": 5.0, "p99.9": 9.0, "max": 20.0},
    ack_ms={},
    generator_lag_ms={"p50": 0.1, "p99": 1.0, "p99.9": 2.0, "max": 3.0},
    samples_per_s=12_800.0,
    waiting_s=0.1,
    server_us_per_sample=60.0,
    cpu_share={"server": 0.8, "generator": 0.2},
    rss_kib_per_user=200.0,
    peak_mib=80.0,
    expected_samples=1000,
    lost_samples=0,
    lost_features=0,
    sent_samples=1000,
    unacked_samples=0,
    lost_rows=0,
    closed=[],
    strange=[],
)


def _bench(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHES / "latency.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def _from_server(opcode: int, payload: bytes) -> bytes:
    return struct.pack("!BBH", opcode, 126, len(payload)) + payload


def _sample(position: int, relay: int = 0) -> bytes:
    who = '"user_id":"bench-0000","session_id":"00000000-0000-0000-0000-000000000000"'
    text = f'{{"type":"raw",{who},"position":{position},"channels":[{position}.0,{relay}.0,-1.5]}}'
    return _from_server(TEXT, text.encode())


@pytest.mark.parametrize("format", ["json", "binary"])
def test_a_run_measures_and_loses_nothing(format: str, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    load = ["--relays=3", "--duration=1", "--warmup=0.5", "--chunk-samples=8", "--consumers=2"]
    run = _bench(f"--format={format}", *load, f"--json={file}")
    assert run.returncode == 0, run.stdout + run.stderr
    for line in ("latency p99, ms", "samples in, per s", "server CPU per sample", "memory per user", "nothing lost"):
        assert line in run.stdout
    (figures,) = json.loads(file.read_text()).values()
    assert figures["sent_samples"] == 3 * 192
    assert figures["expected_samples"] == 2 * figures["sent_samples"]
    assert 0 < figures["latency_ms"]["p50"] <= figures["latency_ms"]["max"]
    assert figures["server_us_per_sample"] > 0


def test_a_wrong_option_and_a_wrong_checkout_end_with_2(tmp_path: Path) -> None:
    assert _bench("--relays=0").returncode == 2
    assert _bench(f"--against={tmp_path}").returncode == 2
    assert _bench("--baseline", "--format=binary").returncode == 2


@pytest.mark.skipif(not find_spec("fastapi"), reason="the baseline is not installed")
def test_an_ordinary_service_is_measured_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    run = _bench("--baseline", "--relays=2", "--duration=1", "--warmup=0.5", f"--json={file}")
    assert run.returncode == 0, run.stdout + run.stderr
    baseline, ours = json.loads(file.read_text()).values()
    assert baseline["sent_samples"] == ours["sent_samples"] == 2 * 192
    assert 0 < ours["server_us_per_sample"] < baseline["server_us_per_sample"]


def test_a_baseline_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parts.find_spec", lambda name: None)
    with pytest.raises(BenchError, match="needs fastapi and sqlalchemy"):
        Baseline()


@pytest.mark.parametrize(
    ("indices", "n_lost"), [([0, 2, 1, 3], 0), ([0, 1, 3], 1), ([0, 1, 1, 2, 3], 1), ([0, 1, 2, 4], 1), ([], 4)]
)
async def test_what_the_baseline_did_not_write_once_counts(
    indices: list[int], n_lost: int, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stored.QUIET_S", 0.1)
    session = uuid4()
    async with connected(database_url) as connection:
        await connection.execute(
            """CREATE SCHEMA baseline;
            CREATE TABLE baseline.sessions (session_id uuid, user_id text);
            CREATE TABLE baseline.raw_samples (session_id uuid, data jsonb);
            CREATE TABLE baseline.predictions (session_id uuid, prediction_type text, data jsonb)"""
        )
        await connection.execute("INSERT INTO baseline.sessions VALUES ($1, 'bench-0000')", session)
        records = [(session, json.dumps({"channels": [float(index), 0.0, -1.5]})) for index in indices]
        await connection.executemany("INSERT INTO baseline.raw_samples VALUES ($1, $2)", records)
    assert await lost_rows(database_url, BASELINE, [str(session)], 4, 0) == n_lost


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"lost_samples": 1}, "1 of 1000 samples did not reach"),
        ({"lost_features": 2}, "2 features"),
        ({"lost_rows": 3}, "3 of 1000 samples, and features, are not in the database"),
        ({"closed": ["bench-0000: reset"]}, "1 connections were closed"),
        ({"strange": ["gap"]}, "1 messages were not expected"),
    ],
)
def test_whatever_was_lost_is_said_and_ends_with_1(
    bad: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert faults(GOOD) == []
    assert say_faults({"this": GOOD}) == 0
    figures = middle([GOOD, GOOD._replace(**bad), GOOD])
    assert says in faults(figures)[0]
    assert say_faults({"good": GOOD, "bad": figures}) == 1
    assert f"LOST (bad): {says}" in capsys.readouterr().err


def test_a_late_server_and_a_late_generator_are_noted_but_do_not_fail(capsys: pytest.CaptureFixture[str]) -> None:
    late = dict.fromkeys(GOOD.latency_ms, 100.0)
    assert say_faults({"this": GOOD._replace(latency_ms=late, generator_lag_ms=late)}) == 0
    said = capsys.readouterr().err
    assert "p99 is over the promised 100 ms" in said
    assert "the load generator was late" in said


def test_two_versions_are_shown_side_by_side_with_their_ratio() -> None:
    lines = table({"old": GOOD, "new": GOOD._replace(server_us_per_sample=30.0)}).splitlines()
    assert lines[0].split() == ["old", "new"]
    assert next(line.split()[-3:] for line in lines if "server CPU" in line) == ["60", "30", "0.50×"]
    assert max(map(len, lines)) <= 80


def test_a_version_that_delivered_nothing_is_shown_too() -> None:
    lines = table({"old": middle([GOOD._replace(latency_ms={})]), "new": GOOD}).splitlines()
    assert next(line.split()[-2:] for line in lines if "latency p99," in line) == ["–", "5"]


@pytest.mark.parametrize(
    ("positions", "n_lost"),
    [([0, 1, 2, 3], 0), ([0, 1, 3], 1), ([0, 1, 1, 2, 3], 1), ([0, 2, 1, 3], 1), ([], 4), ([0, 1, 2, 3, 4], 1)],
)
def test_a_missing_a_repeated_and_a_misplaced_sample_each_count(positions: list[int], n_lost: int) -> None:
    inbox = Inbox(LOAD, 0)
    inbox.take(b"".join(map(_sample, positions)), 1.0)
    assert lost_samples(inbox, 4) == n_lost


def test_frames_are_read_wherever_the_socket_cuts_them() -> None:
    features = _from_server(TEXT, b'{"type":"features","workload":0.5,"padding":"%b"}' % bytes(100).hex().encode())
    stream = _sample(0) + b"\x89\x02hi" + features + _sample(1)
    for cut in range(len(stream)):
        inbox = Inbox(LOAD, 0)
        pongs = inbox.take(stream[:cut], 1.0) + inbox.take(stream[cut:], 2.0)
        assert (inbox.first.tolist(), inbox.n_features, inbox.strange) == ([0, 1], 1, [])
        assert pongs == b"\x8a\x82\0\0\0\0hi"


def test_a_stranger_and_a_gap_are_noticed() -> None:
    inbox = Inbox(LOAD, 0)
    inbox.take(_sample(0, relay=7) + b"\x81\x0e" + b'{"type":"gap"}', 1.0)
    assert len(inbox.strange) == 2


def test_what_a_relay_sends_in_binary_is_what_its_consumer_counts() -> None:
    load = LOAD._replace(format="binary", n_chunk=4)
    inbox = Inbox(load, 5)
    for sent in raw_frames(load, 5):
        inbox.take(_from_server(BINARY, sent[6:]), 1.0)  # behind a header of 2 bytes and a mask of 4
    assert (lost_samples(inbox, load.n_samples), inbox.strange) == (0, [])
