"""SIGKILL of the runtime host while models change, new workers beside old ones: whatever moment it dies in, no worker
outlives it, the next host serves what the log's newest change says, and the log keeps one end for every grant."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from sealgate.errors import SealgateError
from tests.live import wait_until
from tests.sealgate_killed import KILLED
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
    """What is served is what the log's newest change says, and that is what all of them come to: only those that an
    operator asked for make a difference, each as a whole."""
    told = place.told()
    done = [one for one in place.live.records() if one.kind == "model.change" and one.outcome == "done"]
    newest = done[-1]
    assert newest.reason in ("start", "found-at-start")
    assert {one for one, state in told.items() if state.startswith("loaded")} == set(newest.detail["places"].split())
    unloaded = {one for one, state in told.items() if state == "unloaded"}
    assert unloaded == set(newest.detail.get("withheld", "").split())
    asked = [one.reason for one in done if one.reason in ("load", "unload")]
    assert unloaded == ({"toy/2"} if asked[-1:] == ["unload"] else set())
    assert told["toy/1"].startswith("loaded")


def start_again(place: Repository, **more: Any) -> None:
    """A host without a gateway, until it serves."""
    place.live.start("runtime", **more)

    def serves() -> bool:
        with contextlib.suppress(SealgateError):
            return any(state.startswith("loaded") for state in place.told().values())
        return False

    wait_until(serves, within_s=120, what="a host that serves")


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
    changes = [(one.reason, one.detail["places"]) for one in records if one.kind == "model.change"]
    assert changes == [("start", "toy/1"), ("found-at-start", "toy/1 toy/2")], (
        "a change that did not come about is none"
    )


@pytest.mark.slow
def test_a_host_that_dies_around_the_record_of_a_change_has_made_it_or_not_as_the_record_is_there(
    repository: Callable[..., Repository],
) -> None:
    place = repository()
    for bundle in ("toy/1", "toy/2"):
        place.put(bundle)
    for killed, unloads in (("kept", 0), ("recorded", 1)):
        start_again(place, env={KILLED: killed}, module="tests.sealgate_killed")
        stands_by_its_word(place)
        with pytest.raises(SealgateError):
            place.ask("unload", "toy/2")
        assert place.live.processes.pop("runtime").wait(60) == -signal.SIGKILL
        start_again(place)
        stands_by_its_word(place)
        done = [one.reason for one in place.live.records() if one.kind == "model.change"]
        assert done.count("unload") == unloads
        assert done[-1] == "start", "nothing was found that the log did not say"
        place.live.stop()
    (place.root / "log" / "models-withheld.json").unlink()
    place.live.start("runtime")
    assert place.live.processes.pop("runtime").wait(60) == 1, "what stays unloaded is lost: it serves nothing, not all"
    assert "does not hold the list of unloaded models that the log states (toy/2)" in place.live.said("runtime")
    (place.root / "log" / "models-withheld.json").write_text("[]")
    start_again(place)
    assert place.told()["toy/2"] == "loaded default"
    newest = [one for one in place.live.records() if one.kind == "model.change"][-1]
    assert (newest.reason, newest.detail["by"]) == ("found-at-start", f"uid:{os.getuid()}")


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
