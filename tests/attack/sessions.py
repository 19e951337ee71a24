"""Attacks on a session: its times, its positions, and whose it is."""

from __future__ import annotations

import re
from time import monotonic, sleep, time

from attack.floods import RAW, SAMPLE
from attack.line import DEVICE, OPEN_SECONDS, Line, Order, Report, any_user, auth, joined, text, told
from attack.unread import PROBE

RATE_HZ, N_A_CHUNK = 256, 8
JUMPS_S = (86_390, 3_590, 59)  # ahead: the first that is taken
FAR = (1 << 53) - 2  # the last position
RETRY_SECONDS = 0.05
LOOK_SECONDS = 0.01
SESSION = re.compile(rb'"session_id":"([0-9a-f-]{36})"')


def clock_ahead(order: Order) -> Report:
    """Be a relay whose clock is ahead once, and whose samples have no times from then on."""
    user = any_user()
    with Line(order.port).open_relay(user, DEVICE | {"sampling_rate": RATE_HZ}) as line:
        until_s = order.ends_s()
        jump_s = next(seconds for seconds in JUMPS_S if _is_taken(line, {"timestamp": time() + seconds}))
        n = 0
        while monotonic() < until_s and not line.ending:
            line.pour([text({"type": "raw", "samples": [SAMPLE] * N_A_CHUNK})], until_s)
            n += N_A_CHUNK
            sleep(N_A_CHUNK / RATE_HZ)
        line.ask(PROBE, b'"pong"')
        return line.report()._replace(harm=_clock_harm(order.port, user, min(n, 1000), jump_s))


def _clock_harm(port: int, user: str, n: int, jump_s: float) -> str:
    times_s = {sample["timestamp"] for sample in told(port, f"/buffer/{user}/last/{n}?sample_type=raw")["samples"]}
    if len(times_s) < n / 2:
        return f"{n} samples have {len(times_s)} times, behind a clock that was {jump_s:,} s ahead"
    if not told(port, f"/buffer/{user}/stats")["raw"].get("clamped"):
        return f"no sample counts as moved, behind a clock that was {jump_s:,} s ahead"
    return ""


def position_ahead(order: Order) -> Report:
    """Be a relay that sends the last position that there is, and goes on without positions."""
    with Line(order.port).open_relay(any_user()) as line:
        for position in (FAR, FAR - 1, FAR >> 1):
            _is_taken(line, {"position": position})
        taken = [_is_taken(line, {}) for _ in range(3)]
        harm = "" if all(taken) else f"no sample is taken any more behind position {FAR}"
        return line.report()._replace(harm=harm)


def stolen(order: Order) -> Report:
    """Go on with the neighbour's session as another user, in one attempt after the other."""
    until_s, reports = order.ends_s(), list[Report]()
    with Line(order.port).open_consumer(order.neighbour) as consumer:
        found = SESSION.search(consumer.said)
    if not found:
        raise ConnectionError("the neighbour has no session")
    while monotonic() < until_s and not any("open" in report.endings for report in reports):
        with Line(order.port).open_websocket("/stream") as line:
            asking = text(auth(any_user()) | {"session_id": found[1].decode()}) + text(RAW)
            line.pour([asking], monotonic() + OPEN_SECONDS)
            while not line.ending and b'"auth_ok"' not in line.said:
                line.hold(monotonic() + LOOK_SECONDS)
            reports.append(line.report())
        sleep(RETRY_SECONDS)
    return joined(reports)


def _is_taken(line: Line, fields: dict[str, float]) -> bool:
    line.said = b""
    line.ask(text(RAW | fields) + PROBE, b'"pong"')
    return b'"error"' not in line.said
