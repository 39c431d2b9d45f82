"""The host has its witnesses asked while it runs, as the deployment says."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from audit.errors import QueryRefused
from audit.log import AuditLog
from audit.query import AuditReader
from sealgate.deployment import Deployment, DeploymentSection, LogSection, Settings
from sealgate.errors import ConfigurationError
from sealgate.transparency.witness_policy import parse_witness_policy
from sealgate.witness.folder import add_log, make_folder, open_folder
from sealgate.witness.server import WitnessServer
from secure_runtime.host.key_files import load_log_cosigner, load_note_signer
from secure_runtime.host.witnesses import witnessed

ORIGIN = "example.com/log"


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    (tmp_path / "log").mkdir()
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    key = tmp_path / "log" / "log.key"
    key.touch(mode=0o600)
    key.write_bytes(pem)
    section = LogSection(witness_policy="log/witness.policy", witness_every_s=1)
    return Deployment(tmp_path, Settings(deployment=DeploymentSection(audience="a", origin=ORIGIN), log=section))


def opened(deployment: Deployment) -> AuditLog:
    signer = load_note_signer(deployment.log_key, ORIGIN)
    return AuditLog.open(deployment.log_url, signer=signer, subjects_key=b"\x02" * 32, origin=ORIGIN)


def test_a_deployment_with_a_policy_gets_cosigned_checkpoints(deployment: Deployment, tmp_path: Path) -> None:
    make_folder(tmp_path / "w", name="witness.example/w")
    add_log(tmp_path / "w", load_note_signer(deployment.log_key, ORIGIN).vkey)
    folder = open_folder(tmp_path / "w")
    server = WitnessServer(("127.0.0.1", 0), folder.witness(), tls=None, tell=print)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    vkey, url = folder.cosigners[1].public.vkey, f"http://127.0.0.1:{server.server_port}"
    (tmp_path / "log" / "witness.policy").write_text(f"witness w {vkey} {url}\nquorum w\n")
    reader = AuditReader(deployment.log_url, origin=ORIGIN)
    told: list[str] = []
    try:
        with opened(deployment) as log:
            with witnessed(deployment, log, tell=told.append):
                note = _wait_for(lambda: reader.checkpoint(cosigned=True))
            signer = load_note_signer(deployment.log_key, ORIGIN).verifier
            policy = parse_witness_policy((tmp_path / "log" / "witness.policy").read_bytes())
            assert policy.require_witnessed(note, logs=(signer,)).cosignatures[0].key == folder.cosigners[1].public
        assert [one.name for one in threading.enumerate() if one.name == "audit-witnesses"] == []
    finally:
        reader.close()
        server.shutdown()
        thread.join()
        server.server_close()
    assert told == []


def _wait_for(read: Callable[[], bytes]) -> bytes:
    pause = threading.Event()
    for _ in range(2000):
        try:
            return read()
        except QueryRefused:
            pause.wait(0.005)
    raise AssertionError("nothing was cosigned")


def test_without_a_policy_nobody_is_asked(tmp_path: Path, deployment: Deployment) -> None:
    quiet = Deployment(tmp_path, Settings(deployment=deployment.settings.deployment))
    with opened(quiet) as log, witnessed(quiet, log, tell=print):
        assert "audit-witnesses" not in [one.name for one in threading.enumerate()]


@pytest.mark.parametrize(
    "text", [None, "quorum none\n", "nonsense\n", "witness w VKEY http://away.example\nquorum w\n"]
)
def test_a_policy_that_cannot_be_used_keeps_the_host_from_starting(deployment: Deployment, text: str | None) -> None:
    path = deployment.witness_policy
    assert path is not None
    if text is not None:
        make_folder(deployment.root / "w", name="witness.example/w")
        vkey = open_folder(deployment.root / "w").cosigners[0].public.vkey
        path.write_text(text.replace("VKEY", vkey))
    with opened(deployment) as log, pytest.raises(ConfigurationError), witnessed(deployment, log, tell=print):
        raise AssertionError("it started")


def test_an_ml_dsa_key_is_read_if_it_is_there_and_private(deployment: Deployment) -> None:
    path = deployment.log_mldsa_key
    assert load_log_cosigner(path, ORIGIN) is None
    path.write_bytes(deployment.log_key.read_bytes())
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="ML-DSA-44"):
        load_log_cosigner(path, ORIGIN)
    path.write_bytes(base64.b64encode(b"no PEM"))
    with pytest.raises(ConfigurationError, match="PEM"):
        load_log_cosigner(path, ORIGIN)
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_log_cosigner(path, ORIGIN)
