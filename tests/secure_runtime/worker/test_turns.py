"""Who comes next, beside a plain simulation; and what one caller's many requests can cost another one's few."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.protocol.frames import Grant, Obligations, Work
from secure_runtime.worker.turns import ExplanationQueue, Turns, Waiting, in_turns


def waiting(number: int, actor: str, size: int = 1) -> Waiting:
    grant = Grant(
        id=str(number),
        model="m",
        operation="explain",
        purpose="p",
        actor=actor,
        credential_binding="",
        obligations=Obligations(),
        expires_us=0,
    )
    return Work(id=number, grant=grant, media_type=""), bytes(size), False


def numbers(works: list[Waiting]) -> list[int]:
    return [work.id for work, _, _ in works]


@given(st.lists(st.sampled_from("abc"), max_size=30))
@settings(max_examples=60)
def test_callers_take_turns_in_a_sweep(actors: list[str]) -> None:
    works = [waiting(number, actor) for number, actor in enumerate(actors)]
    rounds: list[list[int]] = []
    seen: Counter[str] = Counter()
    for number, actor in enumerate(actors):
        if seen[actor] == len(rounds):
            rounds.append([])
        rounds[seen[actor]].append(number)
        seen[actor] += 1
    assert numbers(in_turns(works)) == [number for one in rounds for number in one]


def test_who_asks_for_one_explanation_waits_for_one_of_each_other() -> None:
    queue = ExplanationQueue()
    for number in range(100):
        assert queue.add(waiting(number, "many"))
    assert queue.next()[0].id == 0
    assert queue.add(waiting(100, "one"))
    assert [queue.next()[0].id for _ in range(3)] == [1, 100, 2]


@given(st.lists(st.sampled_from("abc"), max_size=20), st.dictionaries(st.sampled_from("abc"), st.integers(1, 3)))
@settings(max_examples=60)
def test_the_turn_is_of_whom_the_fewest_run(actors: list[str], running: dict[str, int]) -> None:
    turns, left = Turns[int](), dict[str, list[int]]()
    for number, actor in enumerate(actors):
        turns.add(actor, number)
        left.setdefault(actor, []).append(number)
    while turns:
        actor = turns.whose(running)
        assert running.get(actor, 0) == min(running.get(other, 0) for other in left)
        assert turns.take(actor) == left[actor].pop(0)
        running[actor] = running.get(actor, 0) + 1
        left = {other: waiting for other, waiting in left.items() if waiting}
    assert not left


def test_one_caller_does_not_fill_the_queue_and_a_large_request_fits_an_empty_one() -> None:
    queue = ExplanationQueue(bytes_max=100)
    assert queue.add(waiting(0, "many", 1000))
    assert not queue.add(waiting(1, "one"))
    queue.next()
    assert not queue
    assert [queue.add(waiting(number, "many", 25)) for number in range(4)] == [True, True, True, False]
    assert queue.add(waiting(5, "one", 25))
    assert not queue.add(waiting(6, "one", 1))


@given(
    st.lists(
        st.one_of(st.tuples(st.sampled_from("abc"), st.integers(1, 40)), st.none(), st.integers(0, 30)), max_size=40
    )
)
@settings(max_examples=100)
def test_nothing_is_lost_and_everything_is_counted(steps: list[Any]) -> None:
    """Requests come, are served, and are cancelled."""
    queue, there, number = ExplanationQueue(bytes_max=100), dict[int, Waiting](), 0
    for step in steps:
        if isinstance(step, tuple):
            one = waiting(number, *step)
            if queue.add(one):
                there[number] = one
            number += 1
        elif step is None and queue:
            del there[queue.next()[0].id]
        elif step is not None:
            gone = queue.cancel({step, step + 1})
            assert {work.id for work, _, _ in gone} == {step, step + 1} & there.keys()
            assert all(cancelled for _, _, cancelled in gone)
            there = {at: one for at, one in there.items() if at not in (step, step + 1)}
        assert bool(queue) == bool(there)
    while queue:
        del there[queue.next()[0].id]
    assert not there
    assert not queue._bytes


@pytest.mark.parametrize("ids", [set(), {7}])
def test_what_is_not_there_is_not_cancelled(ids: set[int]) -> None:
    queue = ExplanationQueue()
    queue.add(waiting(1, "a"))
    assert queue.cancel(ids) == []
    assert queue.next()[0].id == 1
