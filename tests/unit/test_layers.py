"""The order of the layers, what each may use of other packages, and how much one class or function holds."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import zander

SOURCE = Path(zander.__file__).parent

# From the outside in: a layer imports only those below it, and its own. Names on one line are one layer.
LAYERS = [
    "__main__",
    "cli",
    "workers",
    "server",
    "app",
    "terminal",
    "sources",
    "client",
    "routes",
    "auth",
    "hub cluster",
    "database",
    "streams",
    "delivery",
    "journal",
    "wire",
    "embedded",
    "settings",
    "positions",
    "event native errors lock retry variables",
    "_native",
]
LEVEL = {name: level for level, line in enumerate(LAYERS) for name in line.split()}

# Packages of others, and the modules that may know them.
KNOWN_TO = {
    "asyncpg": ("database",),
    "redis": ("cluster.link",),
    "starlette": ("app", "server", "routes"),
    "uvicorn": ("server", "wire.websocket"),
    "websockets": ("client", "routes.asgi", "wire.frames", "wire.handshake", "wire.websocket"),
    "h11": ("wire.http",),
    "uvloop": ("server",),
    "dotenv": ("variables",),
    "jinja2": ("routes.docs",),
    "markupsafe": ("routes.docs",),
    "pyedflib": ("sources.edf",),
}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40
MAX_ATTRIBUTES = 15
MAX_METHODS = 21
LARGER = {  # and why
    "terminal.dashboard.View": 18,  # what one screen shows, plain values
    "client.relay.Relay": 26,  # the public face of the client
    "cluster.subscriptions.Subscriptions": 25,  # to be one task per user
    "wire.websocket.WebSocketConnection": 30,  # what asyncio calls, and what a session task does
}

PRONOUNS = {"What", "Who", "Which", "Whose", "Where", "Whether", "How", "From"}


def module_name(file: Path) -> str:
    """`routes.stream` for routes/stream.py, `routes` for routes/__init__.py."""
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {module_name(file): file for file in sorted([*SOURCE.rglob("*.py"), *SOURCE.rglob("*.pyi")])}
MODULES = [name for name in FILES if name]
CLASSES = [
    pytest.param(f"{name}.{node.name}", node, id=f"{name}.{node.name}")
    for name, file in FILES.items()
    for node in ast.parse(file.read_text()).body
    if isinstance(node, ast.ClassDef)
]


def imported(file: Path) -> Iterator[str]:
    """Yield every module that a file imports; `from zander.wire import codec` is `zander.wire.codec`."""
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
def imports(name: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the modules of ours and the packages of others that a module imports."""
    modules = set(imported(FILES[name]))
    ours = {module.removeprefix("zander.") for module in modules if module.startswith("zander.")}
    theirs = {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"zander"}
    return frozenset(ours), frozenset(theirs)


def layer(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def reach(name: str) -> set[str]:
    """Return all modules that come with a module."""
    found: set[str] = set()
    ahead = [name]
    while ahead:
        current = ahead.pop()
        new = (set() if current == "_native" else set(imports(current)[0])) - found
        found |= new
        ahead += new
    return found


def test_every_module_has_a_layer() -> None:
    assert {layer(name) for name in MODULES} == set(LEVEL)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "_native"])
def test_a_module_imports_only_layers_below_its_own(name: str) -> None:
    assert {other for other in imports(name)[0] if LEVEL[layer(other)] < LEVEL[layer(name)]} == set()


def test_the_package_itself_is_only_a_name() -> None:
    assert list(imported(FILES[""])) == []


@pytest.mark.parametrize("package", KNOWN_TO)
def test_a_package_is_known_to_few(package: str) -> None:
    users = {name for name in MODULES if package in imports(name)[1]}
    assert {name for name in users if not name.startswith(KNOWN_TO[package])} == set()


@pytest.mark.parametrize("name", ["client", "terminal.relay", "terminal.watch"])
def test_the_client_and_its_commands_need_only_the_base_of_the_distribution(name: str) -> None:
    needed = {package for module in {name, *reach(name)} for package in imports(module)[1]}
    assert needed <= {"dotenv", "numpy", "orjson", "pyedflib", "websockets"}


def test_the_database_and_redis_do_not_know_each_other_and_the_hub_knows_neither() -> None:
    storing, linking = reach("database.writer") | reach("journal.recorder"), reach("cluster.cluster")
    assert not storing & {"cluster.link", "hub.hub", "cluster.cluster"}
    assert not {name for name in linking | reach("hub.hub") if layer(name) == "database"}
    assert not reach("hub.hub") & {"cluster.link", "cluster.cluster", "settings", "app", "routes"}


def test_the_two_ends_of_the_wire_share_only_its_words() -> None:
    words = {"wire.chunk", "wire", "errors", "native", "_native"}
    assert reach("terminal.relay") & reach("hub.hub") <= words
    assert reach("terminal.watch") & reach("hub.hub") <= words


@pytest.mark.parametrize("name", FILES)
def test_a_file_can_be_read_at_one_sitting(name: str) -> None:
    assert len(FILES[name].read_text().splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("name", MODULES)
def test_a_function_can_be_read_at_a_glance(name: str) -> None:
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno
            n_lines = node.end_lineno - node.lineno + 1
            assert n_lines <= MAX_FUNCTION_LINES, f"{node.name} has {n_lines} lines"


@pytest.mark.parametrize(("name", "node"), CLASSES)
def test_a_class_holds_one_promise(name: str, node: ast.ClassDef) -> None:
    methods = [part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
    attributes = {
        target.attr
        for method in methods
        if method.name == "__init__"
        for part in ast.walk(method)
        for target in ast.walk(part)
        if isinstance(target, ast.Attribute) and isinstance(target.ctx, ast.Store)
    }
    assert len(methods) <= max(MAX_METHODS, LARGER.get(name, 0))
    assert len(attributes) <= max(MAX_ATTRIBUTES, LARGER.get(name, 0)), sorted(attributes)


@pytest.mark.parametrize("name", FILES)
def test_docstrings_of_modules_and_classes_begin_with_a_noun_phrase(name: str) -> None:
    tree = ast.parse(FILES[name].read_text())
    nodes: list[ast.Module | ast.ClassDef] = [tree, *(it for it in ast.walk(tree) if isinstance(it, ast.ClassDef))]
    for node in nodes:
        text = ast.get_docstring(node)
        assert text or isinstance(node, ast.ClassDef), "no docstring"
        assert not text or text.split()[0].strip(",:") not in PRONOUNS, text.splitlines()[0]
