"""What tests share: real servers, started once, and nodes on them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import support.hypothesis_profile  # noqa: F401 - before the first test module: what is given takes its settings from it
from support.clock import Clock
from support.databases import any_database_url, database_url, postgres, timescale_url  # noqa: F401 - fixtures
from support.nodes import Node
from support.services import PostgresServer, ValkeyServer, eventually
from zander.embedded import postgres as embedded
from zander.embedded.postgres import free_port


def pytest_configure() -> None:
    """Let no worker of pytest-xdist take the port of another's server that is down for a while."""
    number, n_workers = os.environ.get("PYTEST_XDIST_WORKER", "gw0"), os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    embedded.PORTS = embedded.PORTS[int(number.removeprefix("gw")) :: int(n_workers)]


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """A Redis for the whole run; tests that stop it make their own."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="session")
def node(postgres: PostgresServer) -> Iterator[Node]:  # noqa: F811
    """A node alone, without keys, shared by all tests that take a user of their own."""
    with Node(database_url=postgres.create_database(), batch_max_seconds=0.1) as shared:
        eventually(shared.ready)
        yield shared


@pytest.fixture
def start_node(database_url: str) -> Iterator[Callable[..., Node]]:  # noqa: F811
    """Start nodes with settings of the test's own."""
    with ExitStack() as nodes:

        def start(**settings: Any) -> Node:
            defaults: dict[str, Any] = {"database_url": database_url, "batch_max_seconds": 0.1}
            return nodes.enter_context(Node(**(defaults | settings)))

        yield start


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the rooms that look at one."""
    clock = Clock()
    for room in ("hub.ingest", "hub.kept", "delivery.outbox", "routes.answers", "streams.stream"):
        monkeypatch.setattr(f"zander.{room}.monotonic", clock)
    return clock


@pytest.fixture
def user() -> str:
    """A user nobody else has."""
    return f"user-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def unused_tcp_port() -> int:
    """A port that stays unused, which one of pytest-asyncio's may not: those are given to outgoing connections, too."""
    return free_port()
