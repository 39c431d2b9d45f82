"""A number of a key belongs to one worker at a time, whatever order workers come, rotate and go in."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from secure_runtime.host.key_owners import KeyOwners

STALE_S = 10.0


class Time:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)


def test_the_first_to_claim_a_number_keeps_it_until_its_key_is_gone() -> None:
    time = Time()
    owners = KeyOwners(stale_s=STALE_S, time_ns=time)
    assert owners.claim("a", [1, 2]) == frozenset()
    assert owners.claim("b", [2, 3]) == {2}
    assert [owners.owner(number) for number in (1, 2, 3, 4)] == ["a", "a", "b", None]
    assert owners.claim("a", [5, 6]) == frozenset()  # rotated: 1 and 2 are stale, and still opened
    time.pass_s(STALE_S - 1)
    assert owners.owner(2) == "a"
    assert owners.claim("b", [2]) == {2}
    time.pass_s(2)
    assert owners.owner(2) is None
    assert owners.claim("b", [2]) == frozenset()
    owners.release("a")
    assert owners.owner(5) is None
    assert owners.owner(2) == "b"


def test_a_new_worker_avoids_what_was_used_before_and_what_others_hold() -> None:
    owners = KeyOwners([9, 8], stale_s=STALE_S)
    owners.claim("a", [1])
    assert set(owners.to_avoid("b")) == {9, 8, 1}
    assert set(owners.to_avoid("a")) >= {9, 8}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 12), max_size=3), st.sampled_from([0, 1, 6, 11])),
        max_size=25,
    )
)
def test_no_number_is_ever_two_workers(steps: list[tuple[str, list[int], int]]) -> None:
    """An independent model: who published what until when; a request must reach nobody but who could open it."""
    time = Time()
    owners = KeyOwners(stale_s=STALE_S, time_ns=time)
    published: dict[str, set[int]] = {"a": set(), "b": set(), "c": set()}
    opened_until: dict[tuple[str, int], int] = {}
    for name, numbers, seconds in steps:
        time.pass_s(seconds)
        theirs = owners.claim(name, numbers)
        for number in published[name] - set(numbers):
            opened_until[name, number] = time.now + int(STALE_S * 1e9)
        published[name] = set(numbers) - theirs
        for other in "abc":
            if other != name:
                assert not published[name] & published[other]
        for number in range(13):
            able = {who for who in "abc" if number in published[who] or opened_until.get((who, number), -1) > time.now}
            assert len(able) <= 1 or owners.owner(number) in able
            assert (owners.owner(number) is None) == (not able)
