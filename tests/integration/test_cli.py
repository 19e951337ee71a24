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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest
from pyedflib import EdfWriter

from support.databases import connected
from support.nodes import Node
from support.programs import BARE, Program
from support.services import PostgresServer, eventually
from zander.client import Consumer
from zander.database.sql import NO_ROWS
from zander.embedded.child import ENVIRONMENT
from zander.embedded.postgres import program
from zander.server import greeting, listen
from zander.settings import Settings

RATE_HZ, N_SAMPLES = 128, 512
STEP = 200 / 65_535  # of an EDF's 16 bits for -100 to 100


class Zander:
    """Starts `zander` in a folder without `.env`, in an environment without settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        with self.started(*arguments, out=subprocess.PIPE, **variables) as program:
            out, err = program.communicate(timeout=60)
        return subprocess.CompletedProcess(program.args, program.returncode, out, err)

    @contextmanager
    def started(
        self, *arguments: object, out: int = subprocess.PIPE, **variables: str
    ) -> Iterator[subprocess.Popen[str]]:
        """Run until the block ends at the latest."""
        command = [sys.executable, "-W", "error", "-m", "zander", *map(str, arguments)]
        environment = BARE | {"TERM": "xterm", "PYTHONUTF8": "1"} | variables
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
    header: dict[str, Any] = {"physical_max": 100, "physical_min": -100, "digital_max": 32767, "digital_min": -32768}
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
    assert re.fullmatch(r"sent 512 samples in \d+\.\d s, all stored, received no predictions", said[-1])
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
    assert re.search(r"sent [\d,]+ samples in \d+\.\d s, all stored, received no predictions\n$", out)


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
        ["relay", "--sample", "--spool-mib", "0"],
        ["watch", "me", "--types", "raw,everything"],
        ["watch", "me", "--last", "1.5"],
        ["serve", "--workers", "0"],
    ],
)
def test_a_wrong_command_line_is_refused(zander: Zander, arguments: list[str]) -> None:
    ended = zander(*arguments)
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: zander")


# relay --spool


@pytest.fixture
def place(database_url: str, unused_tcp_port: int, tmp_path: Path) -> dict[str, Any]:
    """Where a server can be killed and started again."""
    return {"database_url": database_url, "port": unused_tcp_port, "data_dir": tmp_path / "data"}


async def stored(url: str, user: str) -> list[tuple[str, int, float]]:
    """What the database has of a user: session, position and first channel, by position."""
    async with connected(url) as database:
        rows = await database.fetch(
            "SELECT session_id::text, position, channels[1] FROM raw_eeg WHERE user_id = $1 ORDER BY position", user
        )
    return [tuple(row) for row in rows]


def check_stored(rows: list[tuple[str, int, float]], session_id: str, n_samples: int = N_SAMPLES) -> None:
    """Every sample of the recording is there once, where it belongs, in one session."""
    assert [position for _, position, _ in rows] == list(range(n_samples))
    expected = np.arange(n_samples) % N_SAMPLES * 100
    np.testing.assert_allclose([value for _, _, value in rows], expected, atol=1000 * STEP)
    assert {session for session, _, _ in rows} == {session_id}


def session_in(text: str) -> str:
    found = re.search(r"session (\S+) of", text)
    assert found, text
    return found[1]


async def test_a_relay_that_is_killed_goes_on_where_it_was(
    zander: Zander, node: Node, user: str, recording: Path
) -> None:
    arguments = ["relay", recording, "--user", user, "--url", node.ws, "--spool", "spool"]
    with zander.started(*arguments) as program:
        session_id = session_in(read_until(program, "session"))
        eventually(lambda: node.get(f"/buffer/{user}/stats")[1].get("next_position", 0) > 100)
        program.kill()
        program.communicate(timeout=20)
    ended = zander(*arguments, "--speed", "20")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.search(rf"session {session_id} of {user} goes on at sample \d\d\d", ended.stdout), ended.stdout
    assert ", all stored, " in ended.stdout
    assert node.settings.database_url
    check_stored(await stored(node.settings.database_url, user), session_id)


def test_a_recording_that_is_stored_to_its_end_begins_a_new_session_the_next_time(
    zander: Zander, node: Node, user: str, recording: Path
) -> None:
    arguments = ["relay", recording, "--user", user, "--url", node.ws, "--spool", "spool", "--speed", "50"]
    first, second = zander(*arguments), zander(*arguments)
    assert "sent 512 samples" in first.stdout
    assert "sent 512 samples" in second.stdout
    assert session_in(first.stdout) != session_in(second.stdout)


async def test_a_server_that_is_killed_costs_nothing_even_if_the_relay_is_stopped_meanwhile(
    zander: Zander, place: dict[str, Any], user: str, recording: Path
) -> None:
    url = f"ws://127.0.0.1:{place['port']}"
    arguments = ["relay", recording, "--user", user, "--url", url, "--spool", "spool"]
    with Program(**place) as server, zander.started(*arguments) as program:
        session_id = session_in(read_until(program, "session"))
        eventually(lambda: server.get(f"/buffer/{user}/stats")[1].get("next_position", 0) > 50)
        server.kill()
        read_until(program, "trying again")
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=20)
        assert (program.returncode, err) == (0, "")
        assert re.search(r", \d+ not known to be stored, ", out), out
    with Program(**place, batch_max_seconds=0.1):
        ended = zander(*arguments, "--speed", "20")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.search(rf"session {session_id} of {user} goes on at sample \d+", ended.stdout), ended.stdout
    check_stored(await stored(place["database_url"], user), session_id)


async def test_a_relay_without_a_folder_outlives_its_server(
    zander: Zander, place: dict[str, Any], user: str, recording: Path
) -> None:
    url = f"ws://127.0.0.1:{place['port']}"
    with ExitStack() as programs:
        server = programs.enter_context(Program(**place))
        relay = programs.enter_context(zander.started("relay", recording, "--user", user, "--url", url))
        session_id = session_in(read_until(relay, "session"))
        eventually(lambda: server.get(f"/buffer/{user}/stats")[1].get("next_position", 0) > 50)
        server.kill()
        read_until(relay, "trying again")
        programs.enter_context(Program(**place, batch_max_seconds=0.1))
        assert session_in(read_until(relay, "connected again")) == session_id
        out, err = relay.communicate(timeout=30)
    assert (relay.returncode, err) == (0, "")
    assert "sent 512 samples in " in out
    assert ", all stored, " in out
    check_stored(await stored(place["database_url"], user), session_id)


def test_a_spool_that_is_full_drops_its_oldest_and_says_so(
    zander: Zander, start_node: Callable[..., Node], user: str, recording: Path
) -> None:
    node = start_node()
    arguments = ["relay", recording, "--user", user, "--url", node.ws, "--loop", "--spool-mib", "0.001"]
    with zander.started(*arguments) as program:
        read_until(program, "session")
        node.stop()
        assert re.search(r"dropped the samples [\d,]+ to [\d,]+", read_until(program, "the spool is full"))
        program.send_signal(signal.SIGINT)
        out, _ = program.communicate(timeout=20)
    assert program.returncode == 0
    assert re.search(r"\d+ not known to be stored, \d+ dropped, received", out)


def test_a_spool_is_one_relays_and_one_users(zander: Zander, node: Node, user: str, recording: Path) -> None:
    arguments = ["relay", recording, "--url", node.ws, "--spool", "spool", "--loop"]
    with zander.started(*arguments, "--user", user) as program:
        read_until(program, "session")
        second = zander(*arguments, "--user", user)
        assert (second.returncode, second.stderr) == (2, "zander: spool: another relay uses this spool now\n")
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=20)
    third = zander(*arguments, "--user", "another")
    assert third.returncode == 2
    assert third.stderr.startswith(f"zander: spool: keeps samples of {user} on ")


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


# dsn, sql, migrate, serve


def test_the_dsn_is_that_of_the_settings_as_psql_takes_it(zander: Zander) -> None:
    ended = zander("dsn", DATABASE_URL="postgresql+asyncpg://me:secret@there:5432/eeg?ssl=require")
    assert (ended.returncode, ended.stdout) == (0, "postgresql://me:secret@there:5432/eeg?sslmode=require\n")


def test_the_dsn_is_that_of_the_nodes_own_database(zander: Zander, postgres: PostgresServer) -> None:
    ended = zander("dsn", DATA_DIR=str(postgres.directory))
    assert (ended.returncode, ended.stdout) == (0, f"{postgres.dsn}\n")


def test_without_a_database_there_is_no_dsn(zander: Zander) -> None:
    for command in (["dsn"], ["migrate"], ["sql", "SELECT 1"]):
        ended = zander(*command)
        assert (ended.returncode, ended.stdout) == (1, "")
        where = zander.folder / "data"
        assert (
            ended.stderr == f"zander: no DATABASE_URL is set, and no `zander serve` keeps a database in {where} now\n"
        )


VALUES = r"""
SELECT * FROM (VALUES
    (1, 'a'::text, timestamptz '2026-11-23 11:54:10.260848+00', gen_random_uuid() IS NULL, '{"b": [1, null]}'::jsonb,
     ARRAY[-1.5, 'NaN', NULL]::real[], 12.50::numeric, '00000000-0000-4000-8000-00000000000a'::uuid),
    (-20, NULL, 'infinity', NULL, '{"say": "\"µV\" \\ ✓"}', '{}', NULL, NULL),
    (NULL, 'back\\slash, "quotes" | bars', '10000-01-01 00:00:00+00', true, 'null', ARRAY[0.1]::real[], 1e20, NULL)
) AS rows (n, "Text and more", at, known, json, channels, numeric, uuid) ORDER BY n;
"""


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param(VALUES, id="values of many types"),
        "SELECT 1 AS one",
        "SELECT NULL -- a comment at the end",
        "SELECT '\\x00ff'::bytea, interval '1 day 2 s', DATE '2026-11-24', now() IS NULL WHERE false",
        "WITH twice AS (SELECT 1 AS a, 1 AS a) TABLE twice",
    ],
)
def test_sql_prints_what_psql_prints(zander: Zander, postgres: PostgresServer, sql: str) -> None:
    ended = zander("sql", sql, DATABASE_URL=postgres.dsn.replace("postgresql://", "postgresql+asyncpg://"))
    assert (ended.returncode, ended.stderr) == (0, "")
    psql = [str(program("psql")), "--no-psqlrc", postgres.dsn, "-c", sql]
    expected = subprocess.check_output(psql, env=ENVIRONMENT | {"PGCLIENTENCODING": "utf8"}, text=True)
    assert ended.stdout.splitlines() == [line.rstrip() for line in expected.splitlines()][:-1]


def test_sql_finds_the_database_that_a_node_keeps(zander: Zander, postgres: PostgresServer) -> None:
    ended = zander("sql", "SELECT current_database() AS it", DATA_DIR=str(postgres.directory))
    assert (ended.returncode, ended.stdout.splitlines()) == (0, ["   it", "--------", " zander", "(1 row)"])


def test_sql_that_steers_a_terminal_is_shown_as_text(zander: Zander, postgres: PostgresServer) -> None:
    ended = zander("sql", r"SELECT E'\x1b[2J\tand\nmore' AS text", DATABASE_URL=postgres.dsn)
    assert ended.stdout.splitlines()[2] == r" \x1b[2J\tand\nmore"


@pytest.mark.parametrize(
    ("sql", "complaint"),
    [
        ("SELEC 1", 'the query failed: syntax error at or near "SELEC"'),
        ("SELECT * FROM nowhere", 'the query failed: relation "nowhere" does not exist'),
        ("SELECT 1 / 0", "the query failed: division by zero"),
        ("SELECT $1::int", "the query failed: there is no parameter $1"),
        ("SELECT 1; SELECT 2", "the query failed: cannot insert multiple commands into a prepared statement"),
        (
            "INSERT INTO kept VALUES (1) RETURNING 1",
            "the query failed: cannot execute INSERT in a read-only transaction",
        ),
        ("DELETE FROM kept", NO_ROWS),
        ("SHOW fsync", NO_ROWS),
        ("", NO_ROWS),
    ],
)
def test_sql_that_is_no_query_or_a_wrong_one_is_a_sentence(
    zander: Zander, postgres: PostgresServer, sql: str, complaint: str
) -> None:
    url = postgres.create_database()
    subprocess.run([program("psql"), url, "-c", "CREATE TABLE kept (n int)"], env=ENVIRONMENT, check=True)
    ended = zander("sql", sql, DATABASE_URL=url)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", f"zander: {complaint}\n")


def test_sql_of_a_database_that_is_away_is_a_sentence(zander: Zander, unused_tcp_port: int) -> None:
    ended = zander("sql", "SELECT 1", DATABASE_URL=f"postgresql://me:secret@127.0.0.1:{unused_tcp_port}/eeg")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(r"zander: the query failed: .*Connect call failed.*\n", ended.stderr)
    assert "secret" not in ended.stderr


def test_the_query_that_the_greeting_proposes_names_the_user_and_finds_samples(
    zander: Zander, postgres: PostgresServer, start_node: Callable[..., Node], recording: Path
) -> None:
    url = postgres.create_database()
    node = start_node(database_url=url)
    with listen("127.0.0.1", 0) as listener:
        proposed = re.findall(r'zander sql "(.+)"', greeting(Settings(), listener))
    assert len(proposed) == 1
    assert "WHERE user_id = 'me'" in proposed[0]
    assert zander("relay", recording, "--user", "me", "--url", node.ws, "--speed", 50).returncode == 0
    ended = zander("sql", proposed[0], DATABASE_URL=url)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.endswith("(5 rows)\n")
    assert '{"channels": [' in ended.stdout


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


@pytest.mark.parametrize("command", [["serve"], ["dsn"], ["migrate"], ["sql", "SELECT 1"]])
def test_a_wrong_setting_is_one_sentence(zander: Zander, command: list[str]) -> None:
    ended = zander(*command, PORT="eighty")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(r"zander: PORT: expected .+\n", ended.stderr)


WITHOUT = """
import sys
absent, arguments = sys.argv[1].split(","), sys.argv[2:]
sys.modules.update(dict.fromkeys(absent))
from zander.cli import main
sys.exit(main(arguments))
"""


@pytest.mark.parametrize(
    ("absent", "arguments", "sentence"),
    [
        ("uvloop,starlette,msgspec,asyncpg,redis", ["serve"], "install `zander-eeg[server]`"),
        ("uvloop,starlette,msgspec,asyncpg,redis", ["dsn"], "install `zander-eeg[server]`"),
        ("uvloop,starlette,msgspec,asyncpg,redis", ["migrate"], "install `zander-eeg[server]`"),
        ("uvloop,starlette,msgspec,asyncpg,redis", ["sql", "SELECT 1"], "install `zander-eeg[server]`"),
        ("pyedflib", ["relay", "--sample"], "install `zander-eeg[local]`"),
        ("pyedflib", ["relay", "night.edf"], "install `zander-eeg[local]`"),
    ],
)
def test_a_command_without_what_it_needs_says_in_one_sentence_what_to_install(
    tmp_path: Path, absent: str, arguments: list[str], sentence: str
) -> None:
    command = [sys.executable, "-W", "error", "-c", WITHOUT, absent, *arguments]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert re.fullmatch(r"zander: [^\n]+\n", ended.stderr)
    assert ended.stderr.endswith(f"{sentence}\n")
