"""What the record of a revocation says of the person whose tokens are refused: the pseudonym, and nothing else."""

from __future__ import annotations

import pytest

from audit.erasure import LEFT_OUT
from sealgate.protocol.administration import CredentialRevoked
from secure_runtime.host.runtime import _revocation


@pytest.mark.parametrize(
    ("note", "kept"),
    [("left us", True), ("Alice left us", False), ("mail of <alice>", False), ("malice", True), ("", True)],
)
def test_a_reason_does_not_put_the_name_on_record(note: str, kept: bool) -> None:
    """An erasure could never take it away again."""
    frame = CredentialRevoked(what="subject", tenant="clinic", subject="alice", note=note)
    record = _revocation(frame, actor="ab" * 16, by="uid:1")
    assert record.detail["note"] == (note if kept else LEFT_OUT)
    assert record.actor == "ab" * 16
