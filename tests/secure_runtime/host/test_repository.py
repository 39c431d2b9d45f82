"""Changes that operators ask for, on a real log and a real fleet whose workers are sockets in the test's hand."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from audit.errors import LogUnavailable
from audit.log import AuditLog
from sealgate.deployment import Canary, ModelSection
from sealgate.limits import MAX_ADMIN_NOTE, MAX_FRAME_HEADER, MAX_NAME, MAX_WORKERS
from sealgate.protocol.administration import ChangeModels
from sealgate.protocol.frames import Layer, ModelRefusal
from sealgate.transparency.record import Record, leaf_bytes
from secure_runtime.host import repository
from secure_runtime.host.choice import Choice, ModelRules
from secure_runtime.host.repository import SERVED, ModelKeeper
from secure_runtime.host.withheld import DIGEST, list_digest, settle_withheld
from secure_runtime.limits import MAX_FACTS_BYTES
from tests.secure_runtime.host.test_fleet import Bench
from tests.secure_runtime.host.test_fleet import bench as bench


def test_routes_are_not_changed_while_workers_are_so_that_what_is_on_record_holds(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of workers ends with the routes that it began with: routes read anew in between would be undone."""
    for version in ("1", "2"):
        (tmp_path / "models" / "m" / version).mkdir(parents=True)
    said: dict[str, ModelSection] = {}
    monkeypatch.setattr(repository, "_settings_anew", lambda _deployment: dict(said))
    rules, fleet = ModelRules(), bench.make()
    deployment: Any = SimpleNamespace(models=tmp_path / "models", withheld=tmp_path / "withheld.json")
    keeper = ModelKeeper(deployment, bench.log, fleet, rules, tell=bench.told.append)

    async def act(bench: Bench) -> None:
        await bench.live(0, "1")
        loading = asyncio.create_task(keeper.answer(ChangeModels(id=1, what="load", places=("m/2",)), by="uid:0"))
        new = await bench.worker(1)
        said["m"] = ModelSection(default="1")
        refused = await keeper.answer(ChangeModels(id=2, what="route"), by="uid:0")
        assert (refused.code, refused.id) == ("switch-under-way", 2)
        new.hello("2")
        assert (await loading).code == ""
        assert rules.version_for("m", {"1", "2"}, "g", retired=False) == ""
        routed = await keeper.answer(ChangeModels(id=3, what="route"), by="uid:0")
        assert (routed.code, fleet.choice.section("m").default) == ("", "1")
        assert rules.version_for("m", {"1", "2"}, "g", retired=False) == "1"

    bench.play(act)
    changes = [(r.outcome, r.reason, r.detail.get("routes", "")) for r in bench.records() if r.kind == "model.change"]
    assert changes == [("failed", "switch-under-way", ""), ("done", "load", ""), ("done", "route", "m=1")]
    done = [record.detail for record in bench.records() if record.kind == "model.change" and record.outcome == "done"]
    assert [one["places"] for one in done] == ["m/1 m/2"] * 2
    assert {one[DIGEST] for one in done} == {list_digest(())}
    assert done[0][SERVED] != done[1][SERVED], "another version answers"


def test_who_loads_a_bundle_that_is_refused_is_told_what_the_reason_means(bench: Bench, tmp_path: Path) -> None:
    for version in ("1", "2"):
        (tmp_path / "models" / "m" / version).mkdir(parents=True)
    fleet = bench.make()
    deployment: Any = SimpleNamespace(models=tmp_path / "models", withheld=tmp_path / "withheld.json")
    keeper = ModelKeeper(deployment, bench.log, fleet, ModelRules(), tell=bench.told.append)

    async def act(bench: Bench) -> None:
        await bench.live(0, "1")
        loading = asyncio.create_task(keeper.answer(ChangeModels(id=1, what="load", places=("m/2",)), by="uid:0"))
        (await bench.worker(1)).hello("2", refused=(ModelRefusal(name="m/2", reason="audit-missing"),))
        told = await loading
        assert told.code == "bundle-refused"
        assert "m/2 is refused: audit-missing (the deployment demands an audit of the training" in told.why

    bench.play(act)


def test_versions_that_are_to_answer_and_are_not_loaded_are_named(bench: Bench, tmp_path: Path) -> None:
    named = {
        "m": ModelSection(default="1", canary=Canary(version="3", percent=5)),
        "other": ModelSection(default="1"),  # of which nothing is loaded: that is said elsewhere
    }
    fleet = bench.make(Choice(places=("m/1", "m/2"), named=named))
    deployment: Any = SimpleNamespace(models=tmp_path / "models", withheld=tmp_path / "withheld.json")
    keeper = ModelKeeper(deployment, bench.log, fleet, ModelRules(), tell=bench.told.append)

    async def act(bench: Bench) -> None:
        assert keeper.missing_versions == []
        await bench.live(0, "1")
        assert keeper.missing_versions == ["deployment.toml lets version 3 of m answer, which is not loaded"]

    bench.play(act)


def test_a_start_says_what_it_serves_and_whether_that_is_what_the_newest_change_said(
    bench: Bench, tmp_path: Path
) -> None:
    def start(choice: Choice, *, newest: Record | None, by: str = "") -> Record:
        keeper = ModelKeeper(SimpleNamespace(), bench.log, bench.make(choice), ModelRules(), tell=bench.told.append)  # type: ignore[arg-type]
        asyncio.run(keeper.record_start(newest, by=by))
        return bench.records()[-1]

    one, both = Choice(places=("m/1",), withheld=frozenset({"m/2"})), Choice(places=("m/1", "m/2"))
    first = start(one, newest=None)
    assert (first.kind, first.outcome, first.reason) == ("model.change", "done", "start")
    assert (first.detail["places"], first.detail["withheld"]) == ("m/1", "m/2")
    assert start(one, newest=first).reason == "start"
    assert not bench.told
    legacy = msgspec.structs.replace(first, detail={"what": "unload", "places": "m/1"})  # of a release before
    routed = Choice(one.places, one.withheld, {"m": ModelSection(default="1")})
    for choice, newest in ((both, first), (Choice(places=("m/1",)), first), (routed, first), (one, legacy)):
        found = start(choice, newest=newest)
        assert (found.reason, found.detail["places"]) == ("found-at-start", " ".join(choice.places))
    assert len(bench.told) == 4
    named = start(one, newest=first, by="uid:7")
    assert (named.reason, named.detail["by"]) == ("found-at-start", "uid:7")


@pytest.mark.parametrize("character", ["x", "\u20ac", "\U0001f600", "\x01", '"'])
def test_what_a_change_says_fits_into_a_record_whatever_folders_are_called(character: str) -> None:
    names = [character * 80 + f"/{number}" for number in range(40)]
    for count in range(1, len(names)):
        places = tuple(names[:count])
        named = {f"m{number}".ljust(MAX_NAME, "m"): ModelSection(default="1" * MAX_NAME) for number in range(count)}
        draft = repository._done(
            "unload",
            Choice(places=places, withheld=frozenset(places), named=named),
            asked=places,
            by=f"uid:{2**32}",
            note="\U0001f600" * MAX_ADMIN_NOTE,
            before=[f"{number:032x}" for number in range(count)],
            after=[f"{number:032x}" for number in range(count)],
        )
        leaf_bytes(msgspec.structs.replace(draft, v=1, log="o" * 2 * MAX_NAME, id="i" * 36, ts_us=2**50, salt="0" * 32))


def test_a_change_that_the_log_does_not_take_is_none_and_the_list_before_stays_in_force(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("1", "2"):
        (tmp_path / "models" / "m" / version).mkdir(parents=True)
    both = Choice(places=("m/1", "m/2"))
    rules, fleet = ModelRules(), bench.make(both)
    deployment: Any = SimpleNamespace(models=tmp_path / "models", withheld=tmp_path / "withheld.json")
    keeper = ModelKeeper(deployment, bench.log, fleet, rules, tell=bench.told.append)
    append = AuditLog.append

    def full(log: AuditLog, draft: Record, *rest: Any) -> Future[Any]:
        if draft.kind != "model.change":
            return append(log, draft, *rest)
        refused: Future[Any] = Future()
        refused.set_exception(LogUnavailable("the disk is nearly full", code="disk-reserve", retry_after_s=1))
        return refused

    async def act(bench: Bench) -> None:
        await keeper.record_start(None, by="")
        await bench.live(0, "1")
        with monkeypatch.context() as patched:
            patched.setattr(AuditLog, "append", full)
            unloading = asyncio.create_task(keeper.answer(ChangeModels(id=1, what="unload", places=("m/2",)), by="u"))
            (await bench.worker(1)).hello("2")
            with pytest.raises(LogUnavailable):
                await unloading
        assert fleet.choice is both
        assert bench.instances() == "1"
        newest = [record for record in bench.records() if record.kind == "model.change"][-1]
        assert settle_withheld(deployment.withheld, newest).withheld == frozenset()
        again = asyncio.create_task(keeper.answer(ChangeModels(id=2, what="unload", places=("m/2",)), by="u"))
        (await bench.worker(2)).hello("3")
        assert (await again).code == ""

    bench.play(act)
    newest = [record for record in bench.records() if record.kind == "model.change"][-1]
    assert settle_withheld(deployment.withheld, newest).withheld == {"m/2"}


def test_nothing_is_begun_while_the_log_has_failed(bench: Bench, tmp_path: Path) -> None:
    """What became of the change before, only the next start can tell: its list must stay in the file."""
    (tmp_path / "models" / "m" / "1").mkdir(parents=True)
    fleet = bench.make()
    deployment: Any = SimpleNamespace(models=tmp_path / "models", withheld=tmp_path / "withheld.json")
    keeper = ModelKeeper(deployment, bench.log, fleet, ModelRules(), tell=bench.told.append)
    bench.log.close()
    with pytest.raises(LogUnavailable):
        asyncio.run(keeper.answer(ChangeModels(id=1, what="unload", places=("m/1",)), by="uid:0"))
    assert not deployment.withheld.exists()
    assert not bench.workers


def test_what_a_worker_says_of_its_layers_fits_the_state_that_gateways_hear(bench: Bench) -> None:
    endless = {f"layer-{number:04}": Layer(state="on", detail="é" * 500) for number in range(2000)}
    through = {f"attempt-{number:04}": Layer(state="failed") for number in range(2000)}

    async def act(bench: Bench) -> None:
        await bench.live(0, "1")
        (one,) = bench.fleet.published
        loud = msgspec.structs.replace(one.facts, layers=one.facts.layers | endless, probes=through)
        (told,) = repository.workers_of([replace(one, facts=loud)])
        assert told.layers.items() >= one.facts.layers.items()
        assert 0 < len(told.got_through) < len(through)
        denied = {f"denied-{number:04}": Layer(state="on") for number in range(2000)}
        last = msgspec.structs.replace(loud, probes=denied | {"ptrace": Layer(state="failed")})
        (behind,) = repository.workers_of([replace(one, facts=last)])
        assert behind.got_through == ("ptrace",), "what got through is told first: no room is lost to what did not"
        assert len(msgspec.msgpack.encode([told] * MAX_WORKERS)) < (MAX_FRAME_HEADER - MAX_FACTS_BYTES) // 2

    bench.make()
    bench.play(act)
