"""The load generator: one process that plays all relays and all consumers.

    python benches/load.py '<Load as JSON>'

The load is open-loop: every send time is fixed before the run, and latency counts from there, so neither a slow
server nor a slow generator hides in it. Writes a JSON line when the steady part begins, when it ends, and when
everything has arrived; then waits for a line on stdin, closes, and writes its figures.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import sys
from array import array
from time import monotonic, sleep
from typing import Any

import numpy as np

from frames import FORMATS, TEXT, Inbox, Load, feature_frames, frame, lost_samples, raw_frames

TURN_S = 0.00025  # between looks at sockets and clock: waking for every message would double the generator's CPU
QUIET_S = 5.0  # without anything arriving, after which what is missing is lost
HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Peer:
    """One connection; `unsent` is what the kernel did not take yet, `unread` what is looked at in the end only."""

    def __init__(self, load: Load, relay: int) -> None:
        self.inbox = Inbox(load, relay)
        self.unsent = b""
        self.unread: list[bytes] | None = None  # put off, since reading it would hold up what is measured
        self.is_open = True
        self._answer: bytes | None = b""  # to the handshake, until it is complete
        self.socket = socket.create_connection(("127.0.0.1", load.port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def shake_hands(self, path: str) -> None:
        """Ask for a WebSocket, and wait for it."""
        self.ask(path)
        while self._answer is not None:
            self.take(self.socket.recv(4096), 0.0)

    def ask(self, path: str) -> None:
        """Ask for a WebSocket."""
        self.send(HANDSHAKE.format(path=path).encode())

    def take(self, data: bytes, now: float) -> bytes:
        """Read what the socket gave; return the pongs that are due."""
        if not data:
            raise ConnectionError("closed by the server")
        if self.unread is not None:
            self.unread.append(data)
            return b""
        if self._answer is not None:
            self._answer += data
            head, end, data = self._answer.partition(b"\r\n\r\n")
            if not end:
                return b""
            if not head.startswith(b"HTTP/1.1 101"):
                raise ConnectionError(head.decode(errors="replace"))
            self._answer = None
        return self.inbox.take(data, now)

    def read_on(self, now: float) -> None:
        """Read what was put off."""
        unread, self.unread = self.unread, None
        if unread:
            self.take(b"".join(unread), now)

    def send(self, data: bytes) -> None:
        """Send without waiting; what finds no room goes before whatever comes next."""
        if not self.is_open:
            return
        data = self.unsent + data if self.unsent else data
        try:
            n = self.socket.send(data)
        except BlockingIOError:
            n = 0
        self.unsent = data[n:]


def greet(load: Load, relay: int) -> tuple[Peer, str]:
    """Connect a relay; return it and its session."""
    peer = Peer(load, relay)
    peer.shake_hands("/stream")
    device = {"device_type": "bench", "sampling_rate": load.rate_hz, "channel_count": load.n_channels}
    auth: dict[str, Any] = {"type": "auth", "api_key": "none", "user_id": f"bench-{relay:04}", "device_info": device}
    if load.acks:
        auth["ack"] = True
    peer.socket.sendall(frame(TEXT, json.dumps(auth).encode()))
    answer = peer.socket.recv(4096)
    return peer, json.loads(answer[answer.index(b"{") :])["session_id"]


class Schedule:
    """All that is to be sent, by time in seconds from the start: parallel lists."""

    def __init__(self, load: Load) -> None:
        rng = np.random.default_rng(load.seed)
        self.phase_s = rng.uniform(0, load.n_chunk / load.rate_hz, load.relays)
        self.period_s = load.n_chunk / load.rate_hz
        features = feature_frames(load)
        sends = []
        for relay, phase_s in enumerate(self.phase_s.tolist()):
            sends += [(phase_s + k * self.period_s, relay, f) for k, f in enumerate(raw_frames(load, relay))]
            sends += [(phase_s + k / load.features_hz, relay, f) for k, f in enumerate(features)]
        sends.sort(key=lambda send: send[0])
        self.due_s = np.array([send[0] for send in sends])
        self.relay = [send[1] for send in sends]
        self.frame = [send[2] for send in sends]


class Run:
    """One run of the load against a server."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.schedule = Schedule(load)
        self.relays: list[Peer] = []
        self.sessions: list[str] = []
        self.consumers: list[Peer] = []
        self.latecomers: list[Peer] = []
        self.closed: list[str] = []  # peers that the server closed
        self.lag_s = array("d")  # of the generator itself, per send
        self._poll = select.epoll()
        self._peers: dict[int, Peer] = {}

    def connect(self) -> None:
        """Connect all relays, then their consumers."""
        for relay in range(self.load.relays):
            peer, session_id = greet(self.load, relay)
            self.relays.append(peer)
            self.sessions.append(session_id)
        for n in range(self.load.consumers):
            relay = n % self.load.listened
            self.consumers.append(Peer(self.load, relay))
            self.consumers[-1].shake_hands(f"/subscribe/bench-{relay:04}?format={FORMATS[self.load.format]}")
        self.latecomers = [Peer(self.load, n % self.load.relays) for n in range(self.load.replays)]
        for peer in (*self.relays, *self.consumers, *self.latecomers):
            peer.socket.setblocking(False)
            self._peers[peer.socket.fileno()] = peer
            self._poll.register(peer.socket, select.EPOLLIN)

    def drive(self) -> None:
        """Send and receive everything."""
        self.start = monotonic() + 0.2
        self._due = (self.schedule.due_s + self.start).tolist()
        n_warmup = int(np.searchsorted(self.schedule.due_s, self.load.warmup_s))
        self._send(0, n_warmup)
        tell("steady")
        for peer in self.latecomers:
            peer.unread = []
            session_id = self.sessions[peer.inbox.relay]
            query = f"format={FORMATS[self.load.format]}&session_id={session_id}&from=0"
            peer.ask(f"/subscribe/bench-{peer.inbox.relay:04}?{query}")
        self._send(n_warmup, len(self._due))
        tell("sent")
        self._drain()
        tell("arrived", n=len(self.consumers))

    def _send(self, i: int, end: int) -> None:
        due, relay, frames = self._due, self.schedule.relay, self.schedule.frame
        relays, lag = self.relays, self.lag_s.append
        while i < end:
            now = monotonic()
            while i < end and due[i] <= now:
                try:
                    relays[relay[i]].send(frames[i])
                except OSError as error:
                    self._close(relays[relay[i]], str(error))
                lag(monotonic() - due[i])
                i += 1
            self._receive()

    def _receive(self) -> bool:
        """Take what arrives within a turn; False if nothing did."""
        sleep(TURN_S)  # epoll itself would wait whole milliseconds
        events = self._poll.poll(0)
        for fd, _ in events:
            peer = self._peers[fd]
            try:
                pongs = peer.take(peer.socket.recv(1 << 16), monotonic())
                if pongs or peer.unsent:
                    peer.send(pongs)
            except BlockingIOError:
                pass
            except OSError as error:
                self._close(peer, str(error))
        return bool(events)

    def _drain(self) -> None:
        """Receive until all is here or nothing comes any more."""
        for peer in self.latecomers:
            peer.read_on(monotonic())
        heard = monotonic()
        while monotonic() - heard < QUIET_S and self._is_due():
            for peer in self.relays:
                if peer.unsent:
                    peer.send(b"")
            if self._receive():
                heard = monotonic()

    def _is_due(self) -> bool:
        """Whether a consumer has not got everything, or a relay that wants acks not the last of them."""
        n_samples, n_features = self.load.n_samples, self.load.n_features
        return (
            any(peer.inbox.n_samples < n_samples for peer in (*self.consumers, *self.latecomers))
            or any(peer.inbox.n_features < n_features for peer in self.consumers)
            or (self.load.acks and any(self._unacked(peer.inbox) for peer in self.relays))
        )

    def _unacked(self, inbox: Inbox) -> int:
        return self.load.n_samples - (inbox.acked[-1] if inbox.acked else 0)

    def _close(self, peer: Peer, reason: str) -> None:
        if peer.is_open:
            peer.is_open, peer.unsent = False, b""
            self._poll.unregister(peer.socket)
            self.closed.append(f"bench-{peer.inbox.relay:04}: {reason}")

    def figures(self) -> dict[str, Any]:
        """Work out what was measured."""
        load, inboxes = self.load, [peer.inbox for peer in self.consumers]
        replayed = [peer.inbox for peer in self.latecomers]
        latency_ms = np.concatenate([self._latency_s(inbox) for inbox in inboxes] or [np.array([])]) * 1e3
        steady = self.schedule.due_s >= load.warmup_s
        return {
            "sessions": self.sessions,
            "sent_samples": load.relays * load.n_samples,
            "expected_samples": len(inboxes + replayed) * load.n_samples,
            "lost_samples": sum(lost_samples(inbox, load.n_samples) for inbox in inboxes + replayed),
            "lost_features": sum(abs(load.n_features - inbox.n_features) for inbox in inboxes),
            "latency_ms": percentiles(latency_ms),
            "ack_ms": percentiles(np.concatenate([self._ack_s(peer.inbox) for peer in self.relays]) * 1e3),
            "unacked_samples": sum(self._unacked(peer.inbox) for peer in self.relays) if load.acks else 0,
            "generator_lag_ms": percentiles(np.array(self.lag_s)[steady] * 1e3),
            "closed": self.closed,
            "strange": [s for peer in self._peers.values() for s in peer.inbox.strange],
        }

    def _latency_s(self, inbox: Inbox) -> np.ndarray[Any, Any]:
        """Return the latency of every sample of the steady part, from when its message was to be sent."""
        first, n, arrived = (np.array(column) for column in (inbox.first, inbox.n, inbox.arrived))
        index = np.repeat(first - np.cumsum(n) + n, n) + np.arange(n.sum())
        due_s = self.schedule.phase_s[inbox.relay] + index // self.load.n_chunk * self.schedule.period_s
        latency_s: np.ndarray[Any, Any] = np.repeat(arrived, n) - self.start - due_s
        return np.compress(due_s >= self.load.warmup_s, latency_s)

    def _ack_s(self, inbox: Inbox) -> np.ndarray[Any, Any]:
        """Return how long after it was to be sent each sample of the steady part was said to be durable."""
        index = np.arange(inbox.acked[-1] if inbox.acked else 0)
        if not len(index):
            return np.array([])
        acked_at = np.array(inbox.acked_at)[np.searchsorted(np.array(inbox.acked), index, side="right")]
        due_s = self.schedule.phase_s[inbox.relay] + index // self.load.n_chunk * self.schedule.period_s
        ack_s: np.ndarray[Any, Any] = acked_at - self.start - due_s
        return np.compress(due_s >= self.load.warmup_s, ack_s)


def percentiles(values: np.ndarray[Any, Any]) -> dict[str, float]:
    """Return p50, p99, p99.9 and the maximum."""
    if not len(values):
        return {}
    found = np.percentile(values, [50, 99, 99.9, 100])
    return dict(zip(("p50", "p99", "p99.9", "max"), map(float, found), strict=True))


def tell(event: str, **values: object) -> None:
    """Tell the parent."""
    print(json.dumps({"event": event, **values}), flush=True)


def main() -> None:
    run = Run(Load(**json.loads(sys.argv[1])))
    run.connect()
    gc.collect()
    gc.freeze()
    gc.disable()
    run.drive()
    sys.stdin.readline()  # the parent weighs the server while everybody is still connected
    tell("figures", **run.figures())


if __name__ == "__main__":
    main()
