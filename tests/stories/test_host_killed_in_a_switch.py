"""SIGKILL of the runtime host while models change, new workers beside old ones: whatever moment it dies in, no worker
outlives it, the next host serves one of the two choices and says which, and the log keeps one end for every grant."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sealgate.errors import SealgateError
from tests.live import wait_until
from tests.stories.test_models_change import Callers, Repository, judge, repository, workers_of

__all__ = ["repository"]  # the fixture


def kill_in_the_middle(place: Repository, what: str, bundle: str, *, after_s: float) -> None:
    """Ask for a change, and kill the host `after_s` after the new worker's process is there; then start another."""
    live = place.live
    before = workers_of(live)
    told: list[str] = []

    def change() -> None:
        with contextlib.suppress(SealgateError):
            told.append(place.ask(what, bundle).code)

    asking = threading.Thread(target=change, daemon=True)
    asking.start()
    wait_until(lambda: workers_of(live) - before, within_s=60, what="a new worker beside the old one")
    threading.Event().wait(after_s)
    processes = live.worker_processes()
    live.kill("runtime")
    asking.join(30)
    assert not asking.is_alive(), "who asked for the change hangs"
    gone, left = psutil.wait_procs(processes, timeout=30)
    assert not left, "a worker outlived its host"
    assert len(gone) >= 1
    live.start("runtime")
    live.ready()


def stands_by_its_word(place: Repository) -> None:
    """What is served is what the log's newest change says, if one got there, and nothing in between."""
    told = place.told()
    done = [one for one in place.live.records() if one.kind == "model.change" and one.outcome == "done"]
    last = done[-1].detail["what"] if done else ""
    assert told["toy/1"].startswith("loaded")
    assert told["toy/2"].split()[0] in ("loaded", "unloaded")
    if last == "unload":
        assert told["toy/2"] == "unloaded"
    elif last == "load":
        assert told["toy/2"] == "loaded default"


def answered_again(callers: Callers) -> None:
    seen = len(callers.answers)
    wait_until(lambda: len(callers.answers) > seen + 1, within_s=60, what="answers after the restart")


def test_the_host_dies_while_a_worker_is_being_made_ready(
    repository: Callable[..., Repository], tmp_path: Path
) -> None:
    place = repository()
    place.put("toy/1")
    place.live.start()
    place.live.ready()
    with Callers(place.live, ["toy"]) as callers:
        place.put("toy/2")
        kill_in_the_middle(place, "load", "toy/2", after_s=0.2)
        answered_again(callers)
        stands_by_its_word(place)
        assert place.told() == {"toy/1": "loaded", "toy/2": "loaded default"}, "what lies there is served from a start"
    place.live.stop()
    callers.failures.clear()  # a dead host answers nobody
    records = judge(place.live, callers, tmp_path)
    assert not [one for one in records if one.kind == "model.change"], "a change that did not come about is none"


@pytest.mark.slow
def test_the_host_dies_at_any_moment_of_a_switch(repository: Callable[..., Repository], tmp_path: Path) -> None:
    place, chance = repository(), random.Random(20261122)
    place.put("toy/1")
    place.put("toy/2")
    place.live.start()
    place.live.ready()
    with Callers(place.live, ["toy", "toy"]) as callers:
        for turn in range(10):
            what = "unload" if place.told()["toy/2"].startswith("loaded") else "load"
            kill_in_the_middle(place, what, "toy/2", after_s=chance.random() * 6.0 if turn else 0.0)
            answered_again(callers)
            stands_by_its_word(place)
    place.live.stop()
    callers.failures.clear()
    judge(place.live, callers, tmp_path)
