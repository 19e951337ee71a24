"""Which node holds which user, as the others tell it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zander.cluster.directory import DEAD_SECONDS, Directory, Holding, Owner, Peer


def holding(user_id: str = "me", session_id: str = "s", rank: int = 1, online: bool = True) -> Holding:
    return Holding(user_id, session_id, rank, 0, online, {})


def peer(*holdings: Holding, link_n: int = 1, n_changes: int = 5, now: float = 0.0) -> Peer:
    return Peer(link_n, n_changes, holdings, now)


def test_an_empty_directory_knows_nobody() -> None:
    directory = Directory()
    assert directory.owner("me") is None
    assert directory.silent(1e9) == []
    assert directory.remove("a") == set()


def test_a_whole_state_replaces_the_one_before_and_concerns_the_users_of_both() -> None:
    directory = Directory()
    assert directory.replace("a", peer(holding("one"), holding("two"))) == {"one", "two"}
    assert directory.replace("a", peer(holding("two"), holding("three"))) == {"one", "two", "three"}
    assert directory.owner("one") is None
    assert directory.owner("three") == Owner("a", holding("three"))


def test_a_change_follows_the_one_before() -> None:
    directory = Directory()
    directory.replace("a", peer(n_changes=5))
    assert directory.change("a", 6, "me", holding(), 1.0)
    assert directory.owner("me") == Owner("a", holding())
    assert directory.change("a", 7, "me", holding(online=False), 1.0)
    assert directory.owner("me") == Owner("a", holding(online=False))
    assert directory.change("a", 8, "me", None, 1.0)
    assert directory.owner("me") is None
    assert directory.change("a", 9, "me", None, 1.0)


def test_a_change_that_does_not_is_not_taken() -> None:
    directory = Directory()
    directory.replace("a", peer(n_changes=5))
    for n_changes in (4, 5, 7):
        assert not directory.change("a", n_changes, "me", holding(), 1.0)
    assert not directory.change("unknown", 1, "me", holding(), 1.0)
    assert directory.owner("me") is None
    assert directory.change("a", 6, "me", holding(), 1.0)


def test_a_node_holds_a_session_until_it_gives_it_up() -> None:
    directory = Directory()
    assert not directory.holds("a", "me", "s")
    directory.replace("a", peer(holding()))
    assert directory.holds("a", "me", "s")
    assert not directory.holds("a", "me", "t")
    assert not directory.holds("a", "you", "s")
    directory.change("a", 6, "me", None, 1.0)
    assert not directory.holds("a", "me", "s")


def test_a_beat_tells_whether_something_was_missed() -> None:
    directory = Directory()
    assert not directory.beat("a", 1, 5, 0.0)
    directory.replace("a", peer(link_n=1, n_changes=5))
    assert directory.beat("a", 1, 5, 1.0)
    assert not directory.beat("a", 2, 5, 1.0)
    assert not directory.beat("a", 1, 6, 1.0)


def test_a_node_that_leaves_is_forgotten_with_what_it_held() -> None:
    directory = Directory()
    directory.replace("a", peer(holding("one"), holding("two")))
    assert directory.remove("a") == {"one", "two"}
    assert directory.remove("a") == set()
    assert directory.owner("one") is None


def test_a_node_is_silent_after_a_while_without_news() -> None:
    directory = Directory()
    for node_id in ("state", "change", "beat", "mismatch"):
        directory.replace(node_id, peer(now=0.0))
    directory.replace("state", peer(now=1.0))
    directory.change("change", 6, "me", None, 1.0)
    directory.beat("beat", 1, 5, 1.0)
    directory.beat("mismatch", 2, 5, 1.0)
    assert directory.silent(DEAD_SECONDS) == []
    assert directory.silent(DEAD_SECONDS + 0.1) == ["mismatch"]
    assert set(directory.silent(DEAD_SECONDS + 1.1)) == {"state", "change", "beat", "mismatch"}


def test_the_newest_session_of_a_user_wins() -> None:
    directory = Directory()
    directory.replace("a", peer(holding(session_id="old", rank=1)))
    directory.replace("b", peer(holding(session_id="new", rank=2, online=False)))
    directory.replace("c", peer(holding("other", rank=9)))
    assert directory.owner("me") == Owner("b", holding(session_id="new", rank=2, online=False))


def test_of_two_of_one_rank_every_node_chooses_the_same() -> None:
    for order in (("a", "b"), ("b", "a")):
        directory = Directory()
        for node_id in order:
            directory.replace(node_id, peer(holding(session_id=node_id)))
        owner = directory.owner("me")
        assert owner
        assert owner.node_id == "b"


CHANGES = st.lists(
    st.tuples(st.sampled_from(["one", "two", "three"]), st.none() | st.integers(1, 9), st.booleans()), max_size=20
)


@given(CHANGES)
def test_who_asks_for_the_whole_state_after_each_miss_ends_up_knowing_it(
    changes: list[tuple[str, int | None, bool]],
) -> None:
    """A node tells its changes, some are lost; a beat at the end finds the last of them."""
    directory, mine = Directory(), dict[str, Holding]()
    n_changes = 0
    directory.replace("a", peer(n_changes=0))
    for user_id, rank, is_lost in changes:
        n_changes += 1
        if rank is None:
            mine.pop(user_id, None)
        else:
            mine[user_id] = holding(user_id, rank=rank)
        if not is_lost and not directory.change("a", n_changes, user_id, mine.get(user_id), 0.0):
            directory.replace("a", peer(*mine.values(), n_changes=n_changes))
    if not directory.beat("a", 1, n_changes, 0.0):
        directory.replace("a", peer(*mine.values(), n_changes=n_changes))
    for user_id in ("one", "two", "three"):
        owner = directory.owner(user_id)
        assert (owner.holding if owner else None) == mine.get(user_id)


def test_it_knows_whose_a_session_is_as_long_as_a_node_holds_it() -> None:
    directory = Directory()
    directory.replace("a", peer(holding("me", "s1"), holding("you", "s2")))
    assert (directory.user_of("s1"), directory.user_of("s2"), directory.user_of("s3")) == ("me", "you", None)
    directory.change("a", 6, "me", holding("me", "s3"), 1.0)
    assert (directory.user_of("s1"), directory.user_of("s3")) == (None, "me")
    directory.change("a", 7, "me", holding("me", "s3", online=False), 1.0)
    assert directory.user_of("s3") == "me"
    directory.change("a", 8, "me", None, 1.0)
    assert (directory.user_of("s3"), directory.user_of("s2")) == (None, "you")
    directory.remove("a")
    assert directory.user_of("s2") is None
