"""The servers that Zander is measured beside: where their programs are, and how they are told to listen."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from parts import BenchError, Program, listens, running
from scale import CRATE
from zander.embedded.postgres import free_port

BUILT = Path(__file__).resolve().parent.parent / "build" / "brokers"
PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", str(BUILT)])
UNVERSIONED = "0.0.0"  # what a program says that go install has built

MOSQUITTO = """
listener {port} 127.0.0.1
protocol websockets
allow_anonymous true
set_tcp_nodelay true
listener {spare_port} 127.0.0.1
"""  # 2.0.11 does not start with a WebSocket listener alone
NATS = """
listen: "127.0.0.1:-1"
websocket { listen: "127.0.0.1:{port}", no_tls: true, compression: false }
"""
CENTRIFUGO = json.dumps(
    {
        "http_server": {"address": "127.0.0.1", "port": "{port}"},
        "client": {"insecure": True, "ping_interval": "600s", "pong_timeout": "300s"},  # in no run that is measured
        "channel": {"without_namespace": {"allow_publish_for_client": True, "allow_subscribe_for_client": True}},
        "log": {"level": "error"},
    }
)


class Broker(NamedTuple):
    """A server of others; it keeps nothing of what it is sent."""

    title: str
    dialect: str  # of the load generator
    program: str
    settings: str = ""  # a file, with its ports to be filled in
    version_option: str = ""
    module: str = ""  # that Go can install
    package: str = ""  # where Go cannot

    def find(self) -> str:
        """Return its program, built when it can be; BenchError says what to install."""
        if found := shutil.which(self.program, path=PLACES):
            return found
        if not self.module:
            raise BenchError(f"there is no {self.program}, install {self.package}")
        go = shutil.which("go")
        if not go:
            raise BenchError(f"there is no {self.program}, install it, or Go, which can build it")
        print(f"Building {self.title} (once, some minutes) …", file=sys.stderr, flush=True)
        environment, command = os.environ | {"GOBIN": str(BUILT)}, [go, "install", self.module]
        built = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if built.returncode:
            reason = " ".join(built.stderr.strip().splitlines()[-1:])
            raise BenchError(f"there is no {self.program}, install it; go install {self.module} failed: {reason}")
        return str(BUILT / self.program)

    def named(self, program: str) -> str:
        """Return the title with the version that the program says it has."""
        if not self.version_option:
            return self.title
        told = subprocess.run([program, self.version_option], capture_output=True, text=True, check=False, timeout=30)
        version = re.search(r"\d+\.\d+\.\d+", told.stdout + told.stderr)
        return f"{self.title} {version[0]}" if version and version[0] != UNVERSIONED else self.title

    @contextmanager
    def running(self, program: str) -> Iterator[tuple[int, Program]]:
        """Run it while the block runs; gives its port too."""
        port = free_port()
        with tempfile.TemporaryDirectory(prefix="zander-bench-") as directory:
            command = [program, str(port)]
            if self.settings:
                file = Path(directory, "broker.json" if self.settings.startswith("{") else "broker.conf")
                settings = self.settings.replace("{port}", str(port))
                file.write_text(settings.replace("{spare_port}", str(free_port())))
                command = [program, "-c", str(file)]
            with running(self.title, command, lambda: listens(port)) as server:
                yield port, server


FLOOR = "floor"
BROKERS = {
    FLOOR: Broker("floor", "floor", str(CRATE / "target" / "release" / "floor")),
    "mosquitto": Broker("Mosquitto", "mqtt", "mosquitto", MOSQUITTO, "-h", package="Debian's package mosquitto"),
    "nats": Broker(
        "NATS", "nats", "nats-server", NATS, "--version", module="github.com/nats-io/nats-server/v2@v2.15.2"
    ),
    "centrifugo": Broker(
        "Centrifugo",
        "centrifugo",
        "centrifugo",
        CENTRIFUGO,
        "version",
        module="github.com/centrifugal/centrifugo/v6@v6.9.1",
    ),
}
