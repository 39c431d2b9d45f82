"""Room in the host: counted beside a list of what is there, and never more than there is."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from secure_runtime.host.room import Owner, Room, Unread

ONE, OTHER = ("t", "one"), ("t", "other")


def test_one_caller_leaves_room_for_the_others() -> None:
    room = Room(100)
    assert room.take(ONE, 75)
    assert not room.take(ONE, 1)
    assert room.take(OTHER, 25)
    assert not room.take(OTHER, 1)
    room.give_back(ONE, 75)
    assert room.take(OTHER, 50)
    assert room.taken == 75


@given(
    steps=st.lists(
        st.tuples(st.sampled_from([ONE, OTHER]), st.integers(0, 60), st.integers(0, 9), st.booleans()), max_size=40
    )
)
@settings(max_examples=200, deadline=None)
def test_what_is_unread_is_known(steps: list[tuple[Owner, int, int, bool]]) -> None:
    """Answers with heads of some bytes go out; the gateway reads whole answers, oldest first, or none."""
    unread, model, queued, read = Unread(100), list[tuple[int, Owner, int]](), 0, 0
    for owner, size, head, reads in steps:
        if reads and model:
            read = model[0][0]
        model = [one for one in model if one[0] > read]
        own = sum(one[2] for one in model if one[1] == owner) + size
        fits = sum(one[2] for one in model) + size <= 100 and own <= 75
        assert unread.take(owner, size, read=read) == fits
        queued += head + (size if fits else 0)
        if fits:
            unread.sent(owner, size, end=queued)
            model.append((queued, owner, size))
