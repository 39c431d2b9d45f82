"""An operator revokes a token while it is being used: the next request is refused, and the log says who did it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from sealgate.client.errors import ServiceRefused
from tests.live import MODEL, Live, run_sealgate


def test_a_stolen_token_ends_at_once_and_both_steps_are_on_record(live: Live, tmp_path: Path) -> None:
    file = tmp_path / "token"
    run_sealgate(
        "token", live.root, "--tenant", "clinic", "--subject", "night-shift", "--purpose", "treatment", "--out", file
    )
    with live.session(token=file.read_text().strip()) as session:
        session.infer(MODEL, live.rows[:1])
        done = run_sealgate("token", "revoke", live.root, "--token-file", file, "--reason", "laptop stolen")
        assert "on record as number" in done.stdout
        with pytest.raises(ServiceRefused) as caught:
            session.infer(MODEL, live.rows[:1])
        assert caught.value.status == 401
        run_sealgate("token", "restore", live.root, "--token-file", file)
        session.infer(MODEL, live.rows[:1])
    shown = run_sealgate("token", "inspect", live.root, "--token-file", file).stdout
    jti = next(line.split()[1] for line in shown.splitlines() if line.startswith("jti"))
    found = [record for record in live.records() if record.kind in ("credential.revoke", "credential.restore")]
    fingerprint = hashlib.sha256(jti.encode()).hexdigest()
    steps = [(record.kind, record.detail) for record in found if record.detail.get("fingerprint") == fingerprint]
    assert [kind for kind, _ in steps] == ["credential.revoke", "credential.restore"]
    assert steps[0][1]["by"] == f"uid:{os.geteuid()}"
    assert steps[0][1]["note"] == "laptop stolen"


def test_a_caller_who_is_revoked_is_on_record_by_the_pseudonym_of_its_requests(live: Live, tmp_path: Path) -> None:
    """So that an auditor sees both together, and nobody can try out names against a hash."""
    who = ("--tenant", "clinic", "--subject", "dr-lopez")
    file = tmp_path / "token"
    run_sealgate("token", live.root, *who, "--purpose", "treatment", "--out", file)
    with live.session(token=file.read_text().strip()) as session:
        session.infer(MODEL, live.rows[:1])
        run_sealgate("token", "revoke", live.root, *who, "--issued-before", "now", "--reason", "left")
        with pytest.raises(ServiceRefused):
            session.infer(MODEL, live.rows[:1])
        run_sealgate("token", "restore", live.root, *who, "--issued-before", _written(live))
    revoked = next(record for record in live.records() if record.detail.get("what") == "subject")
    asked = [record.kind for record in live.records() if record.actor == revoked.actor]
    assert asked[-2:] == ["credential.revoke", "credential.restore"]
    assert "inference.completed" in asked
    assert revoked.tenant == "clinic"
    assert set(revoked.detail) == {"what", "by", "note"}
    guess = hashlib.sha256(b"dr-lopez").hexdigest()
    assert not [record for record in live.records() if "dr-lopez" in str(record) or guess in str(record)]


def _written(live: Live) -> str:
    """The time of the revocation as the list has it."""
    listed = json.loads(run_sealgate("token", "revocations", live.root, "--json").stdout)
    return str(next(entry["issued_before"] for entry in listed if entry.get("subject") == "dr-lopez"))
