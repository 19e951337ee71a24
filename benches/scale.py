"""How many relays one node takes: what a message costs, and how long it takes, with hundreds or thousands of them.

    python benches/scale.py [options]

Like latency.py, but with a load generator of its own, in Rust (generator/): load.py's would need more of a core than
the service. Ends with 1 when a sample was lost, with 2 when the bench could not run, or would not have measured what
is meant to be fast: the native path, optimised.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from drive import blaming, drive, house, stats
from frames import Load
from options import add_against, add_rounds, at_least, in_words, load_of, parser, run, save
from parts import BenchError, Checkout, checkouts, machine
from report import LATE_MS, Figures, cells_of, faults, figures_of, lines, medians, middle, say_faults
from stored import lost_rows
from zander.native import SWITCH

HERE = Path(__file__).resolve().parent
CRATE = HERE / "generator"
GOOD_P99_MS = 50.0  # that --search asks for
GOOD_WAITING_S = 2.0  # of samples, for the database; more is a database that does not keep up
TOGETHER_SHARE = 0.01  # of the messages, that leave together
TOGETHER_MEANS = "the generator was so late that messages left together, which is cheaper for a server too"
N_MORE_FILES = 200  # that a process needs besides its connections
RECORD_BYTES = 100  # of a sample in the journal, besides its values: surely less
PERCENTILES = ("p50", "p99", "p99.9", "max")
PASSED = ("passed_frames", "passed_messages", "passed_sessions")


class Heard(NamedTuple):
    """What the generator says of the steady part of a run."""

    sent_per_s: float  # messages
    delivered_per_s: float  # samples
    latency_ms: dict[str, float]
    latency_from_sent_ms: dict[str, float]  # from when they really left
    late_ms: dict[str, float]
    together_share: float  # of the messages: so late that they left together with the relay's one before


class Run(NamedTuple):
    """What a run has shown: the figures of every bench, and those that only this one has."""

    load: Load
    figures: Figures
    messages_per_s: float
    server_us_per_message: float
    heard: Heard
    generator_us_per_message: float
    generator_system_share: float  # of its CPU
    repeated_samples: int
    path: dict[str, int]
    given_up: list[tuple[float, str]]  # of the stalled: seconds after the start of the load, and how it was closed
    served: int  # consumers that the server still counts when all has arrived

    def is_good(self, *, has_database: bool) -> bool:
        """Whether the service keeps up."""
        keeps_up = self.figures.waiting_s < GOOD_WAITING_S or not has_database
        return keeps_up and not faults(self.figures) and self.figures.latency_ms.get("p99", 0.0) < GOOD_P99_MS


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    made = parser(__doc__.partition("\n")[0], n_relays=1000, formats=("json", "binary"))
    add = made.add_argument
    add("--consumers", type=at_least(0), default=100, metavar="N", help="consumers in all (100)")
    add("--listened", type=at_least(1), metavar="N", help="relays that have them, evenly (as many as there are)")
    add("--stalled", type=at_least(0), default=0, metavar="N", help="more consumers, that never read: with and without")
    add("--no-database", action="store_true", help="keep the database away: all stays in the journal")
    good = f"p99 below {GOOD_P99_MS:g} ms, nothing lost, less than {GOOD_WAITING_S:g} s waiting for the database"
    add("--search", action="store_true", help=f"find how many relays are good: {good}")
    add_against(made)
    add_rounds(made)
    options = made.parse_args(words)
    if options.listened is None:
        options.listened = min(options.relays, max(options.consumers, options.stalled))
    if options.listened > options.relays:
        made.error(f"--listened: expected at most all of the {options.relays} relays, got {options.listened}")
    if options.search and options.stalled:
        made.error("--search knows no consumers that are stalled")
    if (options.against or options.rounds > 1) and (options.search or options.stalled):
        made.error("--against and --rounds go with neither --search nor --stalled")
    if options.no_database and options.database_url:
        made.error("--no-database: there is nothing to write to the --database-url")
    return options


def build() -> list[str]:
    """Build the load generator, and the floor beside it; return its command."""
    cargo = shutil.which("cargo")
    if not cargo:
        raise BenchError("the load generator needs Rust, and there is no cargo")
    target = CRATE / "target"
    command = [cargo, "build", "--release", "--locked", "--quiet"]
    command += ["--manifest-path", str(CRATE / "Cargo.toml"), "--target-dir", str(target)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        raise BenchError(f"the load generator cannot be built:\n{built.stderr.strip()}")
    return [str(target / "release" / "zander-generator")]


def measure(checkout: Checkout, generator: list[str], load: Load, options: argparse.Namespace) -> Run:
    """Run the load once against a fresh service."""
    place = house(
        checkout,
        options.database_url,
        has_redis=not options.no_redis,
        has_database=not options.no_database,
        settings=_settings(load, options),
    )
    with place as (port, dsn, pids, server):
        if not stats(port)["path"]["native"]:
            raise BenchError(f"the service runs without its native path: it is not built, or {SWITCH} is 0")
        with blaming(server):
            found = drive(generator, load._replace(port=port), pids)
            after = stats(port)
        if options.no_database:  # a record each, and one for each session
            lost = max(0, load.relays * (load.n_samples + 1) - after["database"]["pending_records"])
        else:
            lost = asyncio.run(lost_rows(dsn, checkout.tables, found["sessions"], load.n_samples, 0))
        measured = _run_of(load, found, after["path"], lost)
        if faults(measured.figures):
            print(f"The server said:\n{server.said()}\n", file=sys.stderr)
    return measured


def _settings(load: Load, options: argparse.Namespace) -> dict[str, str]:
    """Let all connect, and where the database is away let the journal grow."""
    n_connections = load.relays + load.consumers + load.stalled
    n_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if n_files < n_connections + N_MORE_FILES:
        raise BenchError(f"{n_connections} connections need more open files than the {n_files} that are allowed")
    settings = {"MAX_CONNECTIONS": str(n_connections + N_MORE_FILES)}
    if options.no_database:
        n_bytes = load.relays * load.n_samples * (4 * load.n_channels + RECORD_BYTES)
        settings["JOURNAL_MAX_BYTES"] = str(n_bytes + (1 << 30))
    return settings


def _run_of(load: Load, found: dict[str, Any], path: dict[str, int], lost: int) -> Run:
    """Work out the figures from what the generator and the service counted."""
    cpu_s, n_repeated = found["generator_cpu_s"], found["repeated_samples"]
    found["lost_samples"] += n_repeated  # what is not there once
    heard = heard_of(found)
    found |= {"latency_ms": heard.latency_ms, "generator_lag_ms": heard.late_ms}
    figures = figures_of(found, ack_ms={}, lost_features=0, unacked_samples=0, lost_rows=lost)
    messages_per_s = figures.samples_per_s / load.n_chunk
    return Run(
        load=load,
        figures=figures,
        messages_per_s=messages_per_s,
        server_us_per_message=figures.server_us_per_sample * load.n_chunk,
        heard=heard,
        generator_us_per_message=1e6 * figures.cpu_share["generator"] / max(1.0, messages_per_s),
        generator_system_share=cpu_s.get("system", 0.0) / max(0.01, sum(cpu_s.values())),
        repeated_samples=n_repeated,
        path=path,
        given_up=found["given_up"],
        served=found["served"],
    )


def heard_of(found: dict[str, Any]) -> Heard:
    """Take from the generator's figures what needs no server that counts."""
    latency_ms, latency_from_sent_ms, late_ms = (
        {percentile: found[name][percentile] for percentile in PERCENTILES if found[name]}
        for name in ("latency_ms", "latency_from_sent_ms", "generator_lag_ms")
    )
    return Heard(
        sent_per_s=found["sent_messages_per_s"],
        delivered_per_s=found["received_samples_per_s"],
        latency_ms=latency_ms,
        latency_from_sent_ms=latency_from_sent_ms,
        late_ms=late_ms,
        together_share=found["sent_together"] / max(1, found["sent_messages"]),
    )


def _cells(run: Run) -> dict[str, float]:
    """Name the figures of a run that are shown."""
    cells = cells_of(run.figures)
    late_ms = cells.pop("generator late p99, ms")
    from_sent_ms = run.heard.latency_from_sent_ms
    if run.server_us_per_message != run.figures.server_us_per_sample:
        cells["server CPU per message, µs"] = run.server_us_per_message
    return cells | {
        "repeated": run.repeated_samples,
        "messages in, per s": run.messages_per_s,
        **{name.replace("_", ", "): n for name, n in run.path.items() if name != "native"},
        "generator CPU per message, µs": run.generator_us_per_message,
        "of it in the system, %": 100 * run.generator_system_share,
        **{f"latency from sent {name}, ms": from_sent_ms[name] for name in ("p50", "p99") if from_sent_ms},
        "generator late p50, ms": run.figures.generator_lag_ms["p50"],
        "generator late p99, ms": late_ms,
        "left together, %": 100 * run.heard.together_share,
    }


def describe(load: Load, options: argparse.Namespace) -> str:
    """Say in words what is sent, and to whom."""
    consumers = f"{load.consumers} consumers of {min(load.listened, load.consumers)} relays"
    stalled = f", {load.stalled} more that never read" if load.stalled else ""
    away = [name for name, is_away in (("Redis", options.no_redis), ("database", options.no_database)) if is_away]
    without = "".join(f", no {name}" for name in away)
    return (
        f"{in_words(load)},\n{consumers}{stalled}{without}; {load.duration_s:g} s after {load.warmup_s:g} s of warm-up"
    )


def search(checkout: Checkout, generator: list[str], load: Load, options: argparse.Namespace) -> Run:
    """Double the relays while the service keeps up, then halve the steps to an eighth; return the best run."""
    best, n_good, n_bad, n = None, 0, 0, load.relays
    while not n_bad or n_bad - n_good > max(1, n_good // 8):
        found = _try(checkout, generator, _of_relays(load, n), options)
        if found:
            best, n_good = found, n
        else:
            n_bad = n
        n = (n_good + n_bad) // 2 if n_bad else 2 * n_good
    if not best:
        raise BenchError("the service does not keep up with a single relay")
    return best


def _of_relays(load: Load, n: int) -> Load:
    """Return the load with so many relays; each of fewer has as many consumers as before."""
    listened = min(load.listened, n)
    return load._replace(relays=n, listened=listened, consumers=load.consumers * listened // max(1, load.listened))


def _try(checkout: Checkout, generator: list[str], load: Load, options: argparse.Namespace) -> Run | None:
    """Run the load, and say how it went; None when it was too much."""
    try:
        found = measure(checkout, generator, load, options)
    except BenchError as error:
        print(f"{load.relays} relays: {error}", flush=True)
        return None
    figures, is_good = found.figures, found.is_good(has_database=not options.no_database)
    p99_ms, late_ms = figures.latency_ms.get("p99", 0.0), figures.generator_lag_ms["p99"]
    by_whom = ", the generator's own limit perhaps" if late_ms > LATE_MS and not is_good else ""
    print(
        f"{load.relays} relays: {'good' if is_good else 'too many'}, p99 {p99_ms:.3g} ms, "
        f"{figures.waiting_s:.2g} s wait for the database, generator late p99 {late_ms:.3g} ms{by_whom}",
        flush=True,
    )
    return found if is_good else None


def stall(checkout: Checkout, generator: list[str], load: Load, options: argparse.Namespace) -> dict[str, Run]:
    """Run the load without those that never read, and with them."""
    return {
        "without": measure(checkout, generator, load._replace(stalled=0), options),
        "with them": measure(checkout, generator, load, options),
    }


def say_stalled(without: Run, stalled: Run) -> None:
    """Say what those that never read have cost, and what became of them."""
    n, given_up = stalled.load.stalled, stalled.given_up
    kib = 1024 * (stalled.figures.peak_mib - without.figures.peak_mib) / n
    n_served = max(0, stalled.served - stalled.load.consumers)
    print(f"\n{n} that never read: {kib:,.0f} KiB of the server's memory each at most, in the end it serves {n_served}")
    for how, n_closed in Counter(how for _, how in given_up).items():
        at_s = [at_s for at_s, same in given_up if same == how]
        print(f"{n_closed} saw it closed after {min(at_s):.1f} to {max(at_s):.1f} s: {how}")


def main() -> int:
    """Run the bench."""
    options = arguments()
    load = load_of(
        options, consumers=options.consumers, listened=options.listened, stalled=options.stalled, features_hz=0.0
    )
    versions, generator = checkouts(options.against), build()
    for name, checkout in versions.items():
        print(f"{checkout.title} ({name})")
    print(f"{machine()}\n{describe(load, options)}\n", flush=True)
    runs: dict[str, list[Run]] = {name: [] for name in versions}
    if options.search:
        [(name, checkout)] = versions.items()
        runs[name].append(search(checkout, generator, load, options))
        print(f"\n{describe(runs[name][0].load, options)}\n")
    elif load.stalled:
        runs = {name: [run] for name, run in stall(checkout, generator, load, options).items()}
    for _ in range(0 if options.search or load.stalled else options.rounds):
        for name, checkout in versions.items():
            runs[name].append(measure(checkout, generator, load, options))
    return report(runs, options)


def report(runs: dict[str, list[Run]], options: argparse.Namespace) -> int:
    """Print the medians of the runs, and what was wrong with any; return the exit code."""
    print(lines({name: medians([_cells(run) for run in found]) for name, found in runs.items()}))
    if options.stalled:
        say_stalled(*(found[0] for found in runs.values()))
    if any(run.heard.together_share > TOGETHER_SHARE for found in runs.values() for run in found):
        print(f"\nnote: {TOGETHER_MEANS}", file=sys.stderr)
    told: dict[str, Any] = {
        name: [run._asdict() | {"figures": run.figures._asdict(), "heard": run.heard._asdict()} for run in found]
        for name, found in runs.items()
    }
    if options.rounds == 1:
        told = {name: found[0] for name, found in told.items()}
    save(options.json, told if len(told) > 1 else next(iter(told.values())))
    return say_faults({name: middle([run.figures for run in found]) for name, found in runs.items()})


if __name__ == "__main__":
    run(main)
