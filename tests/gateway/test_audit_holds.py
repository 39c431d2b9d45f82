"""Holds and erasures over HTTPS and from the command line: paired, paged, recorded, and each tenant's own."""

from __future__ import annotations

import argparse
import json

import msgspec
import pytest

from audit import erasure, holds
from audit.log import AuditLog
from sealgate.client.audit_commands import AUDIT
from sealgate.client.errors import UsageError
from sealgate.command import Command
from sealgate.errors import LogError
from sealgate.protocol import frames
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.record import Record
from tests.gateway.conftest import LOG, Running, copied, hosted, plain_answer

SIGNER = NoteSigner.from_seed(LOG, b"\x01" * 32)


def write_log(deployment):
    """Real holds and erasures, each by the effect that the host uses."""
    with AuditLog.open(f"sqlite:///{deployment.database}", signer=SIGNER, subjects_key=b"\x02" * 32, origin=LOG) as log:

        def do(effect, **fields):
            log.append(Record(**fields), effect).result(60)

        for tenant, subject in (("clinic", "alice"), ("clinic", "bob"), ("laboratory", "carol")):
            actor = log.actor(tenant, subject)
            log.append(Record(kind="inference.denied", tenant=tenant, actor=actor, reason="no-role")).result(60)

        def place(name, tenant="", subject=""):
            do(holds.placing(log.subjects, name=name, tenant=tenant, subject=subject), kind="hold.placed")

        def release(name):
            do(holds.releasing(name=name), kind="hold.released")

        def erase(tenant, subject):
            effect = erasure.erasing(log.subjects, tenant=tenant, subject=subject, ground="consent-withdrawn")
            do(effect, kind="erasure.completed")

        place("case-1", "clinic", "alice")
        release("case-1")
        place("case-1", "laboratory")  # the name again, about another tenant
        place("case-2", "clinic")
        erase("clinic", "alice")
        release("case-2")
        erase("clinic", "alice")
        place("case-3", "clinic", "bob")
        release("case-1")
        place("case-1", "clinic")
        place("everything")


@pytest.fixture(scope="module")
def _held(provisioned):
    with copied(provisioned) as deployment, hosted(deployment) as host:
        write_log(deployment)
        running = Running(deployment, host)
        trust = deployment.root / "client" / "trust.toml"
        text = trust.read_text()
        keep = text[: text.index("log_keys")]
        lines = [line for line in keep.splitlines() if not line.startswith("url")]
        lines += [
            f'url = "https://localhost:{running.port}"',
            f'log_keys = ["{SIGNER.vkey}"]',
            "accept_software = true",
        ]
        trust.write_text("\n".join(dict.fromkeys(lines)) + "\n")
        yield running
        running.close()


@pytest.fixture
def held(_held):
    _held.host.script = plain_answer
    _held.host.told.clear()
    return _held


@pytest.fixture
def overseer(held):
    return held.client(certificate="auditor")


@pytest.fixture
def own(held):
    return held.client(token=held.token(tenant="clinic", roles=["auditor"], purposes=[]))


def named(answer):
    return [(hold["name"], hold["tenant"], hold["in_force"]) for hold in answer.json()["holds"]]


EVERY = [
    ("everything", "", True),
    ("case-1", "clinic", True),
    ("case-3", "clinic", True),
    ("case-2", "clinic", False),
    ("case-1", "laboratory", False),
    ("case-1", "clinic", False),
]


def test_each_hold_comes_with_the_release_that_ended_it(overseer):
    answer = overseer.get("/audit/v1/holds")
    assert named(answer) == EVERY
    for hold in answer.json()["holds"]:
        assert hold["placed"]["record"]["kind"] == "hold.placed"
        assert hold["placed"]["record"].get("actor", "") == hold["actor"]
        assert (hold["released"] is None) == hold["in_force"]
        if hold["released"] is not None:
            assert hold["released"]["record"]["kind"] == "hold.released"
            assert hold["released"]["record"]["reason"] == hold["name"]
            assert hold["released"]["record"].get("tenant", "") == hold["tenant"]
            assert hold["released"]["index"] > hold["placed"]["index"]
    assert [hold["name"] for hold in overseer.get("/audit/v1/holds?in_force=1").json()["holds"]] == [
        "everything",
        "case-1",
        "case-3",
    ]


@pytest.mark.parametrize("in_force", [0, 1])
def test_pages_lead_on_to_all_of_them(overseer, in_force):
    found, cursor = [], None
    for _ in range(7):
        given = {"limit": 1, "in_force": in_force} | ({"cursor": cursor} if cursor else {})
        answer = overseer.get("/audit/v1/holds", params=given)
        found += named(answer)
        cursor = answer.json()["cursor"]
        if cursor is None:
            break
    assert cursor is None
    assert found == [one for one in EVERY if one[2] or not in_force]
    assert overseer.get("/audit/v1/holds", params={"limit": 101}).status_code == 400


def test_erasures_and_those_that_a_hold_kept(overseer):
    (done,) = overseer.get("/audit/v1/erasures").json()["erasures"]
    (refused,) = overseer.get("/audit/v1/erasures?outcome=refused").json()["erasures"]
    assert (done["record"]["kind"], done["record"]["reason"]) == ("erasure.completed", "consent-withdrawn")
    assert (refused["record"]["kind"], refused["record"]["detail"]["holds"]) == ("erasure.refused", "case-2")
    assert overseer.get("/audit/v1/erasures?tenant=laboratory").json()["erasures"] == []
    assert overseer.get("/audit/v1/erasures?outcome=perhaps").status_code == 400


def test_an_auditor_of_one_tenant_sees_what_is_about_it(own):
    assert named(own.get("/audit/v1/holds")) == [one for one in EVERY if one[1] == "clinic"]
    assert named(own.get("/audit/v1/holds?tenant=laboratory")) == []
    assert len(own.get("/audit/v1/erasures").json()["erasures"]) == 1
    assert own.get("/audit/v1/erasures?tenant=laboratory").json()["erasures"] == []


@pytest.mark.parametrize("path", ["/audit/v1/holds", "/audit/v1/erasures"])
def test_who_may_not_read_is_refused_on_record_and_who_may_is_recorded_first(held, overseer, path, monkeypatch):
    assert held.client(token=held.token()).get(path).status_code == 403
    assert held.host.heard(frames.Deny)[0].operation == "query-audit"
    assert overseer.get(f"{path}?tenant=clinic").status_code == 200
    (frame,) = held.host.heard(frames.AuditRead)
    assert frame.detail == {"question": path.rpartition("/")[2], "tenant": "clinic"}
    monkeypatch.setattr(held.gate.audit, "records", lambda *_, **__: pytest.fail("read before it was on record"))
    held.host.script = lambda *_: (frames.Refused(status=503, code="unavailable", retry_after_s=1), b"")
    assert overseer.get(path).status_code == 503


# From the command line -----------------------------------------------------------------------------------------------


@pytest.fixture
def audit(held, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.delenv("SEALGATE_TOKEN", raising=False)
    clients = held.deployment.pki / "clients"
    fixed = ("--trust", held.deployment.root / "client", "--client-cert", clients / "auditor.pem")
    fixed = (*fixed, "--client-key", clients / "auditor.key")
    return lambda *words: run(AUDIT, *words, *fixed)


def run(command: Command, *words: object) -> int:
    parser = argparse.ArgumentParser(prog="sealgate audit")
    command.configure(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


def test_holds_are_listed(audit, capsys):
    assert audit("holds") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:8]] == [name for name, _, _ in EVERY]
    assert "(the whole log)" in lines[2]
    assert lines[-1] == "6 holds"
    assert audit("holds", "--in-force", "--limit", "2", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [hold["name"] for hold in document["holds"]] == ["everything", "case-1"]
    assert document["more"] is True
    with pytest.raises(UsageError, match="--limit"):
        audit("holds", "--limit", "0")


def test_erasures_are_listed(audit, capsys):
    assert audit("erasures") == 0
    assert "consent-withdrawn" in capsys.readouterr().out
    assert audit("erasures", "--refused", "--tenant", "clinic", "--json") == 0
    assert json.loads(capsys.readouterr().out)["erasures"][0]["record"]["outcome"] == "refused"
    assert audit("erasures", "--tenant", "laboratory") == 0
    assert capsys.readouterr().out.endswith("\n0 erasures\n")


def test_a_service_that_calls_other_records_holds_is_refused(held, audit, monkeypatch):
    reader = held.gate.audit
    records = reader.records
    monkeypatch.setattr(reader, "records", lambda wanted, *rest: records(replaced(wanted), *rest))
    with pytest.raises(LogError):
        audit("erasures")


def replaced(wanted):
    return msgspec.structs.replace(wanted, kind="inference.denied")
