"""Changes that operators ask for, on a real log and a real fleet whose workers are sockets in the test's hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sealgate.deployment import ModelSection
from sealgate.protocol.administration import ChangeModels
from sealgate.protocol.frames import ModelRefusal
from secure_runtime.host import repository
from secure_runtime.host.choice import ModelRules
from secure_runtime.host.repository import ModelKeeper
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
