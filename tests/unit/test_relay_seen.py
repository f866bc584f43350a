"""Which commands the relay may have called before."""

from outbox_relay.seen import Seen


def test_a_command_is_known_when_it_comes_again() -> None:
    seen = Seen(limit=2)
    assert [seen.add(id) for id in ("a", "b", "a")] == [False, False, True]


def test_the_oldest_are_forgotten() -> None:
    seen = Seen(limit=2)
    for id in ("a", "b", "a", "c"):
        seen.add(id)
    assert [seen.add("a"), seen.add("b")] == [True, False]


def test_nothing_is_remembered_without_room() -> None:
    seen = Seen(limit=0)
    assert [seen.add("a"), seen.add("a")] == [False, False]
