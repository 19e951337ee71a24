"""A relay with a spool, as a program that is killed with -9 and started again; as a module this is that program.

Each life marks its samples: a position that one life has sent must not be given to another sample by the next.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np

import zander
from chaos.history import Sent, Values
from chaos.load import Link, Relay
from chaos.twins import DRAIN_SECONDS, TICK_S, impatient
from zander import client
from zander.embedded.child import Child

DEVICE = {"device_type": "chaos", "sampling_rate": 128, "channel_count": 3}
TESTS = Path(__file__).parent.parent
START_SECONDS = 10.0


def samples(life: int, start: int, end: int) -> Values:
    """Make the samples from one position to another, as that life measures them."""
    positions = np.arange(start, end)
    noise = (positions * 2654435761 % (1 << 32)) / (1 << 16)
    return np.column_stack([positions, noise, np.full(len(positions), life)]).astype(np.float32)


class SpooledRelay(Relay):
    """Starts the program, kills it now and then, and lets the last one finish."""

    def __init__(self, user_id: str, link: Link, chance: Random) -> None:
        super().__init__(user_id, link, chance)
        self._folder = Path(tempfile.mkdtemp(prefix="zander-spool-"))
        self._output = tempfile.NamedTemporaryFile(prefix="zander-spooled-")  # noqa: SIM115 - closed by `run`
        self._life = 0
        self._said: list[list[str]] = []  # words by line

    @property
    def sent(self) -> list[Sent]:
        starts = [int(words[1]) for words in self._said if words[0] == "start"]
        ends = [*starts[1:], *(int(words[1]) for words in self._said if words[0] == "end")]
        sessions = {words[1] for words in self._said if words[0] == "durable"}
        if len(ends) < len(starts) or len(sessions) != 1:
            return []
        lives = [samples(life, *span) for life, span in enumerate(zip(starts, ends, strict=True))]
        sent = Sent(self.user_id, sessions.pop(), np.concatenate(lives), numbered=True)
        sent.acked = max(int(words[2]) for words in self._said if words[0] == "durable")
        return [sent]

    async def run(self) -> None:
        child = self._start()
        try:
            while not self.stopping.is_set():
                await self._until(lambda: self.stopping.is_set() or self._says("durable"), START_SECONDS)
                if self._says("durable"):
                    self.begun.set()
                await self._until(self.stopping.is_set, self.chance.uniform(0.2, 2.0))
                if not self.stopping.is_set():
                    child.stop(signal.SIGKILL)
                    child = self._start()
            await self._until(lambda: self._says("start"), START_SECONDS)
            child.send(signal.SIGTERM)
            if not await self._until(child.ended.is_set, DRAIN_SECONDS) or child.returncode:
                self.complain(f"did not finish: {self._read()[-500:]}")
        finally:
            child.stop(signal.SIGKILL)
            self._read()
            self._output.close()
            shutil.rmtree(self._folder)

    def _start(self) -> Child:
        words = [self.link.url, self.user_id, str(self._folder), str(self._life)]
        path = os.pathsep.join([str(TESTS), str(Path(zander.__file__).parent.parent)])
        self._life += 1
        return Child(
            [sys.executable, "-m", "chaos.spooled", *words],
            orphan_signal=signal.SIGKILL,
            output=self._output.file,
            environment={"PATH": os.environ["PATH"], "PYTHONPATH": path},
        )

    def _says(self, word: str) -> bool:
        """Whether the program that runs has said this."""
        self._read()
        starts = [i for i, words in enumerate(self._said) if words[0] == "start"]
        return len(starts) == self._life and word in {words[0] for words in self._said[starts[-1] :]}

    def _read(self) -> str:
        """Look at what the programs have written, and return it."""
        text = Path(self._output.name).read_text()
        lines = text.split("\n")[:-1]  # the last may be half written
        self._said = [words for line in lines if (words := line.split())]
        return text

    async def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait for a condition; False when it does not come in time."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(TICK_S)
        except TimeoutError:
            return False
        return True


async def main(url: str, user_id: str, folder: str, life: str) -> int:
    """Measure and send until SIGTERM; then wait until all is durable."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    relay = client.Relay(url, user_id, DEVICE, spool=Path(folder))
    relay.start()
    print("start", relay.next_position, flush=True)
    while not stopping.is_set():
        position = relay.next_position
        await relay.send_chunk(samples(int(life), position, position + 3))
        if relay.durable:
            print("durable", relay.session_id, relay.durable, flush=True)
        await asyncio.sleep(TICK_S)
    is_drained = await relay.drain(DRAIN_SECONDS - 5)
    print("durable", relay.session_id, relay.durable, flush=True)
    print("end", relay.next_position, flush=True)
    await relay.close(0)
    return 0 if is_drained else 1


if __name__ == "__main__":
    with impatient():
        sys.exit(asyncio.run(main(*sys.argv[1:])))
