"""An append-only log in memory, the twin of `journal/log.py`: a relay's spool stands on the one or the other."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import Protocol

from zander.journal.log import Frames


class Log(Protocol):
    """What a spool needs of a log."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def n_bytes(self) -> int: ...
    def append(self, payload: bytes) -> int: ...
    def read(self, offset: int, max_bytes: int) -> Frames: ...
    def forget(self, offset: int) -> None: ...
    def close(self) -> None: ...


class Blocks:
    """`Segments` in memory: payloads in blocks, forgotten a block at a time."""

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._blocks: deque[tuple[int, list[bytes]]] = deque([(0, [])])  # each with the offset of its first byte
        self.end = 0

    @property
    def start(self) -> int:
        return self._blocks[0][0]

    @property
    def n_bytes(self) -> int:
        return self.end - self.start

    def append(self, payload: bytes) -> int:
        start, payloads = self._blocks[-1]
        if self.end - start + len(payload) > self._block_bytes and payloads:
            payloads = []
            self._blocks.append((self.end, payloads))
        payloads.append(payload)
        self.end += len(payload)
        return self.end

    def read(self, offset: int, max_bytes: int) -> Frames:
        """Return a block from `offset` on, whatever `max_bytes` says; none at the end."""
        index = bisect_right(self._blocks, offset, key=lambda block: block[0]) - 1
        at, payloads = self._blocks[max(index, 0)]
        n_before = 0
        while at < offset and n_before < len(payloads):
            at += len(payloads[n_before])
            n_before += 1
        ahead = payloads[n_before:]
        return Frames(ahead, at + sum(map(len, ahead)))

    def forget(self, offset: int) -> None:
        while len(self._blocks) > 1 and self._blocks[1][0] <= offset:
            self._blocks.popleft()

    def close(self) -> None:
        pass
