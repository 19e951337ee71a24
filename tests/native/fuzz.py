"""Feeds changed and made-up bytes to both worlds without end: `python tests/native/fuzz.py --seconds 3600 --seed 1`.

A story that ends differently is kept in `corpus/` beside this file, and ends the run with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import traceback
from hashlib import sha256
from pathlib import Path
from random import Random
from time import monotonic

import numpy as np
from msgspec import structs

from support.frame_readers import json_differs
from support.outcomes import Outcome, compare
from support.stories import SMALL_FRAMES, STEPS, any_story, dumped, loaded
from support.twins import Story, stage
from support.vectors import NUMBERS

CORPUS = Path(__file__).parent / "corpus"
MAX_FILES, MAX_BYTES, MAX_FILE_BYTES = 80, 150_000, 4000
TOKENS = [number.encode() for number in NUMBERS if len(number) < 40]
TOKENS += [
    b'"raw"',
    b'"type"',
    b'"channels"',
    b'"samples"',
    b'"position"',
    b'"timestamp"',
    b"null",
    b"{",
    b"}",
    b"[",
    b"]",
]
TOKENS += [
    b",",
    b":",
    b" ",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\\u0061",
    b"\x81",
    b"\x82",
    b"\x01\x01\x01\x00",
    *SMALL_FRAMES,
]
REPORT_SECONDS = 60.0


def changed(random: Random, story: Story, corpus: list[Story]) -> Story:
    """Change a story a little."""
    steps = list(story.steps)
    for _ in range(random.choice([1, 1, 2, 4])):
        at = random.randrange(len(steps) + 1)
        feeds = [i for i, (name, data) in enumerate(steps) if data]
        match random.randrange(10):
            case 0:
                steps.insert(at, (random.choice(STEPS), b""))
            case 1 if steps:
                del steps[at % len(steps)]
            case 2:
                other = random.choice(corpus).steps
                start = random.randrange(len(other) + 1)
                steps[at:at] = other[start : start + 4]
            case 3 if len(feeds) > 1:
                i = random.choice(feeds[:-1])
                if steps[i + 1][1]:
                    steps[i : i + 2] = [("feed", steps[i][1] + steps[i + 1][1])]
            case 4 if feeds:
                i = random.choice(feeds)
                n = random.randrange(len(steps[i][1]))
                steps[i : i + 1] = [("feed", steps[i][1][:n]), ("feed", steps[i][1][n:])]
            case _ if feeds:
                i = random.choice(feeds)
                steps[i] = ("feed", _changed(random, steps[i][1]))
    return structs.replace(story, steps=[step for step in steps if step[1] or step[0] != "feed"])


def _changed(random: Random, data: bytes) -> bytes:
    n = random.randrange(len(data) + 1)
    match random.randrange(6):
        case 0:
            i = n % len(data)
            return data[:i] + bytes((data[i] ^ 1 << random.randrange(8),)) + data[i + 1 :]
        case 1:
            return data[:n]
        case 2:
            return data[:n] + data[n + random.randrange(5) :]
        case 3:
            start = random.randrange(len(data))
            return data[:n] + data[start : start + random.randrange(60)] + data[n:]
        case 4:
            return data[:n] + random.randbytes(random.randrange(1, 5)) + data[n:]
    return _with_token(random, data)


def _with_token(random: Random, data: bytes) -> bytes:
    """Put a token into a frame, under its mask and counted, where there is a frame."""
    starts = [i for i in range(len(data) - 6) if data[i] in (0x81, 0x82) and 0x80 <= data[i + 1] < 0xFE]
    token = random.choice(TOKENS)
    if not starts or random.random() < 0.1:
        n = random.randrange(len(data) + 1)
        return data[:n] + token + data[n:]
    i = random.choice(starts)
    size, mask = data[i + 1] & 0x7F, data[i + 2 : i + 6]
    plain = bytes(byte ^ mask[k % 4] for k, byte in enumerate(data[i + 6 : i + 6 + size]))
    n = random.randrange(len(plain) + 1)
    plain = plain[:n] + token + plain[n + random.choice([0, 1, len(token)]) :]
    if len(plain) > 125:
        return data
    payload = bytes(byte ^ mask[k % 4] for k, byte in enumerate(plain))
    return data[: i + 1] + bytes((0x80 | len(plain),)) + mask + payload + data[i + 6 + size :]


def read_corpus() -> list[Story]:
    """Read what is kept."""
    return [loaded(file.read_text()) for file in sorted(CORPUS.glob("*.json"))]


def keep(story: Story, prefix: str) -> Path:
    """Keep a story."""
    CORPUS.mkdir(exist_ok=True)
    text = dumped(story)
    file = CORPUS / f"{prefix}-{sha256(text.encode()).hexdigest()[:8]}.json"
    file.write_text(text + "\n")
    return file


async def run(seconds: float, seed: int) -> int:
    """Run for a while; return the exit code."""
    random, floats = Random(seed), np.random.default_rng(seed)
    corpus, seen = read_corpus(), set()
    outcome: Outcome | None
    n_inputs = n_intercepted = n_passed = 0
    began = reported = monotonic()
    with stage() as one:
        for story in corpus:
            outcome, _ = await compare(one, story)
            seen.add(outcome.behaviour)
        while monotonic() - began < seconds:
            if corpus and random.random() < 0.6:
                story = changed(random, random.choice(corpus), corpus)
            else:
                story = any_story(random, random.choice([3, 10, 30]))
            try:
                outcome, difference = await compare(one, story)
            except Exception as error:  # an assertion is a finding too
                outcome, difference = None, "".join(traceback.format_exception(error, limit=-3))
            n_inputs += 1
            if n_inputs % 10 == 0:
                difference += json_differs(floats)
            if difference or outcome is None:
                print(
                    f"{keep(story, 'failing')} after {n_inputs} inputs, seed {seed}:\n{difference[:5000]}", flush=True
                )
                return 1
            path = outcome.path
            n_intercepted += path.intercepted
            n_passed += path.passed_frames + path.passed_messages + path.passed_sessions
            if outcome.behaviour not in seen:
                seen.add(outcome.behaviour)
                files = list(CORPUS.glob("*.json"))
                fits = len(dumped(story)) < MAX_FILE_BYTES and len(files) < MAX_FILES - 1
                if fits and sum(file.stat().st_size for file in files) < MAX_BYTES - MAX_FILE_BYTES:
                    keep(story, "new")
                    corpus.append(story)
                elif len(corpus) < 1000:
                    corpus.append(story)
            if monotonic() - reported > REPORT_SECONDS:
                reported = monotonic()
                _report(n_inputs, reported - began, n_intercepted, n_passed, len(seen))
                gc.collect()
    _report(n_inputs, monotonic() - began, n_intercepted, n_passed, len(seen))
    return 0


def _report(n_inputs: int, seconds: float, n_intercepted: int, n_passed: int, n_seen: int) -> None:
    rate = n_inputs / seconds if seconds else 0.0
    print(
        f"{n_inputs} inputs in {seconds:.0f} s, {rate:.1f}/s: {n_intercepted} messages intercepted, "
        f"{n_passed} frames passed, {n_seen} behaviours",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    return asyncio.run(run(given.seconds, given.seed))


if __name__ == "__main__":
    sys.exit(main())
