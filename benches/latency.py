"""How long a sample takes from the edge to a consumer, and what it costs.

    python benches/latency.py [options]

Starts the service with a PostgreSQL and a Valkey of its own, and drives it from another process (load.py), all on
this machine. Another checkout, or an ordinary service of this kind (baseline.py), can be measured in turn with it.
Ends with 1 when a sample was lost, with 2 when the bench could not run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from drive import blaming, drive, house
from frames import FORMATS, Load
from parts import Baseline, BenchError, Checkout, Subject, machine
from report import Figures, doubts, faults, middle, table
from stored import lost_rows
from zander.local.embedded import EmbeddedPostgresError

HERE = Path(__file__).resolve().parent
GENERATOR = [sys.executable, str(HERE / "load.py")]
WARMUP_S = 3.0


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--relays", type=_positive(int), default=100, metavar="N", help="relays, each a user (100)")
    add("--rate", type=_positive(float), default=128.0, metavar="HZ", help="samples per second of each relay (128)")
    add("--channels", type=_positive(int), default=7, metavar="N", help="channels (7)")
    add("--consumers", type=int, default=1, metavar="N", help="consumers of each user (1)")
    add("--format", choices=FORMATS, default="json", help="one sample or a chunk as JSON, or a binary chunk (json)")
    add("--chunk-samples", type=_positive(int), default=32, metavar="N", help="samples per chunk (32)")
    add("--features-rate", type=float, default=1.0, metavar="HZ", help="features per second of each relay (1)")
    add("--duration", type=_positive(float), default=20.0, metavar="S", help="seconds measured, after the warm-up (20)")
    add("--warmup", type=float, default=WARMUP_S, metavar="S", help=f"seconds before them ({WARMUP_S:g})")
    add("--seed", type=int, default=1, metavar="N", help="of the values and the relays' phases (1)")
    add("--acks", action="store_true", help="relays ask for acks, and the time to them is measured")
    add("--replays", type=int, default=0, metavar="N", help="consumers that come back meanwhile, to the beginning (0)")
    add("--no-redis", action="store_true", help="run the node alone")
    add("--database-url", metavar="URL", help="write to this PostgreSQL instead of an own one")
    other = parser.add_mutually_exclusive_group().add_argument
    other("--against", type=Path, metavar="DIR", help="measure the checkout in DIR in turn with this one")
    other("--baseline", action="store_true", help="measure an ordinary FastAPI service in turn with this one")
    add("--rounds", type=_positive(int), default=1, metavar="N", help="runs of each version; the median is shown (1)")
    add("--json", type=Path, metavar="FILE", help="write the figures to FILE too")
    options = parser.parse_args(words)
    if options.baseline and (options.format != "json" or options.acks or options.replays or options.no_redis):
        parser.error("--baseline knows one-sample JSON, no acks and no replays, and needs its Redis")
    return options


def _positive(kind: type) -> Any:
    def number(text: str) -> Any:
        if (value := kind(text)) <= 0:
            raise ValueError(text)
        return value

    number.__name__ = f"positive {kind.__name__}"
    return number


def load_of(options: argparse.Namespace) -> Load:
    """Turn the options into a load; its port is not known yet."""
    return Load(
        port=0,
        relays=options.relays,
        consumers=options.consumers,
        rate_hz=options.rate,
        n_channels=options.channels,
        format=options.format,
        n_chunk=1 if options.format == "json" else options.chunk_samples,
        features_hz=options.features_rate,
        duration_s=options.duration,
        warmup_s=options.warmup,
        seed=options.seed,
        acks=options.acks,
        replays=options.replays,
    )


def measure(subject: Subject, load: Load, options: argparse.Namespace) -> Figures:
    """Run the load once against a fresh service."""
    with house(subject, options.database_url, has_redis=not options.no_redis) as (port, dsn, pids, server):
        with blaming(server):
            found = drive(GENERATOR, load._replace(port=port), pids)
        lost = asyncio.run(lost_rows(dsn, subject.tables, found.pop("sessions"), load.n_samples, load.n_features))
        figures = Figures(**found, lost_rows=lost)
        if faults(figures):
            print(f"The server said:\n{server.said()}\n", file=sys.stderr)
    return figures


def describe(load: Load, options: argparse.Namespace) -> str:
    """Say in words what is sent."""
    chunk = f" of {load.n_chunk} samples" if load.n_chunk > 1 else ""
    kind = {"json": "one-sample JSON", "chunk": f"JSON chunks{chunk}", "binary": f"binary chunks{chunk}"}[load.format]
    redis = "" if not options.no_redis else ", no Redis"
    return (
        f"{load.relays} relays × {load.rate_hz:g} Hz × {load.n_channels} channels, {kind}, "
        f"features {load.features_hz:g} Hz,\n{load.consumers} consumer(s) each{redis}; "
        f"{load.duration_s:g} s after {load.warmup_s:g} s of warm-up"
    )


def main() -> int:
    """Run the bench."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = arguments()
    n_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (n_files, n_files))  # for us and all that we start
    load = load_of(options)
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
    if options.json:
        figures = {name: column._asdict() for name, column in columns.items()}
        options.json.write_text(json.dumps(figures, indent=1))
    return say_faults(columns)


def _subjects(options: argparse.Namespace) -> dict[str, Subject]:
    """Name what is measured, this checkout last."""
    if options.baseline:
        return {"baseline": Baseline()} | _named([HERE.parent])
    return dict(_named([*([options.against] if options.against else []), HERE.parent]))


def _named(directories: list[Path]) -> dict[str, Checkout]:
    """Name checkouts by their commit, or by their directory where that does not tell them apart."""
    found = [Checkout(directory) for directory in directories]
    commits = [checkout.commit for checkout in found]
    is_clear = all(commits) and len(set(commits)) == len(commits)
    return {checkout.commit if is_clear else str(checkout.directory): checkout for checkout in found}


def say_faults(columns: dict[str, Figures]) -> int:
    """Say what was wrong; return the exit code."""
    wrong = [f"LOST ({name}): {fault}" for name, figures in columns.items() for fault in faults(figures)]
    notes = [f"note ({name}): {doubt}" for name, figures in columns.items() for doubt in doubts(figures)]
    print("\nSamples were lost, see below." if wrong else "\nnothing lost", flush=True)
    for line in notes + wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BenchError, EmbeddedPostgresError) as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
