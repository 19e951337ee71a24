"""The `zander` program as a user starts it: what stands in the terminal, how it exits, what arrives at a node."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
from pyedflib import EdfWriter

from nodes import Node
from services import PostgresServer, eventually
from zander.client import Consumer

RATE_HZ, N_SAMPLES = 128, 512
STEP = 200 / 65_535  # of an EDF's 16 bits for -100 to 100


class Zander:
    """Starts `zander` in a folder without `.env`, in an environment without settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        with self.started(*arguments, **variables) as program:
            out, err = program.communicate(timeout=60)
        return subprocess.CompletedProcess(program.args, program.returncode, out, err)

    @contextmanager
    def started(
        self, *arguments: object, out: int = subprocess.PIPE, **variables: str
    ) -> Iterator[subprocess.Popen[str]]:
        """Run until the block ends at the latest."""
        command = [sys.executable, "-W", "error", "-m", "zander", *map(str, arguments)]
        environment = {"PATH": os.environ["PATH"], "TERM": "xterm", "PYTHONUTF8": "1"} | variables
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=out, stderr=pipe, text=True, bufsize=1
        ) as program:
            try:
                yield program
            finally:
                program.kill()


@pytest.fixture
def zander(tmp_path: Path) -> Zander:
    return Zander(tmp_path)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Four seconds of two channels in mV, the sample's index in the first, and a slow one that is left out."""
    path = tmp_path / "four-seconds.edf"
    header = {"physical_max": 100, "physical_min": -100, "digital_max": 32767, "digital_min": -32768}
    header |= {"transducer": "", "prefilter": "", "dimension": "mV"}
    names = {"C3": RATE_HZ, "C4": RATE_HZ, "SpO2": 1}
    with EdfWriter(str(path), len(names)) as writer:
        writer.setSignalHeaders([header | {"label": name, "sample_frequency": rate} for name, rate in names.items()])
        noise = np.random.default_rng(7).normal(0, 20, N_SAMPLES)
        writer.writeSamples([np.arange(N_SAMPLES) / 10, noise, np.zeros(4)])
    return path


def read_until(program: subprocess.Popen[str], pattern: str) -> str:
    """Read lines until one matches."""
    assert program.stdout is not None
    for text in program.stdout:
        if re.search(pattern, text):
            return text
    raise AssertionError(f"it ended without {pattern!r}: {program.stderr and program.stderr.read()}")


def test_the_version_is_the_packages(zander: Zander) -> None:
    assert re.fullmatch(r"zander \d+\.\d+\.\d+\n", zander("--version").stdout)


def test_without_a_command_the_usage_is_shown(zander: Zander) -> None:
    ended = zander()
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: zander")


# relay


@pytest.mark.parametrize("format", ["sample", "chunk", "binary"])
def test_every_sample_of_a_recording_arrives_in_microvolts(
    zander: Zander, node: Node, user: str, recording: Path, format: str
) -> None:
    ended = zander("relay", recording, "--user", user, "--url", node.ws, "--speed", 20, "--format", format)
    assert (ended.returncode, ended.stderr) == (0, "")
    said = ended.stdout.splitlines()
    assert said[0] == "four-seconds.edf: 2 channels at 128 Hz, 00:04"
    assert said[1] == "left out: SpO2, at 1 Hz instead of 128 Hz"
    assert re.fullmatch(r"sent 512 samples in \d+\.\d s, received no predictions", said[-1])
    _, answer = node.get(f"/buffer/{user}/last/{N_SAMPLES}?sample_type=raw")
    first = [message["channels"][0] for message in answer["samples"]]
    np.testing.assert_allclose(first, np.arange(N_SAMPLES) * 100, atol=1000 * STEP)
    _, stats = node.get(f"/buffer/{user}/stats")
    assert (stats["next_position"], stats["raw"]["gaps"], stats["bad_messages"]) == (N_SAMPLES, 0, 0)
    assert stats["features"]["held"] == 3, "one a second, once two seconds are there"


def test_features_can_be_left_out(zander: Zander, node: Node, user: str, recording: Path) -> None:
    zander("relay", recording, "--user", user, "--url", node.ws, "--speed", 100, "--no-features")
    assert node.get(f"/buffer/{user}/stats")[1]["features"]["held"] == 0


def test_a_recording_takes_as_long_as_it_took(zander: Zander, node: Node, user: str, recording: Path) -> None:
    began = monotonic()
    ended = zander("relay", recording, "--user", user, "--url", node.ws, "--speed", 2, "--format", "binary")
    assert ended.returncode == 0
    assert monotonic() - began >= (N_SAMPLES - 1) / RATE_HZ / 2
    _, stats = node.get(f"/buffer/{user}/stats")
    seconds = stats["raw"]["last_time"] - stats["raw"]["first_time"]
    assert seconds == pytest.approx((N_SAMPLES - 1) / RATE_HZ / 2, abs=0.5)


def test_at_its_own_pace_samples_carry_evenly_spaced_times(
    zander: Zander, node: Node, user: str, recording: Path
) -> None:
    ended = zander("relay", recording, "--user", user, "--url", node.ws, "--seconds", 1)
    assert ended.returncode == 0
    _, answer = node.get(f"/buffer/{user}/last/50?sample_type=raw")
    times = [message["timestamp"] for message in answer["samples"]]
    np.testing.assert_allclose(np.diff(times), 1 / RATE_HZ, atol=2e-6)


def test_the_sample_streams_and_says_what_device_it_is(zander: Zander, node: Node, user: str) -> None:
    ended = zander("relay", "--sample", "--user", user, "--url", node.ws, "--speed", 50, "--seconds", 1)
    assert ended.stdout.startswith("test_subsecond.edf: 1 channel at 128 Hz, 11:38\n")
    assert node.get(f"/buffer/{user}/stats")[1]["next_position"] > 1000


def test_a_loop_goes_on_until_ctrl_c_and_ends_with_the_summary(
    zander: Zander, node: Node, user: str, recording: Path
) -> None:
    arguments = ["relay", recording, "--user", user, "--url", node.ws, "--speed", 100, "--loop"]
    with zander.started(*arguments) as program:
        read_until(program, "session")
        eventually(lambda: node.get(f"/buffer/{user}/stats")[1].get("next_position", 0) > 2 * N_SAMPLES)
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=20)
    assert (program.returncode, err) == (0, "")
    assert re.search(r"sent [\d,]+ samples in \d+\.\d s, received no predictions\n$", out)


async def test_predictions_that_come_back_are_shown(zander: Zander, node: Node, user: str, recording: Path) -> None:
    arguments = ["relay", recording, "--user", user, "--url", node.ws, "--loop"]
    with zander.started(*arguments) as program:
        read_until(program, "session")
        async with Consumer(node.ws, user) as consumer:
            await consumer.send_prediction("workload", "lstm", {"workload": 0.72, "note": "\x1b[31m"}, version="2.1")
        shown = read_until(program, "prediction")
        program.send_signal(signal.SIGTERM)
        out, _ = program.communicate(timeout=20)
    assert shown == "prediction workload by lstm 2.1: workload 0.72, note �[31m\n"
    assert program.returncode == 0
    assert "received 1 prediction\n" in out


def test_a_relay_that_is_taken_over_stops_and_says_why(zander: Zander, node: Node, user: str, recording: Path) -> None:
    arguments = ["relay", recording, "--user", user, "--url", node.ws, "--loop"]
    with zander.started(*arguments) as old:
        read_until(old, "session")
        zander("relay", recording, "--user", user, "--url", node.ws, "--speed", 100)
        _, err = old.communicate(timeout=20)
    assert (old.returncode, err) == (1, "zander: another relay took over this user (4509)\n")


def test_a_relay_goes_on_when_the_server_is_back(
    zander: Zander, start_node: Callable[..., Node], node: Node, user: str, recording: Path
) -> None:
    gone = start_node()
    with zander.started("relay", recording, "--user", user, "--url", gone.ws, "--loop") as program:
        read_until(program, "session")
        gone.stop()
        assert "trying again in" in read_until(program, r"\(1012\)")
        assert "connection refused" in read_until(program, "cannot reach")
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=20)
    assert program.returncode == 0


def test_the_key_comes_from_the_option_the_environment_or_env(
    zander: Zander, start_node: Callable[..., Node], user: str, recording: Path
) -> None:
    node = start_node(edge_api_key=("right", "other"))
    arguments = ["relay", recording, "--user", user, "--url", node.ws, "--speed", 100]
    refused = zander(*arguments)
    assert refused.returncode == 1
    assert refused.stderr.startswith("zander: the key is wrong or missing (4501)")
    assert zander(*arguments, "--key", "right").returncode == 0
    assert zander(*arguments, EDGE_API_KEY="right, other").returncode == 0
    (zander.folder / ".env").write_text("EDGE_API_KEY=right\n")
    assert zander(*arguments).returncode == 0
    assert zander("watch", user, "--url", node.ws, "--seconds", 1).returncode == 0
    assert zander("watch", user, "--url", node.ws, "--seconds", 1, CONSUMER_API_KEY="wrong").returncode == 1


def test_no_server_within_the_seconds_is_a_failure(zander: Zander, unused_tcp_port: int, recording: Path) -> None:
    url = f"ws://127.0.0.1:{unused_tcp_port}"
    ended = zander("relay", recording, "--url", url, "--seconds", 0.5)
    assert ended.returncode == 1
    assert f"cannot reach {url}: connection refused; trying again in" in ended.stdout
    assert ended.stderr == f"zander: no connection to {url} in 0.5 s\n"
    assert zander("watch", "me", "--url", url, "--seconds", 0.5).returncode == 1


def test_a_file_that_cannot_be_read_is_one_sentence(zander: Zander, tmp_path: Path) -> None:
    ended = zander("relay", "nowhere.edf")
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", "zander: nowhere.edf: No such file or directory\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["relay"],
        ["relay", "a.edf", "--sample"],
        ["relay", "--sample", "--speed", "0"],
        ["relay", "--sample", "--speed", "nan"],
        ["relay", "--sample", "--url", "localhost:8000"],
        ["relay", "--sample", "--format", "xml"],
        ["watch", "me", "--types", "raw,everything"],
        ["watch", "me", "--last", "1.5"],
        ["serve", "--workers", "0"],
    ],
)
def test_a_wrong_command_line_is_refused(zander: Zander, arguments: list[str]) -> None:
    ended = zander(*arguments)
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: zander")


# watch


def test_watching_without_a_terminal_is_a_line_a_second(zander: Zander, node: Node, user: str, recording: Path) -> None:
    with zander.started("relay", recording, "--user", user, "--url", node.ws, "--loop") as relay:
        read_until(relay, "session")
        ended = zander("watch", user, "--url", node.ws, "--seconds", 3.5)
    assert (ended.returncode, ended.stderr) == (0, "")
    *lines, last = ended.stdout.splitlines()
    assert len(lines) == 3
    rate = re.match(rf"{user} online   ([\d.]+) samples/s   latency p50 [\d.]+ ms, max [\d.]+ ms   no gaps", lines[-1])
    assert rate, lines
    assert float(rate[1]) == pytest.approx(RATE_HZ, rel=0.2)
    assert "features workload 0." in lines[-1]
    assert re.fullmatch(rf"watched {user} for 3\.\d s: \d+ samples, no gaps", last)


def test_watching_a_user_who_is_away_says_so(zander: Zander, node: Node, user: str) -> None:
    with zander.started("watch", user, "--url", node.ws) as program:
        assert read_until(program, user).startswith(f"{user} offline")
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=20)
    assert (program.returncode, err) == (0, "")
    assert "no samples, no gaps" in out


def test_watching_in_a_terminal_draws_every_channel_and_leaves_the_screen_as_it_was(
    zander: Zander, node: Node, user: str, recording: Path
) -> None:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    screen = ""
    with zander.started("relay", recording, "--user", user, "--url", node.ws, "--loop") as relay:
        read_until(relay, "session")
        with zander.started("watch", user, "--url", node.ws, out=theirs) as watch:
            while not re.search(r"online.*C3 .*C4 .*µV", screen, re.DOTALL):
                screen += os.read(ours, 65536).decode(errors="ignore")
            watch.send_signal(signal.SIGINT)
            while "watched" not in screen:
                screen += os.read(ours, 65536).decode(errors="ignore")
            assert watch.wait(timeout=20) == 0
    os.close(ours)
    os.close(theirs)
    assert screen.startswith("\x1b[?1049h\x1b[?25l")
    assert screen.index("\x1b[?25h\x1b[?1049l") < screen.index("watched")
    assert "four-seconds.edf, 128 Hz, 2 channels" in screen
    assert "\n" not in screen.rpartition("\x1b[H")[2].rpartition("\x1b[J")[0].replace("\r\n", "")


# dsn, migrate, serve


def test_the_dsn_is_that_of_the_settings_as_psql_takes_it(zander: Zander) -> None:
    ended = zander("dsn", DATABASE_URL="postgresql+asyncpg://me:secret@there:5432/eeg")
    assert (ended.returncode, ended.stdout) == (0, "postgresql://me:secret@there:5432/eeg\n")


def test_the_dsn_is_that_of_the_nodes_own_database(zander: Zander, postgres: PostgresServer) -> None:
    ended = zander("dsn", DATA_DIR=str(postgres.directory))
    assert (ended.returncode, ended.stdout) == (0, f"{postgres.dsn}\n")


def test_without_a_database_there_is_no_dsn(zander: Zander) -> None:
    for command in ("dsn", "migrate"):
        ended = zander(command)
        assert (ended.returncode, ended.stdout) == (1, "")
        where = zander.folder / "data"
        assert (
            ended.stderr == f"zander: no DATABASE_URL is set, and no `zander serve` keeps a database in {where} now\n"
        )


def test_migrations_are_applied_once(zander: Zander, postgres: PostgresServer) -> None:
    url = postgres.create_database().replace("postgresql://", "postgresql+asyncpg://")
    first, second = zander("migrate", DATABASE_URL=url), zander("migrate", DATABASE_URL=url)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert first.stdout.startswith("applied tables\n")
    assert second.stdout == "nothing to apply: the database is up to date\n"


def test_a_database_that_is_away_cannot_be_migrated(zander: Zander, unused_tcp_port: int) -> None:
    ended = zander("migrate", DATABASE_URL=f"postgresql://me:secret@127.0.0.1:{unused_tcp_port}/eeg")
    assert ended.returncode == 1
    assert ended.stderr.startswith("zander: the database cannot be migrated:")
    assert "secret" not in ended.stderr


@pytest.mark.parametrize("command", ["serve", "dsn", "migrate"])
def test_a_wrong_setting_is_one_sentence(zander: Zander, command: str) -> None:
    ended = zander(command, PORT="eighty")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(r"zander: PORT: expected .+\n", ended.stderr)
