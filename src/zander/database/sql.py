"""One query and its rows as a table, for `zander sql`: nobody needs psql to look into the database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from tempfile import TemporaryFile
from typing import NamedTuple, TextIO

import asyncpg

from zander.database.connection import CLOSE_SECONDS, FAILURES, Connection, connect
from zander.errors import StorageError

QUERY_SECONDS = 3600.0  # Ctrl-C ends it sooner
NO_ROWS = "expected a query, which is SELECT, VALUES, TABLE or WITH; for all else there is psql"

# Types that are aligned to the right of their column.
NUMBERS = {"int2", "int4", "int8", "float4", "float8", "numeric", "money", "oid", "xid"}


class Column(NamedTuple):
    """A column of the result: its name, and its type by PostgreSQL's name."""

    name: str
    type: str


async def print_query(dsn: str, sql: str, out: TextIO) -> None:
    """Run a query, read-only, and print its rows as psql does.

    StorageError when it gives no rows, when it is wrong, and when the database cannot be reached. The rows wait in a
    file: how wide a column is shows with the last one, and millions of them must not fill the memory.
    """
    with TemporaryFile("w+", encoding="utf-8", newline="\n") as file:
        columns = await _copy(dsn, sql, file)
        _print(columns, file, out)


async def _copy(dsn: str, sql: str, file: TextIO) -> list[Column]:
    """Have the server write the rows as text: so every value looks as in psql, whatever its type."""
    try:
        connection = await connect(dsn, {}, QUERY_SECONDS)
        try:
            async with connection.transaction(readonly=True):
                statement = await connection.prepare(sql)
                columns = [Column(attribute.name, attribute.type.name) for attribute in statement.get_attributes()]
                if not columns:
                    raise StorageError(NO_ROWS)
                await _copy_rows(connection, sql, file)
        finally:
            await connection.close(timeout=CLOSE_SECONDS)
    except FAILURES as error:
        raise StorageError(f"the query failed: {error or type(error).__name__}") from None
    return columns


async def _copy_rows(connection: Connection, sql: str, file: TextIO) -> None:
    query = sql.rstrip().rstrip(";")
    try:
        await connection.copy_from_query(f"{query}\n", output=file.buffer, null="")  # the line may end in a comment
    except asyncpg.PostgresSyntaxError:  # it could be prepared: SHOW, EXPLAIN
        raise StorageError(NO_ROWS) from None


def _print(columns: list[Column], file: TextIO, out: TextIO) -> None:
    """Print heads, a rule, the rows, and how many they are: once through the file for the widths, once to print."""
    names = [_escape(column.name) for column in columns]
    widths = [len(name) for name in names]
    for row in _rows(file):
        widths = [max(width, len(text)) for width, text in zip(widths, row, strict=True)]
    _print_line((f"{name:^{width}}" for name, width in zip(names, widths, strict=True)), out)
    print("+".join("-" * (width + 2) for width in widths), file=out)
    align = [str.rjust if column.type in NUMBERS else str.ljust for column in columns]
    n_rows = 0
    for row in _rows(file):
        _print_line((put(text, width) for put, text, width in zip(align, row, widths, strict=True)), out)
        n_rows += 1
    print(f"({n_rows} row{'s' * (n_rows != 1)})", file=out)


def _print_line(cells: Iterable[str], out: TextIO) -> None:
    print(f" {' | '.join(cells)}".rstrip(), file=out)


def _rows(file: TextIO) -> Iterator[list[str]]:
    """Read what COPY wrote: a line a row. Tabs and line breaks in a value stay the escapes that they are."""
    file.seek(0)
    for line in file:
        yield [_escape(text.replace("\\\\", "\\")) for text in line.removesuffix("\n").split("\t")]


def _escape(text: str) -> str:
    """Replace control characters: what relays sent must not steer the terminal."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
