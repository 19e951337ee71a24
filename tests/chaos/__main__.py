"""`python -m chaos --rounds 100 --seed 7`: rounds, one after the other, and what they came to."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter

import numpy as np

from chaos import database
from chaos.disk import mount_privately
from chaos.round import Outcome, plan, play
from chaos.setbacks import FAULTS
from chaos.system import System, started
from chaos.twins import impatient
from support.databases import connected


def main() -> int:
    """Play the rounds that are asked for; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of the first round; then + 1")
    parser.add_argument("--keep-going", action="store_true", help="after a violation too")
    parser.add_argument("--only", action="append", choices=sorted(FAULTS), default=[], help="these faults only")
    options = parser.parse_args()
    mount_privately()
    with impatient():
        return asyncio.run(_play(options))


async def _play(options: argparse.Namespace) -> int:
    print(f"{options.rounds} rounds from seed {options.seed}", flush=True)
    outcomes: list[Outcome] = []
    repeats: list[str] = []
    try:
        async with started() as system:
            for seed in range(options.seed, options.seed + options.rounds):
                outcomes.append(await _round(system, seed, options.only))
                if outcomes[-1].sentences and not options.keep_going:
                    break
            async with connected(system.dsn) as connection:
                repeats += await database.more_than_once(connection)
    finally:  # Ctrl-C too
        _summarise(outcomes, repeats)
    return 1 if repeats or any(outcome.sentences for outcome in outcomes) else 0


async def _round(system: System, seed: int, only: list[str]) -> Outcome:
    strikes = plan(seed, only)
    print(f"{seed}: {'; '.join(map(str, strikes))}", end=" ", flush=True)
    outcome = await play(system, seed, strikes)
    spared = f", {outcome.n_spared:,} announced as gaps though stored" if outcome.n_spared else ""
    spared += f", {outcome.n_missed:,} in sessions that a consumer never heard of" if outcome.n_missed else ""
    spared += f", {outcome.n_lost:,} lost, in gaps" if outcome.n_lost else ""
    verdict = "BROKEN" if outcome.sentences else "ok"
    print(f"— {outcome.seconds:.1f} s, {outcome.n_samples:,} samples{spared}, {verdict}", flush=True)
    if outcome.sentences:
        again = "".join(f" --only '{name}'" for name in only)
        print(*(f"  {sentence}" for sentence in outcome.sentences), system.log_tails, sep="\n")
        print(f'again: make chaos ARGS="--rounds 1 --seed {seed}{again}"', flush=True)
    return outcome


def _summarise(outcomes: list[Outcome], repeats: list[str]) -> None:
    faults = Counter(strike.name for outcome in outcomes for strike in outcome.strikes)
    latencies_s = [s for outcome in outcomes for s in outcome.latencies_s] or [0.0]
    p50, p99, most = np.percentile(latencies_s, (50, 99, 100))
    broken = [str(outcome.seed) for outcome in outcomes if outcome.sentences]
    print(f"\n{len(outcomes)} rounds, {sum(outcome.seconds for outcome in outcomes):.0f} s")
    print("faults      ", ", ".join(f"{name} {n}" for name, n in faults.most_common()))
    print(f"samples      {sum(outcome.n_samples for outcome in outcomes):,} in the database,", end=" ")
    print(f"{sum(outcome.n_acked for outcome in outcomes):,} acked,", end=" ")
    print(f"{sum(outcome.n_delivered for outcome in outcomes):,} delivered to consumers,", end=" ")
    print(f"{sum(outcome.n_spared for outcome in outcomes):,} announced to a consumer as a gap though stored,", end=" ")
    print(f"{sum(outcome.n_lost for outcome in outcomes):,} lost to faults that destroy, in gaps,", end=" ")
    print(f"{sum(outcome.n_missed for outcome in outcomes):,} in sessions that a consumer never heard of")
    print(f"ack          p50 {p50:.3f} s, p99 {p99:.1f} s, max {most:.1f} s, outages and all")
    print(*repeats, sep="\n", end="\n" if repeats else "")
    print("violations  ", f"in rounds {', '.join(broken)}" if broken else "none" if not repeats else "above")


if __name__ == "__main__":
    sys.exit(main())
