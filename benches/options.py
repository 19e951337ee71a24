"""What every bench may be asked for on its command line, and how a bench begins and ends."""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn

from frames import Load
from parts import BenchError
from zander.embedded.postgres import EmbeddedPostgresError


def parser(what: str, n_relays: int, formats: Collection[str]) -> argparse.ArgumentParser:
    """Make a parser with the options of all benches whose load can be chosen; `what` is the first line of its help."""
    made = argparse.ArgumentParser(description=what)
    add = made.add_argument
    add("--relays", type=at_least(1), default=n_relays, metavar="N", help=f"relays, each a user ({n_relays})")
    add("--format", choices=formats, default="json", help="one sample as JSON, or a chunk (json)")
    add("--chunk-samples", type=at_least(1), default=32, metavar="N", help="samples per chunk (32)")
    add_course(made, duration_s=20.0, warmup_s=3.0)
    add("--no-redis", action="store_true", help="run the node alone")
    add("--database-url", metavar="URL", help="write to this PostgreSQL instead of an own one")
    return made


def add_course(made: argparse.ArgumentParser, duration_s: float, warmup_s: float) -> None:
    """Let it be chosen what each relay sends, and for how long."""
    add = made.add_argument
    add("--rate", type=at_least(0.1), default=128.0, metavar="HZ", help="samples per second of each relay (128)")
    add("--channels", type=at_least(1), default=7, metavar="N", help="channels (7)")
    after = f"seconds measured, after the warm-up ({duration_s:g})"
    add("--duration", type=at_least(0.1), default=duration_s, metavar="S", help=after)
    add("--warmup", type=at_least(0.0), default=warmup_s, metavar="S", help=f"seconds before them ({warmup_s:g})")
    add("--seed", type=at_least(0), default=1, metavar="N", help="of the values and the relays' phases (1)")
    add("--json", type=Path, metavar="FILE", help="write the figures to FILE too")


def add_against(made: argparse.ArgumentParser | argparse._MutuallyExclusiveGroup) -> None:
    """Let another checkout be measured beside this one."""
    made.add_argument("--against", type=Path, metavar="DIR", help="measure the checkout in DIR in turn with this one")


def add_rounds(made: argparse.ArgumentParser) -> None:
    """Let each version be measured several times."""
    made.add_argument(
        "--rounds", type=at_least(1), default=1, metavar="N", help="runs of each version; the median is shown (1)"
    )


def at_least(least: float) -> Callable[[str], Any]:
    """Read a number, whole where `least` is."""

    def number(text: str) -> Any:
        if (value := type(least)(text)) < least:
            raise ValueError(text)
        return value

    number.__name__ = f"number from {least}"
    return number


def load_of(options: argparse.Namespace, **more: Any) -> Load:
    """Turn the options into a load; its port is not known yet, and `more` is what only one bench asks for."""
    return Load(
        port=0,
        relays=options.relays,
        rate_hz=options.rate,
        n_channels=options.channels,
        format=options.format,
        n_chunk=1 if options.format == "json" else options.chunk_samples,
        duration_s=options.duration,
        warmup_s=options.warmup,
        seed=options.seed,
        **more,
    )


def in_words(load: Load) -> str:
    """Say what the relays send."""
    chunks = f"chunks of {load.n_chunk} samples"
    kind = {"json": "one-sample JSON", "chunk": f"JSON {chunks}", "binary": f"binary {chunks}"}[load.format]
    return f"{load.relays} relays × {load.rate_hz:g} Hz × {load.n_channels} channels, {kind}"


def save(file: Path | None, figures: dict[str, Any]) -> None:
    """Write the figures to the file, if there is to be one."""
    if file:
        file.write_text(json.dumps(figures, indent=1))


def run(main: Callable[[], int]) -> NoReturn:
    """Run a bench, with as many open files as may be; end with 2 when it could not run."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    n_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (n_files, n_files))  # for us and all that we start
    try:
        sys.exit(main())
    except (BenchError, EmbeddedPostgresError) as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
