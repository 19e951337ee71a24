"""A key, and whether it opens the door."""

from __future__ import annotations

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.clock import Clock
from zander import auth
from zander.auth import MAX_ADDRESSES, Refusals, given_key, require
from zander.errors import CloseCode, Unauthorized


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({}, None),
        ({"authorization": "Bearer secret"}, "secret"),
        ({"authorization": "bearer secret"}, "secret"),
        ({"authorization": "BEARER   secret "}, "secret"),
        ({"authorization": "Bearer two words"}, "two words"),
        ({"authorization": "Bearer"}, ""),
        ({"authorization": "Bearer "}, ""),
        ({"authorization": ""}, None),
        ({"authorization": "Basic c2VjcmV0"}, None),
        ({"authorization": "secret"}, None),
        ({"authorization": "Bearersecret"}, None),
        ({"x-api-key": "secret"}, "secret"),
        ({"x-api-key": ""}, ""),
        ({"authorization": "Bearer one", "x-api-key": "two"}, "one"),
        ({"authorization": "Basic c2VjcmV0", "x-api-key": "two"}, "two"),
    ],
)
def test_a_key_is_given_in_one_of_two_headers(headers: dict[str, str], key: str | None) -> None:
    assert given_key(headers) == key


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
def test_a_key_in_a_header_is_utf_8_like_everywhere(name: str) -> None:
    """Servers decode headers as latin-1; most clients send UTF-8, some latin-1."""
    prefix = "Bearer " if name == "authorization" else ""
    assert given_key({name: prefix + "schlüssel".encode().decode("latin-1")}) == "schlüssel"
    assert given_key({name: prefix + "schlüssel"}) == "schlüssel"


@pytest.mark.parametrize("given", [None, "", "anything"])
def test_without_keys_everybody_may(given: str | None) -> None:
    require((), given)


@pytest.mark.parametrize("given", ["one", "two", "schlüssel", "鍵"])
def test_each_key_opens_the_door(given: str) -> None:
    require(("one", "two", "schlüssel", "鍵"), given)


def test_an_address_with_wrong_keys_is_named_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    monkeypatch.setattr(auth, "monotonic", clock)
    refusals = Refusals()
    for seconds in (0, 30, 29, 1):
        clock.now_s += seconds
        for address in ("::1", "10.0.0.7"):
            refusals.note(address)
    assert refusals.n_refused == 8
    assert [record.message.count("::1") for record in caplog.records] == [1, 0, 1, 0]


def test_not_more_addresses_are_named_than_a_log_can_hold(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals()
    for n in range(3 * MAX_ADDRESSES):
        refusals.note(f"2001:db8::{n:x}")
    assert refusals.n_refused == 3 * MAX_ADDRESSES
    assert len(caplog.records) == MAX_ADDRESSES + 1
    assert "more than 1000 addresses" in caplog.messages[-1]


NO_KEYS = [None, "", "three", "on", "ONE", "one ", "one\x00", "onetwo", "one,two", "schlussel", "schlu\u0308ssel"]


@pytest.mark.parametrize("given", NO_KEYS)
def test_nothing_else_does(given: str | None) -> None:
    with pytest.raises(Unauthorized) as refused:
        require(("one", "two", "schlüssel"), given)
    assert (refused.value.status, refused.value.close) == (401, CloseCode.UNAUTHORIZED)
    assert refused.value.code == "unauthorized"


def test_a_key_that_came_from_the_environment_in_another_encoding_is_a_key_all_the_same() -> None:
    require(("schl\udcfcssel",), "schl\udcfcssel")
    with pytest.raises(Unauthorized):
        require(("schl\udcfcssel",), "schlüssel")


@pytest.mark.parametrize("wrong", [None, "wrong-secret"])
def test_what_is_said_names_no_key(wrong: str | None) -> None:
    with pytest.raises(Unauthorized) as refused:
        require(("right-secret",), wrong)
    assert "secret" not in refused.value.message


@pytest.mark.parametrize("given", ["one", "two", "three", "none", ""])
def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    compared = []

    def compare(key: bytes, against: bytes) -> bool:
        assert isinstance(key, bytes)  # text would have to be ASCII
        compared.append(key)
        return hmac.compare_digest(key, against)

    monkeypatch.setattr(auth, "compare_digest", compare)
    try:
        require(("one", "two", "three"), given)
    except Unauthorized:
        assert given in ("none", "")
    assert compared == [b"one", b"two", b"three"]


@given(keys=st.lists(st.text(min_size=1), min_size=1, max_size=3), given=st.text(st.characters(), max_size=5))
def test_exactly_the_keys_open_the_door(keys: list[str], given: str) -> None:
    for key in keys:
        require(tuple(keys), key)
    if given not in keys:
        with pytest.raises(Unauthorized):
            require(tuple(keys), given)
