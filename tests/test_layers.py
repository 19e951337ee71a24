"""Which room may import which, and what from outside; how long a file and an endpoint may be."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import zander

SOURCE = Path(zander.__file__).parent
MAX_FILE_LINES = 300
MAX_ENDPOINT_LINES = 30

# A room, then the rooms of ours that it may import; behind the bar what is not ours. Everything may use Python's own
# library. A lazy import inside a function counts. Who adds a file adds a line, and asks whether the house still stands.
TABLE = """
errors:
settings: errors | dotenv msgspec
auth:     errors settings
native:   _native
_native:  chunk errors outbox stream

chunk:      _native errors native | numpy orjson
messages:   chunk | msgspec
wire:       chunk errors messages | msgspec numpy
ring:        | numpy
history:    messages
stored:     chunk | msgspec
session:    chunk errors messages stored | msgspec numpy
flag:
outbox:     chunk errors flag messages wire
audience:   chunk messages outbox wire
stream:     chunk errors history messages outbox ring session wire | msgspec
answers:    chunk wire | numpy
query:      answers chunk errors stream wire | msgspec
neighbours: chunk messages outbox query stored stream

journal:
journal.segments:
journal.records:   | msgspec
journal.joined:   _native journal.records journal.segments native
journal.pgcopy:   chunk | numpy
journal.batch:    journal.records | msgspec
journal.journal:  journal.segments
journal.journals: chunk journal.batch journal.joined journal.journal journal.pgcopy journal.records native
journal.intake:   journal.records journal.segments
journal.outage:   errors
journal.heap:
journal.counts:    | msgspec
journal.recorder: chunk errors journal.batch journal.counts journal.heap journal.intake journal.journals journal.outage
     journal.records | msgspec

ledger:    chunk journal.records messages session stream wire
admission: errors messages neighbours outbox session stream wire
turn:      _native audience chunk ledger native neighbours outbox stream | msgspec numpy
hub:       admission audience chunk errors journal.batch ledger messages neighbours outbox query stream turn wire
replay:    audience chunk errors hub messages outbox stored wire

database:
database.connection:  errors journal.pgcopy | asyncpg
database.migrations:  database.connection errors | asyncpg
database.transaction: database.connection errors journal.batch journal.pgcopy journal.records | asyncpg msgspec
database.storage:     database.connection database.migrations database.transaction errors journal.batch
database.pool:        database.connection errors
database.seek:
database.rows:        chunk messages wire | msgspec numpy
database.past:        chunk database.pool database.rows messages | msgspec
database.pages:       chunk database.past messages
database.archive:     chunk database.past database.pool database.rows database.seek errors stored | msgspec

broadcast:        | redis
nodes:
nodes.directory:  | msgspec
nodes.peers:     chunk errors messages nodes.directory query stream | msgspec numpy
nodes.calls:     broadcast errors nodes.peers
nodes.feed:      chunk messages nodes.directory nodes.peers outbox
nodes.feeds:     errors hub messages nodes.calls nodes.directory nodes.feed nodes.peers outbox stream
nodes.alone:     chunk errors hub messages neighbours outbox query stream
nodes.cluster:   broadcast chunk errors hub messages neighbours nodes.calls nodes.directory nodes.feeds nodes.peers
     outbox query stream

routes.context:    auth database.archive hub journal.recorder replay settings | starlette
routes.parameters: errors messages wire | msgspec
routes.socket:     errors messages outbox protocol routes.context wire | starlette
routes.stream:     auth chunk errors hub messages outbox protocol routes.context routes.socket stream wire | starlette
routes.subscribe:  auth chunk errors messages outbox protocol routes.context routes.parameters routes.socket wire |
     starlette
routes.buffer:     errors query routes.context routes.parameters stream | starlette
routes.history:    answers chunk database.archive database.pages database.past errors query routes.context
     routes.parameters stream | starlette
routes.sessions:   chunk database.archive errors messages routes.context routes.parameters stored wire | msgspec
     starlette
routes.health:     journal.counts neighbours routes.context stream turn wire | msgspec starlette
routes.openapi:    errors | msgspec starlette
routes.meanings:
routes.reference:  errors messages outbox query routes.health routes.history routes.meanings routes.openapi
     routes.sessions routes.socket stream | msgspec
routes.page:       routes.meanings routes.openapi
routes.docs:       routes routes.openapi routes.page routes.reference wire | starlette
routes:            routes.buffer routes.docs routes.health routes.history routes.sessions routes.stream
     routes.subscribe | starlette

app:            broadcast database.archive database.storage errors hub journal.journal journal.journals
     journal.recorder nodes.alone nodes.cluster replay routes routes.context settings | starlette
protocol:       flag | uvicorn websockets
server:         app errors journal.journal local.embedded messages native protocol settings | msgspec starlette uvicorn
workers:        app errors journal.journal local.child server settings | msgspec
local:
local.launcher:
local.child:
local.embedded: local.child

client.blocks:   journal.segments
client.card:     errors | orjson
client.spool:    chunk client.blocks client.card journal.segments
client.line:     errors | orjson websockets
client.dispatch: chunk client.spool | numpy orjson websockets
client.relay:    chunk client.dispatch client.line client.spool | numpy orjson websockets
client.consumer: chunk client.line | numpy orjson websockets
client:          client.consumer client.line client.relay client.spool

terminal:
terminal.recording: chunk errors | numpy pyedflib
terminal.features:  chunk | numpy
terminal.meter:
terminal.screen:
terminal.trace:     chunk | numpy
terminal.view:      client terminal.meter terminal.screen terminal.trace
terminal.picture:   terminal.screen terminal.trace terminal.view | numpy
terminal.relay:     chunk client errors terminal.features terminal.meter terminal.recording terminal.screen | numpy
terminal.watch:     client terminal.picture terminal.screen terminal.view

cli: client database.migrations errors local.embedded server settings terminal.recording terminal.relay terminal.watch
     workers
"""


def read_table() -> dict[str, tuple[set[str], set[str]]]:
    rows = (row.split(":") for row in TABLE.replace("\n     ", " ").splitlines() if row)
    return {room: halves(allowed) for room, allowed in rows}


def halves(allowed: str) -> tuple[set[str], set[str]]:
    ours, _, theirs = allowed.partition("|")
    return set(ours.split()), set(theirs.split())


ALLOWED = read_table()
NO_ROOMS = {"", "__main__"}  # the package's name, and `python -m zander`


def room(file: Path) -> str:
    """`routes.stream` for routes/stream.py, `routes` for routes/__init__.py."""
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {room(file): file for file in sorted([*SOURCE.rglob("*.py"), *SOURCE.rglob("*.pyi")])}
ROOMS = [name for name in FILES if name not in NO_ROOMS]


def imported(file: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it; `from zander import wire` is `zander.wire`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}:{node.lineno}: a relative import"
            assert node.module
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name.removeprefix("zander.") in FILES else node.module


@cache
def imports(name: str) -> tuple[set[str], set[str]]:
    """The rooms of ours and the packages of others that a room imports."""
    modules = set(imported(FILES[name]))
    ours = {module.removeprefix("zander.") for module in modules if module.split(".")[0] == "zander"}
    theirs = {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"zander"}
    return ours, theirs


def loaded(name: str) -> set[str]:
    """The rooms of ours that a room loads: the extension none, whose manual only names what it is given."""
    return set() if name == "_native" else imports(name)[0]


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_what_it_may(name: str) -> None:
    assert name in ALLOWED, f"{name} is not in the table: which rooms may it import?"
    ours, theirs = imports(name)
    may_ours, may_theirs = ALLOWED[name]
    assert ours <= may_ours
    assert theirs <= may_theirs


def test_the_package_itself_is_only_a_name() -> None:
    assert list(imported(FILES[""])) == []
    assert imports("__main__") == ({"cli"}, set())


def test_the_table_knows_no_room_that_is_not_there() -> None:
    assert set(ALLOWED) - set(FILES) == set()
    for ours, _ in ALLOWED.values():
        assert ours <= set(ALLOWED)


def test_no_room_leads_back_to_itself() -> None:
    """But the documentation, which is one of the routes, lists them all; and the extension loads none."""
    graph = {name: ours - ({"routes"} if name == "routes.docs" else set()) for name, (ours, _) in ALLOWED.items()}
    graph["_native"] = loaded("_native")
    assert set(TopologicalSorter(graph).static_order()) == set(ALLOWED)


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        ("asyncpg", {"database.connection", "database.transaction", "database.migrations"}),
        ("redis", {"broadcast"}),
        ("uvicorn", {"protocol", "server"}),
        ("websockets", {"client.line", "client.dispatch", "client.relay", "client.consumer", "protocol"}),
        ("dotenv", {"settings"}),
        ("pyedflib", {"terminal.recording"}),
    ],
)
def test_a_package_is_known_to_few(package: str, rooms: set[str]) -> None:
    assert {name for name in ROOMS if package in imports(name)[1]} <= rooms


def test_only_the_doors_know_starlette() -> None:
    users = {name for name in ROOMS if "starlette" in imports(name)[1]}
    assert {name for name in users if not name.startswith("routes")} <= {"app", "server"}


def test_the_database_and_redis_do_not_know_each_other_and_the_hub_knows_neither() -> None:
    storing, linking = reach("database.storage") | reach("journal.recorder"), reach("nodes.cluster")
    assert not storing & {"broadcast", "hub", "nodes.cluster"}
    assert not {room for room in linking | reach("hub") if room.startswith("database")}
    assert not reach("hub") & {"broadcast", "nodes.cluster", "settings", "app", "routes"}


def test_the_two_ends_of_the_wire_share_only_its_words() -> None:
    words = {"chunk", "errors", "native", "_native"}
    assert reach("terminal.relay") & reach("hub") <= words
    assert reach("terminal.watch") & reach("hub") <= words


def reach(name: str) -> set[str]:
    """All rooms that come with a room."""
    found: set[str] = set()
    ahead = [name]
    while ahead:
        new = loaded(ahead.pop()) - found
        found |= new
        ahead += new
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_file_can_be_read_at_one_sitting(name: str) -> None:
    assert len(FILES[name].read_text().splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("name", [name for name in ROOMS if name.startswith("routes")])
def test_an_endpoint_is_short(name: str) -> None:
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno
            n_lines = node.end_lineno - node.lineno + 1
            assert n_lines <= MAX_ENDPOINT_LINES, f"{node.name} has {n_lines} lines"
