"""How many relays one node takes: what a message costs, and how long it takes, with hundreds or thousands of them.

    python benches/scale.py [options]

Like latency.py, but with a load generator of its own, in Rust (generator/): load.py's would need more of a core than
the service. Ends with 1 when a sample was lost, with 2 when the bench could not run, or would not have measured what
is meant to be fast: the native path, optimised.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from drive import blaming, drive, house, stats
from frames import Load
from parts import BenchError, Checkout, machine
from report import LATE_MS, Figures, cells_of, doubts, faults, lines
from stored import lost_rows
from zander.local.embedded import EmbeddedPostgresError
from zander.native import SWITCH

HERE = Path(__file__).resolve().parent
CRATE = HERE / "generator"
GOOD_P99_MS = 50.0  # that --search asks for
N_MORE_FILES = 200  # that a process needs besides its connections
PERCENTILES = ("p50", "p99", "p99.9", "max")
PASSED = ("passed_frames", "passed_messages", "passed_sessions")


class Run(NamedTuple):
    """What a run has shown: the figures of every bench, and those that only this one has."""

    relays: int
    consumers: int
    figures: Figures
    messages_per_s: float
    server_us_per_message: float
    generator_us_per_message: float
    generator_system_share: float  # of its CPU
    repeated_samples: int
    path: dict[str, int]
    waiting_bytes: int  # in the journal, when everything had arrived

    @property
    def is_good(self) -> bool:
        """Whether the service keeps up."""
        return not faults(self.figures) and self.figures.latency_ms.get("p99", 0.0) < GOOD_P99_MS


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--relays", type=_at_least(1), default=1000, metavar="N", help="relays, each a user (1000)")
    add("--consumers", type=_at_least(0), default=100, metavar="N", help="consumers, each of another user (100)")
    add("--rate", type=float, default=128.0, metavar="HZ", help="samples per second of each relay (128)")
    add("--channels", type=_at_least(1), default=7, metavar="N", help="channels (7)")
    add("--format", choices=("json", "binary"), default="json", help="one sample as JSON, or a binary chunk (json)")
    add("--chunk-samples", type=_at_least(1), default=32, metavar="N", help="samples per binary chunk (32)")
    add("--duration", type=float, default=20.0, metavar="S", help="seconds measured, after the warm-up (20)")
    add("--warmup", type=float, default=3.0, metavar="S", help="seconds before them (3)")
    add("--seed", type=_at_least(0), default=1, metavar="N", help="of the values and the relays' phases (1)")
    add("--no-redis", action="store_true", help="run the node alone")
    add("--database-url", metavar="URL", help="write to this PostgreSQL instead of an own one")
    add("--search", action="store_true", help=f"find how many relays get p99 below {GOOD_P99_MS:g} ms and lose nothing")
    add("--json", type=Path, metavar="FILE", help="write the figures to FILE too")
    options = parser.parse_args(words)
    if options.consumers > options.relays:
        parser.error(f"--consumers: expected at most one of each of {options.relays} relays, got {options.consumers}")
    if options.rate <= 0 or options.duration <= 0 or options.warmup < 0:
        parser.error("--rate, --duration and --warmup: expected positive numbers")
    return options


def _at_least(least: int) -> Any:
    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise ValueError(text)
        return value

    number.__name__ = f"number from {least}"
    return number


def load_of(options: argparse.Namespace) -> Load:
    """Turn the options into a load; its consumers are all there are, one for each of the first relays."""
    return Load(
        port=0,
        relays=options.relays,
        consumers=options.consumers,
        rate_hz=options.rate,
        n_channels=options.channels,
        format=options.format,
        n_chunk=1 if options.format == "json" else options.chunk_samples,
        features_hz=0.0,
        duration_s=options.duration,
        warmup_s=options.warmup,
        seed=options.seed,
    )


def build() -> list[str]:
    """Build the load generator; return its command."""
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
    n_connections = load.relays + load.consumers
    n_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if n_files < n_connections + N_MORE_FILES:
        raise BenchError(f"{n_connections} connections need more open files than the {n_files} that are allowed")
    settings = {"MAX_CONNECTIONS": str(n_connections + N_MORE_FILES)}
    place = house(checkout, options.database_url, has_redis=not options.no_redis, settings=settings)
    with place as (port, dsn, pids, server):
        if not stats(port)["path"]["native"]:
            raise BenchError(f"the service runs without its native path: it is not built, or {SWITCH} is 0")
        with blaming(server):
            found = drive(generator, load._replace(port=port), pids)
            after = stats(port)
        lost = asyncio.run(lost_rows(dsn, checkout.tables, found.pop("sessions"), load.n_samples, 0))
        run = _run_of(load, found, after, lost)
        if faults(run.figures):
            print(f"The server said:\n{server.said()}\n", file=sys.stderr)
    return run


def _run_of(load: Load, found: dict[str, Any], after: dict[str, Any], lost: int) -> Run:
    """Work out the figures from what the generator and the service counted."""
    cpu_s, n_repeated = found.pop("generator_cpu_s"), found.pop("repeated_samples")
    found["lost_samples"] += n_repeated  # what is not there once
    for name in ("latency_ms", "generator_lag_ms"):
        found[name] = {percentile: found[name][percentile] for percentile in PERCENTILES if found[name]}
    figures = Figures(
        ack_ms={},
        lost_features=0,
        unacked_samples=0,
        lost_rows=lost,
        **{name: value for name, value in found.items() if name in Figures._fields},
    )
    messages_per_s = figures.samples_per_s / load.n_chunk
    return Run(
        relays=load.relays,
        consumers=load.consumers,
        figures=figures,
        messages_per_s=messages_per_s,
        server_us_per_message=figures.server_us_per_sample * load.n_chunk,
        generator_us_per_message=1e6 * figures.cpu_share["generator"] / max(1.0, messages_per_s),
        generator_system_share=cpu_s.get("system", 0.0) / max(0.01, sum(cpu_s.values())),
        repeated_samples=n_repeated,
        path=after["path"],
        waiting_bytes=after["database"]["pending_bytes"],
    )


def table(run: Run) -> str:
    """Write the figures of a run."""
    cells = cells_of(run.figures)
    late_ms = cells.pop("generator late p99, ms")
    if run.server_us_per_message != run.figures.server_us_per_sample:
        cells["server CPU per message, µs"] = run.server_us_per_message
    cells |= {
        "repeated": run.repeated_samples,
        "messages in, per s": run.messages_per_s,
        **{name.replace("_", ", "): run.path[name] for name in ("peeled", *PASSED)},
        "waiting in the journal, MiB": run.waiting_bytes / (1 << 20),
        "generator CPU per message, µs": run.generator_us_per_message,
        "of it in the system, %": 100 * run.generator_system_share,
        "generator late p99, ms": late_ms,
    }
    return lines({"": cells})


def describe(load: Load) -> str:
    """Say in words what is sent."""
    kind = "one-sample JSON" if load.format == "json" else f"binary chunks of {load.n_chunk} samples"
    return (
        f"{load.relays} relays × {load.rate_hz:g} Hz × {load.n_channels} channels, {kind}, "
        f"{load.consumers} consumers; {load.duration_s:g} s after {load.warmup_s:g} s of warm-up"
    )


def search(checkout: Checkout, generator: list[str], load: Load, options: argparse.Namespace) -> Run:
    """Double the relays while the service keeps up, then halve the steps to an eighth; return the best run."""
    best, n_good, n_bad, n = None, 0, 0, load.relays
    while not n_bad or n_bad - n_good > max(1, n_good // 8):
        run = _try(checkout, generator, load._replace(relays=n, consumers=min(load.consumers, n)), options)
        if run and run.is_good:
            best, n_good = run, n
        else:
            n_bad = n
        n = (n_good + n_bad) // 2 if n_bad else 2 * n_good
    if not best:
        raise BenchError("the service does not keep up with a single relay")
    return best


def _try(checkout: Checkout, generator: list[str], load: Load, options: argparse.Namespace) -> Run | None:
    """Run the load, and say how it went."""
    try:
        run = measure(checkout, generator, load, options)
    except BenchError as error:
        print(f"{load.relays} relays: {error}", flush=True)
        return None
    p99_ms, late_ms = run.figures.latency_ms.get("p99", 0.0), run.figures.generator_lag_ms["p99"]
    outcome = "good" if run.is_good else "too many"
    by_whom = ", the generator's own limit perhaps" if late_ms > LATE_MS and not run.is_good else ""
    late = f"generator late p99 {late_ms:.3g} ms{by_whom}"
    print(f"{load.relays} relays: {outcome}, p99 {p99_ms:.3g} ms, {late}", flush=True)
    return run


def main() -> int:
    """Run the bench."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = arguments()
    n_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (n_files, n_files))  # for us and all that we start
    checkout, load, generator = Checkout(HERE.parent), load_of(options), build()
    print(f"{checkout.title} ({checkout.commit})\n{machine()}\n{describe(load)}\n", flush=True)
    run = (search if options.search else measure)(checkout, generator, load, options)
    if options.search:
        print(f"\n{describe(load._replace(relays=run.relays, consumers=run.consumers))}\n")
    print(table(run))
    if options.json:
        options.json.write_text(json.dumps(run._asdict() | {"figures": run.figures._asdict()}, indent=1))
    return say_faults(run)


def say_faults(run: Run) -> int:
    """Say what was wrong; return the exit code."""
    wrong = faults(run.figures)
    print("\nSamples were lost, see below." if wrong else "\nnothing lost", flush=True)
    for line in [f"note: {doubt}" for doubt in doubts(run.figures)] + [f"LOST: {fault}" for fault in wrong]:
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
