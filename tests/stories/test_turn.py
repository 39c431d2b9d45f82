"""The half-year turns while people ask: nobody is refused, and both shards, with every receipt, verify together."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sealgate.ambient import now_us
from sealgate.client import receipts
from sealgate.client.results import InferResult
from sealgate.client.transport import open_trust
from sealgate.transparency.several import Given, SeveralReport, verify_bundles
from sealgate.transparency.shards import half_year_of, shard_name
from sealgate.transparency.verifier import LogTrust
from tests.live import MODEL, Live, reader
from tests.sealgate_ahead import AHEAD

HOUR_US = 3_600_000_000
ASKERS, BEFORE = 3, 4


def next_turn_us(now: int) -> int:
    half_year = half_year_of(now) + 1
    return int(datetime(half_year // 2, 6 * (half_year % 2) + 1, 1, tzinfo=UTC).timestamp()) * 1_000_000


def set_ahead(file: Path, ahead_us: int) -> None:
    file.with_suffix(".new").write_text(str(ahead_us))
    os.replace(file.with_suffix(".new"), file)


def bundles(live: Live, folder: Path) -> list[Path]:
    paths = []
    with reader(live.deployment) as found:
        for shard in found.shards().all:
            paths.append(folder / f"{shard.number}.zip")
            with paths[-1].open("wb") as out:
                found.export(0, found.size(origin=shard.origin) - 1, out, origin=shard.origin)
    return paths


def verified(live: Live, folder: Path, given: list[bytes]) -> SeveralReport:
    trust = LogTrust(verifiers=tuple(open_trust(live.trust).log_keys))
    return verify_bundles(bundles(live, folder), trust, given=Given(receipts=tuple(given)))


@pytest.mark.slow
def test_the_half_year_turns_under_load(
    fresh: Callable[[], Live], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "DATE_WINDOW_S", 366 * 86_400)  # the log's clock alone is ahead of the client's
    live = fresh()
    base, turn = live.deployment.settings.deployment.origin, next_turn_us(now_us())
    ahead = tmp_path / "ahead"
    set_ahead(ahead, turn - now_us() - HOUR_US)
    live.start("runtime", env={AHEAD: str(ahead)}, module="tests.sealgate_ahead")
    live.start("gateway")
    live.ready()
    answered: list[InferResult] = []
    turned = threading.Event()

    def ask() -> None:
        with live.session() as session:
            after = 0
            while after < BEFORE:
                after += turned.is_set()
                answered.append(session.infer(MODEL, live.rows[:1]))

    with ThreadPoolExecutor(ASKERS) as askers:
        asking = [askers.submit(ask) for _ in range(ASKERS)]
        with live.session() as session:
            for _ in range(BEFORE):
                answered.append(session.infer(MODEL, live.rows[:1]))
        set_ahead(ahead, turn - now_us() + HOUR_US)
        turned.set()
        for one in asking:
            one.result()
    live.stop()
    following = shard_name(base, half_year_of(turn))
    assert {one.receipt.record.log for one in answered} == {base, following}
    report = verified(live, tmp_path, [one.receipt_bytes for one in answered])
    assert report.ok, [bundle.report.lines() for bundle in report.bundles]
    assert [(link.name, link.verdict.status) for link in report.links] == [(f"{following} follows {base}", "ok")]
    for bundle in report.bundles:
        (step,) = [step for step in bundle.report.steps if "receipts" in step.name]
        assert step.status == "ok", step
        assert all(step.status == "ok" for step in bundle.report.steps[5:]), bundle.report.lines()

    live.start("runtime", env={AHEAD: str(ahead)}, module="tests.sealgate_ahead")  # and it goes on
    live.start("gateway")
    live.ready()
    with live.session() as session:
        result = session.infer(MODEL, live.rows[:1])
    live.stop()
    assert result.receipt.record.log == following
    assert verified(live, tmp_path, [result.receipt_bytes]).ok
