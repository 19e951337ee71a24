"""The figures of a run, what is wrong with them, and the table."""

from __future__ import annotations

import sys
from math import isnan, nan
from statistics import median
from typing import Any, NamedTuple

PROMISE_MS = 100.0  # p99 from edge to consumer
NOISE_SHARE = 0.2  # of a core, by processes that are no part of the bench
LATE_MS = 20.0  # of the generator's own p99: beyond it the latencies are not the server's


class Figures(NamedTuple):
    """One number per question; percentiles are p50, p99, p99.9 and the maximum."""

    latency_ms: dict[str, float]
    ack_ms: dict[str, float]  # empty without acks
    generator_lag_ms: dict[str, float]
    samples_per_s: float
    waiting_s: float  # of samples, for the database, when the sending ends
    server_us_per_sample: float
    cpu_share: dict[str, float]  # of one core, by part
    rss_kib_per_user: float
    peak_mib: float  # of the server's memory
    expected_samples: int
    lost_samples: int
    lost_features: int
    sent_samples: int
    unacked_samples: int
    lost_rows: int
    closed: list[str]
    strange: list[str]


def figures_of(found: dict[str, Any], **more: Any) -> Figures:
    """Take the figures of every bench from all that a run has found."""
    return Figures(**{name: value for name, value in found.items() if name in Figures._fields}, **more)


def faults(figures: Figures) -> list[str]:
    """Say what was lost or came that should not have; nothing for a good run."""
    found = [
        (figures.lost_samples, f"of {figures.expected_samples} samples did not reach their consumer once, in order"),
        (figures.lost_features, "features did not reach their consumer"),
        (figures.lost_rows, f"of {figures.sent_samples} samples, and features, are not in the database once"),
        (figures.unacked_samples, f"of {figures.sent_samples} samples were not said to be durable"),
        (len(figures.closed), f"connections were closed by the server, first {figures.closed[:1]}"),
        (len(figures.strange), f"messages were not expected, first {figures.strange[:1]}"),
    ]
    return [f"{n} {what}" for n, what in found if n]


def doubts(figures: Figures) -> list[str]:
    """Say what a reader of the figures has to know."""
    found = []
    if figures.latency_ms.get("p99", 0) >= PROMISE_MS:
        found.append(f"p99 is over the promised {PROMISE_MS:g} ms")
    if (others := figures.cpu_share.get("others", 0.0)) > NOISE_SHARE:
        found.append(f"other processes took {others:.0%} of a core meanwhile: run it again on a quiet machine")
    if figures.generator_lag_ms["p99"] > LATE_MS:
        found.append("the load generator was late itself: the machine is too busy for this load")
    return found


def medians(tables: list[dict[str, float]]) -> dict[str, float]:
    """Take the median of each figure that any of the tables has."""
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: median(table[name] for table in tables if name in table) for name in names}


def middle(runs: list[Figures]) -> Figures:
    """Take the median of every figure over several runs; what is wrong with one is wrong with all."""

    return Figures(
        latency_ms=medians([run.latency_ms for run in runs]),
        ack_ms=medians([run.ack_ms for run in runs]),
        generator_lag_ms=medians([run.generator_lag_ms for run in runs]),
        samples_per_s=median(run.samples_per_s for run in runs),
        waiting_s=median(run.waiting_s for run in runs),
        server_us_per_sample=median(run.server_us_per_sample for run in runs),
        cpu_share=medians([run.cpu_share for run in runs]),
        rss_kib_per_user=median(run.rss_kib_per_user for run in runs),
        peak_mib=median(run.peak_mib for run in runs),
        expected_samples=runs[0].expected_samples,
        lost_samples=sum(run.lost_samples for run in runs),
        lost_features=sum(run.lost_features for run in runs),
        sent_samples=runs[0].sent_samples,
        unacked_samples=sum(run.unacked_samples for run in runs),
        lost_rows=sum(run.lost_rows for run in runs),
        closed=[line for run in runs for line in run.closed],
        strange=[line for run in runs for line in run.strange],
    )


def say_faults(columns: dict[str, Figures]) -> int:
    """Say what was wrong with each version; return the exit code."""
    notes, wrong = [], []
    for name, figures in columns.items():
        whose = f" ({name})" if len(columns) > 1 else ""
        notes += [f"note{whose}: {doubt}" for doubt in doubts(figures)]
        wrong += [f"LOST{whose}: {fault}" for fault in faults(figures)]
    print("\nSamples were lost, see below." if wrong else "\nnothing lost", flush=True)
    for line in notes + wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def table(columns: dict[str, Figures]) -> str:
    """Write the figures, a column per version; of two, also how the second relates to the first."""
    return lines({name: cells_of(figures) for name, figures in columns.items()})


def lines(columns: dict[str, dict[str, float]]) -> str:
    """Write columns of numbers by name."""
    ours = list(columns.values())
    names = dict.fromkeys(name for cells in sorted(ours, key=len, reverse=True) for name in cells)
    rows = [(name, [cells.get(name, nan) for cells in ours]) for name in names]
    found = ["".join([" " * 30, *(f"{name[-17:]:>18}" for name in columns)])] if len(columns) > 1 else []
    for name, cells in rows:
        texts = "".join(f"{_number(cell):>18}" for cell in cells)
        is_pair = len(cells) == 2 and cells[0] and not any(map(isnan, cells))
        ratio = f"{cells[1] / cells[0]:>9.2f}×" if is_pair else ""
        found.append(f"{name:<30}{texts}{ratio}")
    return "\n".join(found)


def rows(tables: dict[str, dict[str, float]]) -> str:
    """Write a row of numbers for each name; what is measured stands in the head, over two lines."""
    names = list(dict.fromkeys(name for cells in tables.values() for name in cells))
    heads = [name.partition(", ")[::2] for name in names]
    widths = [2 + max(7, *map(len, head)) for head in heads]
    first = max(map(len, tables), default=0)
    found = [
        "".join([" " * first, *(f"{head[i]:>{n}}" for head, n in zip(heads, widths, strict=True))]) for i in (0, 1)
    ]
    for title, cells in tables.items():
        texts = (f"{_number(cells.get(name, nan)):>{n}}" for name, n in zip(names, widths, strict=True))
        found.append(f"{title:<{first}}{''.join(texts)}")
    return "\n".join(line.rstrip() for line in found)


def cells_of(figures: Figures) -> dict[str, float]:
    """Name the figures that are shown."""
    return {
        **{f"latency {name}, ms": value for name, value in figures.latency_ms.items()},
        **{f"ack {name}, ms": value for name, value in figures.ack_ms.items()},
        "samples in, per s": figures.samples_per_s,
        "lost to consumers": figures.lost_samples + figures.lost_features,
        "lost in the database": figures.lost_rows,
        "waits for the database, s": figures.waiting_s,
        "server CPU per sample, µs": figures.server_us_per_sample,
        "memory per user, KiB": figures.rss_kib_per_user,
        "memory of the server, MiB": figures.peak_mib,
        **{f"CPU of {name}, % of a core": 100 * share for name, share in figures.cpu_share.items()},
        "generator late p99, ms": figures.generator_lag_ms["p99"],
    }


def _number(value: float) -> str:
    if isnan(value):
        return "–"
    return f"{value:,.0f}" if isinstance(value, int) or value >= 1000 else f"{value:.3g}"
