"""How far Zander is from the least that a relay server can cost, and from other brokers, under one load.

    python benches/peers.py [options]

All are sent the same samples by the same generator (generator/), one after another, each freshly started. The floor
(generator/floor.rs) is a bare loop on epoll. Only Zander keeps what it is sent: every sample goes into its journal
before anybody gets it, and on into PostgreSQL. What is not installed is left out. Ends with 1 when Zander lost a
sample, with 2 when the bench could not run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from brokers import BROKERS, Broker
from drive import blaming, follow
from frames import Load
from options import add_against, add_course, add_rounds, run, save
from parts import BenchError, Checkout, checkouts, machine
from report import LATE_MS, NOISE_SHARE, Figures, faults, medians, rows
from scale import TOGETHER_MEANS, TOGETHER_SHARE, Heard, build, heard_of, measure

ZANDER_TITLE = "Zander"
ZANDER, NO_DATABASE = "zander", "zander-no-database"
SYSTEMS = (*BROKERS, NO_DATABASE, ZANDER)
LATE, TOGETHER, OTHERS = "late p99, ms", "left together, %", "others, % core"  # and the other columns: see _cells
RATIOS = {"÷ Zander, CPU": "µs CPU, message", "÷ Zander, p50": "latency, p50 ms", "÷ Zander, p99": "latency, p99 ms"}


class Crowd(NamedTuple):
    """Who sends and who listens; the first `listened` relays have the consumers, evenly."""

    relays: int
    consumers: int
    listened: int

    def __str__(self) -> str:
        of_whom = "each of one" if self.listened == self.consumers else f"of {self.listened}"
        return f"{self.relays:,} producers, {self.consumers:,} consumers {of_whom}"


CROWDS = {
    "a": Crowd(100, 100, 100),
    "b": Crowd(100, 10, 1),
    "c": Crowd(1000, 100, 100),
    "c5": Crowd(500, 100, 100),
    "d1": Crowd(1, 1000, 1),
    "d2": Crowd(10, 1000, 10),
}


class Measured(NamedTuple):
    """A run: the numbers of its row, and Zander's own figures, which say what it lost."""

    cells: dict[str, float]
    figures: Figures | None = None


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    made = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = made.add_argument
    loads = "; ".join(f"{name}: {crowd}" for name, crowd in CROWDS.items())
    what = f"{loads}; or three numbers, producers,consumers,of how many producers (a d1 c)"
    add("--loads", type=_crowd, nargs="+", default=[*map(_crowd, ("a", "d1", "c"))], metavar="LOAD", help=what)
    add("--systems", choices=SYSTEMS, nargs="+", default=[*SYSTEMS], metavar="NAME", help=f"of {', '.join(SYSTEMS)}")
    add_course(made, duration_s=10.0, warmup_s=1.0)
    add_against(made)
    add_rounds(made)
    return made.parse_args(words)


def _crowd(text: str) -> tuple[str, Crowd]:
    """Read a load: its letter, or its numbers."""
    crowd = CROWDS.get(text) or Crowd(*map(int, text.split(",")))
    if not 1 <= crowd.listened <= crowd.relays or crowd.consumers < crowd.listened:
        raise ValueError(text)
    return text, crowd


_crowd.__name__ = "load"  # argparse names it in its error


def systems(options: argparse.Namespace, generator: list[str]) -> dict[str, Callable[[Load], Measured]]:
    """Find what can be measured, by title; what is missing is told of."""
    found: dict[str, Callable[[Load], Measured]] = {}
    for name in (name for name in BROKERS if name in options.systems):
        broker = BROKERS[name]
        try:
            program = broker.find()
        except BenchError as error:
            print(f"{broker.title} is left out: {error}", file=sys.stderr, flush=True)
            continue
        found[broker.named(program)] = partial(measure_broker, broker, program, generator)
    for name, checkout in checkouts(options.against).items():
        version = f" {name}" if options.against else ""
        for system, words in ((NO_DATABASE, ", no database"), (ZANDER, "")):
            if system in options.systems:
                settings = argparse.Namespace(no_redis=True, no_database=system == NO_DATABASE, database_url=None)
                found[f"{ZANDER_TITLE}{version}{words}"] = partial(measure_zander, checkout, generator, settings)
    return found


def measure_broker(broker: Broker, program: str, generator: list[str], load: Load) -> Measured:
    """Run the load once against a broker that was just started."""
    with broker.running(program) as (port, server), blaming(server):
        load = load._replace(port=port, dialect=broker.dialect)
        course = follow(generator, load, {"server": server.pid}, lambda: None)
    found = course.figures
    if wrong := found["closed"] + found["strange"]:
        raise BenchError(f"{len(wrong)} times something went wrong, first: {wrong[0]}")
    n_lost = found["lost_samples"] + found["repeated_samples"]
    return Measured(_cells(heard_of(found), n_lost, course.shares, course.peak_bytes / (1 << 20)))


def measure_zander(checkout: Checkout, generator: list[str], settings: argparse.Namespace, load: Load) -> Measured:
    """Run the load once against a Zander that was just started, and look for every sample in its database."""
    found = measure(checkout, generator, load, settings)
    figures = found.figures
    n_lost = figures.lost_samples + figures.lost_rows
    return Measured(_cells(found.heard, n_lost, figures.cpu_share, figures.peak_mib), figures)


def _cells(heard: Heard, n_lost: int, shares: dict[str, float], peak_mib: float) -> dict[str, float]:
    """Name the figures of a run, as heads of their columns."""
    latency_ms, from_sent_ms = heard.latency_ms, heard.latency_from_sent_ms
    n_messages_per_s = max(1.0, heard.sent_per_s, heard.delivered_per_s)  # in or out, what there is more of
    return {
        "delivered, per s": heard.delivered_per_s,
        "lost, ": n_lost,
        "latency, p50 ms": latency_ms["p50"],
        "latency, p99 ms": latency_ms["p99"],
        "latency, p99.9": latency_ms["p99.9"],
        "latency, max": latency_ms["max"],
        "from sent, p50 ms": from_sent_ms["p50"],
        "from sent, p99 ms": from_sent_ms["p99"],
        "µs CPU, message": 1e6 * shares["server"] / n_messages_per_s,
        "CPU, % core": 100 * shares["server"],
        "memory, MiB": peak_mib,
        LATE: heard.late_ms["p99"],
        TOGETHER: 100 * heard.together_share,
        "generator, % core": 100 * shares["generator"],
        OTHERS: 100 * shares["others"],
    }


def compare(load: Load, found: dict[str, Callable[[Load], Measured]], n_rounds: int) -> dict[str, list[Measured]]:
    """Measure all in turn, in the other direction every second time; one that fails is not tried again."""
    runs: dict[str, list[Measured]] = {title: [] for title in found}
    for i in range(n_rounds):
        for title in list(runs)[:: -1 if i % 2 else 1]:
            try:
                runs[title].append(found[title](load))
            except BenchError as error:
                if title.startswith(ZANDER_TITLE):
                    raise
                print(f"{title} is left out: {error}", file=sys.stderr, flush=True)
                del runs[title]
    if not runs:
        raise BenchError("nothing could be measured")
    return runs


def tables(runs: dict[str, list[Measured]]) -> dict[str, dict[str, float]]:
    """Take the medians, and put them beside those of this Zander, which comes last where it is measured."""
    found = {title: medians([run.cells for run in measured]) for title, measured in runs.items()}
    *_, (title, ours) = found.items()
    for cells in found.values() if title.startswith(ZANDER_TITLE) else ():
        others = cells.pop(OTHERS)
        cells |= {name: cells[of] / ours[of] for name, of in RATIOS.items() if ours[of]}
        cells[OTHERS] = others
    return found


def doubts(table: dict[str, dict[str, float]]) -> list[str]:
    """Say which rows a reader should not take at their word."""
    limits = {
        OTHERS: (100 * NOISE_SHARE, "other processes took much of the machine meanwhile: run it again on a quiet one"),
        LATE: (LATE_MS, "the generator was late, which is in the latency and not in the latency from sent"),
        TOGETHER: (100 * TOGETHER_SHARE, TOGETHER_MEANS),
    }
    found = {
        what: [title for title, cells in table.items() if cells[name] > most] for name, (most, what) in limits.items()
    }
    return [f"{what} ({', '.join(titles)})" for what, titles in found.items() if titles]


def main() -> int:
    """Run the bench."""
    options = arguments()
    generator = build()
    found = systems(options, generator)
    if not found:
        raise BenchError("there is nothing to measure")
    sent = (
        f"{options.rate:g} Hz × {options.channels} channels, one-sample JSON; {options.duration:g} s, {options.rounds}×"
    )
    print(f"{machine()}\n{sent}", flush=True)
    told: dict[str, dict[str, dict[str, float]]] = {}
    wrong: list[str] = []
    for name, crowd in options.loads:
        runs = compare(_load(crowd, options), found, options.rounds)
        table = told[name] = tables(runs)
        print(
            "\n".join([f"\n{name}: {crowd}", rows(table), *(f"note: {doubt}" for doubt in doubts(table))]), flush=True
        )
        ours = [(title, run.figures) for title, measured in runs.items() for run in measured if run.figures]
        wrong += [f"LOST ({title}, {name}): {fault}" for title, figures in ours for fault in faults(figures)]
    save(options.json, told)
    print("\n" + ("\n".join(wrong) or "nothing lost that Zander took"), flush=True)
    return 1 if wrong else 0


def _load(crowd: Crowd, options: argparse.Namespace) -> Load:
    return Load(
        port=0,
        **crowd._asdict(),
        rate_hz=options.rate,
        n_channels=options.channels,
        format="json",
        n_chunk=1,
        features_hz=0.0,
        duration_s=options.duration,
        warmup_s=options.warmup,
        seed=options.seed,
    )


if __name__ == "__main__":
    run(main)
