"""Logs of several hosts through one gateway: over HTTPS, from the command line, and said loudly when one is away."""

from __future__ import annotations

import argparse
import itertools
import json
import re

import msgspec
import pytest

from audit.log import AuditLog
from sealgate.client.audit import AuditClient
from sealgate.client.audit_commands import AUDIT
from sealgate.client.credentials import ClientCertificate
from sealgate.client.errors import UsageError
from sealgate.deployment import Deployment, OtherLog, open_deployment
from sealgate.errors import ConfigurationError, LogError
from sealgate.protocol import frames
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.record import Record
from tests.gateway.conftest import LOG, Running, copied, hosted, plain_answer

NAMES = (LOG, "two.example/log", "three.example/log")
SIGNERS = {name: NoteSigner.from_seed(name, bytes([number + 1]) * 32) for number, name in enumerate(NAMES)}
START_US = 1_790_000_000_000_000
READS = (
    "/audit/v1/records",
    "/audit/v1/records/1",
    "/audit/v1/checkpoint",
    "/audit/v1/proofs/inclusion?index=1&size=2",
    "/audit/v1/proofs/consistency?first=1&second=2",
    "/audit/v1/tile/0/000.p/2",
    "/audit/v1/reports/access",
    "/audit/v1/exports?first=0&last=1",
)


def write_log(path, origin, at):
    """Three denials of two tenants, each a second after the one before; those of the other logs come in between."""
    clock = itertools.count(START_US + at * 1000, 1_000_000)
    log = AuditLog.open(
        f"sqlite:///{path}",
        signer=SIGNERS[origin],
        subjects_key=b"\x02" * 32,
        origin=origin,
        clock=lambda: next(clock),
    )
    with log:
        for tenant in ("clinic", "laboratory", "clinic"):
            draft = Record(kind="inference.denied", tenant=tenant, actor="a" * 32, model=origin[:3], reason="no-role")
            log.append(draft).result(60)


@pytest.fixture(scope="module")
def _several(provisioned):
    with copied(provisioned) as deployment, hosted(deployment) as host:
        places = [deployment.database, *(deployment.root / f"log/{number}.sqlite" for number in (2, 3))]
        for at, (name, place) in enumerate(zip(NAMES, places, strict=True)):
            write_log(place, name, at)
        others = tuple(
            OtherLog(origin=name, database=f"sqlite:///{place}", same_tenants=name == NAMES[2])
            for name, place in zip(NAMES[1:], places[1:], strict=True)
        )
        running = Running(with_others(deployment, *others), host)
        trust = deployment.root / "client" / "trust.toml"
        bare = re.sub(r"(?ms)^log_\w+ = \[.*?^\]$|^log_\w+ = \[.*?\]$", "", trust.read_text())
        lines = [line for line in bare.splitlines() if not line.startswith("url")]
        keys = ", ".join(f'"{signer.vkey}"' for signer in SIGNERS.values())
        lines += [f'url = "https://localhost:{running.port}"', f"log_keys = [{keys}]"]
        trust.write_text("\n".join(lines) + "\n")
        yield running
        running.close()


def with_others(deployment, *others):
    section = msgspec.structs.replace(deployment.settings.log, others=others)
    return Deployment(deployment.root, msgspec.structs.replace(deployment.settings, log=section))


@pytest.fixture
def several(_several):
    _several.host.script = plain_answer
    _several.host.told.clear()
    return _several


@pytest.fixture
def overseer(several):
    return several.client(certificate="auditor")


@pytest.fixture
def own(several):
    return several.client(token=several.token(tenant="clinic", roles=["auditor"], purposes=[]))


@pytest.fixture
def away(several):
    """The second log's file is elsewhere for a moment."""
    there = several.deployment.root / "log/2.sqlite"
    elsewhere = there.rename(there.with_suffix(".away"))
    several.gate.logs.of(NAMES[1]).reader._engine.dispose()
    yield
    elsewhere.rename(there)


# Over HTTPS ----------------------------------------------------------------------------------------------------------


def test_the_logs_are_listed_with_their_sizes(several, overseer):
    listed = overseer.get("/audit/v1/logs").json()["logs"]
    assert [(log["origin"], log["own"], log["reachable"]) for log in listed] == [
        (NAMES[0], True, True),
        (NAMES[1], False, True),
        (NAMES[2], False, True),
    ]
    assert all(log["size"] == 5 for log in listed)
    (frame,) = several.host.heard(frames.AuditRead)
    assert frame.detail == {"question": "logs"}


@pytest.mark.parametrize("path", READS)
def test_every_read_takes_another_log_and_says_so_on_record(several, overseer, path):
    joined = path + ("&" if "?" in path else "?")
    answers = [overseer.get(f"{joined}log={name}") for name in NAMES]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert len({answer.content for answer in answers}) == 3
    assert answers[0].content == overseer.get(path).content or "exports" in path
    said = [frame.detail.get("log") for frame in several.host.heard(frames.AuditRead, 4)]
    assert said == [None, NAMES[1], NAMES[2], None]
    strange = overseer.get(f"{joined}log=four.example/log")
    assert strange.status_code == 404


def test_another_hosts_records_are_for_one_tenants_auditors_only_where_the_tenants_are_the_same(several, own):
    page = own.get("/audit/v1/records", params={"log": NAMES[2]}).json()
    assert {row["record"]["tenant"] for row in page["records"]} == {"clinic"}
    assert len(page["records"]) == 2
    refused = own.get("/audit/v1/records", params={"log": NAMES[1]})
    assert refused.status_code == 403
    (frame,) = several.host.heard(frames.Deny)
    assert frame.decision.reason == "log-needs-every-tenant"
    assert [log["origin"] for log in own.get("/audit/v1/logs").json()["logs"]] == [NAMES[0], NAMES[2]]


def test_a_cursor_of_one_log_is_none_of_another(overseer):
    page = overseer.get("/audit/v1/records", params={"limit": 2, "log": NAMES[1]}).json()
    given = {"limit": 2, "cursor": page["cursor"]}
    assert overseer.get("/audit/v1/records", params=given | {"log": NAMES[2]}).status_code == 400
    rest = overseer.get("/audit/v1/records", params=given | {"log": NAMES[1]}).json()
    assert [row["index"] for row in (*page["records"], *rest["records"])] == [4, 3, 2, 1]


def test_a_log_that_cannot_be_reached_is_named_and_the_others_are_read(overseer, away):
    listed = overseer.get("/audit/v1/logs").json()["logs"]
    assert [(log["origin"], log["reachable"]) for log in listed] == [
        (NAMES[0], True),
        (NAMES[1], False),
        (NAMES[2], True),
    ]
    assert listed[1]["reason"]
    assert overseer.get("/audit/v1/records", params={"log": NAMES[1]}).status_code == 503
    assert overseer.get("/audit/v1/records", params={"log": NAMES[2]}).status_code == 200


# From Python ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def auditor(several):
    clients = several.deployment.pki / "clients"
    certificate = ClientCertificate(clients / "auditor.pem", clients / "auditor.key")
    with AuditClient(several.deployment.root / "client", certificate=certificate, trust_env=False) as client:
        yield client


def test_each_log_is_proven_under_its_own_key(auditor):
    for name in NAMES:
        client = auditor.of(name)
        for entry in client.records({}).entries:
            assert entry.record.log == name
            assert client.prove(entry).checkpoint.origin == name


def test_a_service_that_shows_one_log_for_another_is_refused(several, auditor, monkeypatch):
    logs = several.gate.logs
    monkeypatch.setattr(logs, "of", lambda name: logs.own)
    client = auditor.of(NAMES[1])
    for ask in (lambda: client.records({}), lambda: client.record("1"), client.checkpoint):
        with pytest.raises(LogError) as caught:
            ask()
        assert caught.value.code == "other-log"


# From the command line -----------------------------------------------------------------------------------------------


@pytest.fixture
def audit(several, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.delenv("SEALGATE_TOKEN", raising=False)
    root = several.deployment.root

    def run(*words, offline=False):
        parser = argparse.ArgumentParser(prog="sealgate audit")
        AUDIT.configure(parser)
        clients = root / "pki" / "clients"
        credential = ("--client-cert", clients / "auditor.pem", "--client-key", clients / "auditor.key")
        words = (*words, "--trust", root / "client", *(() if offline else credential))
        return AUDIT.run(parser.parse_args([str(word) for word in words]))

    return run


def test_records_of_all_logs_come_in_the_order_of_their_time(audit, capsys):
    assert audit("query", "--log", "all", "--kind", "inference.denied", "--oldest", "--limit", "7", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    records = [row["record"] for row in document["records"]]
    assert [record["log"] for record in records] == [*NAMES, *NAMES, NAMES[0]]
    times = [record["ts_us"] for record in records]
    assert times == sorted(times)
    assert (document["more"], document["missing"]) == (True, [])
    assert audit("query", "--log", "all", "--kind", "inference.denied") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "log"
    assert [line.split()[0] for line in lines[2:11]] == [*reversed(NAMES)] * 3


def test_a_missing_log_is_loud_in_every_answer_about_all(audit, away, capsys):
    assert audit("logs") == 1
    assert f"MISSING: the log {NAMES[1]}" in capsys.readouterr().err
    assert audit("query", "--log", "all", "--json") == 1
    said = capsys.readouterr()
    assert f"MISSING: the log {NAMES[1]}" in said.err
    assert json.loads(said.out)["missing"] == [NAMES[1]]
    assert audit("report", "denials", "--log", "all") == 1
    assert f"MISSING: the log {NAMES[1]}" in capsys.readouterr().out


def test_a_log_that_the_trust_file_knows_and_nobody_serves_is_missing(several, audit, capsys):
    trust = several.deployment.root / "client" / "trust.toml"
    before = trust.read_text()
    stranger = NoteSigner.from_seed("four.example/log", b"\x09" * 32).vkey
    trust.write_text(before.replace("log_keys = [", f'log_keys = ["{stranger}", '))
    try:
        assert audit("logs") == 1
        assert "MISSING: the log four.example/log" in capsys.readouterr().err
    finally:
        trust.write_text(before)


def test_reports_of_all_logs_are_laid_together(audit, capsys):
    assert audit("report", "denials", "--log", "all", "--tenant", "clinic", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    denied = next(table for table in document["tables"] if table["title"] == "requests that were denied")
    assert [row[0] for row in denied["rows"]] == [*NAMES]
    assert [basis["origin"] for basis in document["bases"]] == [*NAMES]
    with pytest.raises(UsageError, match="one log"):
        audit("report", "reconcile", "--log", "all", "--first", "0")


def test_bundles_of_all_logs_are_verified_together(audit, tmp_path, capsys):
    bundles = []
    for number, name in enumerate(NAMES):
        bundles.append(tmp_path / f"{number}.zip")
        assert audit("export", "--out", bundles[-1], "--log", name) == 0
        assert audit("checkpoint", "--out", tmp_path / f"{number}.note", "--log", name) == 0
        assert audit("show", "1", "--cose", tmp_path / f"{number}.cose", "--log", name) == 0
        assert audit("receipt", tmp_path / f"{number}.cose", offline=True) == 0
    kept = [word for number in range(3) for word in ("--kept", tmp_path / f"{number}.note")]
    assert audit("verify", *bundles, *kept, "--strict", offline=True) == 0
    assert "all steps of all hold" in capsys.readouterr().out
    assert audit("verify", *bundles[:2], *kept[:4], offline=True) == 0
    said = capsys.readouterr().out
    assert f"MISSING: the trust file knows the log {NAMES[2]}" in said
    assert "not fully verified" in said
    assert audit("verify", *bundles[:2], *kept[:4], "--strict", offline=True) == 1
    assert audit("verify", *bundles[:2], *kept[:4], "--strict", "--log", NAMES[0], "--log", NAMES[1], offline=True) == 0
    capsys.readouterr()
    assert audit("verify", *bundles[:2], *kept, "--json", offline=True) == 0
    document = json.loads(capsys.readouterr().out)
    assert [part["records"]["origin"] for part in document["bundles"]] == [*NAMES[:2]]
    assert (document["missing"], len(document["unused"])) == ([NAMES[2]], 1)
    words = [word for bundle in bundles for word in ("--bundle", bundle)]
    assert audit("report", "denials", *words) == 0
    said = capsys.readouterr().out
    assert said.count("PROVEN from records") == 3
    with pytest.raises(UsageError, match="--log"):
        audit("report", "denials", *words, "--log", "all")


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        f'origin = "{LOG}"\ndatabase = "sqlite:////x"',
        'origin = "two"\ndatabase = ""',
        'origin = "two"',
        'origin = "two"\ndatabase = "x"\n[[log.others]]\norigin = "two"\ndatabase = "y"',
    ],
)
def test_settings_that_name_no_other_log_are_refused(provisioned, lines):
    with copied(provisioned) as deployment:
        path = deployment.root / "deployment.toml"
        path.write_text(path.read_text() + f"\n[[log.others]]\n{lines}\n")
        with pytest.raises(ConfigurationError):
            open_deployment(deployment.root)
