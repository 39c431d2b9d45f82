"""A witness that goes and looks, at an honest log and at logs that go back or show another history; its TLS server."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from sealgate.cli import main
from sealgate.client.audit import AuditClient
from sealgate.errors import ConfigurationError, LogError
from sealgate.transparency.bundle import Bundle
from sealgate.transparency.published import sign_root
from sealgate.transparency.record import Record
from sealgate.transparency.verifier import LogTrust, verify_bundle
from sealgate.transparency.witness_policy import load_witness_policy
from sealgate.witness.folder import WitnessFolder, add_log, make_folder, open_folder
from sealgate.witness.server import WitnessServer, server_tls
from sealgate.witness.watch import watch_once
from sealgate.witness.witness import Submission, encode_submission
from tests.sealgate.witness.trees import LOG, TREE

TOKEN = "header.payload.signature"


@pytest.fixture
def folder(service: Any, tmp_path: Path) -> WitnessFolder:
    make_folder(tmp_path / "w", name="witness.example/w")
    add_log(tmp_path / "w", service.log.signer.vkey)
    return open_folder(tmp_path / "w")


def look(service: Any, folder: WitnessFolder) -> Any:
    with AuditClient(service.trust(), token=TOKEN, outer=service.transport()) as client:
        return watch_once(client, folder)


def test_a_growing_log_is_cosigned_and_the_cosigned_note_satisfies_a_policy(
    service: Any, folder: WitnessFolder, tmp_path: Path
) -> None:
    first = look(service, folder)
    assert (first.before, first.checkpoint.size) == (0, 2)
    for _ in range(5):
        service.log.append(Record(kind="audit.query"))
    second = look(service, folder)
    assert (second.before, second.checkpoint.size) == (2, 7)
    assert look(service, folder).checkpoint.size == 7

    service.log.append(Record(kind="audit.query"))
    bundle = tmp_path / "bundle.zip"
    bundle.write_bytes(service.bundle(0, 7))
    with bundle.open("rb") as stream:
        assert Bundle(stream).count == 8
    policy = load_witness_policy(folder.root / "witness.policy")
    trust = LogTrust(
        verifiers=service.trust().log_keys, witnesses=policy, cosigned_checkpoint=second.cosigned.read_bytes()
    )
    report = verify_bundle(bundle, trust)
    assert report.steps[-1].status == "ok", report.lines()
    assert "at 7 records" in report.steps[-1].detail


def test_a_log_that_went_back_is_caught_and_both_checkpoints_are_kept(service: Any, folder: WitnessFolder) -> None:
    service.log.append(Record(kind="audit.query"))
    shown = sign_root(service.log.checkpoint(), service.log.signer)
    look(service, folder)
    service.log.leaves.pop()
    with pytest.raises(LogError, match="records are gone") as raised:
        look(service, folder)
    assert raised.value.code == "log-rolled-back"
    (kept,) = (folder.root / "conflicts").iterdir()
    assert (kept / "kept.note").read_bytes() == shown
    assert (kept / "newer.note").read_bytes() == sign_root(service.log.checkpoint(), service.log.signer)


@pytest.mark.parametrize("more", [0, 3])
def test_a_rewritten_history_is_caught(service: Any, folder: WitnessFolder, more: int) -> None:
    for _ in range(4):
        service.log.append(Record(kind="audit.query"))
    look(service, folder)
    del service.log.leaves[3:]
    for _ in range(3 + more):
        service.log.append(Record(kind="audit.export"))
    with pytest.raises(LogError, match="not cosigned") as raised:
        look(service, folder)
    assert raised.value.code == "two-histories"
    assert any((folder.root / "conflicts").iterdir())
    seen = folder.store.newest(service.log.origin)
    assert seen is not None
    assert seen.checkpoint.size == 6


def test_a_checkpoint_that_is_submitted_in_the_middle_of_a_look_accuses_nobody(
    service: Any, folder: WitnessFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    look(service, folder)
    asked = AuditClient.checkpoint
    submissions = [5, 4]

    def checkpoint(client: AuditClient) -> Any:
        shown = asked(client)
        if submissions:
            for _ in range(submissions.pop()):
                service.log.append(Record(kind="audit.query"))
            before = folder.store.newest(service.log.origin)
            assert before is not None
            newer = asked(client)
            proof = client.consistency(before.checkpoint.size, newer.checkpoint.size)
            body = encode_submission(Submission(before.checkpoint.size, tuple(proof), newer.note))
            folder.witness().add_checkpoint(body)
        return shown

    monkeypatch.setattr(AuditClient, "checkpoint", checkpoint)
    assert look(service, folder).checkpoint.size == 11
    assert not (folder.root / "conflicts").exists()


def test_a_log_that_it_does_not_know(service: Any, tmp_path: Path) -> None:
    with pytest.raises(LogError, match="add its key first"):
        look(service, make_folder(tmp_path / "new", name="w.example"))


def test_the_command_looks_once(site: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, token = str(tmp_path / "w"), tmp_path / "token"
    token.write_text(TOKEN)
    assert main(["witness", "init", root, "--name", "witness.example/w"]) == 0
    assert main(["witness", "add-log", root, site.service.log.signer.vkey]) == 0
    arguments = ["witness", "watch", root, "--trust", str(site.trust), "--token-file", str(token)]
    assert main(arguments) == 0
    assert "first seen with 2 records" in capsys.readouterr().out
    site.service.log.leaves.pop()
    assert main(arguments) == 1
    assert "records are gone" in capsys.readouterr().err


def test_over_tls_where_a_silent_peer_holds_up_nobody(site: Any, folder: WitnessFolder, tmp_path: Path) -> None:
    certificate, key = site.authority.issue(tmp_path, "witness")
    add_log(folder.root, LOG.vkey)
    witness = open_folder(folder.root).witness()
    with WitnessServer(("127.0.0.1", 0), witness, tls=server_tls(certificate, key), tell=print) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        trusting = ssl.create_default_context(cadata=site.authority.pem().decode())
        try:
            with (
                socket.create_connection(("127.0.0.1", server.server_port)),
                httpx.Client(verify=trusting, trust_env=False) as client,
            ):
                url = f"https://127.0.0.1:{server.server_port}/add-checkpoint"
                assert client.post(url, content=TREE.body(0, 7)).status_code == 200
        finally:
            server.shutdown()
            thread.join()


def test_a_certificate_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be used for TLS"):
        server_tls(tmp_path / "none.pem", tmp_path / "none.key")
