"""A log that turned, through a gateway: over HTTPS, from Python, from the command line."""

from __future__ import annotations

import argparse
import base64
import io
import json
import re

import pytest

from audit.log import AuditLog
from sealgate.client.audit import AuditClient
from sealgate.client.audit_commands import AUDIT
from sealgate.client.credentials import ClientCertificate
from sealgate.errors import LogError
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.record import Record
from tests.audit.test_turning import HALF_YEAR, JULY, Clock
from tests.gateway.conftest import LOG, Running, copied, hosted, plain_answer

SIGNER = NoteSigner.from_seed(LOG, b"\x01" * 32)
SHARDS = (LOG, f"{LOG}/2027h2", f"{LOG}/2028h1")
KEPT = {}


@pytest.fixture(scope="module")
def _turned(provisioned):
    with copied(provisioned) as deployment, hosted(deployment) as host:
        clock = Clock()
        with AuditLog.open(
            deployment.log_url, signer=SIGNER, subjects_key=b"\x02" * 32, origin=LOG, shard="half-year", clock=clock
        ) as log:
            for number, moment in enumerate((clock.now, JULY, JULY + HALF_YEAR)):
                clock.now = moment
                for _ in range(number + 2):
                    draft = Record(
                        kind="inference.denied", tenant="clinic", actor="a" * 32, model="m", reason="no-role"
                    )
                    done = log.append(draft).result(60)
                KEPT[done.record.log] = (done.record.id, done.index, log.checkpoint())
        running = Running(deployment, host)
        trust = deployment.root / "client" / "trust.toml"
        bare = re.sub(r"(?ms)^log_\w+ = \[.*?^\]$|^log_\w+ = \[.*?\]$", "", trust.read_text())
        lines = [line for line in bare.splitlines() if not line.startswith("url")]
        lines += [f'url = "https://localhost:{running.port}"', f'log_keys = ["{SIGNER.vkey}"]']
        trust.write_text("\n".join(lines) + "\n")
        yield running
        running.close()


@pytest.fixture
def turned(_turned):
    _turned.host.script = plain_answer
    return _turned


@pytest.fixture
def auditor(turned):
    clients = turned.deployment.pki / "clients"
    certificate = ClientCertificate(clients / "auditor.pem", clients / "auditor.key")
    with AuditClient(turned.deployment.root / "client", certificate=certificate, trust_env=False) as client:
        yield client


def test_the_logs_shards_are_listed_and_each_can_be_asked_about(turned):
    overseer = turned.client(certificate="auditor")
    (listed,) = overseer.get("/audit/v1/logs").json()["logs"]
    assert [shard["origin"] for shard in listed["shards"]] == list(SHARDS)
    assert listed["size"] == sum(shard["size"] for shard in listed["shards"])
    for shard in listed["shards"]:
        name = {"shard": shard["origin"]}
        note = overseer.get("/audit/v1/checkpoint", params=name).text
        assert note.split("\n")[:2] == [shard["origin"], str(shard["size"])]
        row = overseer.get("/audit/v1/records/1", params=name).json()
        assert row["record"]["log"] == shard["origin"]
        for path in ("proofs/inclusion?index=1&size=2", "proofs/consistency?first=1&second=2", "tile/0/000.p/2"):
            both = "&" if "?" in path else "?"
            assert overseer.get(f"/audit/v1/{path}{both}shard={shard['origin']}").status_code == 200
        for report in ("reconcile", "completeness", "in-force", "review"):
            answer = overseer.get(f"/audit/v1/reports/{report}", params=name).json()
            assert not answer["findings"]
            assert report == "review" or answer["basis"]["origin"] == shard["origin"]
    for path in ("checkpoint", "records/1", "exports?first=0&last=1"):
        assert overseer.get(f"/audit/v1/{path}{'&' if '?' in path else '?'}shard={LOG}/2029h1").status_code == 404


def test_records_of_every_shard_are_proven_by_id(auditor):
    page = auditor.records({"kind": "inference.denied"}, limit=100)
    assert [entry.record.log for entry in page.entries] == [SHARDS[2]] * 4 + [SHARDS[1]] * 3 + [SHARDS[0]] * 2
    for entry in page.entries:
        assert auditor.prove(entry).checkpoint.origin == entry.record.log
        assert auditor.record(entry.record.id) == entry


def test_growth_since_a_kept_checkpoint_of_an_earlier_shard_is_proven_over_the_turns(auditor):
    for origin in SHARDS:
        old, new = auditor.prove_growth(KEPT[origin][2])
        assert (old.checkpoint.origin, new.checkpoint.origin) == (origin, SHARDS[2])


def test_an_auditor_of_one_tenant_proves_growth_over_the_turns_too(turned):
    """The records in which shards name each other are nobody's: hashes, like checkpoints. Others without a tenant stay
    with whoever sees everything."""
    token = turned.token(tenant="clinic", roles=["auditor"], purposes=[])
    with AuditClient(turned.deployment.root / "client", token=token, trust_env=False) as own:
        old, new = own.prove_growth(KEPT[SHARDS[0]][2])
    assert (old.checkpoint.origin, new.checkpoint.origin) == (SHARDS[0], SHARDS[2])
    client = turned.client(token=token)
    size = int(turned.client(certificate="auditor").get(f"/audit/v1/checkpoint?shard={LOG}").text.split()[1])
    assert client.get(f"/audit/v1/records/{size - 1}?shard={LOG}").json()["record"]["detail"] == {"next": SHARDS[1]}
    assert client.get(f"/audit/v1/records/{size}?shard={LOG}").status_code == 404
    assert client.get(f"/audit/v1/records/0?shard={LOG}").status_code == 404  # `log.opened` of the log itself
    assert {row["record"]["tenant"] for row in client.get("/audit/v1/records").json()["records"]} == {"clinic"}


def test_an_empty_page_names_the_size_of_the_whole_log(turned):
    own = turned.client(token=turned.token(tenant="clinic", roles=["auditor"], purposes=[]))
    (listed,) = turned.client(certificate="auditor").get("/audit/v1/logs").json()["logs"]
    for path in ("holds", "erasures", "records"):
        assert own.get(f"/audit/v1/{path}?tenant=laboratory").json()["tree_size"] == listed["size"]


def test_growth_over_turns_looks_at_one_checkpoint_of_each_shard(auditor, monkeypatch):
    """Else one tree might be proven to follow, and another to have grown."""
    real, asked = AuditClient.checkpoint, []

    def counted(self, *, cosigned=False):
        verified = real(self, cosigned=cosigned)
        asked.append(verified.checkpoint.origin)
        return verified

    monkeypatch.setattr(AuditClient, "checkpoint", counted)
    auditor.prove_growth(KEPT[SHARDS[0]][2])
    assert asked == [*SHARDS[::-1]]


def test_a_shard_that_follows_another_tree_proves_no_growth(turned, auditor, monkeypatch):
    real = AuditClient.checkpoint

    def shorter(self, *, cosigned=False):
        verified = real(self, cosigned=cosigned)
        return real(self.within(SHARDS[0])) if verified.checkpoint.origin == SHARDS[1] else verified

    monkeypatch.setattr(AuditClient, "checkpoint", shorter)
    with pytest.raises(LogError):
        auditor.prove_growth(KEPT[SHARDS[0]][2])


def command(turned, *words: object) -> int:
    parser = argparse.ArgumentParser()
    AUDIT.configure(parser)
    clients = turned.deployment.pki / "clients"
    given = ["--trust", turned.deployment.root / "client"]
    if words[0] != "verify":
        given += ["--client-cert", clients / "auditor.pem", "--client-key", clients / "auditor.key"]
    return AUDIT.run(parser.parse_args([str(word) for word in (*words, *given)]))


def test_each_shard_is_exported_and_all_are_verified_together(turned, tmp_path, capsys):
    bundles = [tmp_path / f"{number}.zip" for number in range(3)]
    for path, origin in zip(bundles, SHARDS, strict=True):
        assert command(turned, "export", "--out", path, "--shard", origin) == 0
    capsys.readouterr()
    assert command(turned, "verify", *bundles) == 0
    said = capsys.readouterr().out
    assert f"ok      {SHARDS[1]} follows {SHARDS[0]}: each names the other" in said
    assert command(turned, "verify", bundles[0], bundles[2], "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert [one["status"] for one in document["shards"]] == ["failed"]


def test_a_record_is_shown_by_its_place_in_a_shard(turned, capsys):
    identifier, index, _ = KEPT[SHARDS[1]]
    assert command(turned, "show", index, "--shard", SHARDS[1]) == 0
    assert identifier in capsys.readouterr().out
    assert command(turned, "checkpoint", "--shard", SHARDS[0], "--json") == 0
    assert json.loads(capsys.readouterr().out)["origin"] == SHARDS[0]
    assert command(turned, "logs") == 0
    assert f"shard {SHARDS[2]}" in capsys.readouterr().out


def test_the_consoles_evidence_is_of_the_shard_that_its_page_shows(turned):
    from sealgate.transparency.bundle import Bundle

    overseer = turned.client(certificate="auditor")
    for origin in SHARDS:
        identifier, index, _ = KEPT[origin]
        page = overseer.get(f"/console/records/{identifier}").text
        form = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))
        assert (form["first"], form["shard"]) == (str(index), origin)
        answer = overseer.post("/console/evidence", data=form, headers={"origin": str(overseer.base_url).rstrip("/")})
        assert answer.status_code == 200
        manifest = Bundle(io.BytesIO(answer.content)).manifest
        assert (manifest.origin, manifest.first) == (origin, index)
        note = re.search(r'data-note="([^"]+)"', page)
        assert note is not None
        assert base64.b64decode(note[1]).startswith(origin.encode() + b"\n")
