"""What an operator may set, and what is said when it is wrong."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import get_type_hints

import pytest

from zander.errors import SettingsError
from zander.settings import Settings, load

KEY, OTHER_KEY = "0123456789abcdef", "fedcba9876543210"


def wrong(**environ: str) -> str:
    """The sentence with which the start stops."""
    with pytest.raises(SettingsError) as stopped:
        load(environ, None)
    return str(stopped.value)


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    return tmp_path / ".env"


def test_nothing_has_to_be_set() -> None:
    assert load({}, None) == Settings()


def test_every_setting_says_what_it_is_for() -> None:
    for name, kind in get_type_hints(Settings, include_extras=True).items():
        assert any(meta.description for meta in kind.__metadata__), name


def test_every_setting_is_read_from_the_variable_of_its_name() -> None:
    environ = {
        "DATABASE_URL": "postgresql+asyncpg://postgres:postgres@localhost:5432/ingestion",
        "READ_DATABASE_URL": "postgresql://replica/ingestion",
        "REDIS_URL": "redis://localhost:6379",
        "CLUSTER_NAME": "staging-2",
        "EDGE_API_KEY": "your-secret-key-here",
        "CONSUMER_API_KEY": f"{KEY},{OTHER_KEY}",
        "HOST": "0.0.0.0",
        "PORT": "0",
        "LOG_LEVEL": "DEBUG",
        "DATA_DIR": "/var/lib/zander",
        "BUFFER_SAMPLES": "5000",
        "BUFFER_KEEP_SECONDS": "1.5",
        "OUTBOX_MAX_BYTES": "4096",
        "MAX_CONNECTIONS": "7",
        "BATCH_MAX_RECORDS": "51",
        "BATCH_MAX_SECONDS": "6",
        "BATCH_LINGER_SECONDS": "0",
        "JOURNAL_MAX_BYTES": "100000",
        "JOURNAL_FSYNC_SECONDS": "0.5",
        "RETENTION_DAYS": "30",
        "MAX_AGE_DAYS": "7",
        "COLUMNSTORE_AFTER_HOURS": "0.5",
        "CHUNK_HOURS": "4",
    }
    assert load(environ, None) == Settings(
        database_url="postgresql+asyncpg://postgres:postgres@localhost:5432/ingestion",
        read_database_url="postgresql://replica/ingestion",
        redis_url="redis://localhost:6379",
        cluster_name="staging-2",
        edge_api_key=("your-secret-key-here",),
        consumer_api_key=(KEY, OTHER_KEY),
        host="0.0.0.0",
        port=0,
        log_level="DEBUG",
        data_dir=Path("/var/lib/zander"),
        buffer_samples=5000,
        buffer_keep_seconds=1.5,
        outbox_max_bytes=4096,
        max_connections=7,
        batch_max_records=51,
        batch_max_seconds=6.0,
        batch_linger_seconds=0.0,
        journal_max_bytes=100_000,
        journal_fsync_seconds=0.5,
        retention_days=30.0,
        max_age_days=7.0,
        columnstore_after_hours=0.5,
        chunk_hours=4.0,
    )
    assert {name.lower() for name in environ} <= set(Settings.__struct_fields__)


def test_the_original_env_file_is_read(env_file: Path) -> None:
    env_file.write_text(
        "DATABASE_URL=postgresql+asyncpg://postgres:postgres@localhost:5432/ingestion\n"
        "REDIS_URL=redis://localhost:6379\n"
        "EDGE_API_KEY=your-secret-key-here\n"
        "LOG_LEVEL=INFO\n"
    )
    settings = load({}, env_file)
    assert settings.database_url == "postgresql+asyncpg://postgres:postgres@localhost:5432/ingestion"
    assert (settings.redis_url, settings.log_level) == ("redis://localhost:6379", "INFO")
    assert settings.edge_api_key == settings.consumer_keys == ("your-secret-key-here",)


@pytest.mark.parametrize(("retention_days", "n_days"), [(None, 30), (90.0, 30), (7.0, 7)])
def test_what_would_be_deleted_at_once_is_too_old_to_be_taken(retention_days: float | None, n_days: int) -> None:
    assert Settings(retention_days=retention_days).max_age_us == n_days * 86_400_000_000


def test_a_setting_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        load({}, None).port = 1  # type: ignore[misc]


def test_a_replica_needs_what_it_is_a_replica_of() -> None:
    assert wrong(READ_DATABASE_URL="postgresql://h/d").startswith(
        "READ_DATABASE_URL: it names a replica of DATABASE_URL"
    )


def test_a_name_is_not_taken_for_a_url() -> None:
    assert wrong(CLUSTER_NAME="a:b").startswith("CLUSTER_NAME: expected up to 64 letters, digits, dots, dashes")
    assert wrong(READ_DATABASE_URL="mysql://h/d").startswith("READ_DATABASE_URL: expected a URL")


# Keys.


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        (KEY, (KEY,)),
        (f"{KEY},{OTHER_KEY}", (KEY, OTHER_KEY)),
        (f" {KEY} , {OTHER_KEY} ,", (KEY, OTHER_KEY)),
        ("a key of two words", ("a key of two words",)),
        ("ein-langer-schlüssel", ("ein-langer-schlüssel",)),
    ],
)
def test_keys_are_separated_by_commas(value: str, keys: tuple[str, ...]) -> None:
    assert load({"EDGE_API_KEY": value}, None).edge_api_key == keys
    assert load({"CONSUMER_API_KEY": value}, None).consumer_api_key == keys


def test_consumers_use_the_keys_of_the_relays_unless_they_have_their_own() -> None:
    assert load({}, None).consumer_keys == ()
    assert load({"EDGE_API_KEY": KEY}, None).consumer_keys == (KEY,)
    assert load({"EDGE_API_KEY": KEY, "CONSUMER_API_KEY": OTHER_KEY}, None).consumer_keys == (OTHER_KEY,)
    assert load({"CONSUMER_API_KEY": OTHER_KEY}, None).consumer_keys == (OTHER_KEY,)


@pytest.mark.parametrize("variable", ["EDGE_API_KEY", "CONSUMER_API_KEY"])
@pytest.mark.parametrize("value", ["a", KEY[:15], f"{KEY},short", f"short,{KEY}", "ü" * 15])
def test_a_key_that_can_be_guessed_is_refused_at_the_start(variable: str, value: str) -> None:
    sentence = wrong(**{"EDGE_API_KEY": KEY, variable: value})
    assert sentence.startswith(f"{variable}: expected keys of at least 16 characters, got one of ")
    assert not any(key in sentence for key in value.split(",") if len(key) > 1)


# Where they come from.


def test_the_environment_goes_before_the_file(env_file: Path) -> None:
    env_file.write_text("PORT=1\nBUFFER_SAMPLES=2\n")
    settings = load({"PORT": "3"}, env_file)
    assert (settings.port, settings.buffer_samples) == (3, 2)


def test_the_environment_is_that_of_the_process(env_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "4321")
    assert load(env_file=env_file).port == 4321


def test_a_file_that_is_not_there_is_no_mistake(env_file: Path) -> None:
    assert load({}, env_file) == Settings()


def test_a_file_may_have_comments_quotes_and_what_is_not_ours(env_file: Path) -> None:
    keys = f"{KEY},{OTHER_KEY}"
    lines = ["# a comment", "export PORT='81'  # so", "PGUSER=x", "REDIS_URL", f'EDGE_API_KEY="{keys}"', "", ""]
    env_file.write_text("\n".join(lines))
    settings = load({}, env_file)
    assert (settings.port, settings.redis_url, settings.edge_api_key) == (81, None, (KEY, OTHER_KEY))


@pytest.mark.parametrize("value", ["", " ", "\t"])
def test_an_empty_value_is_an_unset_one(env_file: Path, value: str) -> None:
    assert load(dict.fromkeys((name.upper() for name in Settings.__struct_fields__), value), None) == Settings()
    env_file.write_text(f"PORT={value}\nREDIS_URL={value}\n")
    assert load({}, env_file) == Settings()


def test_an_empty_variable_leaves_what_the_file_says(env_file: Path) -> None:
    env_file.write_text(f"PORT=81\nEDGE_API_KEY={KEY}\n")
    settings = load({"PORT": "", "EDGE_API_KEY": " "}, env_file)
    assert (settings.port, settings.edge_api_key) == (81, (KEY,))


def test_space_around_a_value_is_not_part_of_it() -> None:
    assert load({"HOST": " localhost ", "PORT": " 80 "}, None) == Settings(host="localhost", port=80)


@pytest.mark.parametrize("level", ["debug", "Info", "WARNING", "error"])
def test_the_log_level_may_be_written_small(level: str) -> None:
    assert load({"LOG_LEVEL": level}, None).log_level == level.upper()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
def test_a_database_url_may_be_written_in_three_ways(scheme: str) -> None:
    assert load({"DATABASE_URL": f"{scheme}://u:p@h/d"}, None).database_url == f"{scheme}://u:p@h/d"


# What is wrong.

WRONG = [
    ("DATABASE_URL", "mysql://root:hunter2@db/eeg"),
    ("DATABASE_URL", "hunter2"),
    ("DATABASE_URL", "host=db password=hunter2"),
    ("REDIS_URL", "http://:hunter2@redis"),
    ("REDIS_URL", "redis:hunter2"),
    ("EDGE_API_KEY", ","),
    ("EDGE_API_KEY", "hunter2"),
    ("PORT", "-1"),
    ("PORT", "65536"),
    ("PORT", "80.5"),
    ("PORT", "http"),
    ("PORT", "8000,8001"),
    ("PORT", "9" * 5000),
    ("LOG_LEVEL", "hunter2"),
    ("LOG_LEVEL", "TRACE"),
    ("BUFFER_SAMPLES", "0"),
    ("BUFFER_SAMPLES", "1000001"),
    ("BUFFER_SAMPLES", "many"),
    ("BUFFER_KEEP_SECONDS", "-1"),
    ("BUFFER_KEEP_SECONDS", "nan"),
    ("OUTBOX_MAX_BYTES", "1023"),
    ("OUTBOX_MAX_BYTES", "1 MiB"),
    ("MAX_CONNECTIONS", "0"),
    ("BATCH_MAX_RECORDS", "0"),
    ("BATCH_MAX_SECONDS", "0"),
    ("BATCH_MAX_SECONDS", "61"),
    ("BATCH_MAX_SECONDS", "nan"),
    ("BATCH_LINGER_SECONDS", "-0.1"),
    ("BATCH_LINGER_SECONDS", "6"),
    ("JOURNAL_MAX_BYTES", "65535"),
    ("JOURNAL_FSYNC_SECONDS", "0"),
    ("RETENTION_DAYS", "0"),
    ("RETENTION_DAYS", "never"),
    ("RETENTION_DAYS", "inf"),
    ("COLUMNSTORE_AFTER_HOURS", "0"),
    ("COLUMNSTORE_AFTER_HOURS", "-1"),
    ("CHUNK_HOURS", "0"),
    ("READ_DATABASE_URL", "mysql://h/d"),
    ("CLUSTER_NAME", "a b"),
    ("CLUSTER_NAME", "a:b"),
    ("CLUSTER_NAME", "a" * 65),
]


@pytest.mark.parametrize(("variable", "value"), WRONG)
def test_a_wrong_value_stops_with_a_sentence_that_names_the_variable(variable: str, value: str) -> None:
    sentence = wrong(**{variable: value})
    assert sentence.startswith(f"{variable}: ")
    assert len(sentence) < 200


@pytest.mark.parametrize(("variable", "value"), WRONG)
def test_the_sentence_says_what_the_variable_takes(variable: str, value: str) -> None:
    sentence = wrong(**{variable: value})
    assert "expected" in sentence or "out of range" in sentence


@pytest.mark.parametrize("variable", ["DATABASE_URL", "REDIS_URL", "LOG_LEVEL", "PORT", "BATCH_MAX_SECONDS"])
@pytest.mark.parametrize("secret", ["hunter2", "postgres:u:hunter2@h", "mysql://u:hunter2@h"])
def test_the_sentence_never_shows_the_value(variable: str, secret: str) -> None:
    environ = {variable: secret, "EDGE_API_KEY": "hunter2" * 3, "CONSUMER_API_KEY": "hunter2" * 3}
    assert "hunter2" not in wrong(**environ).lower()


def test_a_mistake_in_the_file_is_told_in_the_same_way(env_file: Path) -> None:
    env_file.write_text("PORT=eighty\n")
    with pytest.raises(SettingsError, match=r"^PORT: "):
        load({}, env_file)


# Without keys only this machine is served.


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_without_keys_loopback_is_served(host: str) -> None:
    assert load({"HOST": host}, None).host == host


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "0", "192.168.1.5", "example.org", "localhost.example.org", "127.0.0.1.example.org", "*"],
)
def test_without_keys_nobody_else_is(host: str) -> None:
    sentence = wrong(HOST=host)
    assert sentence.startswith("EDGE_API_KEY: ")
    assert host in sentence
    wrong(HOST=host, CONSUMER_API_KEY="for consumers only, so that any relay could send")
    wrong(HOST=host, EDGE_API_KEY=" , ")
    assert load({"HOST": host, "EDGE_API_KEY": KEY}, None).host == host


@pytest.mark.parametrize("host", ["127.0.0.2", "[::1]", "LOCALHOST", "::ffff:127.0.0.1", "0:0:0:0:0:0:0:1"])
def test_an_unusual_name_of_this_machine_is_served_or_refused_but_never_misread(host: str) -> None:
    """Refusing too much costs a newcomer one line; believing a name that is not ours opens the door."""
    with suppress(SettingsError):
        assert load({"HOST": host}, None).host == host
