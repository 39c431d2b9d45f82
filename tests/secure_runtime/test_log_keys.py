"""`sealgate log keys`: what trust files list, and the key that a deployment of an earlier release lacks."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from audit.log import AuditLog
from gateway.provisioning import provision
from sealgate.cli import main
from sealgate.deployment import Deployment
from sealgate.errors import ConfigurationError
from sealgate.evidence.trust import load_trust, parse_trust
from sealgate.transparency.cosignatures import Cosigner
from sealgate.transparency.record import Record
from secure_runtime.host.key_files import load_note_signer


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return provision(tmp_path / "state", audience="localhost:8443", origin="localhost/sealgate", profile="container")


def test_the_keys_are_those_of_the_trust_file(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "keys", str(deployment.root)]) == 0
    said, trust = tomllib.loads(capsys.readouterr().out), load_trust(deployment.trust)
    assert said["log_keys"] == [key.vkey for key in trust.log_keys]
    assert said["log_mldsa_keys"] == [key.vkey for key in trust.log_mldsa_keys]


def test_a_deployment_without_the_second_key_gets_one_once(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment.log_mldsa_key.unlink()
    assert main(["log", "keys", str(deployment.root)]) == 0
    without = capsys.readouterr()
    assert "log_mldsa_keys" not in tomllib.loads(without.out)
    assert "Ed25519 only" in without.err
    assert main(["log", "keys", str(deployment.root), "--make-mldsa"]) == 0
    keys = capsys.readouterr().out
    assert deployment.log_mldsa_key.stat().st_mode & 0o777 == 0o600
    before = deployment.trust.read_text()
    text = before[: before.index("log_keys = ")] + keys
    assert parse_trust(text.encode(), source="new").log_mldsa_keys[0].name == "localhost/sealgate"
    made = deployment.log_mldsa_key.read_bytes()
    assert main(["log", "keys", str(deployment.root), "--make-mldsa"]) != 0
    assert "never replaced" in capsys.readouterr().err
    assert deployment.log_mldsa_key.read_bytes() == made


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("log_mldsa_keys = []", "empty"),
        ('log_mldsa_keys = ["nonsense"]', "NAME"),
        ('log_mldsa_keys = ["LOG"]', "type of a cosignature"),
        ('log_mldsa_keys = ["OTHER"]', "of which log_keys has none"),
    ],
)
def test_what_is_no_such_key_of_a_listed_log_is_refused(
    deployment: Deployment, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    main(["log", "keys", str(deployment.root)])
    keys = tomllib.loads(capsys.readouterr().out)
    before = deployment.trust.read_text()
    head = before[: before.index("log_mldsa_keys = ")]
    stranger = Cosigner("localhost/another", MLDSA44PrivateKey.generate()).public.vkey
    text = head + line.replace("LOG", keys["log_keys"][0]).replace("OTHER", stranger)
    with pytest.raises(ConfigurationError, match=said):
        parse_trust(text.encode(), source="t")


def test_roll_ups_are_rebuilt_by_a_command(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    signer = load_note_signer(deployment.log_key, "localhost/sealgate")
    with AuditLog.open(
        deployment.log_url, signer=signer, subjects_key=b"\x02" * 32, origin="localhost/sealgate"
    ) as log:
        log.append(Record(kind="inference.denied", tenant="clinic", reason="no-role")).result(60)
    assert main(["log", "rebuild-days", str(deployment.root)]) == 0
    assert "counted anew: 1 days, 3 groups" in "".join(capsys.readouterr())
