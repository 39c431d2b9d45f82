"""One batch of records becomes durable: one transaction, then one signature, then the receipts.

    1. pseudonyms that the records use are written
    2. each record is completed, its effect runs in a SAVEPOINT, its rules are checked; a refusal fails it alone
    3. leaves, index rows, tree rows and open requests are written
    4. the head moves from the size we know to the new one, under the writer's seal; if it is elsewhere, somebody else
       wrote: fatal
    5. commit, which returns when the disk has it
    6. only now the new root is signed and receipts are built

Trusts: the database's commit. Never: signs what is not durable; never goes on after an error, whoever calls decides
nothing: every exception out of `commit` and `publish` is fatal to the log.
Long, because it is one transaction from its first statement to its receipts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

import msgspec
from sqlalchemy import Connection, bindparam, insert, text, update
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from audit.database import WriterHold
from audit.days import count_days
from audit.errors import AppendRefused, LogDamaged
from audit.holds import HOLD_KINDS, chained
from audit.limits import MAX_INDEXED_TEXT
from audit.opening import Intent, Opened
from audit.publishing import PublishedNotes
from audit.sealing import HeadSeal
from audit.subjects import Subjects
from audit.tables import checkpoint as checkpoint_table
from audit.tables import cosigned as cosigned_table
from audit.tables import head as head_table
from audit.tables import open_intent as intent_table
from sealgate.ambient import Clock, Entropy, uuid7
from sealgate.errors import DecodeError
from sealgate.transparency.cose_receipt import reissue
from sealgate.transparency.cosignatures import Cosigner
from sealgate.transparency.merkle import inclusion_proof, leaf_hash
from sealgate.transparency.notes import Checkpoint, NoteSigner, sign_checkpoint
from sealgate.transparency.published import sign_published, sign_root
from sealgate.transparency.receipt import build_receipt
from sealgate.transparency.record import ENDS, Record, leaf_bytes

Effect = Callable[[Connection, Record], Record]
"""Runs inside the writer's transaction, in a SAVEPOINT of its own, with the record as it would be written (id and time
filled). Returns the record to write, the same or another (a denial, for example). MUST NOT commit, roll back, block or
touch the log's own tables. Raising undoes what it did and fails this append alone; an error of the database itself
fails the log."""

_INHERITED = ("tenant", "actor", "authn", "operation", "purpose")


@dataclass(frozen=True)
class Appended:
    """A durable record. `receipt` proves it to anybody who knows the log's key."""

    index: int
    record: Record
    leaf: bytes
    receipt: bytes


@dataclass
class Pending:
    """One record on its way. Made by the caller's thread, owned by the writer from then on."""

    draft: Record
    effect: Effect | None = None
    future: Future[Appended] = field(default_factory=Future)


@dataclass(frozen=True)
class _Accepted:
    pending: Pending
    index: int
    record: Record
    leaf: bytes
    hashed: bytes


@dataclass(frozen=True)
class Outcome:
    """What became of a batch. The caller resolves the futures, after it has noted the new size."""

    appended: list[tuple[Pending, Appended]]
    refused: list[tuple[Pending, Exception]]


# Built once: building them costs as much as running them.
_UUID = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_ADD_INTENTS = insert(intent_table)
_STILL_THERE = text("SELECT 1")
_MOVE_HEAD = (
    update(head_table)
    .where(
        head_table.c.id == 1,
        head_table.c.size == bindparam("expected"),
        head_table.c.origin == bindparam("ours"),
        head_table.c.holds == bindparam("held"),
    )
    .values(
        size=bindparam("new_size"),
        root=bindparam("new_root"),
        seal=bindparam("new_seal"),
        holds=bindparam("new_holds"),
    )
)


class Committer:
    """The log's state in memory and the one way to move it. Every field is owned by the writer thread."""

    def __init__(
        self,
        hold: WriterHold,
        opened: Opened,
        *,
        signer: NoteSigner,
        mldsa: Cosigner | None,
        seal: HeadSeal,
        subjects: Subjects,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._engine = hold.engine
        self._rows = hold.rows
        self._frontier = opened.frontier
        self._tiles = opened.tiles
        self._intents = opened.intents
        self._holds = self._sealed_holds = opened.holds
        self._signer = signer
        self._mldsa = mldsa
        self._seal = seal
        self._subjects = subjects
        self._clock = clock
        self._entropy = entropy
        self._stored = PublishedNotes(checkpoint_table, opened.checkpoint.checkpoint.size if opened.checkpoint else -1)
        self._cosigned = PublishedNotes(cosigned_table, opened.cosigned_size)
        self._note: tuple[int, bytes] | None = None  # newest signed checkpoint: size, note
        self._witnessed: tuple[int, bytes] | None = None  # newest cosigned one, if readers cannot see it yet

    @property
    def size(self) -> int:
        return self._frontier.size

    @property
    def note(self) -> bytes:
        """The newest signed checkpoint; there is one as soon as a batch was committed."""
        return self._note[1] if self._note else b""

    @property
    def open_intents(self) -> list[Intent]:
        return sorted(self._intents.values(), key=lambda intent: intent.index)

    @property
    def unpublished(self) -> bool:
        """A checkpoint was signed, or cosigned, that readers cannot see yet."""
        return self._witnessed is not None or (self._note is not None and self._note[0] > self._stored.size)

    def cose_receipt(self, receipt: bytes) -> bytes:
        """See AuditLog.cose_receipt. From any thread: it reads nothing that changes."""
        return reissue(receipt, self._signer)

    def take_cosigned(self, size: int, note: bytes) -> None:
        """Publish this cosigned checkpoint with the next one, unless a newer one is there already."""
        if size > self._cosigned.size:
            self._witnessed = (size, note)

    def commit(self, batch: list[Pending], *, publish: bool = False) -> Outcome:
        """Write the batch; `publish` also stores the checkpoint signed after the batch before it."""
        refused: list[tuple[Pending, Exception]] = []
        with self._engine.begin() as connection:
            flushed = self._subjects.flush(connection)  # 1
            accepted = list(self._accept(connection, batch, refused))  # 2
            nodes = {(peak.level, peak.position): peak.hash for peak in self._frontier.peaks}
            expected = self._frontier.size
            for item in accepted:
                for node in self._frontier.append(item.hashed):
                    nodes[node.level, node.position] = node.hash
            root = self._frontier.root()
            if accepted:
                self._write(connection, accepted)  # 3
                self._move_head(connection, expected, root)  # 4
            if publish:
                self._store_checkpoint(connection)
        self._subjects.written(flushed)  # 5: leaving the block committed
        if not accepted:
            return Outcome([], refused)
        size = self._frontier.size
        note = sign_checkpoint(Checkpoint(self._signer.name, size, root), self._signer)  # 6
        self._note = (size, note)
        appended = []
        for item in accepted:
            proof = inclusion_proof(item.index, size, lambda level, index: nodes[level, index])
            receipt = build_receipt(item.index, item.leaf, proof, note)
            appended.append((item.pending, Appended(item.index, item.record, item.leaf, receipt)))
        return Outcome(appended, refused)

    def publish(self) -> None:
        """Store the newest signed checkpoint, and the newest cosigned one, where readers find them."""
        if self.unpublished:
            with self._engine.begin() as connection:
                self._store_checkpoint(connection)

    def require_connection(self) -> None:
        """Raise if the database is gone, and the hold on the log with it."""
        with self._engine.begin() as connection:
            connection.execute(_STILL_THERE)

    # Records ---------------------------------------------------------------------------------------------------------

    def _accept(
        self, connection: Connection, batch: list[Pending], refused: list[tuple[Pending, Exception]]
    ) -> Iterable[_Accepted]:
        index = self._frontier.size
        taken = self._taken(connection, batch)
        effects = False
        for pending in batch:
            try:
                if pending.draft.id:
                    _require_unused(pending.draft.id, taken)
                if pending.effect is None:
                    record, leaf = self._finish(self._complete(pending.draft))
                else:
                    self._rows.savepoint(connection, after=effects)
                    effects = True
                    record, leaf = self._with_effect(connection, pending.draft, pending.effect)
            except DBAPIError as error:
                if not isinstance(error, IntegrityError | DataError):
                    raise  # the database itself failed, not the effect's wish
                refused.append((pending, error))
                continue
            except Exception as error:
                refused.append((pending, error))
                continue
            if record.kind == "inference.authorized":
                self._intents[record.id] = Intent(index, record)
            elif record.kind in ENDS:
                del self._intents[record.grant]
            yield _Accepted(pending, index, record, leaf, leaf_hash(leaf))
            index += 1
        if effects:
            connection.exec_driver_sql("RELEASE effect")  # fails if an effect ended the transaction

    def _taken(self, connection: Connection, batch: list[Pending]) -> set[str]:
        """The ids of this batch that are not new. Those that callers chose are looked up, all at once: found out here,
        not by the index, which would fail the log."""
        given = [pending.draft.id for pending in batch if _is_uuid(pending.draft.id)]
        return self._rows.taken(connection, given) if given else set()

    def _with_effect(self, connection: Connection, draft: Record, effect: Effect) -> tuple[Record, bytes]:
        """Call within the savepoint, which stands afterwards, whatever the effect did."""
        try:
            before = self._complete(draft)
            after = msgspec.structs.replace(
                effect(connection, before), v=1, log=before.log, id=before.id, ts_us=before.ts_us, salt=before.salt
            )
            return self._finish(after)
        except BaseException:
            connection.exec_driver_sql("ROLLBACK TO effect")
            raise

    def _complete(self, draft: Record) -> Record:
        """Fill what the writer answers for: version, origin, id, time, salt."""
        if draft.log not in ("", self._signer.name):
            raise AppendRefused("the record names another log", code="record-malformed")
        ts_us = draft.ts_us or self._clock()
        return msgspec.structs.replace(
            draft,
            v=1,
            log=self._signer.name,
            id=draft.id or uuid7(ts_us, self._entropy),
            ts_us=ts_us,
            salt=draft.salt or self._entropy(16).hex(),
        )

    def _finish(self, record: Record) -> tuple[Record, bytes]:
        """Check the rules of a record's kind; give the record as it will stand and its leaf."""
        if record.kind in ENDS:
            record = self._match(record)
        elif record.kind == "inference.authorized" and record.grant not in ("", record.id):
            raise AppendRefused("an authorization is its own grant", code="record-malformed")
        try:
            leaf = leaf_bytes(record)
        except (DecodeError, ValueError) as error:
            raise AppendRefused("the record is not fit to be a leaf", code="record-malformed") from error
        if not _is_uuid(record.id) or not _fits_index(record):
            raise AppendRefused("the record is not fit to be found again", code="record-malformed")
        return record, leaf

    def _match(self, end: Record) -> Record:
        """An end belongs to exactly one open authorization, and says of it what it says of itself."""
        intent = self._intents.get(end.grant)
        if intent is None:
            raise AppendRefused("the record ends no open authorization", code="grant-not-open")
        begun = intent.record
        given = {name: getattr(end, name) for name in _INHERITED}
        for name, value in given.items():
            if value not in ("", getattr(begun, name)):
                raise AppendRefused(f"the end names another {name} than its authorization", code="end-differs")
        if end.intent_seq not in (-1, intent.index):
            raise AppendRefused("the end names another index than its authorization", code="end-differs")
        if end.kind == "inference.completed" and end.model != begun.model:
            raise AppendRefused("the answer comes from another model than was authorized", code="end-differs")
        return msgspec.structs.replace(
            end, intent_seq=intent.index, **{name: getattr(begun, name) for name in _INHERITED}
        )

    # Tables ----------------------------------------------------------------------------------------------------------

    def _write(self, connection: Connection, accepted: list[_Accepted]) -> None:
        self._rows.add(connection, [(item.index, item.leaf, item.record) for item in accepted])
        count_days(connection, [(item.index, item.record) for item in accepted])
        begun = [item for item in accepted if item.record.kind == "inference.authorized"]
        ended = [item.record.grant for item in accepted if item.record.kind in ENDS]
        if begun:
            connection.execute(_ADD_INTENTS, [{"grant_id": item.record.id, "idx": item.index} for item in begun])
        if ended:
            self._rows.end_intents(connection, ended)
        self._tiles.append([item.hashed for item in accepted], connection)
        for item in accepted:
            if item.record.kind in HOLD_KINDS:
                self._holds = chained(self._holds, item.index, item.record)

    def _move_head(self, connection: Connection, expected: int, root: bytes) -> None:
        size = self._frontier.size
        seal = self._seal.over(size, root, holds=self._holds)
        new = {"new_size": size, "new_root": root, "new_seal": seal, "new_holds": self._holds}
        moved = connection.execute(
            _MOVE_HEAD, {"expected": expected, "ours": self._signer.name, "held": self._sealed_holds, **new}
        )
        if moved.rowcount != 1:
            raise LogDamaged("the log's head is not where its only writer left it")
        self._sealed_holds = self._holds

    def _store_checkpoint(self, connection: Connection) -> None:
        now = self._clock()
        if self._note is not None and self._note[0] > self._stored.size:
            size, note = self._note
            note = sign_root(note, self._signer)
            if self._mldsa is not None:
                note = sign_published(note, self._mldsa, timestamp_s=now // 1_000_000)
            self._stored.store(connection, size, note, now_us=now)
        if self._witnessed is not None:
            size, note = self._witnessed
            self._cosigned.store(connection, size, note, now_us=now)
            self._witnessed = None


def _require_unused(given: str, taken: set[str]) -> None:
    """An id that the caller chose must be new, also within its batch."""
    if given in taken:
        raise AppendRefused("the record's id is taken", code="record-malformed")
    taken.add(given)


def _is_uuid(text: str) -> bool:
    return _UUID.fullmatch(text) is not None


def _fits_index(record: Record) -> bool:
    """What has a column must fit every database's: no NUL, which PostgreSQL's text cannot hold, and bounded."""
    fields = (
        record.tenant,
        record.actor,
        record.model,
        record.model_digest,
        record.purpose,
        record.outcome,
        record.reason,
    )
    return all(len(field) <= MAX_INDEXED_TEXT and "\0" not in field for field in fields)
