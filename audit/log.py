"""The audit log's one writer: a bounded queue, a thread, and durable batches.

Callers hand over records and get futures. The thread takes whatever has gathered while the last batch was being synced
and commits it as one: the fsync itself forms the batch. When a commit fails the log is failed for good: everything
waiting and everything later is refused, and what was acknowledged before is on disk.

Trusts: the host that calls it (it alone decides what is recorded). Never: acknowledges before the disk has it, loses a
queued record to a caller's cancellation, or runs beside a second writer.
Long, because opening, appending and closing share one lock and are read together.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from sqlalchemy import Connection, Engine, MetaData
from sqlalchemy.exc import DBAPIError

from audit.commit import Appended, Balances, Committer, Pending
from audit.database import WriterHold, open_database
from audit.days import catch_up_days
from audit.effects import AnyEffect, Effect
from audit.errors import AppendRefused, AuditError, LogUnavailable, reason_of
from audit.limits import (
    DISK_FLOOR_DIVISOR,
    DISK_RESERVE_BYTES,
    MAX_BATCH,
    MAX_QUEUE,
    MAX_QUEUE_FOR_INFERENCE,
    PUBLISH_AFTER_S,
    PUBLISH_IDLE_S,
    RETRY_AFTER_FAILED_S,
    RETRY_AFTER_S,
)
from audit.opening import Intent, read_log
from audit.person_keys import beside
from audit.schema import bring_up_to_date
from audit.sealing import SEALED, HeadSeal
from audit.subjects import Subjects
from sealgate.ambient import Clock, Entropy, monotonic_ns, now_us, random_bytes
from sealgate.errors import ConfigurationError
from sealgate.protocol.secrets import Secret
from sealgate.transparency.cosignatures import Cosigner
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.record import ENDS, Record
from sealgate.transparency.shards import half_year_in

__all__ = ["Appended", "AuditLog", "Connection", "Effect", "LogState"]

ShardSpan = Literal["half-year", "never"]
_OWN_KINDS = frozenset({"log.opened", "log.closed", "log.carried"})


@dataclass(frozen=True)
class LogState:
    """Whether the log takes records, why not ("" if it does), and how many it has."""

    ok: bool
    reason: str
    size: int


class AuditLog:
    """A log that is open for appending. Made by `open`; every method may be called from any thread.

    `_queue`, `_cosigned`, `_failure`, `_closing`, `_size` and `_note` are guarded by `_wake`'s lock. `_committer`
    belongs to the writer thread.
    """

    def __init__(
        self,
        committer: Committer,
        subjects: Subjects,
        *,
        hold: WriterHold,
        reader: Engine,
        idle_check_s: float | None,
        disk_free: Callable[[], int],
        disk_reserve_bytes: int,
    ) -> None:
        self._committer = committer
        self._subjects = subjects
        self._hold = hold
        self._reader = reader
        self._idle_check_s = idle_check_s
        self._disk_free = disk_free
        self._disk_reserve = disk_reserve_bytes
        self._wake = threading.Condition()
        self._queue: deque[Pending] = deque()
        self._cosigned: deque[tuple[int, bytes]] = deque()  # for the writer to publish: size, note
        self._failure = ""
        self._closing = False
        self._size = committer.size
        self._note = committer.note
        self._published_ns = monotonic_ns()
        self._thread = threading.Thread(target=self._run, name="audit-writer", daemon=True)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        signer: NoteSigner,
        subjects_key: Secret | bytes,
        person_keys: Path | None = None,
        origin: str,
        shard: ShardSpan = "never",
        balances: Balances = lambda _connection, _digest: {},
        extra_tables: Sequence[MetaData] = (),
        on_abort: AnyEffect | None = None,
        mldsa: Cosigner | None = None,
        disk_free: Callable[[], int] | None = None,
        disk_reserve_bytes: int = DISK_RESERVE_BYTES,
        clock: Clock = now_us,
        entropy: Entropy = random_bytes,
    ) -> AuditLog:
        """Open (or create) the log, check it, record that it was opened, and end what a crash cut off.

        With `mldsa`, the log's own ML-DSA-44 key, published checkpoints carry that signature too. `person_keys` is the
        file of audit.person_keys; None puts it beside an SQLite log, and is refused for any other.
        With `shard`, a new tree begins with each half-year; `balances` says what is left of privacy budgets then.
        Raises LogInUse if another writer holds it, LogDamaged if it contradicts itself or its newest checkpoint,
        ConfigurationError if the database cannot be had.
        When this returns, every `inference.authorized` in the log has its end, durably.
        """
        if signer.name != origin:
            raise ConfigurationError(f"the log key is for '{signer.name}', but the log's origin is '{origin}'")
        if mldsa is not None and mldsa.public.name != origin:
            raise ConfigurationError(f"the ML-DSA key is for '{mldsa.public.name}', but the log's origin is '{origin}'")
        if half_year_in(origin) is not None:
            raise ConfigurationError(f"the log's name '{origin}' ends as those of shards do; choose another one")
        seal = HeadSeal(signer)
        database = open_database(url)
        keys = person_keys or beside(url)
        hold = database.open_writer()
        reader = database.reader_engine()
        subjects: Subjects | None = None
        try:
            try:
                with hold.engine.begin() as connection:
                    bring_up_to_date(connection, extra_tables=extra_tables)
                    opened = read_log(connection, signer=signer, seal=seal, mldsa=mldsa, clock=clock, entropy=entropy)
                    catch_up_days(connection)
                subjects = Subjects(subjects_key, keys=keys, reader=reader, clock=clock, entropy=entropy)
                with hold.engine.begin() as connection:
                    subjects.catch_up(connection)
                committer = Committer(
                    hold,
                    opened,
                    signer=signer,
                    mldsa=mldsa,
                    seal=seal,
                    subjects=subjects,
                    turns=shard == "half-year",
                    balances=balances,
                    clock=clock,
                    entropy=entropy,
                )
                _recover(committer, on_abort)
            except DBAPIError as error:
                raise database.refusal(error) from error
            log = cls(
                committer,
                subjects,
                hold=hold,
                reader=reader,
                idle_check_s=database.idle_check_s,
                disk_free=disk_free or database.disk_free,
                disk_reserve_bytes=disk_reserve_bytes,
            )
        except BaseException:
            if subjects is not None:
                subjects.close()
            reader.dispose()
            hold.release()
            raise
        log._thread.start()
        return log

    # For callers -----------------------------------------------------------------------------------------------------

    def actor(self, tenant: str, subject: str) -> str:
        """The pseudonym that stands for a subject in records: random, stable, durable no later than the next append."""
        return self._subjects.pseudonym(tenant, subject)

    @property
    def subjects(self) -> Subjects:
        """The pseudonyms, for effects that find or delete one."""
        return self._subjects

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A snapshot of the log's database, read only."""
        with self._reader.begin() as connection:
            yield connection

    def append(self, draft: Record, effect: AnyEffect | None = None) -> Future[Appended]:
        """Queue a record. The future resolves when the record is on disk and its checkpoint is signed, not before.

        `draft` MAY leave v, log, id, ts_us and salt empty; an end MAY leave what its authorization says. The future
        fails with LogUnavailable if the log cannot take it, AppendRefused if it breaks a rule, or with what `effect`
        raised; then nothing was written. Cancelling the future has no effect. Never raises itself.
        """
        future: Future[Appended] = Future()
        future.set_running_or_notify_cancel()  # from here on cancel() answers False
        try:
            self._take_in(Pending(draft, effect, future=future))
        except AuditError as error:
            future.set_exception(error)
        return future

    def append_awaited(self, draft: Record, effect: AnyEffect | None = None) -> asyncio.Future[Appended]:
        """As `append`, for a coroutine to await. Records of one turn of its event loop wake the writer once, together;
        those of one batch wake their loop so."""
        awaited: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        try:
            self._take_in(Pending(draft, effect, awaited=awaited))
        except AuditError as error:
            awaited.set_exception(error)
        return awaited

    def _take_in(self, pending: Pending) -> None:
        """Queue it, or raise AuditError."""
        draft = pending.draft
        if draft.kind in _OWN_KINDS:
            raise AppendRefused("only the writer says that the log was opened or closed", code="record-malformed")
        if draft.kind == "inference.authorized":
            self.check_may_infer()
        elif draft.kind not in ENDS:
            # Who is refused can ask for ever, and each refusal is a record. The last of the disk is for the ends of
            # what is under way: a disk that is quite full would fail the log for everybody, until a restart.
            self._require_free(self._disk_reserve // DISK_FLOOR_DIVISOR, unknown=self._disk_reserve)
        with self._wake:
            self._require_open()
            if len(self._queue) >= MAX_QUEUE and draft.kind not in ENDS:
                raise LogUnavailable("too many records are waiting", code="queue-full", retry_after_s=RETRY_AFTER_S)
            self._queue.append(pending)
            if pending.awaited is None:
                self._wake.notify()
            elif len(self._queue) == 1:  # else somebody woke the writer, or will: it empties the queue
                pending.awaited.get_loop().call_soon(self._rouse)

    def _rouse(self) -> None:
        """The loop's turn is over, and what it had to say is queued: all of it is one batch."""
        with self._wake:
            self._wake.notify()

    def check_may_infer(self) -> None:
        """Raise LogUnavailable unless a new inference could be recorded to its end."""
        with self._wake:
            self._require_open()
            waiting = len(self._queue)
        if waiting >= MAX_QUEUE_FOR_INFERENCE:
            raise LogUnavailable("too many records are waiting", code="queue-full", retry_after_s=RETRY_AFTER_S)
        self._require_free(self._disk_reserve, unknown=-1)  # a disk that cannot say how full it is counts as full

    def _require_free(self, least: int, *, unknown: int) -> None:
        try:
            free = self._disk_free()
        except OSError:
            free = unknown
        if free < least:
            raise LogUnavailable(
                "the audit log's disk is nearly full", code="disk-reserve", retry_after_s=RETRY_AFTER_FAILED_S
            )

    @property
    def state(self) -> LogState:
        with self._wake:
            reason = self._failure or ("closed" if self._closing else "")
            return LogState(not reason, reason, self._size)

    def checkpoint(self) -> bytes:
        """The newest signed checkpoint (a note): of everything that was acknowledged."""
        with self._wake:
            return self._note

    def cose_receipt(self, receipt: bytes) -> bytes:
        """A receipt of this log also as COSE Receipt (RFC 9942). Raises ReceiptError for any other's."""
        return self._committer.cose_receipt(receipt)

    def publish_cosigned(self, size: int, note: bytes) -> None:
        """Let readers have this checkpoint of ours, of `size` records, that witnesses cosigned. Does not wait."""
        with self._wake:
            self._cosigned.append((size, note))
            self._wake.notify()

    def close(self) -> None:
        """Write what is queued, record `log.closed`, publish the checkpoint, let go. Doing so twice is harmless."""
        with self._wake:
            if not self._closing:
                self._closing = True
                if not self._failure:
                    self._queue.append(Pending(Record(kind="log.closed", outcome="closed")))
                self._wake.notify()
        self._thread.join()
        self._subjects.close()
        self._reader.dispose()
        self._hold.release()

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_open(self) -> None:
        """Call with `_wake` held."""
        if self._failure:
            raise LogUnavailable(
                "the audit log has failed", code="log-failed", retry_after_s=RETRY_AFTER_FAILED_S
            ) from None
        if self._closing:
            raise LogUnavailable("the audit log is closed", code="log-closed", retry_after_s=RETRY_AFTER_S)

    # The writer thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        batch: list[Pending] = []
        try:
            while True:
                batch = self._next_batch()
                if not batch:
                    break
                self._write(batch)
            self._committer.publish()
        except BaseException as error:  # whatever it was, nothing may be acknowledged any more
            self._fail(error, batch)
        finally:
            self._committer.rest()

    def _next_batch(self) -> list[Pending]:
        """Wait for records; while idle, publish the checkpoint and see that the database is still ours. Empty when the
        log is closing and all is written."""
        while True:
            with self._wake:
                if not self._queue and not self._closing and not self._cosigned:
                    self._wake.wait(PUBLISH_IDLE_S if self._committer.unpublished else self._idle_check_s)
                while self._cosigned:
                    self._committer.take_cosigned(*self._cosigned.popleft())
                if self._queue:
                    return [self._queue.popleft() for _ in range(min(MAX_BATCH, len(self._queue)))]
                if self._closing:
                    return []
            self._use_the_quiet()

    def _use_the_quiet(self) -> None:
        if self._committer.unpublished:
            self._committer.publish()
            self._published_ns = monotonic_ns()
        elif self._idle_check_s is not None:
            self._committer.require_connection()

    def _write(self, batch: list[Pending]) -> None:
        due = monotonic_ns() - self._published_ns >= PUBLISH_AFTER_S * 1e9
        outcome = self._committer.commit(batch, publish=due)
        if due:
            self._published_ns = monotonic_ns()
        with self._wake:
            self._size, self._note = self._committer.size, self._committer.note
        _tell([*outcome.appended, *outcome.refused])

    def _fail(self, error: BaseException, batch: list[Pending]) -> None:
        with self._wake:
            self._failure = f"commit failed ({reason_of(error)})"
            waiting = [*batch, *self._queue]
            self._queue.clear()
        refusals: list[tuple[Pending, Appended | Exception]] = []
        for pending in waiting:
            refusal = LogUnavailable("the audit log has failed", code="log-failed", retry_after_s=RETRY_AFTER_FAILED_S)
            refusal.__cause__ = error
            refusals.append((pending, refusal))
        _tell(refusals)


_Told: TypeAlias = "tuple[asyncio.Future[Appended], Appended | Exception]"


def _tell(outcomes: Sequence[tuple[Pending, Appended | Exception]]) -> None:
    """Let those who wait know, unless they do already; each event loop is woken once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Told]] = {}
    for pending, outcome in outcomes:
        if pending.awaited is not None:
            by_loop.setdefault(pending.awaited.get_loop(), []).append((pending.awaited, outcome))
        elif pending.future is not None and not pending.future.done():
            _settle(pending.future, outcome)
    for loop, told in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits there any more
            loop.call_soon_threadsafe(_settle_all, told)


def _settle_all(told: Sequence[_Told]) -> None:
    for awaited, outcome in told:
        if not awaited.done():
            _settle(awaited, outcome)


def _settle(future: Future[Appended] | asyncio.Future[Appended], outcome: Appended | Exception) -> None:
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _recover(committer: Committer, on_abort: AnyEffect | None) -> None:
    """Record the opening, and an end for every request that the last writer left open. Nothing else runs yet."""
    open_intents = committer.open_intents
    detail = {"size": str(committer.size), "aborted": str(len(open_intents))}
    if not committer.size:
        detail[SEALED] = "yes"
    pendings = [Pending(Record(kind="log.opened", outcome="opened", detail=detail))]
    pendings += [Pending(_aborted(intent), on_abort) for intent in open_intents]
    try:
        for start in range(0, len(pendings), MAX_BATCH):
            outcome = committer.commit(pendings[start : start + MAX_BATCH])
            if outcome.refused:
                raise outcome.refused[0][1]
        committer.publish()
    finally:
        committer.rest()


def _aborted(intent: Intent) -> Record:
    begun = intent.record
    return Record(
        kind="inference.aborted",
        tenant=begun.tenant,
        actor=begun.actor,
        authn=begun.authn,
        model=begun.model,
        model_digest=begun.model_digest,
        certificate_digest=begun.certificate_digest,
        policy_digest=begun.policy_digest,
        runtime_instance=begun.runtime_instance,
        operation=begun.operation,
        purpose=begun.purpose,
        outcome="aborted",
        reason="host-restart",
        grant=begun.id,
        assurance=begun.assurance,
    )
