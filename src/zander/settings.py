"""All settings: one frozen Struct, a sentence each, read once from the environment and `.env`.

The README's table and `.env.example` are held against this file by a test.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta, Struct

from zander.errors import SettingsError
from zander.variables import ENV_FILE, first_value, read

MIN_KEY_LENGTH = 16  # a shorter one can be guessed over the network

Keys = tuple[str, ...]
Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
DatabaseUrl = Annotated[str, Meta(pattern=r"^postgres(ql)?(\+asyncpg)?://")]
Positive = Annotated[float, Meta(gt=0, le=1e6)]
RedisUrl = Annotated[str, Meta(pattern=r"^(rediss?|unix)://")]


class Settings(Struct, frozen=True, kw_only=True):
    """The settings of an operator; the field `host` is the variable `HOST`, and so on."""

    database_url: Annotated[
        DatabaseUrl | None,
        Meta(description="PostgreSQL or TimescaleDB; unset: a PostgreSQL of its own in DATA_DIR"),
    ] = None
    read_database_url: Annotated[
        DatabaseUrl | None,
        Meta(description="replica of DATABASE_URL for history, sessions and replay; unset: DATABASE_URL"),
    ] = None
    redis_url: Annotated[
        RedisUrl | None,
        Meta(description="Redis or Valkey that joins several nodes into one; unset: this node is alone"),
    ] = None
    cluster_name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9._-]{1,64}$",
            description="name of the nodes that are one; others on the same Redis are not heard",
        ),
    ] = "zander"
    edge_api_key: Annotated[
        Keys,
        Meta(
            description="keys of the relays, of at least 16 characters, comma-separated; unset: no key needed, "
            "loopback only"
        ),
    ] = ()
    consumer_api_key: Annotated[
        Keys, Meta(description="keys for /subscribe and REST, in the same form; unset: EDGE_API_KEY's")
    ] = ()
    host: Annotated[str, Meta(min_length=1, description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0: any free one")] = 8000
    log_level: Annotated[Level, Meta(description="least severe level that is logged")] = "INFO"
    data_dir: Annotated[Path, Meta(description="folder of the journal, and of the node's own PostgreSQL")] = Path(
        "data"
    )
    buffer_samples: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="samples kept in memory per user, and of features and predictions each",
        ),
    ] = 1000
    buffer_keep_seconds: Annotated[
        float, Meta(ge=0, description="how long a user's buffer stays after the relay has gone")
    ] = 900.0
    buffer_keep_bytes: Annotated[
        int,
        Meta(ge=0, description="bytes of memory for the buffers of all relays that have gone; the oldest go first"),
    ] = 256 << 20
    outbox_max_bytes: Annotated[
        int,
        Meta(ge=1024, description="bytes that may wait for one consumer before its oldest raw is dropped"),
    ] = 1 << 20
    max_connections: Annotated[
        int, Meta(ge=1, description="WebSockets one node serves at once; more are closed with 4429")
    ] = 10_000
    relay_max_bytes_per_second: Annotated[
        int,
        Meta(ge=1024, description="bytes a second that a relay may send; it waits, and is closed with 4429 after 30 s"),
    ] = 8 << 20  # 500 channels of 32 bits at 4 kHz
    batch_max_records: Annotated[
        int, Meta(ge=1, description="records after which a batch is written to the database")
    ] = 50
    batch_max_seconds: Annotated[
        float, Meta(gt=0, le=60, description="age at which a smaller batch is written all the same")
    ] = 5.0
    batch_linger_seconds: Annotated[
        float, Meta(ge=0, le=5, description="least time between two batches: under load they grow instead")
    ] = 0.1
    journal_max_bytes: Annotated[
        int,
        Meta(
            ge=1 << 16,
            description="bytes on disk, per process, that may wait for the database; then relays wait",
        ),
    ] = 1 << 30
    journal_keep_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="bytes that stay there once committed, for a database that goes back; room comes first",
        ),
    ] = 64 << 20
    journal_fsync_seconds: Annotated[
        Positive | None,
        Meta(description="how often the journal is forced to disk; unset: it outlives the process, not the machine"),
    ] = None
    retention_days: Annotated[
        Positive | None, Meta(description="age at which raw and predictions are deleted; unset: never")
    ] = None
    max_age_days: Annotated[
        Positive,
        Meta(description="age at which what a relay sends late is refused; at most RETENTION_DAYS"),
    ] = 30.0  # a spool survives a month without a network, and a relay makes at most 31 chunks of a day
    columnstore_after_hours: Annotated[
        Positive, Meta(description="age at which TimescaleDB turns raw and predictions into columns")
    ] = 24.0
    chunk_hours: Annotated[
        Positive | None,
        Meta(description="span of TimescaleDB's chunks; unset: 24 for new tables, and others keep theirs"),
    ] = None

    @property
    def consumer_keys(self) -> Keys:
        """Keys that open /subscribe and REST."""
        return self.consumer_api_key or self.edge_api_key

    @property
    def max_age_us(self) -> int:
        """Age in µs at which what a relay sends is refused: it would be deleted at once, or make too many chunks."""
        days = self.max_age_days if self.retention_days is None else min(self.max_age_days, self.retention_days)
        return int(days * 86_400_000_000)


def load(environ: Mapping[str, str] | None = None, env_file: Path | None = ENV_FILE) -> Settings:
    """Read the settings; the environment goes before `.env`, and an empty value is an unset one.

    SettingsError names the first variable that is wrong and says what it takes.
    """
    sources = read(environ, env_file)
    given = {}
    for field in Settings.__struct_fields__:
        if value := first_value(field.upper(), sources=sources):
            given[field] = _parse(field, value)
    try:
        settings = msgspec.convert(given, Settings, strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise SettingsError(_sentence(str(error))) from None
    _refuse_open_door(settings)
    if settings.read_database_url and not settings.database_url:
        raise SettingsError("READ_DATABASE_URL: it names a replica of DATABASE_URL, which is not set")
    return settings


def environment(settings: Settings) -> dict[str, str]:
    """Write the settings as the variables that `load` reads; what is unset is left out."""
    values = msgspec.to_builtins(settings, enc_hook=str)
    return {
        field.upper(): ",".join(value) if isinstance(value, tuple) else str(value)
        for field, value in values.items()
        if value not in (None, ())
    }


def _parse(field: str, value: str) -> str | Keys:
    if field.endswith("api_key"):
        keys = tuple(key for part in value.split(",") if (key := part.strip()))
        if not keys:
            raise SettingsError(f"{field.upper()}: expected keys, comma-separated, got only commas")
        if (shortest := min(map(len, keys))) < MIN_KEY_LENGTH:
            made = "`openssl rand -hex 24` makes one"
            raise SettingsError(
                f"{field.upper()}: expected keys of at least {MIN_KEY_LENGTH} characters, got one of {shortest}; {made}"
            )
        return keys
    return value.upper() if field == "log_level" else value


def _path(kind: type, value: Any) -> Any:
    return kind(value)


def _sentence(error: str) -> str:
    """Turn msgspec's `… - at `$.port`` into a sentence that names the variable; never the value, it may be a key."""
    problem, _, path = error.partition(" - at `$.")
    field = path.rstrip("`").split("[")[0]
    if problem.startswith("Invalid enum value"):
        problem = f"Expected one of {', '.join(get_args(Level))}"
    takes = "a URL" if field.endswith("url") else "up to 64 letters, digits, dots, dashes and underscores"
    problem = re.sub(r"`str` matching regex.*", takes, problem).partition(", got")[0]
    problem = problem.replace("`int`", "a whole number").replace("`float`", "a number").replace(" | null`", "`")
    return f"{field.upper()}: {problem[0].lower()}{problem[1:]} ({descriptions()[field]})"


def descriptions() -> dict[str, str]:
    """Return the sentence of each setting."""
    hints = get_type_hints(Settings, include_extras=True)
    return {field: hints[field].__metadata__[-1].description for field in Settings.__struct_fields__}


def _refuse_open_door(settings: Settings) -> None:
    if not settings.edge_api_key and not is_loopback(settings.host):
        raise SettingsError(f"EDGE_API_KEY: without it only loopback is served, and HOST is {settings.host}")


def is_loopback(host: str) -> bool:
    """Return whether a name or address means this machine alone."""
    try:
        return host.lower() == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
