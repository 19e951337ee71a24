"""The checker: knows the promises and nothing of the server. Each rule is a generator of sentences about what broke it.

A session in the database, and a consumer's stream, are held against what the relay sent.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from chaos.damage import Span
from chaos.history import Gap, History, Samples, Seen, Sent, Stored, Values
from chaos.positions import Mask, marked, mask, same_bits, say, spans

MOST_NAMED = 3  # of one kind of violation in one session
NOTHING = Stored(None, 0, np.empty(0, np.int64), np.empty(0, np.int64), [])


def check(history: History) -> list[str]:
    """Return a sentence for each broken promise."""
    sessions = {sent.session_id: sent for sent in history.sent}
    found = [sentence for sent in history.sent for sentence in _check_session(sent, history)]
    for seen in history.seen:
        found += [f"consumer {seen.name}: {sentence}" for sentence in _check_consumer(seen, sessions, history)]
    return found


# A session in the database.


def _check_session(sent: Sent, history: History) -> Iterator[str]:
    stored = history.stored.get(sent.session_id, NOTHING)
    for rule in RULES:
        for sentence in _few(rule(sent, stored, history)):
            yield f"{sent}: {sentence}"


def _once(_: Sent, stored: Stored, __: History) -> Iterator[str]:
    positions, counts = np.unique(stored.positions, return_counts=True)
    for start, end in spans(positions[counts > 1]):
        yield f"{say(start, end)} more than once in the database"
    for start, end in spans(np.intersect1d(positions, np.array(stored.refused, np.int64))):
        yield f"{say(start, end)} both in the database and in dead_letters"


def _as_sent(sent: Sent, stored: Stored, _: History) -> Iterator[str]:
    for wrong in _differing(sent, stored.positions, stored.values):
        yield f"in the database {wrong}"


def _in_time(_: Sent, stored: Stored, __: History) -> Iterator[str]:
    order = np.argsort(stored.positions, kind="stable")
    backwards = np.flatnonzero(np.diff(stored.times_us[order]) < 0)
    for i in backwards.tolist():
        yield f"position {stored.positions[order][i + 1]} has an earlier time than the one before it"


def _nothing_missing(sent: Sent, stored: Stored, history: History) -> Iterator[str]:
    """All below what is promised is there, or a stored gap; and nothing is left open below what came later."""
    end = _promised(sent, stored, history)
    there = _there(stored, end) | mask([gap[:2] for gap in stored.gaps], end)
    known = max(sent.acked, stored.durable)  # behind that nobody can know of what is destroyed
    there[known:] |= mask(_destroyed(sent, history), end)[known:]
    for start, stop in spans(~there):
        acked = " though acked" if sent.acked > start else ""
        yield f"{say(start, stop)} not in the database{acked}, and no gap is stored"


def _gaps_are_true(sent: Sent, stored: Stored, history: History) -> Iterator[str]:
    end = max([len(sent.values), *_ends(stored)], default=0)
    there, announced = marked(stored.positions, end), mask(sent.left_out + sent.dropped, end)
    announced |= mask(_destroyed(sent, history), end)
    announced |= marked(np.array(stored.refused, np.int64), end)
    for start, stop, reason in stored.gaps:
        gap = mask([(start, stop)], end)
        for wrong in spans(gap & there):
            yield f"a gap is stored over {say(*wrong)}, in the database"
        if sent.numbered or not history.may_lose or reason == "relay":
            for wrong in spans(gap & ~announced):
                yield f"a gap ({reason}) is stored over {say(*wrong)}, never announced by the relay"
        if stop > len(sent.values):
            yield f"a gap is stored up to position {stop}, sent were only {len(sent.values)}"


def _durable_is_true(sent: Sent, stored: Stored, _: History) -> Iterator[str]:
    end = max(_ends(stored), default=0)
    if stored.durable > end:
        yield f"durable_position is {stored.durable}, there is something up to {end} only"
    if sent.acked > stored.durable:
        yield f"acked up to {sent.acked}, durable_position is {stored.durable}"
    if sent.acked > len(sent.values):
        yield f"acked up to {sent.acked}, sent were only {len(sent.values)}"


def _dead_letters(sent: Sent, stored: Stored, history: History) -> Iterator[str]:
    if stored.refused and not history.may_refuse:
        yield f"{len(stored.refused)} samples in dead_letters, but nothing was wrong with them"
    if len(set(stored.refused)) < len(stored.refused):
        yield "a sample is more than once in dead_letters"


def _owner(sent: Sent, stored: Stored, history: History) -> Iterator[str]:
    if stored.user_id is None:
        is_destroyed = sent.session_id in history.damage.sessions and not sent.acked
        if len(stored.positions) or (_promised(sent, stored, history) and not is_destroyed):
            yield "no row in sessions"
    elif stored.user_id != sent.user_id:
        yield f"belongs to {stored.user_id} in the database"


def _features(sent: Sent, stored: Stored, history: History) -> Iterator[str]:
    numbers, counts = np.unique(np.array(stored.features, np.int64), return_counts=True)
    for number in numbers[counts > 1].tolist():
        yield f"features {number} are more than once in the database"
    for number in numbers[numbers >= sent.n_features].tolist():
        yield f"features {number} are in the database, sent were only {sent.n_features}"
    if not history.may_lose:
        expected = np.setdiff1d(np.arange(sent.features_taken), numbers).tolist()
        for number in set(expected) - history.damage.features.get(sent.session_id, set()):
            yield f"features {number} are not in the database"


RULES = (
    _once,
    _as_sent,
    _in_time,
    _nothing_missing,
    _gaps_are_true,
    _durable_is_true,
    _dead_letters,
    _owner,
    _features,
)


def _destroyed(sent: Sent, history: History) -> list[Span]:
    """Name the positions that faults may have cost."""
    return history.damage.spans.get(sent.session_id, [])


def _promised(sent: Sent, stored: Stored, history: History) -> int:
    """Position below which everything has to be there."""
    numbered = len(sent.values) if sent.lived else sent.acked
    original = 0 if history.may_forget else sent.taken
    return max([numbered if sent.numbered else original, stored.durable, *_ends(stored)])


def _ends(stored: Stored) -> list[int]:
    """Where the samples, the gaps and the dead letters end."""
    last = [int(stored.positions.max())] if len(stored.positions) else []
    return [*(position + 1 for position in last + stored.refused), *(gap[1] for gap in stored.gaps)]


def _there(stored: Stored, end: int) -> Mask:
    """Mark the positions that the database holds, be it in dead_letters."""
    return marked(np.concatenate([stored.positions, np.array(stored.refused, np.int64)]), end)


# A consumer's stream.


def _check_consumer(seen: Seen, sessions: dict[str, Sent], history: History) -> Iterator[str]:
    strays = {event.session_id for event in seen.events} - set(sessions)
    yield from (f"got something of session {session_id[:8]}, which no relay knows" for session_id in strays)
    yield from _few(_sessions_in_order(seen))
    for session_id, sent in sessions.items():
        if sent.user_id == seen.user_id:
            events = [event for event in seen.events if event.session_id == session_id]
            stored = history.stored.get(session_id, NOTHING)
            if not events and _is_missed(seen, sent, history):
                continue
            for rule in (_in_order, _seen_as_sent, _reasons, _seen_is_stored):
                yield from (f"{sent}: {sentence}" for sentence in _few(rule(events, sent, stored, history)))


def _is_missed(seen: Seen, sent: Sent, history: History) -> bool:
    """Say whether a consumer may never have heard of a session: only a node that was away had, when the next began."""
    later = {one.session_id for one in history.sent[history.sent.index(sent) + 1 :]}
    return history.may_miss and not sent.numbered and any(event.session_id in later for event in seen.events)


def _sessions_in_order(seen: Seen) -> Iterator[str]:
    order = [event.session_id for event in seen.events]
    changes = [after for before, after in zip([None, *order], order, strict=False) if after != before]
    for i, session_id in enumerate(changes):
        if session_id in changes[:i]:
            yield f"went back to session {session_id[:8]} after {changes[i - 1][:8]}"


def _in_order(events: list[Samples | Gap], sent: Sent, stored: Stored, _: History) -> Iterator[str]:
    """Every event begins where the one before it ended, and the last ends where the database does."""
    cursor = 0
    for event in events:
        start, end = _span(event)
        what = "samples" if isinstance(event, Samples) else "a gap"
        if start < cursor:
            yield f"{what} from {start} to {end} after position {cursor} was reached"
        elif start > cursor:
            yield f"{say(cursor, start)} passed over without a gap"
        cursor = max(cursor, end)
    end = max(_ends(stored), default=0)
    if cursor < end:
        yield f"ended at {cursor}, the database goes up to {end}"


def _seen_as_sent(events: list[Samples | Gap], sent: Sent, _: Stored, __: History) -> Iterator[str]:
    for event in events:
        if isinstance(event, Samples):
            positions = np.arange(*_span(event))
            yield from (f"got {wrong}" for wrong in _differing(sent, positions, list(event.values)))


def _reasons(events: list[Samples | Gap], sent: Sent, _: Stored, history: History) -> Iterator[str]:
    """A gap that is the relay's is one that the relay made; where nothing is excused it is the only kind."""
    for event in events:
        if isinstance(event, Gap):
            excused = sent.left_out + sent.dropped + _destroyed(sent, history)
            for start, end in spans(mask([event[1:3]], event.end) & ~mask(excused, event.end)):
                if event.reason == "relay":
                    yield f"was told that the relay left out {say(start, end)}, which it did not"
                elif history.gapless:
                    yield f"was told that {say(start, end)} were given up ({event.reason}) for no reason"


def _seen_is_stored(events: list[Samples | Gap], sent: Sent, stored: Stored, history: History) -> Iterator[str]:
    """What came from an original relay and was given out is kept (a numbered one may die and take some with it)."""
    if sent.numbered:
        return
    ends = _ends(stored) if history.may_forget else [_span(event)[1] for event in events]
    end = max(ends, default=0)
    kept = _there(stored, end) | mask([gap[:2] for gap in stored.gaps] + _destroyed(sent, history), end)
    got = mask([_span(event) for event in events if isinstance(event, Samples)], end)
    for start, stop in spans(got & ~kept):
        yield f"got {say(start, stop)}, which the database lacks"


def n_lost(history: History) -> int:
    """Count the samples in gaps that faults have cost: no broken promise."""
    lost = 0
    for sent in history.sent:
        gaps = [gap[:2] for gap in history.stored.get(sent.session_id, NOTHING).gaps]
        end = max((gap[1] for gap in gaps), default=0)
        lost += int((mask(gaps, end) & ~mask(sent.left_out + sent.dropped, end)).sum())
    return lost


def n_announced_though_there(history: History) -> int:
    """Count the samples that consumers were told they would not get, and that the database holds: no broken promise."""
    n = 0
    for seen in history.seen:
        for event in seen.events:
            if isinstance(event, Gap) and event.session_id in history.stored:
                n += int(marked(history.stored[event.session_id].positions, event.end)[event.start :].sum())
    return n


def n_missed(history: History) -> int:
    """Count the samples of sessions that a consumer has never heard of, and of which no promise tells it."""
    n = 0
    for seen in history.seen:
        heard_of = {event.session_id for event in seen.events}
        for sent in history.sent:
            if sent.user_id == seen.user_id and sent.session_id not in heard_of:
                n += len(history.stored.get(sent.session_id, NOTHING).positions)
    return n


# A sample, an event.


def _differing(sent: Sent, positions: NDArray[np.int64], values: list[Values]) -> Iterator[str]:
    """Say which samples are not what was sent, and how. The many that are, are compared at once."""
    known = not sent.left_out and bool((positions < len(sent.values)).all())
    alike = {len(row) for row in values} <= {sent.values.shape[1]}
    if known and alike and (not values or same_bits(np.array(values), sent.values[positions])):
        return
    for position, row in zip(positions.tolist(), values, strict=True):
        if wrong := _differs(sent, position, row):
            yield wrong


def _differs(sent: Sent, position: int, values: Values) -> str:
    """Say how a sample differs from the one that was sent; "" when it does not."""
    if position >= len(sent.values):
        return f"position {position}, sent were only {len(sent.values)}"
    if any(start <= position < end for start, end in sent.left_out):
        return f"position {position}, which the relay left out"
    expected = sent.values[position]
    return "" if same_bits(expected, values) else f"position {position} as {values.tolist()}, not {expected.tolist()}"


def _span(event: Samples | Gap) -> Span:
    if isinstance(event, Gap):
        return event.start, event.end
    return event.position, event.position + len(event.values)


def _few(sentences: Iterator[str]) -> Iterator[str]:
    """Pass the first sentences on, and count the others."""
    found = list(sentences)
    yield from found[:MOST_NAMED]
    if len(found) > MOST_NAMED:
        yield f"… and {len(found) - MOST_NAMED} more like this"
