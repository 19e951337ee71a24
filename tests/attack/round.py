"""One attack on a server, with a neighbour and visitors beside it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep
from uuid import uuid4

from attack.attacks import Attack
from attack.line import Report
from attack.neighbour import READY, Heard
from attack.outcome import Delays, Outcome
from attack.target import Target, Watch

TRACEBACK = re.compile(r"Traceback .*\n(?: .*\n)*(\S.*)")  # its last line says what
TESTS = Path(__file__).parent.parent
ATTACKER_PATIENCE_S = 60.0  # beyond the attack itself
SETTLE_SECONDS = 1.0  # after it, before the memory is looked at again


class AttackError(Exception):
    """The attack could not be made; the message says why."""


def play(target: Target, name: str, attack: Attack, rest_s: float, stored_patience_s: float) -> Outcome:
    """Let the neighbour stream at rest, then beside the attack, and gather what became of everybody."""
    target.settle(stored_patience_s)
    user, n_logged = f"neighbour-{uuid4().hex[:12]}", len(target.log)
    order = json.dumps(attack.order(target.port, user)._asdict())
    with (
        _started("attack.attacker", name, order) as attacker,
        target.held(attack.is_held),
        _neighbour(target, user) as neighbour,
    ):
        with Watch(target, user) as rest:
            sleep(rest_s)
        before_bytes, cpu_s = target.rss_bytes(), target.cpu_s()
        neighbour.mark()
        with Watch(target, user) as beside:
            report = _attacked(attacker, attack.seconds)
        cpu_s = target.cpu_s() - cpu_s
        neighbour.mark()
        sleep(min(rest_s, SETTLE_SECONDS))
        after_bytes = target.rss_bytes()
        heard = neighbour.finish()
    first, last = [*heard.phases, len(heard.due_s), len(heard.due_s)][:2]
    return Outcome(
        attack,
        report,
        before_bytes,
        beside.most_bytes,
        after_bytes,
        cpu_s,
        Delays.of(heard, slice(first)),
        Delays.of(heard, slice(first, last)),
        len(heard.due_s),
        heard.came_s.count(None) + heard.n_repeated + heard.n_misplaced,
        target.n_stored(user, len(heard.due_s), stored_patience_s),
        heard.ending,
        rest.health_s,
        beside.health_s,
        rest.history_s,
        beside.history_s,
        beside.relays_s,
        target.log.count("\n", n_logged),
        attack.must_log in target.log,
        _complaint(target, n_logged),
    )


def _complaint(target: Target, n_logged: int) -> str:
    """Say what should not be, whatever the attack: an end of its own, a traceback in what it has logged since."""
    found = TRACEBACK.search(target.log, n_logged)
    return "the server has ended" if target.has_ended else f"the server wrote a traceback: {found[1]}" if found else ""


def _attacked(attacker: subprocess.Popen[str], seconds: float) -> Report:
    try:
        said, _ = attacker.communicate("\n", timeout=seconds + ATTACKER_PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise AttackError(f"the attacker was not done {ATTACKER_PATIENCE_S:g} s after its time") from None
    if attacker.returncode:
        raise AttackError(f"the attacker ended with {attacker.returncode}")
    return Report(**json.loads(said))


class _Neighbour:
    """The other end of the process of neighbour.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        if self._stdout.readline().strip() != READY:
            raise AttackError("the neighbour was not let in")

    def mark(self) -> None:
        """Begin a phase; nothing where it has been cut."""
        with suppress(BrokenPipeError):
            self._stdin.write("\n")
            self._stdin.flush()

    def finish(self) -> Heard:
        """Let it stop, and return what it has heard."""
        with suppress(BrokenPipeError):
            self._stdin.close()
        return Heard(**json.loads(self._stdout.read()))


@contextmanager
def _neighbour(target: Target, user: str) -> Iterator[_Neighbour]:
    with _started("attack.neighbour", str(target.port), user) as process:
        yield _Neighbour(process)


@contextmanager
def _started(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start a process; one that still runs at the end of the block is killed."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=TESTS) as process:
        try:
            yield process
        finally:
            process.kill()
