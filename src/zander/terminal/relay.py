"""`zander relay`: a recording streamed as a relay streams a headset, at the recording's own pace or faster.

Like a headset it goes on without a server: samples wait in the spool, and are sent when there is a server again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic, time
from typing import Any, Literal, NamedTuple

import numpy as np

from zander.client import ConnectionLost, Relay
from zander.client.spool import CHUNK_OVERHEAD_BYTES
from zander.errors import ZanderError
from zander.sources.edf import Recording
from zander.terminal.ansi import Meter, StatusLine, count, describe_prediction, duration
from zander.terminal.features import WINDOW_S, features
from zander.wire.chunk import Samples

CHUNKS_PER_S = 16  # about what headsets put into one packet
REDRAW_S = 0.2
LAG_S = 2.0  # what is stored later than that is shown
LAST_ACK_S, BREAK_S = 10.0, 2.0  # how long it waits for the last acks, at the end and after Ctrl-C

RelayFormat = Literal["sample", "chunk", "binary"]


class RelayOptions(NamedTuple):
    """The options of the command line; `speed` 10 is ten times as fast, `seconds` None is to the end."""

    url: str
    user_id: str
    key: str | None
    format: RelayFormat
    speed: float
    loop: bool
    features: bool
    seconds: float | None
    spool: Path | None
    spool_mib: float


class NotStored(ZanderError):
    """Some samples are not known to be stored."""


class Pace:
    """The time at which each sample is due, computed from the start, so that delays do not add up."""

    def __init__(self, rate_hz: float) -> None:
        self._rate_hz = rate_hz
        self.restart(0)

    def restart(self, n_sent: int) -> None:
        """Let the sample after `n_sent` be due now."""
        self._start_s = monotonic() - n_sent / self._rate_hz
        self._start_us = time() * 1e6 - n_sent / self._rate_hz * 1e6

    def time_us(self, index: int) -> int:
        """Return when the sample is due, in µs since 1970."""
        return round(self._start_us + index / self._rate_hz * 1e6)

    async def until(self, index: int) -> None:
        """Wait until the sample is due; when it is late, only let other tasks run."""
        await asyncio.sleep(max(0.0, self._start_s + index / self._rate_hz - monotonic()))


class Player:
    """One recording on its way to a server, with its progress in the terminal."""

    def __init__(self, recording: Recording, options: RelayOptions, line: StatusLine) -> None:
        self._recording = recording
        self._options = options
        self._line = line
        self._pace = Pace(recording.sampling_rate_hz * options.speed)
        self._meter = Meter()
        self._began_at = monotonic()
        self._n_sent = 0
        self._n_predictions = 0
        device_info = recording.device_info
        if options.speed != 1:
            device_info["playback_speed"] = options.speed  # sampling_rate stays that of the signal
        self._n_dropped = 0
        spool_bytes = int(options.spool_mib * (1 << 20))
        n_sample_bytes = CHUNK_OVERHEAD_BYTES + 4 * device_info["channel_count"]  # at most: each in its own message
        self._n_room = spool_bytes // 2 // n_sample_bytes
        self._relay = Relay(
            options.url,
            options.user_id,
            device_info,
            options.key,
            spool=options.spool,
            spool_bytes=spool_bytes,
            on_message=self._receive,
            on_lost=self._show_lost,
            on_connected=self._show_connected,
            on_drop=self._show_dropped,
        )
        self._resumed_session_id = self._relay.session_id  # of the relay that had the spool before, empty if none had
        self._is_new = True  # until the first connection

    async def play(self) -> None:
        """Stream to the end; ConnectionLost when there is no session after `seconds`, Rejected when refused.

        NotStored when the server did not acknowledge everything in time.
        """
        reporter = asyncio.create_task(self._report())
        is_over, patience_s = False, BREAK_S
        try:
            is_over = await self._connect_and_stream()
            patience_s = LAST_ACK_S
        finally:
            try:
                n_left = await self._relay.close(patience_s, end_session=is_over)
            finally:
                reporter.cancel()
                self._line.end(self.summary())
        if n_left:
            where = f"; they wait in {self._options.spool}" if self._options.spool else ""
            raise NotStored(f"{count(n_left, 'sample')} are not known to be stored{where}")

    def summary(self) -> str:
        """Write what was sent, in a line."""
        elapsed_s = monotonic() - self._began_at
        n_left = self._relay.n_waiting
        parts = [
            f"sent {count(self._n_sent, 'sample')} in {elapsed_s:.1f} s",
            *([f"{n_left:,} not known to be stored"] if n_left else ["all stored"] if self._n_sent else []),
            *([f"{self._n_dropped:,} dropped"] if self._n_dropped else []),
            f"received {count(self._n_predictions, 'prediction')}",
        ]
        return ", ".join(parts)

    async def _connect_and_stream(self) -> bool:
        """Return whether it came to the end of the recording."""
        try:
            async with asyncio.timeout(self._options.seconds):
                await self._relay.connect()
                self._pace.restart(0)
                await self._stream()
                return True
        except TimeoutError:
            if self._is_new:
                raise ConnectionLost(f"no connection to {self._options.url} in {self._options.seconds:g} s") from None
            return False

    async def _stream(self) -> None:
        n_block = max(1, round(self._recording.sampling_rate_hz))
        window: deque[Samples] = deque(maxlen=max(1, round(WINDOW_S)))  # of blocks of a second
        n_rounds, start = divmod(self._relay.next_position, self._recording.n_samples)
        if n_rounds and not self._options.loop:
            return  # the relay that had the spool before came to the end
        while True:
            for block in self._recording.blocks(n_block, start):
                for piece in self._pieces(block):
                    await self._send(piece)
                window.append(block)
                if self._options.features and len(window) == window.maxlen:
                    await self._send_features(np.concatenate(window))
            if not self._options.loop:
                return
            start = 0

    def _pieces(self, block: Samples) -> Iterator[Samples]:
        """Cut a second into messages."""
        n = 1 if self._options.format == "sample" else max(1, round(len(block) / CHUNKS_PER_S))
        return (block[start : start + n] for start in range(0, len(block), n))

    async def _send(self, piece: Samples) -> None:
        """Send a piece when its last sample is due; when playing faster than a headset, also wait for the server."""
        await self._pace.until(self._n_sent + len(piece) - 1)
        while self._options.speed > 1 and self._relay.n_waiting > self._n_room:
            await self._relay.drain(REDRAW_S)
        await self._send_raw(piece)
        self._n_sent += len(piece)
        self._meter.add(len(piece))

    async def _send_raw(self, piece: Samples) -> None:
        time_us = self._pace.time_us(self._n_sent) if self._options.speed == 1 else None
        if self._options.format == "sample":
            await self._relay.send_sample(piece[0], time_us=time_us)
        else:
            await self._relay.send_chunk(piece, time_us=time_us, binary=self._options.format == "binary")

    async def _send_features(self, samples: Samples) -> None:
        found = features(samples, self._recording.sampling_rate_hz)
        if found is not None:
            with suppress(ConnectionLost):  # the next piece notices
                await self._relay.send_features(found)

    def _receive(self, message: dict[str, Any]) -> None:
        if message["type"] == "prediction":
            self._n_predictions += 1
            self._line.say(describe_prediction(message))
        elif message["type"] == "error":
            self._line.say(f"the server says {message.get('code')}: {message.get('message')}")

    def _show_lost(self, error: ConnectionLost, pause_s: float) -> None:
        self._line.say(f"{error}; trying again in {pause_s:.1f} s")

    def _show_connected(self, n_waiting: int) -> None:
        session = f"session {self._relay.session_id} of {self._options.user_id}"
        if not self._is_new:
            session = f"connected again, {session}"
        elif self._resumed_session_id == self._relay.session_id:
            session = f"{session} goes on at sample {self._relay.next_position:,}"
        waiting = f"; {count(n_waiting, 'sample')} not known to be stored: sent first" if n_waiting else ""
        self._line.say(session + waiting)
        self._is_new = False

    def _show_dropped(self, start: int, end: int) -> None:
        self._n_dropped += end - start
        self._line.say(f"the spool is full: dropped the samples {start:,} to {end - 1:,}")

    async def _report(self) -> None:
        while True:
            self._line.show(self._progress())
            await asyncio.sleep(REDRAW_S)

    def _progress(self) -> str:
        rate_hz, n_waiting = self._recording.sampling_rate_hz, self._relay.n_waiting
        rounds, done = divmod(self._relay.next_position, self._recording.n_samples)
        is_late = n_waiting > LAG_S * rate_hz * self._options.speed
        return "   ".join(
            [
                f"{duration(done / rate_hz)} of {duration(self._recording.duration_s)}",
                *([f"round {rounds + 1}"] if self._options.loop else []),
                count(self._n_sent, "sample"),
                f"{self._meter.per_second():,.0f}/s",
                *([f"{n_waiting:,} not stored yet"] if is_late else []),
                count(self._n_predictions, "prediction"),
            ]
        )


async def relay(recording: Recording, options: RelayOptions) -> None:
    """Stream a recording, with progress on stdout."""
    line = StatusLine()
    info = recording.device_info
    channels = count(info["channel_count"], "channel")
    line.say(f"{info['device_type']}: {channels} at {info['sampling_rate']:g} Hz, {duration(recording.duration_s)}")
    for note in recording.notes:
        line.say(note)
    await Player(recording, options, line).play()
