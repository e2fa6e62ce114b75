"""Sessions are found, given to one request at a time, and forgotten."""

import pytest

from brt_dist.serving.sessions import Saved, SessionBusyError, Sessions, SessionUnknownError


def saved(read: int) -> Saved:
    return Saved({}, [], read, [])


def test_one_request_at_a_time() -> None:
    sessions = Sessions(limit=2, expire_seconds=10)
    assert sessions.begin("a", must_exist=False) is None
    with pytest.raises(SessionBusyError, match="'a'"):
        sessions.begin("a", must_exist=True)
    sessions.end("a", saved(3))
    found = sessions.begin("a", must_exist=True)
    assert found is not None and found.read == 3
    sessions.end("a", None)
    with pytest.raises(SessionUnknownError, match="'a'"):
        sessions.begin("a", must_exist=True)


def test_the_one_unused_for_longest_makes_room() -> None:
    sessions = Sessions(limit=2, expire_seconds=10)
    for number, name in enumerate(("a", "b")):
        sessions.begin(name, must_exist=False)
        sessions.end(name, saved(number))
    sessions.end("a", sessions.begin("a", must_exist=True))
    sessions.begin("c", must_exist=False)
    sessions.end("c", saved(2))
    assert len(sessions) == 2
    with pytest.raises(SessionUnknownError):
        sessions.begin("b", must_exist=True)
    assert sessions.begin("a", must_exist=True) is not None


def test_unused_ones_expire() -> None:
    now = [0.0]
    sessions = Sessions(limit=5, expire_seconds=10, clock=lambda: now[0])
    for name, at in (("a", 0.0), ("b", 6.0)):
        now[0] = at
        sessions.begin(name, must_exist=False)
        sessions.end(name, saved(1))
    now[0] = 11.0
    assert len(sessions) == 1
    with pytest.raises(SessionUnknownError, match="10 s"):
        sessions.begin("a", must_exist=True)
