"""Keys, what is said of wrong ones, and the check of a web page's origin."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from hmac import compare_digest
from time import monotonic
from urllib.parse import urlsplit

from zander.errors import Unauthorized
from zander.settings import Keys, is_loopback

LOG_SECONDS = 60.0  # in which an address is logged once
MAX_ADDRESSES = 1000  # logged in that time: somebody may have any number of them

log = logging.getLogger(__name__)


def given_key(headers: Mapping[str, str]) -> str | None:
    """Return the key of `Authorization: Bearer …` or `X-API-Key`, None when neither is there."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    given = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")
    try:
        return given and given.encode("latin-1").decode()  # servers read headers as latin-1, most clients send UTF-8
    except UnicodeError:
        return given


def check_origin(headers: Mapping[str, str]) -> None:
    """Raise Unauthorized for a web page of another site: where no key is needed, only this machine is let in.

    A browser on this machine would carry such a page's requests here; `Origin` gives it away, or, where the page's
    own name was made to point here, `Host`.
    """
    for name, prefix in (("origin", ""), ("host", "//")):
        given = headers.get(name)
        if given and not is_loopback(_hostname(prefix + given)):
            raise Unauthorized(f"expected a request of this machine, or a key, got {name} {given}")


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def require(keys: Keys, given: str | None) -> None:
    """Raise Unauthorized unless `given` is one of `keys`; without keys everybody may.

    Every key is compared, in constant time, so that the time taken tells nothing.
    """
    if not keys:
        return
    if given is None:
        raise Unauthorized("expected a key in `Authorization: Bearer …`, got none")
    if not sum(compare_digest(_bytes(key), _bytes(given)) for key in keys):
        raise Unauthorized("expected one of this server's keys, got another")


class Refusals:
    """Clients without a right key: `n_refused` counts them since the start, the log names an address once a minute."""

    def __init__(self) -> None:
        self.n_refused = 0
        self._logged: set[str] = set()
        self._since_s = monotonic()

    def note(self, address: str) -> None:
        """Count a client that was refused, and log where it came from."""
        self.n_refused += 1
        if monotonic() - self._since_s >= LOG_SECONDS:
            self._logged.clear()
            self._since_s = monotonic()
        if address in self._logged or len(self._logged) > MAX_ADDRESSES:
            return
        self._logged.add(address)
        if len(self._logged) > MAX_ADDRESSES:
            log.warning("a wrong key, or none, came from more than %d addresses in a minute", MAX_ADDRESSES)
        else:
            log.warning("a wrong key, or none, came from %s; it is named once a minute", address)


def _bytes(key: str) -> bytes:
    return key.encode(errors="surrogatepass")  # the environment may hold bytes that are not UTF-8
