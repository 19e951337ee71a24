"""Addresses that lead to a server which refuses them: one line says what is wrong, and what to change."""

from __future__ import annotations

import asyncio
import logging
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from support.databases import connected, opened
from zander.database import connection as connection_module
from zander.database.connection import connect
from zander.database.writer import DatabaseWriter
from zander.errors import StorageError


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of `database.example`, signed by itself, with its key beside it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, which makes a certificate")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subject = ["-subj", "/CN=database.example", "-addext", "subjectAltName=DNS:database.example"]
    made_of = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command = ["openssl", "req", "-x509", *made_of, *subject, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate


@asynccontextmanager
async def tls_server(certificate: Path) -> AsyncIterator[str]:
    """Take connections as PostgreSQL does, up to the handshake of TLS, and yield the address."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)  # SSLRequest
        writer.write(b"S")
        with suppress(OSError, ssl.SSLError):
            await writer.start_tls(context)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"postgresql://u:sesame@127.0.0.1:{server.sockets[0].getsockname()[1]}/d"


async def refusal(url: str) -> str:
    """What is said of an address."""
    with pytest.raises(StorageError) as refused:
        await DatabaseWriter(url, retention_days=None, columnstore_after_hours=24).open()
    assert "sesame" not in str(refused.value)
    return str(refused.value)


async def test_a_certificate_of_another_name_is_told(certificate: Path) -> None:
    async with tls_server(certificate) as url:
        said = await refusal(f"{url}?sslmode=verify-full&sslrootcert={certificate}")
    assert said.startswith("the certificate of the database is refused: ")
    assert "127.0.0.1" in said


async def test_a_certificate_that_nobody_vouches_for_is_told(certificate: Path) -> None:
    async with tls_server(certificate) as url:
        said = await refusal(f"{url}?sslmode=verify-full&sslrootcert=system")
    assert said == "the certificate of the database is refused: self-signed certificate"


async def test_a_root_certificate_that_is_not_there_is_named(certificate: Path, tmp_path: Path) -> None:
    async with tls_server(certificate) as url:
        said = await refusal(f"{url}?sslmode=verify-full&sslrootcert={tmp_path}/root.crt")
    assert said == f"DATABASE_URL: cannot read sslrootcert={tmp_path}/root.crt"


async def test_a_root_certificate_that_was_not_given_is_asked_for(
    certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    async with tls_server(certificate) as url:
        said = await refusal(f"{url}?sslmode=verify-full")
    assert said.startswith(f'DATABASE_URL: root certificate file "{tmp_path}/.postgresql/root.crt" does not exist')
    assert "sslrootcert=system" in said


async def test_a_parameter_that_nobody_knows_is_named(database_url: str) -> None:
    assert await refusal(f"{database_url}?made_up=1") == 'DATABASE_URL: unrecognized configuration parameter "made_up"'
    said = await refusal(f"{database_url}?sslmode=always")
    assert said.startswith("DATABASE_URL: `sslmode` parameter must be one of: disable")


async def test_what_is_dropped_of_a_url_is_told_once(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    connection_module._log_dropped.cache_clear()
    with caplog.at_level(logging.WARNING, "zander.database.connection"):
        for _ in range(2):
            connection = await connect(f"{database_url}?connect_timeout=3&gssencmode=prefer&keepalives=1", {}, 5)
            assert await connection.fetchval("SELECT 7") == 7
            await connection.close()
    assert caplog.messages == [
        "DATABASE_URL: gssencmode, keepalives: not supported here, the connection is made without"
    ]


async def test_a_database_that_takes_no_writes_is_told(database_url: str) -> None:
    name = database_url.rpartition("/")[2]
    async with opened(database_url) as storage:
        async with connected(database_url) as connection:
            await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await storage.ping()  # its session is as it was
        with pytest.raises(
            StorageError,
            match="it takes read-only transactions alone: a standby, or default_transaction_read_only is on",
        ):
            await storage.open()
