"""Addresses of databases: what people paste is taken, or refused with a sentence that names it."""

from __future__ import annotations

import pytest

from zander.database.address import parse, plain_dsn
from zander.errors import StorageError


def test_what_only_libpq_knows_is_dropped_and_named() -> None:
    url = "postgresql://u:p@h/d?sslmode=require&channel_binding=require&gssencmode=disable&keepalives_idle=5&search_path=x"
    found = parse(url, 5.0)
    assert found.dsn == "postgresql://u:p@h/d?sslmode=require&search_path=x"
    assert found.dropped == ("channel_binding", "gssencmode", "keepalives_idle")


def test_what_asyncpg_or_the_server_may_know_stays() -> None:
    query = "target_session_attrs=read-write&sslrootcert=/a%20b&options=-c%20geqo%3Doff&made_up=1&krbsrvname=x"
    found = parse(f"postgresql://u:p@a:1,b:2/d?{query}", 5.0)
    assert (found.dsn, found.dropped) == (f"postgresql://u:p@a:1,b:2/d?{query.replace('%20b', '%20b')}", ())


@pytest.mark.parametrize(("query", "seconds"), [("", 5.0), ("?connect_timeout=12", 12.0), ("?connect_timeout=0", 5.0)])
def test_connect_timeout_is_how_long_a_connection_may_take(query: str, seconds: float) -> None:
    found = parse(f"postgresql://u:p@h/d{query}", 5.0)
    assert (found.dsn, found.options["timeout"], found.dropped) == ("postgresql://u:p@h/d", seconds, ())


def test_without_tls_there_is_no_channel_to_bind() -> None:
    assert parse("postgresql://h/d?channel_binding=require", 5.0).dsn == "postgresql://h/d?sslmode=require"
    assert parse("postgresql://h/d?channel_binding=prefer", 5.0).dsn == "postgresql://h/d"
    url = "postgresql://h/d?channel_binding=require&sslmode=verify-full"
    assert parse(url, 5.0).dsn == "postgresql://h/d?sslmode=verify-full"


def test_the_authorities_of_the_system_check_the_name_too() -> None:
    found = parse("postgresql://h/d?sslmode=verify-full&sslrootcert=system", 5.0)
    assert (found.dsn, found.options["ssl"]) == ("postgresql://h/d", True)


def test_a_name_of_the_application_goes_before_ours() -> None:
    assert parse("postgresql://h/d", 5.0).options["server_settings"] == {"application_name": "zander"}
    given = parse("postgresql://h/d?application_name=lab", 5.0)
    assert (given.dsn, given.options["server_settings"]) == ("postgresql://h/d", {"application_name": "lab"})


@pytest.mark.parametrize("query", ["connect_timeout=soon", "sslmode"])
def test_a_query_that_cannot_be_read_is_refused(query: str) -> None:
    with pytest.raises(StorageError, match="DATABASE_URL"):
        parse(f"postgresql://u:sesame@h/d?{query}", 5.0)


def test_both_forms_of_a_url_are_read() -> None:
    assert plain_dsn("postgresql+asyncpg://u:p@h:1/d?ssl=require") == "postgresql://u:p@h:1/d?sslmode=require"
    assert plain_dsn("postgres://u:p@h:1/d?sslmode=disable") == "postgresql://u:p@h:1/d?sslmode=disable"
    assert plain_dsn("postgresql://u:p@h/d") == "postgresql://u:p@h/d"
