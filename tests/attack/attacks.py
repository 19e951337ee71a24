"""The list of attacks: how large each is, and what it must come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from attack import answers, floods, fragments, journal, kept, keys, notes, requests, sessions, unread
from attack.line import Order, Report

KIB, MIB = 1 << 10, 1 << 20
MAX_GROWTH_BYTES = 20 * MIB  # of the server's memory, for somebody who has no right to be served
SMALL_GROWTH_BYTES = 8 * MIB  # the same, of one connection that sends less than all it could
KEPT_GROWTH_BYTES = 36 * MIB  # of users who have gone, beside those who have not
SESSIONS_GROWTH_BYTES = 16 * MIB  # the same, of those who have sent nothing
ANSWERS_GROWTH_BYTES = 100 * MIB  # of the answers to all
LARGE_GROWTH_BYTES = 160 * MIB  # the same, with what they are made of; or of what all consumers come back for
MAX_LOG_LINES = 100  # that the server writes of an attack
EVER = 1 << 62  # bytes: it is time that ends it

GONE = frozenset({"closed", "reset"})
REQUEST = GONE | {"400", "408", "413", "414", "431"}
BODY = REQUEST | {"405", "411"}
MUTE = GONE | {"408", "4408", "4429"}
STRANGER = GONE | {"4408", "4429", "4501"}
FRAGMENT = GONE | {"1009", "4408", "4429", "4501"}
STOLEN = GONE | {"4503"}
BAD = GONE | {"4429", "4500"}

AS_IT_IS: Mapping[str, Any] = {}
ROLLING = {"journal_max_bytes": 64 * KIB}  # its files are 8 KiB then: the neighbour alone needs a new one every second
FEW_FILES = {"max_files": 1024, **ROLLING}
FEW_PLACES = {"max_connections": 50}
KEEPING = {"buffer_keep_bytes": 4 * MIB}
SMALL_JOURNAL = {"journal_max_bytes": journal.JOURNAL_BYTES}


class Short(NamedTuple):
    """The extent of an attack in `make test`, and what is different there."""

    seconds: float
    n_bytes: int
    n_connections: int = 1
    must_end: bool = True  # by then; False: it is time that ends it, more than a test has
    max_growth_bytes: int = MAX_GROWTH_BYTES
    settings: Mapping[str, Any] = AS_IT_IS


class Attack(NamedTuple):
    """An attack, and what it must come to.

    `ends`: how each of its connections may end, and each must; None: as it likes. `max_growth_bytes`: of the server's
    memory; None: it has the right to be served. `must_serve`: all of them get what they come for. `is_held`: the
    database takes no batch meanwhile. `must_log`: what the log has to say of it, if only once a minute.
    """

    run: Callable[[Order], Report]
    seconds: float
    n_bytes: int
    short: Short
    ends: frozenset[str] | None
    n_connections: int = 1
    max_growth_bytes: int | None = MAX_GROWTH_BYTES
    must_serve: bool = False
    settings: Mapping[str, Any] = AS_IT_IS  # of the server
    is_held: bool = False
    must_log: str = ""
    max_log_lines: int = MAX_LOG_LINES

    def order(self, port: int, neighbour: str) -> Order:
        """Ask for all of it."""
        return Order(port, self.seconds, self.n_bytes, self.n_connections, neighbour)

    def shortened(self) -> Attack:
        """Return what a test has the time for."""
        short = self.short
        return self._replace(
            seconds=short.seconds,
            n_bytes=short.n_bytes,
            n_connections=short.n_connections,
            ends=self.ends if short.must_end else None,
            max_growth_bytes=self.max_growth_bytes and short.max_growth_bytes,
            settings={**self.settings, **short.settings},
        )


def _request(run: Callable[[Order], Report], ends: frozenset[str] = REQUEST) -> Attack:
    return Attack(run, 15, 100 * MIB, Short(2, 4 * MIB), ends)


def _crowd(run: Callable[[Order], Report], short_seconds: float) -> Attack:
    short = Short(short_seconds, EVER, 600, must_end=False, settings={"max_files": 300})
    return Attack(run, 15, EVER, short, MUTE, 4000, settings=FEW_FILES)


def _websocket(
    run: Callable[[Order], Report], ends: frozenset[str] | None, short: Short, n_connections: int = 1
) -> Attack:
    return Attack(run, 15, 100 * MIB, short, ends, n_connections)


def _flood(run: Callable[[Order], Report]) -> Attack:
    return Attack(run, 5, EVER, Short(1, 8 * MIB), None, max_growth_bytes=None)


def _kept(
    run: Callable[[Order], Report],
    short_bytes: int = EVER,
    n_connections: int = 1,
    growth_bytes: int = KEPT_GROWTH_BYTES,
) -> Attack:
    """Let the database take nothing, since a batch on its way takes memory too."""
    short = Short(0.8, short_bytes, n_connections, max_growth_bytes=growth_bytes)
    most = (15, 400 * MIB)  # more would fill the journal, which is another attack
    return Attack(run, *most, short, None, n_connections, growth_bytes, settings=KEEPING, is_held=True)


def _journal(run: Callable[[Order], Report], n_connections: int = 1, n_bytes: int = EVER) -> Attack:
    short = Short(0.7, n_bytes, n_connections)
    return Attack(run, 10, EVER, short, None, n_connections, None, settings=SMALL_JOURNAL, is_held=True)


def _refused(run: Callable[[Order], Report], n_connections: int = 1, max_log_lines: int = 20) -> Attack:
    short = Short(0.5, EVER, n_connections, max_growth_bytes=SMALL_GROWTH_BYTES)
    return Attack(*(run, 10, EVER, short, None, n_connections), must_log="a wrong key", max_log_lines=max_log_lines)


def _answers(
    run: Callable[[Order], Report], n_connections: int, growth_bytes: int = ANSWERS_GROWTH_BYTES, n_bytes: int = EVER
) -> Attack:
    short = Short(0.7, MIB // 2, n_connections, max_growth_bytes=growth_bytes)
    return Attack(run, 10, n_bytes, short, None, n_connections, growth_bytes)


PINGS = Short(1.5, 16 * MIB, must_end=False, max_growth_bytes=SMALL_GROWTH_BYTES)
TOLD = Short(4, 8 * MIB, max_growth_bytes=SMALL_GROWTH_BYTES)  # has 2 s for its close
HELD = Short(1.5, 8 * MIB, 5, must_end=False)
FRAGMENTS = Short(2, 8 * MIB, max_growth_bytes=SMALL_GROWTH_BYTES)

ATTACKS = {
    "headers": _request(requests.headers),
    "header": _request(requests.header),
    "url": _request(requests.url),
    "kept-alive": _request(requests.kept_alive),
    "body": _request(requests.body, BODY),
    "chunks": _request(requests.chunks, BODY),
    "trailers": _request(requests.trailers, BODY),
    "silent": _crowd(requests.silent, 1.5),
    "half": _crowd(requests.half, 1.5),
    "slow": _crowd(requests.slow, 2.5),
    "mute": Attack(requests.mute, 15, EVER, Short(1, EVER, 60, must_end=False), MUTE, 60, settings=FEW_PLACES),
    "pings": _websocket(unread.pings, STRANGER, PINGS),
    "pings-of-relay": _websocket(unread.pings_of_relay, None, PINGS),
    "pings-of-consumer": _websocket(unread.pings_of_consumer, None, PINGS),
    "texts": _websocket(unread.texts, STRANGER, TOLD),
    "errors-of-relay": _websocket(unread.errors_of_relay, BAD, TOLD),
    "errors-of-consumer": _websocket(unread.errors_of_consumer, BAD, TOLD),
    "probes-unread": _websocket(unread.probes_unread, None, PINGS),
    "refused": _websocket(unread.refused, STRANGER, TOLD, 10),
    "refused-late": _websocket(unread.refused_late, STRANGER, HELD, 10),
    "health-unread": _websocket(unread.health_unread, GONE, HELD, 50),
    "buffer-unread": _websocket(unread.buffer_unread, GONE, HELD, 50),
    "empty-fragments": _websocket(fragments.empty, FRAGMENT, FRAGMENTS),
    "empty-fragments-of-relay": _websocket(fragments.empty_of_relay, FRAGMENT, FRAGMENTS),
    "empty-fragments-of-consumer": _websocket(fragments.empty_of_consumer, FRAGMENT, FRAGMENTS),
    "tiny-fragments": _websocket(fragments.tiny, FRAGMENT, FRAGMENTS),
    "tiny-fragments-of-relay": _websocket(fragments.tiny_of_relay, FRAGMENT, FRAGMENTS),
    "tiny-fragments-of-consumer": _websocket(fragments.tiny_of_consumer, FRAGMENT, FRAGMENTS),
    "flood-raw": _flood(floods.raw),
    "flood-binary": _flood(floods.binary),
    "flood-gaps": _flood(floods.gaps),
    "flood-fragments": _flood(floods.fragments),
    "flood-features": _flood(floods.features),
    "flood-features-64-KiB": _flood(floods.features_of_64_kib),
    "flood-features-1-MiB": _flood(floods.features_of_1_mib),
    "flood-predictions": _flood(floods.predictions),
    "flood-probes": _flood(floods.probes),
    "storm": Attack(floods.storm, 15, EVER, Short(4, EVER, 300), None, 5000, max_growth_bytes=None, must_serve=True),
    "features-kept": _kept(kept.features, 24 * MIB, 4),
    "features-kept-of-many": _kept(kept.features_of_many, 24 * MIB),
    "small-features-kept-of-many": _kept(kept.small_features_of_many),
    "predictions-kept-of-many": _kept(kept.predictions_of_many, 24 * MIB),
    "samples-kept-of-many": _kept(kept.samples_of_many, 56 * MIB, growth_bytes=48 * MIB),
    "sessions-kept": _kept(kept.sessions, growth_bytes=SESSIONS_GROWTH_BYTES),
    "sessions-kept-stored": _kept(kept.sessions, growth_bytes=SESSIONS_GROWTH_BYTES)._replace(is_held=False),
    "devices-kept": _kept(kept.devices),
    "devices-kept-stored": _kept(kept.devices)._replace(is_held=False),
    "notes-unread": _kept(notes.unread),
    "notes-that-grow": Attack(notes.growing, 5, 32 * MIB, Short(1, 4 * MIB), None, max_growth_bytes=None),
    "notes-large": _flood(notes.large),
    "notes-small": _flood(notes.small),
    "journal-features": _journal(journal.features),
    "journal-raw": _journal(journal.raw),
    "journal-gaps": _journal(journal.gaps, n_bytes=MIB),
    "journal-predictions": _journal(journal.predictions),
    "journal-of-many": _journal(journal.features_of_many, 10),
    "journal-raw-of-many": _journal(journal.raw_of_many, 10),
    "journal-sessions": _journal(journal.sessions),
    "clock-ahead": Attack(sessions.clock_ahead, 5, EVER, Short(1, EVER, must_end=False), None),
    "position-ahead": Attack(sessions.position_ahead, 1, EVER, Short(1, EVER, must_end=False), None),
    "session-stolen": Attack(sessions.stolen, 5, EVER, Short(0.5, EVER), STOLEN),
    "session-stolen-unstored": Attack(sessions.stolen, 5, EVER, Short(0.5, EVER), STOLEN, is_held=True),
    "keys-over-rest": _refused(keys.over_rest),
    "keys-of-relays": _refused(keys.as_relay),
    "keys-of-consumers": _refused(keys.as_consumer),
    "keys-from-everywhere": _refused(keys.from_everywhere, 1500, 1100),
    "buffer": _answers(answers.buffer, 1),
    "buffer-at-once": _answers(answers.buffer_at_once, 20, LARGE_GROWTH_BYTES),
    "buffer-wide-unread": _answers(answers.buffer_unread, 50),
    "buffer-slow": _answers(answers.buffer_slow, 50),
    "history": _answers(answers.history, 10),
    "history-of-ties": _answers(answers.history_of_ties, 12, n_bytes=4 * MIB),
    "history-unread": _answers(answers.history_unread, 50),
    "sessions-of-large-devices": _answers(answers.sessions, 10, LARGE_GROWTH_BYTES),
    "sessions-unread": _answers(answers.sessions_unread, 50, LARGE_GROWTH_BYTES),
    "replays": _answers(answers.replays, 20, LARGE_GROWTH_BYTES),
    "replays-unread": _answers(answers.replays_unread, 50, LARGE_GROWTH_BYTES),
}
