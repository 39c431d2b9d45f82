"""A witness that goes and looks: fetch a log's newest checkpoint with an auditor's credential, cosign if it only grew.

For logs that do not submit to witnesses themselves. What is shown to this auditor is compared with all that this
witness cosigned before; a log that went back, or that shows another history, is caught here, and both checkpoints are
kept as the proof. Trusts: the folder's log keys. Never: cosigns on the service's word.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sealgate.client.audit import AuditClient
from sealgate.errors import LogError
from sealgate.transparency.notes import Checkpoint
from sealgate.transparency.shards import belongs_to
from sealgate.witness.folder import WitnessFolder
from sealgate.witness.witness import MEDIA_SIZE, Submission, WitnessRefusal, encode_submission

_LOOKS = 5


@dataclass(frozen=True)
class Watched:
    """One look that ended well: the log had `before` records when it was last seen, and has grown to `checkpoint`."""

    before: int
    checkpoint: Checkpoint
    cosigned: Path


def watch_once(client: AuditClient, folder: WitnessFolder) -> Watched:
    """Look at the log once. Raises LogError: `log-rolled-back`, `two-histories`, or `not-witnessed` for a log that this
    witness does not know. Another process of this witness may cosign in the middle of a look: then it looks again."""
    for _ in range(_LOOKS):
        try:
            return _look(client, folder)
        except WitnessRefusal:
            continue
    raise LogError("others kept this witness busy: it cosigned something newer in the middle of each look", code="busy")


def _look(client: AuditClient, folder: WitnessFolder) -> Watched:
    """Raises WitnessRefusal if what was cosigned last is no longer what it was when the look began."""
    remembered = {seen.checkpoint.origin: seen for seen in folder.store.every()}  # before the log is asked
    verified = client.checkpoint()
    newest, note = verified.checkpoint, verified.note
    if not any(belongs_to(newest.origin, name) for name in folder.logs):
        raise LogError(f"this witness does not know the log '{newest.origin}'; add its key first", code="not-witnessed")
    seen = remembered.get(newest.origin)
    before = seen.checkpoint.size if seen else 0
    if seen is not None and newest.size < before:
        kept = folder.keep_conflict(newest.origin, newest.size, (seen.note, note))
        raise LogError(
            f"the log has {newest.size} records but had {before}: records are gone; proof in {kept}",
            code="log-rolled-back",
        )
    proof = client.consistency(before, newest.size) if 0 < before < newest.size else ()
    try:
        folder.witness().add_checkpoint(encode_submission(Submission(before, tuple(proof), note)))
    except WitnessRefusal as refusal:
        if refusal.media_type == MEDIA_SIZE:
            raise
        kept = folder.keep_conflict(newest.origin, newest.size, (seen.note if seen else b"", note))
        raise LogError(f"not cosigned: {refusal}; both checkpoints in {kept}", code="two-histories") from refusal
    return Watched(before, newest, folder.cosigned(newest.origin))
