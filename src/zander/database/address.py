"""Address of a database: a URL as people write it, for psql or another driver, as asyncpg takes it.

asyncpg sends every parameter that it does not know to the server, which refuses the connection for those of libpq.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote

import asyncpg

from zander.errors import StorageError

# Parameters of libpq, and of SQLAlchemy's URLs, that asyncpg has nothing for. They are dropped, and named in the log:
# some of them ask for more than the connection gives.
DROPPED = frozenset(
    {
        "async_fallback",
        "channel_binding",
        "client_encoding",
        "fallback_application_name",
        "gssdelegation",
        "gssencmode",
        "hostaddr",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "load_balance_hosts",
        "max_protocol_version",
        "min_protocol_version",
        "prepared_statement_cache_size",
        "prepared_statement_name_func",
        "replication",
        "require_auth",
        "requirepeer",
        "requiressl",
        "scram_client_key",
        "scram_server_key",
        "sslcertmode",
        "sslcompression",
        "sslcrldir",
        "sslkeylogfile",
        "sslsni",
        "tcp_user_timeout",
    }
)
FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")


class Address(NamedTuple):
    """The arguments of `asyncpg.connect`; `dropped` names the parameters of the URL that have no effect.

    `variable` is the setting that has the URL.
    """

    dsn: str
    options: dict[str, Any]
    dropped: tuple[str, ...]
    files: dict[str, str]  # of certificates and keys, by parameter
    variable: str


def plain_dsn(database_url: str) -> str:
    """Turn SQLAlchemy's form of a URL into PostgreSQL's."""
    scheme, _, rest = database_url.partition("://")
    if scheme.endswith("+asyncpg"):
        rest = re.sub(r"([?&])ssl=", r"\1sslmode=", rest)
    return f"postgresql://{rest}"


def parse(database_url: str, connect_seconds: float, variable: str = "DATABASE_URL") -> Address:
    """Read a URL; `connect_seconds` holds where it has no connect_timeout. StorageError when it cannot be read."""
    base, _, query = plain_dsn(database_url).partition("?")
    try:
        given = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise StorageError(_unreadable(variable)) from None
    options: dict[str, Any] = {
        "timeout": _connect_seconds(given, variable) or connect_seconds,
        "server_settings": {"application_name": given.pop("application_name", "zander")},
    }
    if given.get("sslrootcert") == "system":  # as libpq: the authorities that the system trusts, and the name
        del given["sslrootcert"]
        given.pop("sslmode", None)
        options["ssl"] = True
    if given.get("channel_binding") == "require":  # there is none without TLS, at the least
        given.setdefault("sslmode", "require")
    dropped = tuple(sorted(given.keys() & DROPPED))
    kept = {name: value for name, value in given.items() if name not in DROPPED}
    files = {name: found for name in FILES if (found := kept.get(name) or os.environ.get(f"PG{name.upper()}"))}
    parameters = "&".join(f"{quote(name)}={quote(value)}" for name, value in kept.items() if value)
    return Address(f"{base}?{parameters}" if parameters else base, options, dropped, files, variable)


def refusal(error: Exception, address: Address) -> str | None:
    """Return what is wrong with an address for which `asyncpg.connect` failed; None when that is not to blame.

    Without a word that may be a piece of the password.
    """
    if verify_message := getattr(error, "verify_message", None):  # ssl.SSLCertVerificationError is a ValueError, too
        return f"the certificate of the database is refused: {verify_message}"
    if isinstance(error, asyncpg.ClientConfigurationError):
        system = "; sslrootcert=system takes the authorities that this machine trusts"
        return f"{address.variable}: {error.args[0]}{system if 'root certificate' in error.args[0] else ''}"
    if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.EACCES):
        closed = [f"{name}={path}" for name, path in address.files.items() if not os.access(path, os.R_OK)]
        return f"{address.variable}: cannot read {', '.join(closed)}" if closed else None
    if isinstance(error, asyncpg.PostgresError) and error.sqlstate in ("42704", "22023", "08P01"):
        return (
            f"{address.variable}: {error.args[0]}"  # a parameter that the server, or a pooler before it, does not take
        )
    return _unreadable(address.variable) if isinstance(error, ValueError) else None


def _unreadable(variable: str) -> str:
    return f"{variable} cannot be read: special characters need %-encoding"


def _connect_seconds(given: dict[str, str], variable: str) -> float:
    """Take the connect_timeout out of the parameters; 0 where there is none, or none that libpq would wait for."""
    with suppress(ValueError):
        return max(0.0, float(given.pop("connect_timeout", "0")))
    raise StorageError(f"{variable}: expected seconds as connect_timeout")
