"""The decision of a witness (C2SP tlog-witness, `add-checkpoint`): cosign what extends everything that was cosigned.

    1  the body has its one form: old size, consistency proof, checkpoint      400
    2  the log is known                                                        404
    3  the log signed the checkpoint                                           403
    4  the old size is not beyond the new one                                  400
    5  the old size is the one that was cosigned last                          409, with that size
    6  the same size has the same root                                         409: the log signed two histories
    7  the proof shows that the newer tree extends the older one               422
    8  remembered, on disk; only then cosigned

Trusts: the keys of its logs, its store, its clock. Never: cosigns a smaller tree, or anything before it is remembered.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sealgate.ambient import Clock, now_us
from sealgate.errors import LogError, SealgateError
from sealgate.limits import MAX_NOTE, MAX_PROOF_HASHES
from sealgate.transparency.cosignatures import Cosigner
from sealgate.transparency.merkle import verify_consistency
from sealgate.transparency.notes import (
    Checkpoint,
    NoteVerifier,
    open_checkpoint,
    parse_checkpoint_text,
    parse_decimal,
    split_note,
)
from sealgate.transparency.shards import belongs_to
from sealgate.witness.store import Store

MAX_BODY = MAX_NOTE + 64 * MAX_PROOF_HASHES
MEDIA_SIZE = "text/x.tlog.size"
_MOST_PROOF_LINES = 63  # tlog-witness, "add-checkpoint"


class WitnessRefusal(SealgateError):
    """A checkpoint was not cosigned. `status` is the protocol's; `body` is what the protocol says to answer with."""

    code = "witness-refused"

    def __init__(self, message: str, *, status: int, body: str = "", media_type: str = "text/plain") -> None:
        super().__init__(message)
        self.status = status
        self.body = body or f"{message}\n"
        self.media_type = media_type


@dataclass(frozen=True)
class Submission:
    """The body of `add-checkpoint`, of the right form; nothing in it is believed yet."""

    old_size: int
    proof: tuple[bytes, ...]
    note: bytes


def parse_submission(body: bytes) -> Submission:
    """Read the body; raises WitnessRefusal (400)."""
    malformed = WitnessRefusal("the request is not an add-checkpoint body", status=400)
    if len(body) > MAX_BODY:
        raise malformed
    head, blank, note = body.partition(b"\n\n")
    lines = head.split(b"\n")
    if not blank or not lines[0].startswith(b"old ") or len(lines) - 1 > _MOST_PROOF_LINES:
        raise malformed
    try:
        old_size = parse_decimal(lines[0][4:].decode("ascii"))
        proof = tuple(base64.b64decode(line, validate=True) for line in lines[1:])
    except (ValueError, IndexError, binascii.Error) as error:
        raise malformed from error
    if any(len(item) != 32 for item in proof):
        raise malformed
    return Submission(old_size, proof, note)


def encode_submission(submission: Submission) -> bytes:
    """The body that asks a witness to cosign."""
    lines = [b"old %d\n" % submission.old_size]
    lines += [base64.b64encode(item) + b"\n" for item in submission.proof]
    return b"".join([*lines, b"\n", submission.note])


class Witness:
    """Cosigns for the logs that it knows. May be used by several threads."""

    def __init__(
        self,
        cosigners: Sequence[Cosigner],
        logs: Mapping[str, tuple[NoteVerifier, ...]],
        store: Store,
        *,
        clock: Clock = now_us,
        on_conflict: Callable[[Checkpoint, bytes, bytes], None] = lambda newer, kept_note, newer_note: None,
        on_cosigned: Callable[[Checkpoint, bytes], None] = lambda checkpoint, note: None,
    ) -> None:
        """`logs` maps each log's name to the keys whose signature counts for it and its shards. `on_conflict` is told
        of two trees of one size that a log signed: that pair of notes is the proof. (A wrong consistency proof proves
        nothing against the log: whoever submitted it may have made it up.) `on_cosigned` is given what was cosigned, as
        one note."""
        self._cosigners = tuple(cosigners)
        self._logs = dict(logs)
        self._store = store
        self._clock = clock
        self._on_conflict = on_conflict
        self._on_cosigned = on_cosigned

    def add_checkpoint(self, body: bytes) -> bytes:
        """The cosignature lines, once the checkpoint is remembered; raises WitnessRefusal."""
        submission = parse_submission(body)  # 1
        checkpoint = self._signed(submission.note)  # 2, 3
        if submission.old_size > checkpoint.size:  # 4
            raise WitnessRefusal("the old size is beyond the checkpoint's", status=400)
        seen = self._store.newest(checkpoint.origin)
        known = seen.checkpoint if seen else Checkpoint(checkpoint.origin, 0, b"")
        if submission.old_size != known.size:  # 5
            raise _other_size(known.size)
        try:
            _require_extends(known, checkpoint, submission.proof)  # 6, 7
        except WitnessRefusal as refusal:
            if refusal.status == 409 and seen is not None:
                self._on_conflict(checkpoint, seen.note, submission.note)
            raise
        return self._remember_and_cosign(known.size, checkpoint, submission.note)  # 8

    def _signed(self, note: bytes) -> Checkpoint:
        try:
            claimed = parse_checkpoint_text(split_note(note)[0])
        except LogError as error:
            raise WitnessRefusal("the checkpoint is malformed", status=400) from error
        keys = [key for name, keys in self._logs.items() if belongs_to(claimed.origin, name) for key in keys]
        if not keys:
            raise WitnessRefusal("this witness does not know that log", status=404)
        try:
            return open_checkpoint(note, keys).checkpoint
        except LogError as error:
            raise WitnessRefusal("no known key of the log signed the checkpoint", status=403) from error

    def _remember_and_cosign(self, before: int, checkpoint: Checkpoint, note: bytes) -> bytes:
        now = self._clock()
        if not self._store.replace(before, checkpoint, note, now_us=now):
            seen = self._store.newest(checkpoint.origin)
            raise _other_size(seen.checkpoint.size if seen else 0)
        lines = b"".join(cosigner.cosign(checkpoint, timestamp_s=now // 1_000_000) for cosigner in self._cosigners)
        self._on_cosigned(checkpoint, note + lines)
        return lines


def _other_size(size: int) -> WitnessRefusal:
    return WitnessRefusal(
        f"the checkpoint that was cosigned last has {size} records", status=409, body=f"{size}\n", media_type=MEDIA_SIZE
    )


def _require_extends(known: Checkpoint, newer: Checkpoint, proof: Sequence[bytes]) -> None:
    if known.size == newer.size and known.size:
        if known.root != newer.root:
            raise WitnessRefusal("the log signed two trees of one size", status=409)
        if proof:
            raise WitnessRefusal("a proof between equal sizes must be empty", status=422)
        return
    if known.size == 0:
        if proof:
            raise WitnessRefusal("a proof from the empty tree must be empty", status=422)
        return
    try:
        verify_consistency(
            first=known.size, second=newer.size, first_root=known.root, second_root=newer.root, proof=proof
        )
    except LogError as error:
        raise WitnessRefusal("the newer tree does not extend the older one", status=422) from error
