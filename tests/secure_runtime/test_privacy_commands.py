"""`sealgate privacy` against a real log behind a real administration socket, and with nobody there."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from audit.log import AuditLog
from audit.retention import DAY_US
from gateway.provisioning import provision
from sealgate.ambient import Clock, now_us
from sealgate.deployment import Deployment, open_deployment
from sealgate.errors import ConfigurationError, HostAway, HostRefused
from sealgate.protocol.administration import AdminToHost, HostToAdmin
from sealgate.protocol.frames import Refused
from sealgate.transparency.receipt import verify_receipt
from sealgate.transparency.record import Record
from sealgate.transparency.shards import half_year_of
from secure_runtime.host import privacy
from secure_runtime.host.administration import AdminServer
from secure_runtime.host.key_files import load_note_signer, load_subjects_key
from secure_runtime.host.privacy import Privacy
from secure_runtime.privacy_commands import PRIVACY


class Host:
    """The part of the runtime host that operators reach, with a log of its own."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.signer = load_note_signer(deployment.log_key, deployment.settings.deployment.origin)
        self._start(now_us)
        self.faults: list[Exception] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = AdminServer(self)
        self._run(self._server.listen(deployment.admin_socket))

    def turn(self) -> None:
        """The next half-year has come."""
        self.log.close()
        later = half_year_of(now_us()) + 1
        moment = datetime(later // 2, 1 + 6 * (later % 2), 2, tzinfo=UTC)
        self._start(now_us, shard="half-year", clock=lambda: int(moment.timestamp()) * 1_000_000)

    def _start(self, privacy_clock: Clock, **options: Any) -> None:
        self.log = AuditLog.open(
            self.deployment.log_url,
            signer=self.signer,
            subjects_key=load_subjects_key(self.deployment.subjects_key),
            person_keys=self.deployment.person_keys,
            origin=self.signer.name,
            **options,
        )
        self.privacy = Privacy(
            self.log, url=self.deployment.log_url, retention=self.deployment.retention, clock=privacy_clock
        )

    def restart(self, *, clock: Clock) -> None:
        self.log.close()
        self._start(clock)

    async def administer(self, frame: AdminToHost, *, by: str) -> HostToAdmin:
        return await self.privacy.answer(frame, by=by)  # type: ignore[arg-type]

    def fault(self, error: Exception) -> None:
        self.faults.append(error)

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def close(self) -> None:
        self._run(self._server.close(drain_s=5))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.log.close()
        assert self.faults == []

    def saw(self, name: str, *, count: int = 1, days_ago: int = 0, purpose: str = "treatment") -> str:
        """Records of somebody's requests."""
        actor = self.log.actor("clinic", name)
        draft = Record(
            kind="inference.denied",
            tenant="clinic",
            actor=actor,
            model="m",
            purpose=purpose,
            outcome="refused",
            ts_us=now_us() - days_ago * DAY_US,
        )
        for future in [self.log.append(draft) for _ in range(count)]:
            future.result()
        return actor

    def records(self, kind: str) -> list[Record]:
        from contextlib import closing

        from audit.query import AuditReader, RecordFilter

        origin = self.deployment.settings.deployment.origin
        with closing(AuditReader(self.deployment.log_url, origin=origin)) as reader:
            return [entry.record for entry in reader.records(RecordFilter(kind=kind, oldest_first=True)).records]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return provision(tmp_path / "state", audience="localhost:8443", origin="localhost/log", profile="dev").root


@pytest.fixture
def host(state: Path) -> Iterator[Host]:
    (state / "run").mkdir(exist_ok=True)
    made = Host(open_deployment(state))
    yield made
    made.close()


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    PRIVACY.configure(parser)
    return PRIVACY.run(parser.parse_args([str(argument) for argument in arguments]))


ALICE = ("--tenant", "clinic", "--subject", "alice")


# subject -------------------------------------------------------------------------------------------------------------


def test_a_report_has_everything_about_one_person_and_nobody_else(
    host: Host, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alice = host.saw("alice", count=3)
    host.saw("bob", count=5)
    host.saw("alice", count=2, purpose="billing")
    out = tmp_path / "alice.json"
    assert run("subject", state, *ALICE, "--note", "her letter of May", "--out", out) == 0
    said = capsys.readouterr().out
    assert alice in said
    assert "billing" in said
    assert "2192" in said
    assert out.stat().st_mode & 0o777 == 0o600
    report = json.loads(out.read_text())
    (asked,) = host.records("subject.report")
    assert (asked.actor, asked.tenant) == (alice, "clinic")
    assert asked.detail == {"by": f"uid:{os.getuid()}", "note": "her letter of May"}
    assert len(report["records"]) == 6  # the question too
    for item in report["records"]:
        verified = verify_receipt(item["receipt"].encode(), [host.signer.verifier])
        assert (verified.index, verified.record.actor) == (item["index"], alice)
        assert item["record"] == json.loads(verified.leaf)
    by_purpose = {use["purpose"]: use for use in report["uses"]}
    assert (by_purpose["treatment"]["records"], by_purpose["billing"]["records"]) == (3, 2)
    assert (by_purpose["treatment"]["kept_days"], by_purpose["billing"]["kept_days"]) == (2192, 184)
    assert by_purpose["billing"]["outcomes"] == {"inference.denied": 2}
    with pytest.raises(ConfigurationError, match="there already"):
        run("subject", state, *ALICE, "--out", out)
    assert len(host.records("subject.report")) == 1  # not even asked


def test_a_persons_report_spans_shards_and_each_record_is_proven_in_its_own(
    host: Host, state: Path, tmp_path: Path
) -> None:
    alice = host.saw("alice", count=3)
    host.turn()
    assert host.saw("alice", count=2) == alice
    out = tmp_path / "alice.json"
    assert run("subject", state, *ALICE, "--out", out) == 0
    report = json.loads(out.read_text())
    verified = [verify_receipt(item["receipt"].encode(), [host.signer.verifier]) for item in report["records"]]
    assert [one.checkpoint.origin == host.signer.name for one in verified] == [True] * 3 + [False] * 3
    assert {one.record.actor for one in verified} == {alice}
    assert [one.index for one in verified] == [item["index"] for item in report["records"]]


def test_what_is_pruned_of_an_ended_shard_is_announced_by_the_next_one(host: Host, state: Path) -> None:
    host.saw("alice", count=700, days_ago=4000)
    host.turn()
    assert run("prune", state, "--note", "x") == 0
    (said,) = host.records("retention.pruned")
    assert said.detail["shard"] == host.signer.name != said.log
    assert said.detail["count"] == "700"


def test_who_is_unknown_is_said_and_not_recorded(host: Host, state: Path) -> None:
    size = host.log.state.size
    with pytest.raises(HostRefused, match="knows nobody"):
        run("subject", state, *ALICE)
    assert host.log.state.size == size


def test_a_report_names_the_holds(host: Host, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host.saw("alice")
    run("hold", state, "case-7", *ALICE)
    run("hold", state, "other", "--tenant", "lab")
    capsys.readouterr()
    assert run("subject", state, "--json", *ALICE) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["holds"] == ["case-7"]
    assert report["limits"]


def test_nobody_there_is_said(state: Path) -> None:
    for arguments in (
        ("subject", state, *ALICE),
        ("erase", state, *ALICE, "--ground", "objection"),
        ("hold", state, "x"),
        ("release", state, "x"),
        ("prune", state),
    ):
        with pytest.raises(HostAway):
            run(*arguments)


# erase, hold, release ------------------------------------------------------------------------------------------------


def test_an_erasure_with_its_ground(host: Host, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alice = host.saw("alice")
    assert run("erase", state, *ALICE, "--ground", "consent-withdrawn", "--note", "letter 12") == 0
    said = capsys.readouterr().out
    assert "no copy of the log's database names this person" in said
    assert "Traces" not in said
    (done,) = host.records("erasure.completed")
    assert (done.actor, done.reason) == (alice, "consent-withdrawn")
    assert done.detail == {"by": f"uid:{os.getuid()}", "note": "letter 12"}
    with pytest.raises(HostRefused, match="knows nobody"):
        run("erase", state, *ALICE, "--ground", "objection")
    assert host.saw("alice") != alice


def test_an_erasure_tells_when_somebody_copies_the_keys(
    host: Host, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host.saw("alice")
    host.saw("bob")
    with contextlib.closing(sqlite3.connect(host.deployment.person_keys, isolation_level=None)) as copying:
        copying.execute("BEGIN")
        copying.execute("SELECT count(*) FROM person").fetchone()
        assert run("erase", state, *ALICE, "--ground", "objection") == 0
    assert "Traces may stand in the -wal files" in capsys.readouterr().out


def test_an_erasure_tells_where_else_the_name_stands(
    host: Host, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host.saw("alice")
    kept = state / "policy-history" / ("ab" * 32)
    kept.mkdir(parents=True)
    for folder in (state / "policy", kept):
        (folder / "budgets.toml").write_text('[[budget]]\ntenant = "clinic"\nsubject = "\\u0061lice"\n')
        (folder / "extra.cedar").write_text('forbid (principal == Principal::"alice2", action, resource);')
    (state / "tokens" / "revoked.toml").write_text('[[revoked]]\ntenant = "clinic"\nsubject = "alice"\n')
    assert run("erase", state, *ALICE, "--ground", "objection") == 0
    said = capsys.readouterr().out
    listed = {line.strip() for line in said.splitlines() if line.startswith("  ")}
    assert listed == {"policy/budgets.toml", f"policy-history/{'ab' * 32}/budgets.toml", "tokens/revoked.toml"}
    assert "alice" not in said


def test_a_hold_blocks_until_it_is_released(host: Host, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host.saw("alice")
    assert run("hold", state, "case-7", "--tenant", "clinic", "--note", "court of X") == 0
    assert "over tenant clinic" in capsys.readouterr().out
    with pytest.raises(HostRefused, match="a legal hold keeps this name") as caught:
        run("erase", state, *ALICE, "--ground", "objection")
    assert caught.value.code == "legal-hold"
    assert len(host.records("erasure.refused")) == 1
    assert run("holds", state) == 0
    assert "case-7" in capsys.readouterr().out
    assert run("holds", state, "--json") == 0
    (hold,) = json.loads(capsys.readouterr().out)["holds"]
    assert (hold["name"], hold["tenant"], hold["actor"]) == ("case-7", "clinic", "")
    with pytest.raises(HostRefused, match="a hold of this name is in force"):
        run("hold", state, "case-7")
    assert run("release", state, "case-7") == 0
    with pytest.raises(HostRefused, match="no hold of this name"):
        run("release", state, "case-7")
    assert run("holds", state) == 0
    assert "No hold is in force" in capsys.readouterr().out
    assert run("erase", state, *ALICE, "--ground", "objection") == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("hold", "x", "--subject", "alice"),  # of which tenant?
        ("hold", "Two words"),
        ("hold", "x", "--note", "two\nlines"),
        ("erase", "--tenant", "two words", "--subject", "alice", "--ground", "objection"),
        ("erase", "--tenant", "clinic", "--subject", "a\x1bb", "--ground", "objection"),
        ("erase", "--tenant", "clinic", "--subject", "", "--ground", "objection"),
        ("erase", "--tenant", "clinic", "--subject", "x" * 1025, "--ground", "objection"),
    ],
)
def test_what_the_host_would_not_take_is_not_sent(host: Host, state: Path, arguments: tuple[str, ...]) -> None:
    size = host.log.state.size
    with pytest.raises(ConfigurationError):
        run(arguments[0], state, *arguments[1:])
    assert host.log.state.size == size


@pytest.mark.parametrize(
    "arguments",
    [
        ("erase", *ALICE, "--ground", "objection", "--note", "Alice wrote to us"),
        ("hold", "case-alice-7", *ALICE),
        ("hold", "case-7", *ALICE, "--note", "against alice_"),
        ("subject", *ALICE, "--note", "asked by (ALICE)"),
    ],
)
def test_a_name_does_not_come_on_record_in_the_words_beside_it(
    host: Host, state: Path, arguments: tuple[str, ...]
) -> None:
    host.saw("alice")
    size = host.log.state.size
    with pytest.raises(HostRefused, match="holds the person's name"):
        run(arguments[0], state, *arguments[1:])
    assert host.log.state.size == size
    assert run("erase", state, *ALICE, "--ground", "objection", "--note", "malice was not shown") == 0


def test_a_ground_is_one_of_the_law(state: Path) -> None:
    with pytest.raises(SystemExit):
        run("erase", state, *ALICE, "--ground", "because")


# retention and prune -------------------------------------------------------------------------------------------------


def test_rules_are_shown(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("retention", state) == 0
    said = capsys.readouterr().out
    assert "treatment" in said
    assert "184" in said
    assert run("retention", state, "--json") == 0
    assert json.loads(capsys.readouterr().out)["rules"] == [{"tenant": "", "purpose": "treatment", "days": 2192}]
    (state / "retention.toml").write_text("default_days = 0\n")
    with pytest.raises(ConfigurationError, match="default_days"):
        run("retention", state)


def test_what_is_due_is_pruned_and_who_is_left_without_records_forgotten(
    host: Host, state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privacy, "PRUNE_SUBJECTS", 1)
    host.saw("alice", count=300, days_ago=200, purpose="billing")
    host.saw("bob", count=100, days_ago=200)
    host.saw("carol", count=400)
    assert run("prune", state, "--dry-run") == 0
    assert "300 records are due; nothing was deleted" in capsys.readouterr().out
    assert run("prune", state, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"due": [{"tenant": "clinic", "purpose": "billing", "due": 300}]}
    assert run("prune", state, "--note", "monthly") == 0
    told = capsys.readouterr().out
    (announced,) = host.records("retention.pruned")
    assert re.search(r"^300 records are deleted, as record \d+ announced$", told, re.M)
    assert "300 records are deleted" in told
    assert announced.detail["by"] == f"uid:{os.getuid()}"
    assert announced.detail["note"] == "monthly"
    assert announced.detail["count"] == "300"
    assert run("prune", state, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"pruned": 0, "announced_by": [], "forgotten": 0}
    # Half a year later, and by a runtime that was started anew: nobody used alice's name since.
    host.restart(clock=lambda: now_us() + 200 * DAY_US)
    assert run("prune", state, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"pruned": 0, "announced_by": [], "forgotten": 1}
    (forgotten,) = host.records("erasure.completed")
    assert (forgotten.actor, forgotten.reason, forgotten.detail["count"]) == ("", "no-longer-needed", "1")
    with pytest.raises(HostRefused, match="knows nobody"):
        run("subject", state, *ALICE)
    run("subject", state, "--tenant", "clinic", "--subject", "bob")


def test_what_was_pruned_and_forgotten_stands_in_no_file_of_the_log(
    host: Host, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only if the last page of people had somebody to forget."""
    monkeypatch.setattr(privacy, "PRUNE_SUBJECTS", 1)
    actors = [host.saw(name, count=1, days_ago=200, purpose="billing") for name in "abcdefgh"]
    host.saw("somebody", count=800)
    host.restart(clock=now_us)
    with host.log.reading() as connection:
        sealed = dict(tuple(row) for row in connection.exec_driver_sql("SELECT ref, sealed FROM subject").all())
    salts = [entry.salt.encode() for entry in host.records("inference.denied") if entry.actor in actors]
    assert len(salts) == 8

    def left() -> list[bytes]:
        files = b"".join(path.read_bytes() for path in (state / "log").glob("audit.sqlite*"))
        return [text for text in [*salts, *(sealed[actor] for actor in actors)] if text in files]

    assert len(left()) == 16
    host.restart(clock=lambda: now_us() + 200 * DAY_US)
    assert run("prune", state) == 0
    assert left() == []


def test_rules_that_cannot_be_read_delete_nothing(host: Host, state: Path) -> None:
    host.saw("alice", count=800, days_ago=4000)
    (state / "retention.toml").write_text("defualt_days = 3\n")
    size = host.log.state.size
    with pytest.raises(HostRefused, match=r"cannot read retention\.toml"):
        run("prune", state)
    assert host.log.state.size == size


def test_a_log_that_fails_refuses(host: Host, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unavailable(frame: Any, *, by: str) -> HostToAdmin:
        return Refused(id=frame.id, status=503, code="unavailable")

    monkeypatch.setattr(host.privacy, "answer", unavailable)
    with pytest.raises(HostRefused, match="takes no records now"):
        run("hold", state, "x")
