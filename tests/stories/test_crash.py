"""SIGKILL under load: no answer without its record, no grant without exactly one end, and the log verifies."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from sealgate.errors import SealgateError
from sealgate.evidence.trust import load_trust
from sealgate.transparency.record import ENDS
from sealgate.transparency.verifier import LogTrust, verify_bundle
from tests.live import MODEL, Live, reader, wait_until


class Load:
    """Callers that ask without pause and keep the receipts of every answer that they got."""

    def __init__(self, live: Live, callers: int) -> None:
        self._live = live
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.receipts: list[tuple[int, str]] = []  # index and grant of each answer
        self.refused = 0
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(callers)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def _ask(self) -> None:
        with self._live.session(timeout=20.0) as session:
            while not self._stop.is_set():
                try:
                    receipt = session.infer(MODEL, self._live.rows[:2]).receipt
                except SealgateError:
                    with self._lock:
                        self.refused += 1
                    self._stop.wait(0.02)
                    continue
                with self._lock:
                    self.receipts.append((receipt.index, receipt.record.grant))

    def more(self, count: int) -> None:
        """Wait for that many further answers."""
        target = len(self.receipts) + count
        wait_until(lambda: len(self.receipts) >= target, within_s=120, what=f"{count} more answers")

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def storm(live: Live, victims: list[str], *, seed: int) -> Load:
    """Kill each victim at a random moment under load, bring it back, and go on."""
    chance = random.Random(seed)
    live.start()
    live.ready()
    with Load(live, callers=4) as load:
        for victim in victims:
            load.more(3)
            threading.Event().wait(chance.random() * 0.1)
            live.kill(victim)
            if victim != "worker":
                live.start(victim)
            load.more(3)
    assert live.stop() == {"gateway": 0, "runtime": 0}
    return load


def judge(live: Live, load: Load, folder: Path) -> None:
    """What must hold afterwards, whatever was killed when."""
    records = live.records()
    for index, grant in load.receipts:
        assert records[index].kind == "inference.completed", f"answer without its record at {index}"
        assert records[index].grant == grant
    ends = Counter(record.grant for record in records if record.kind in ENDS)
    authorized = [record.id for record in records if record.kind == "inference.authorized"]
    assert authorized
    assert all(ends[grant] == 1 for grant in authorized)
    assert set(ends) == set(authorized)
    counters: dict[str, list[int]] = {}
    for record in records:
        if record.runtime_seq:
            counters.setdefault(record.runtime_instance, []).append(record.runtime_seq)
    assert all(sorted(seen) == list(range(1, len(seen) + 1)) for seen in counters.values())
    with reader(live.deployment) as found, (folder / "evidence.zip").open("w+b") as out:
        found.export(0, len(records) - 1, out)
    trust = load_trust(live.trust)
    report = verify_bundle(folder / "evidence.zip", LogTrust(verifiers=trust.log_keys))
    report.require()


@pytest.mark.parametrize("victim", ["worker", "runtime", "gateway"])
def test_one_kill_of_each_process(fresh: Callable[[], Live], tmp_path: Path, victim: str) -> None:
    live = fresh()
    load = storm(live, [victim], seed=1)
    judge(live, load, tmp_path)


@pytest.mark.slow
def test_fifty_one_kills(fresh: Callable[[], Live], tmp_path: Path) -> None:
    live = fresh()
    load = storm(live, ["worker", "runtime", "gateway"] * 17, seed=20261122)
    assert load.refused, "kills that nobody noticed did not test anything"
    judge(live, load, tmp_path)


def test_a_new_worker_has_new_keys_and_a_client_follows_without_noticing(fresh: Callable[[], Live]) -> None:
    live = fresh()
    live.start()
    live.ready()
    with live.http() as plain, live.session() as session:
        first = session.infer(MODEL, live.rows[:1]).receipt.record
        before = plain.get("/.well-known/ohttp-gateway").content
        live.kill("worker")

        def other_keys() -> bool:
            answer = plain.get("/.well-known/ohttp-gateway")
            return answer.status_code == 200 and answer.content not in (b"", before)

        wait_until(other_keys, within_s=60, what="new keys")
        second = session.infer(MODEL, live.rows[:1]).receipt.record  # sealed to the old key first, then once more
    assert first.runtime_instance != second.runtime_instance
    live.stop()
    told = [(r.kind, r.runtime_instance, r.reason) for r in live.records() if r.kind.startswith("worker.")]
    assert [kind for kind, _, _ in told] == ["worker.start", "worker.stop", "worker.start", "worker.stop"]
    assert told[1][1:] == (first.runtime_instance, "worker-died")
    assert told[3][1:] == (second.runtime_instance, "stopped")
    reasons = {r.reason for r in live.records() if r.kind == "inference.failed"}
    assert reasons <= {"key-unknown"}
