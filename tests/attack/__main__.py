"""`python -m attack --only headers --seconds 5`: attacks, one after the other, each on a fresh server, and a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from attack.attacks import ATTACKS, MIB, Attack
from attack.outcome import Delays, Outcome, in_words, milliseconds
from attack.round import AttackError, play
from attack.target import Target
from support.services import PostgresServer

REST_SECONDS = 2.0
STORED_PATIENCE_S = 300.0  # a flood of some seconds is millions of rows
COLUMNS = "{:<28} {:>9} {:>18} {:>33} {:>5} {:>6} {:>11} {:>11} {:>5}  {}"
HEADINGS = (
    *("attack", "sent MiB", "RSS MiB", "neighbour ms", "late", "lost", "/health ms", "/history ms", "CPU s"),
    "connections",
)
LEGEND = """RSS: before, the most, after. neighbour: p50, p99, longest, at rest and beside; late: its own sending, p99.
lost: of its samples, by its consumer and by the database. /health, and the neighbour's /history: the longest at rest,
and beside. CPU: of the server beside. connections: how those of the attacker ended."""


def main() -> int:
    """Make the attacks that are asked for; 1 when one of them has done what it must not."""
    options = _options()
    names = [name for name in ATTACKS if not options.only or name in options.only]
    bad: dict[str, list[str]] = {}
    print(LEGEND, COLUMNS.format(*HEADINGS), sep="\n\n", flush=True)
    with PostgresServer() as postgres:
        for name in names:
            if sentences := _attack(postgres, name, _chosen(ATTACKS[name], options), options.native):
                bad[name] = sentences
    print(f"\n{len(bad)} of {len(names)} attacks did what they must not", *bad, sep="\n    ")
    return 1 if bad else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make attack", description=__doc__)
    parser.add_argument("--only", type=_names, action="extend", default=[], metavar="NAMES", help=", ".join(ATTACKS))
    parser.add_argument("--seconds", type=float, help="of each attack, instead of its own")
    parser.add_argument("--mib", type=float, help="that each sends at most, instead of its own")
    parser.add_argument("--connections", type=int, help="of those that have more than one, instead of their own")
    parser.add_argument("--native", choices=("0", "1"), help="0: the server without its native path")
    return parser.parse_args()


def _names(text: str) -> Iterable[str]:
    names = text.split(",")
    if strange := [name for name in names if name not in ATTACKS]:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(ATTACKS)}, got {', '.join(strange)}")
    return names


def _chosen(attack: Attack, options: argparse.Namespace) -> Attack:
    if options.seconds:
        attack = attack._replace(seconds=options.seconds)
    if options.mib:
        attack = attack._replace(n_bytes=int(options.mib * MIB))
    if options.connections and attack.n_connections > 1:
        attack = attack._replace(n_connections=options.connections)
    return attack


def _attack(postgres: PostgresServer, name: str, attack: Attack, native: str | None) -> list[str]:
    """Make one attack, print its row and what is wrong with it, and return the latter."""
    with Target(postgres, native, **attack.settings) as target:
        try:
            outcome = play(target, name, attack, REST_SECONDS, STORED_PATIENCE_S)
        except AttackError as error:
            sentences = [str(error)]
            print(COLUMNS.format(name, *["-"] * 9), flush=True)
        else:
            sentences = [*outcome.broken, *outcome.slow]
            print(_row(name, outcome), flush=True)
    print("    ok" if not sentences else "\n".join(f"    BAD {sentence}" for sentence in sentences), flush=True)
    return sentences


def _row(name: str, outcome: Outcome) -> str:
    memory = (outcome.before_bytes, outcome.most_bytes, outcome.after_bytes)
    n_unstored = outcome.n_neighbour - outcome.n_stored
    served_s = outcome.report.served_s
    return COLUMNS.format(
        name,
        f"{outcome.report.n_sent / MIB:,.1f}",
        " → ".join(f"{n_bytes / MIB:.0f}" for n_bytes in memory),
        f"{_delays(outcome.rest)} → {_delays(outcome.beside)}",
        milliseconds(outcome.beside.late_s),
        f"{outcome.n_lost}/{n_unstored}",
        _longest(outcome.health_rest_s, outcome.health_s),
        _longest(outcome.history_rest_s, outcome.history_s),
        f"{outcome.cpu_s:.1f}",
        in_words(outcome.report.endings) + (f", all served in {served_s:.2f} s" if served_s is not None else ""),
    )


def _longest(*phases_s: list[float]) -> str:
    return " → ".join(milliseconds(max(seconds)) for seconds in phases_s)


def _delays(delays: Delays) -> str:
    return " ".join(milliseconds(seconds) for seconds in (delays.p50_s, delays.p99_s, delays.most_s))


if __name__ == "__main__":
    sys.exit(main())
