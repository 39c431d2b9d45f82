"""A machine works with its certificate alone; it is renewed, and the lost one revoked while it is being used."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from sealgate.client.errors import ServiceRefused
from tests.live import MODEL, Live, run_sealgate


def test_a_lost_certificate_ends_at_once_and_its_successor_works(live: Live, tmp_path: Path) -> None:
    run_sealgate("certificate", "issue", live.root, "spare", "--san", "URI:urn:sealgate:client:integration")
    lost = tuple(Path(shutil.copy(path, tmp_path)) for path in live.certificate("spare"))
    with live.session(certificate=(lost[0], lost[1])) as session:
        session.infer(MODEL, live.rows[:1])
        done = run_sealgate("certificate", "renew", live.root, "spare", "--revoke")
        assert "on record as number" in done.stdout
        with pytest.raises(ServiceRefused) as caught:
            session.infer(MODEL, live.rows[:1])
        assert caught.value.status == 401
    with live.session(certificate=live.certificate("spare")) as session:
        session.infer(MODEL, live.rows[:1])
    fingerprint = x509.load_pem_x509_certificate(lost[0].read_bytes()).fingerprint(hashes.SHA256()).hex()
    (record,) = [item for item in live.records() if item.detail.get("fingerprint") == fingerprint]
    assert record.kind == "credential.revoke"
    assert (record.detail["what"], record.detail["by"]) == ("certificate", f"uid:{os.geteuid()}")
    assert record.detail["note"] == "superseded"
