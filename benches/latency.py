"""How long a sample takes from the edge to a consumer, and what it costs.

    python benches/latency.py [options]

Starts the service with a PostgreSQL and a Valkey of its own, and drives it from another process (load.py), all on
this machine. Another checkout, or an ordinary service of this kind (baseline.py), can be measured in turn with it.
Ends with 1 when a sample was lost, with 2 when the bench could not run.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from drive import blaming, drive, house
from frames import FORMATS, Load
from options import add_against, add_rounds, at_least, in_words, load_of, parser, run, save
from parts import Baseline, Subject, checkouts, machine
from report import Figures, faults, figures_of, middle, say_faults, table
from stored import lost_rows

HERE = Path(__file__).resolve().parent
GENERATOR = [sys.executable, str(HERE / "load.py")]


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    made = parser(__doc__.partition("\n")[0], n_relays=100, formats=FORMATS)
    add = made.add_argument
    add("--consumers", type=at_least(0), default=1, metavar="N", help="consumers of each user (1)")
    add("--features-rate", type=at_least(0.0), default=1.0, metavar="HZ", help="features per second of each relay (1)")
    add("--acks", action="store_true", help="relays ask for acks, and the time to them is measured")
    add("--replays", type=at_least(0), default=0, metavar="N", help="consumers that come back, to the beginning (0)")
    other = made.add_mutually_exclusive_group()
    add_against(other)
    other.add_argument(
        "--baseline", action="store_true", help="measure an ordinary FastAPI service in turn with this one"
    )
    add_rounds(made)
    options = made.parse_args(words)
    if options.baseline and (options.format != "json" or options.acks or options.replays or options.no_redis):
        made.error("--baseline knows one-sample JSON, no acks and no replays, and needs its Redis")
    return options


def measure(subject: Subject, load: Load, options: argparse.Namespace) -> Figures:
    """Run the load once against a fresh service."""
    with house(subject, options.database_url, has_redis=not options.no_redis) as (port, dsn, pids, server):
        with blaming(server):
            found = drive(GENERATOR, load._replace(port=port), pids)
        lost = asyncio.run(lost_rows(dsn, subject.tables, found["sessions"], load.n_samples, load.n_features))
        figures = figures_of(found, lost_rows=lost)
        if faults(figures):
            print(f"The server said:\n{server.said()}\n", file=sys.stderr)
    return figures


def describe(load: Load, options: argparse.Namespace) -> str:
    """Say in words what is sent."""
    redis = "" if not options.no_redis else ", no Redis"
    return (
        f"{in_words(load)}, features {load.features_hz:g} Hz,\n"
        f"{options.consumers} consumer(s) each{redis}; {load.duration_s:g} s after {load.warmup_s:g} s of warm-up"
    )


def main() -> int:
    """Run the bench."""
    options = arguments()
    load = load_of(
        options,
        consumers=options.consumers * options.relays,
        listened=options.relays,
        features_hz=options.features_rate,
        acks=options.acks,
        replays=options.replays,
    )
    subjects = _subjects(options)
    for name, subject in subjects.items():
        print(f"{subject.title} ({name})")
    print(f"{machine()}\n{describe(load, options)}\n", flush=True)
    runs: dict[str, list[Figures]] = {name: [] for name in subjects}
    for _ in range(options.rounds):
        for name, subject in subjects.items():
            runs[name].append(measure(subject, load, options))
    columns = {name: middle(figures) for name, figures in runs.items()}
    print(table(columns))
    save(options.json, {name: column._asdict() for name, column in columns.items()})
    return say_faults(columns)


def _subjects(options: argparse.Namespace) -> Mapping[str, Subject]:
    """Name what is measured, this checkout last."""
    ours = checkouts(options.against)
    return {"baseline": Baseline(), **ours} if options.baseline else ours


if __name__ == "__main__":
    run(main)
