"""One batch of records becomes durable: one transaction, then one signature, then the receipts.

    1. pseudonyms that the records use are written
    2. each record is completed, its effect runs (on the batch's ledger, or in a SAVEPOINT: `effects`), its rules are
       checked; a refusal fails it alone. The ledger is read before, and written after
    3. leaves and tree rows are written; index rows, open requests and roll-ups too, or a moment later (`indexing`)
    4. the head moves from the size we know to the new one, under the writer's seal; if it is elsewhere, somebody else
       wrote: fatal
    5. commit, which returns when the disk has it
    6. only now the new root is signed and receipts are built

A batch that begins in another half-year than the shard did is preceded by the turn: a transaction of its own that ends
one shard and begins the next, and publishes the last checkpoint of the one and the first of the other.

What a draft must be stands in `drafting`, what is signed and published in `publishing`.
Trusts: the database's commit. Never: signs what is not durable; never goes on after an error, whoever calls decides
nothing: every exception out of `commit` and `publish` is fatal to the log.
Long, because it is one transaction from its first statement to its receipts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from typing import Any

import msgspec
from sqlalchemy import Connection, RootTransaction, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from audit.database import WriterHold
from audit.drafting import finished, is_uuid, require_unused
from audit.effects import AnyEffect, Effect, Ledger, LedgerEffect, Ledgers
from audit.errors import AppendRefused, LogDamaged
from audit.holds import HOLD_KINDS, chained
from audit.indexing import Index
from audit.limits import BUSY_REQUESTS
from audit.opening import Intent, Opened
from audit.publishing import Publisher
from audit.rows import Rows, Statement
from audit.sealing import HeadSeal
from audit.shards import Shard, add_shard
from audit.subjects import Subjects
from audit.tree import TileWriter
from audit.turning import beginning, closing
from sealgate.ambient import Clock, Entropy, uuid7
from sealgate.transparency.cose_receipt import reissue
from sealgate.transparency.cosignatures import Cosigner
from sealgate.transparency.merkle import Frontier, leaf_hash, subtree_hash
from sealgate.transparency.notes import Checkpoint, NoteSigner, parse_checkpoint_text, split_note
from sealgate.transparency.receipt import build_receipt
from sealgate.transparency.record import ENDS, Record
from sealgate.transparency.shards import half_year_of, shard_name
from sealgate.transparency.standing import InForce

Balances = Callable[[Connection, str], Mapping[str, tuple[int, int]]]
"""What is left of each privacy budget (millionths), and since when its window runs (microseconds), under the policy of
this digest; nothing if another one decides already. Runs within the writer's transaction, and only reads."""


@dataclass(frozen=True)
class Appended:
    """A durable record."""

    index: int
    record: Record
    leaf: bytes
    _batch: _SignedBatch = field(repr=False)

    @cached_property
    def receipt(self) -> bytes:
        """Proves the record to anybody who knows the log's key. Made when it is asked for: most authorizations' never
        is. From any thread."""
        return build_receipt(self.index, self.leaf, self._batch.proof(self.index), self._batch.note)


class _SignedBatch:
    """What the receipts of one batch are made of. Nothing in it changes but the memory of what was computed."""

    def __init__(self, nodes: Mapping[tuple[int, int], bytes], size: int, note: bytes) -> None:
        self._nodes, self._size, self.note = nodes, size, note
        self._paths: dict[tuple[int, int], tuple[bytes, ...]] = {}

    def proof(self, index: int) -> tuple[bytes, ...]:
        """RFC 9162 section 2.1.3, as `merkle.inclusion_proof`; what paths of one batch share is computed once."""
        return self._path(0, index)

    def _path(self, level: int, at: int) -> tuple[bytes, ...]:
        """From the node over leaves [at << level, (at + 1) << level), of which the last may be missing, to the root."""
        if self._size <= 1 << level:
            return ()
        path = self._paths.get((level, at))
        if path is None:
            path = self._path(level + 1, at >> 1)
            low = (at ^ 1) << level
            if low < self._size:  # without a sibling, a node goes up as it is
                path = (self._hash(level, low), *path)
            self._paths[level, at] = path
        return path

    def _hash(self, level: int, low: int) -> bytes:
        high = low + (1 << level)
        if high <= self._size:
            return self._nodes[level, low >> level]
        return subtree_hash(low, self._size, lambda level, at: self._nodes[level, at])


@dataclass
class Pending:
    """One record on its way. Made by the caller's thread, owned by the writer from then on. Who waits for it has one of
    the two futures, or none."""

    draft: Record
    effect: AnyEffect | None = None
    future: Future[Appended] | None = None
    awaited: asyncio.Future[Appended] | None = None


@dataclass(slots=True)
class _Accepted:
    pending: Pending
    index: int  # in its shard
    record: Record
    leaf: bytes
    hashed: bytes


@dataclass(frozen=True)
class Outcome:
    """What became of a batch. The caller resolves the futures, after it has noted the new size."""

    appended: list[tuple[Pending, Appended]]
    refused: list[tuple[Pending, Exception]]


class _Savepoint:
    """Lets each effect of a batch be undone alone. Owned by one transaction."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self._stands = rows, False

    def begin(self, connection: Connection) -> None:
        """The next effect begins; what the one before did stands."""
        self._rows.savepoint(connection, after=self._stands)
        self._stands = True

    def end(self, connection: Connection) -> None:
        """What the last one did stands."""
        if self._stands:
            connection.exec_driver_sql("RELEASE effect")  # fails if an effect ended the transaction


_RANDOM_BYTES = 26  # of an id and a salt
# Built once: building them costs as much as running them.
_STILL_THERE = text("SELECT 1")
_MOVE_HEAD = Statement("""
    UPDATE head SET size = :new_size, root = :new_root, seal = :new_seal, holds = :new_holds
    WHERE id = 1 AND size = :expected AND origin = :ours AND holds = :held
""")


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
        turns: bool,
        balances: Balances,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        """`turns` says whether a new shard begins with each half-year, `balances` what is left of budgets then."""
        self._engine = hold.engine
        self._connection: Connection | None = None  # kept from batch to batch
        self._rows = hold.rows
        self._index = Index(hold.rows)
        self._shards = list(opened.shards.all)
        self._in_force = InForce(opened.standing)
        self._turns = turns
        self._balances = balances
        self._log_signer, self._log_seal = signer, seal
        self._name_keys()
        self._frontier = opened.frontier
        self._tiles = opened.tiles
        self._intents = opened.intents
        self._holds = self._sealed_holds = opened.holds
        self._subjects = subjects
        self._clock = clock
        self._entropy = entropy
        self._publisher = Publisher(
            published=opened.published, cosigned=opened.cosigned, signer=signer, mldsa=mldsa, clock=clock
        )
        if opened.unsigned is not None:
            self._publisher.sign_last(self._shard.first, opened.unsigned)

    @property
    def size(self) -> int:
        """How many records the log has, in all its shards."""
        return self._shard.first + self._frontier.size

    @property
    def _shard(self) -> Shard:
        return self._shards[-1]

    def _name_keys(self) -> None:
        """The log's keys under the name of its newest shard."""
        origin = self._shard.origin
        self._signer = self._log_signer.under(origin)
        self._seal = self._log_seal.under(origin)

    @property
    def note(self) -> bytes:
        """The newest signed checkpoint; there is one as soon as a batch was committed."""
        return self._publisher.note

    @property
    def open_intents(self) -> list[Intent]:
        return sorted(self._intents.values(), key=lambda intent: intent.index)

    @property
    def unpublished(self) -> bool:
        """A checkpoint was signed, or cosigned, that readers cannot see yet."""
        return self._publisher.unpublished

    def cose_receipt(self, receipt: bytes) -> bytes:
        """See AuditLog.cose_receipt. From any thread: it reads nothing that changes."""
        return reissue(receipt, self._log_signer)  # of any shard: the log may have turned since

    def take_cosigned(self, size: int, note: bytes) -> None:
        """Publish this cosigned checkpoint with the next one, unless a newer one is there already."""
        origin = parse_checkpoint_text(split_note(note)[0]).origin
        for shard in self._shards:
            if shard.origin == origin:
                self._publisher.take_cosigned(shard.first + size, note)

    def commit(self, batch: list[Pending], *, publish: bool = False) -> Outcome:
        """Write the batch; `publish` also stores the checkpoint signed after the batch before it."""
        half_year = half_year_of(self._clock())
        if self._turns and half_year > self._shard.half_year:
            self._turn(half_year)
        refused: list[tuple[Pending, Exception]] = []
        under_way = len(self._intents)
        with self._begin() as transaction:
            connection = transaction.connection
            flushed = self._subjects.flush(connection)  # 1
            if any(item.effect and not isinstance(item.effect, LedgerEffect) for item in batch):
                self._index.write(connection)  # an effect may look for records
            accepted = self._accept(connection, batch, refused)  # 2
            expected = self.size
            nodes = self._grow(accepted)
            root = self._frontier.root()
            if accepted:
                self._write(connection, accepted, nodes)  # 3
                self._move_head(connection, expected, root)  # 4
            if publish or self._index.due or max(under_way, len(self._intents)) < BUSY_REQUESTS:
                self._index.write(connection)
            if publish:
                self._store_checkpoints(connection)
        self._subjects.written(flushed)  # 5: leaving the block committed
        if not accepted:
            self.rest()  # nothing will be published that would do it
            return Outcome([], refused)
        size = self._frontier.size
        note = self._publisher.sign(self.size, Checkpoint(self._signer.name, size, root), self._signer)  # 6
        signed = _SignedBatch(nodes, size, note)
        appended = [(item.pending, Appended(item.index, item.record, item.leaf, signed)) for item in accepted]
        return Outcome(appended, refused)

    def publish(self) -> None:
        """Store the newest signed checkpoint, and the newest cosigned one, where readers find them."""
        self.rest()
        if self.unpublished:
            with self._engine.begin() as connection:
                self._index.write(connection)
                self._store_checkpoints(connection)

    def rest(self) -> None:
        """Give the connection back until there is something to write. Doing so twice is harmless."""
        kept, self._connection = self._connection, None
        if kept is not None:
            kept.close()

    def _begin(self) -> RootTransaction:
        """Taking a connection from the pool for each batch would cost more than most statements do."""
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection.begin()

    def _store_checkpoints(self, connection: Connection) -> None:
        self._publisher.store(connection, ends=frozenset(shard.first for shard in self._shards[1:]))

    def require_connection(self) -> None:
        """Raise if the database is gone, and the hold on the log with it."""
        self.rest()
        with self._engine.begin() as connection:
            connection.execute(_STILL_THERE)

    # The turn --------------------------------------------------------------------------------------------------------

    def _turn(self, half_year: int) -> None:
        """End the shard and begin the one of this half-year: both or neither."""
        expected, ended = self.size, self._shard
        under_way = sorted(self._intents.items(), key=lambda item: item[1].index)
        with self._begin() as transaction:
            connection = transaction.connection
            following = shard_name(self._log_signer.name, half_year)
            self._put(connection, [closing(following)])
            self._tiles.close(connection)
            last = Checkpoint(ended.origin, self._frontier.size, self._frontier.root())
            left = self._balances(connection, self._in_force.policy_digest)
            begun = Shard(number=ended.number + 1, origin=following, first=self.size, half_year=half_year)
            add_shard(connection, begun)
            self._shards.append(begun)
            self._name_keys()
            self._frontier, self._tiles = Frontier(), TileWriter(begun, 0, _nothing_there)
            placed = [(intent.index, intent.record) for _, intent in under_way]
            records = self._put(connection, beginning(last, self._in_force, under_way=placed, left=left))
            root = self._frontier.root()
            self._move_head(connection, expected, root)
            self._index.write(connection)
        stands_at = {record.grant: index for index, record in records if record.grant}
        self._intents = {grant: Intent(stands_at[grant], intent.record, intent.began) for grant, intent in under_way}
        self._publisher.sign_last(begun.first, last)
        self._publisher.sign(self.size, Checkpoint(begun.origin, self._frontier.size, root), self._signer)
        self.publish()

    def _put(self, connection: Connection, drafts: Sequence[Record]) -> list[tuple[int, Record]]:
        """Write records of our own; give them, and where they stand in the shard."""
        accepted = []
        for index, draft in enumerate(drafts, self._frontier.size):
            record, leaf = self._finished(self._complete(draft, self._entropy))
            accepted.append(_Accepted(Pending(draft), index, record, leaf, leaf_hash(leaf)))
        self._write(connection, accepted, self._grow(accepted))
        return [(item.index, item.record) for item in accepted]

    def _grow(self, accepted: Sequence[_Accepted]) -> dict[tuple[int, int], bytes]:
        """Put the leaves into the tree: its complete subtrees at the edge, before and on the way, which are all that
        proofs of these records need."""
        nodes = {(level, position): hashed for level, position, hashed in self._frontier.peaks}
        for item in accepted:
            for level, position, hashed in self._frontier.append(item.hashed):
                nodes[level, position] = hashed
        return nodes

    # Records ---------------------------------------------------------------------------------------------------------

    def _accept(
        self, connection: Connection, batch: list[Pending], refused: list[tuple[Pending, Exception]]
    ) -> list[_Accepted]:
        """Those of the batch that are to be written, in their order."""
        ledgers = Ledgers()
        drafts = self._completed(batch, self._taken(connection, batch), refused, ledgers)
        ledgers.load(connection)
        savepoint = _Savepoint(self._rows)
        accepted: list[_Accepted] = []
        index = self._frontier.size
        for pending, draft in drafts:
            effect = pending.effect
            try:
                if effect is None:
                    record, leaf = self._finished(draft)
                elif isinstance(effect, LedgerEffect):
                    record, leaf = self._on_ledger(ledgers.of(effect), draft, effect)
                else:
                    savepoint.begin(connection)
                    record, leaf = self._with_effect(connection, draft, effect)
            except DBAPIError as error:
                if not isinstance(error, IntegrityError | DataError):
                    raise  # the database itself failed, not the effect's wish
                refused.append((pending, error))
                continue
            except Exception as error:
                refused.append((pending, error))
                continue
            if record.kind == "inference.authorized":
                self._intents[record.id] = Intent(index, record, index)
            elif record.kind in ENDS:
                del self._intents[record.grant]
            accepted.append(_Accepted(pending, index, record, leaf, leaf_hash(leaf)))
            index += 1
        savepoint.end(connection)
        ledgers.store(connection)
        return accepted

    def _completed(
        self, batch: list[Pending], taken: set[str], refused: list[tuple[Pending, Exception]], ledgers: Ledgers
    ) -> list[tuple[Pending, Record]]:
        """The drafts with what the writer fills in, less those that are refused for it; their ledgers know what they
        will need. Nothing is needed for the end of a request that is not under way: it will be refused."""
        drafts = []
        entropy = BytesIO(self._entropy(_RANDOM_BYTES * len(batch))).read  # drawn at once, for a system call each
        for pending in batch:
            try:
                if pending.draft.id:
                    require_unused(pending.draft.id, taken)
                draft = self._complete(pending.draft, entropy)
                if isinstance(effect := pending.effect, LedgerEffect):
                    ledger = ledgers.of(effect)
                    if draft.kind not in ENDS or draft.grant in self._intents:
                        effect.expect(ledger, draft)
                drafts.append((pending, draft))
            except Exception as error:
                refused.append((pending, error))
        return drafts

    def _taken(self, connection: Connection, batch: list[Pending]) -> set[str]:
        """The ids of this batch that are not new. Those that callers chose are looked up, all at once: found out here,
        not by the index, which would fail the log."""
        given = [pending.draft.id for pending in batch if is_uuid(pending.draft.id)]
        if not given:
            return set()
        return self._rows.taken(connection, given).union(filter(self._index.__contains__, given))

    def _with_effect(self, connection: Connection, draft: Record, effect: Effect) -> tuple[Record, bytes]:
        """Call within the savepoint, which stands afterwards, whatever the effect did."""
        try:
            return self._after(draft, effect(connection, draft))
        except BaseException:
            connection.exec_driver_sql("ROLLBACK TO effect")
            raise

    def _on_ledger(self, ledger: Ledger, draft: Record, effect: LedgerEffect[Any]) -> tuple[Record, bytes]:
        ledger.begin()
        try:
            return self._after(draft, effect.run(ledger, draft))
        except BaseException:
            ledger.undo()
            raise

    def _after(self, before: Record, after: Record) -> tuple[Record, bytes]:
        """What an effect made of a record; what the writer filled in stands."""
        if after is not before:
            after = msgspec.structs.replace(
                after, v=1, log=before.log, id=before.id, ts_us=before.ts_us, salt=before.salt
            )
        return self._finished(after)

    def _complete(self, draft: Record, entropy: Entropy) -> Record:
        """Fill what the writer answers for: version, origin, id, time, salt."""
        if draft.log and not any(draft.log == shard.origin for shard in self._shards):
            raise AppendRefused("the record names another log", code="record-malformed")
        ts_us = draft.ts_us or self._clock()
        return msgspec.structs.replace(
            draft,
            v=1,
            log=self._signer.name,
            id=draft.id or uuid7(ts_us, entropy),
            ts_us=ts_us,
            salt=draft.salt or entropy(16).hex(),
        )

    def _finished(self, record: Record) -> tuple[Record, bytes]:
        return finished(record, self._intents)

    # Tables ----------------------------------------------------------------------------------------------------------

    def _write(self, connection: Connection, accepted: list[_Accepted], nodes: Mapping[tuple[int, int], bytes]) -> None:
        first = self._shard.first
        self._rows.add(connection, [(first + item.index, item.leaf) for item in accepted])
        self._tiles.append([item.hashed for item in accepted], nodes, connection)
        for item in accepted:
            self._index.take(first + item.index, item.record)
            self._in_force.see(item.index, item.record)
            if item.record.kind in HOLD_KINDS:
                self._holds = chained(self._holds, first + item.index, item.record)

    def _move_head(self, connection: Connection, expected: int, root: bytes) -> None:
        seal = self._seal.over(self._frontier.size, root, holds=self._holds)
        new = {"new_size": self.size, "new_root": root, "new_seal": seal, "new_holds": self._holds}
        known = {"expected": expected, "ours": self._log_signer.name, "held": self._sealed_holds}
        if _MOVE_HEAD.run(connection, [known | new]) != 1:
            raise LogDamaged("the log's head is not where its only writer left it")
        self._sealed_holds = self._holds


def _nothing_there(level: int, index: int, width: int) -> bytes:
    raise LogDamaged("a tree without leaves has no rows")
