"""What operators owe to the people in the log: reports, erasures, holds, pruning. The host does it, and on record.

    find the pseudonym, put the question on record -> answer
    delete the name in the transaction of its record -> empty the write-ahead log -> answer
    search what is due in a thread -> announce it (and delete it, where the writer may) -> answer
    forget who is left without records, which ends such a run -> empty the write-ahead log -> answer

One at a time, so that each sees what the one before put on record. The rules of retention are read anew for each.
Trusts: its caller for who asks. Never: lets a name come on record, or an answer out before the record is durable.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from audit import erasure, holds, pruning
from audit.database import open_database
from audit.errors import PrivacyRefused
from audit.limits import PRUNE_SUBJECTS
from audit.log import Appended, AuditLog, Connection, Effect
from audit.retention import DAY_US, load_retention
from sealgate.ambient import Clock, now_us
from sealgate.errors import ConfigurationError
from sealgate.protocol.administration import (
    AskAboutSubject,
    EraseSubject,
    ForgetUnused,
    HostToAdmin,
    PlaceHold,
    PruneRecords,
    RecordsPruned,
    ReleaseHold,
    SubjectErased,
    SubjectFound,
    UnusedForgotten,
)
from sealgate.protocol.frames import Recorded, Refused
from sealgate.transparency.pruned import KIND as PRUNED
from sealgate.transparency.record import Record

PrivacyFrame = AskAboutSubject | EraseSubject | PlaceHold | ReleaseHold | PruneRecords | ForgetUnused
_NOTHING = "nothing-due"


class Privacy:
    """Owned by the host's event loop."""

    def __init__(self, log: AuditLog, *, url: str, retention: Path, clock: Clock = now_us) -> None:
        self._log = log
        self._database = open_database(url)
        self._on_server = url.startswith("postgresql")
        self._retention = retention
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()

    async def answer(self, frame: PrivacyFrame, *, by: str) -> HostToAdmin:
        """Do it and put it on record; raises LogUnavailable."""
        async with self._one_at_a_time:
            try:
                return await self._answer(frame, by=by)
            except PrivacyRefused as error:
                return Refused(id=frame.id, status=409, code=error.code)
            except ConfigurationError:
                return Refused(id=frame.id, status=503, code="retention-unsound")

    async def _answer(self, frame: PrivacyFrame, *, by: str) -> HostToAdmin:
        detail = {"by": by} | ({"note": frame.note} if frame.note else {})
        subjects = self._log.subjects
        if isinstance(frame, AskAboutSubject | EraseSubject | PlaceHold):
            erasure.require_nameless(frame.note, subject=frame.subject)
        if isinstance(frame, AskAboutSubject):
            return await self._find(frame, detail)
        if isinstance(frame, EraseSubject):
            return await self._erase(frame, detail)
        if isinstance(frame, PruneRecords):
            return await self._prune(frame, detail)
        if isinstance(frame, ForgetUnused):
            return await self._forget(frame, detail)
        if isinstance(frame, PlaceHold):
            erasure.require_nameless(frame.name, subject=frame.subject)
        effect = (
            holds.placing(subjects, name=frame.name, tenant=frame.tenant, subject=frame.subject)
            if isinstance(frame, PlaceHold)
            else holds.releasing(name=frame.name)
        )
        ended = await self._append(holds.PLACED if isinstance(frame, PlaceHold) else holds.RELEASED, detail, effect)
        return Recorded(id=frame.id, log=ended.record.log, record=ended.index, receipt=ended.receipt)

    async def _find(self, frame: AskAboutSubject, detail: dict[str, str]) -> HostToAdmin:
        subjects = self._log.subjects

        def name_asked(connection: Connection, draft: Record) -> Record:
            actor = holds.require_known(subjects, connection, tenant=frame.tenant, subject=frame.subject)
            return msgspec.structs.replace(draft, tenant=frame.tenant, actor=actor)

        ended = await self._append("subject.report", detail, name_asked)
        return SubjectFound(id=frame.id, actor=ended.record.actor, record=ended.index)

    async def _erase(self, frame: EraseSubject, detail: dict[str, str]) -> HostToAdmin:
        effect = erasure.erasing(self._log.subjects, tenant=frame.tenant, subject=frame.subject, ground=frame.ground)
        ended = await self._append(erasure.COMPLETED, detail, effect)
        if ended.record.kind == erasure.REFUSED:
            return Refused(
                id=frame.id,
                status=409,
                code=erasure.HELD,
                log=ended.record.log,
                record=ended.index,
                receipt=ended.receipt,
            )
        scrubbed = await asyncio.to_thread(self._scrub)
        return SubjectErased(id=frame.id, record=ended.index, receipt=ended.receipt, scrubbed=scrubbed)

    async def _prune(self, frame: PruneRecords, detail: dict[str, str]) -> HostToAdmin:
        retention = load_retention(self._retention)
        now = self._clock()

        def search() -> tuple[pruning.Candidates, bool]:
            with self._log.reading() as connection:
                held = holds.holds_in_force(connection)
                found = pruning.search(connection, retention, held, start=frame.start, now_us=now)
                return found, pruning.deletes_itself(connection)

        found, deletes = await asyncio.to_thread(search)
        on = -1 if found.next is None else found.next
        if not found.records:
            return RecordsPruned(id=frame.id, next=on)
        try:
            ended = await self._append(PRUNED, detail, pruning.pruning(found.records, retention, now_us=now))
        except PrivacyRefused as error:
            if error.code != _NOTHING:
                raise
            return RecordsPruned(id=frame.id, next=on)
        with self._log.reading() as connection:
            positions = str(pruning.announced(connection, ended.record))
        return RecordsPruned(id=frame.id, indices=positions, record=ended.index, deleted=deletes, next=on)

    async def _forget(self, frame: ForgetUnused, detail: dict[str, str]) -> HostToAdmin:
        subjects, before_us = self._log.subjects, self._clock() - DAY_US * load_retention(self._retention).shortest_days

        def search() -> tuple[list[str], str | None]:
            with self._log.reading() as connection:
                return subjects.unused(connection, after=frame.after, before_us=before_us, limit=PRUNE_SUBJECTS)

        refs, on = await asyncio.to_thread(search)
        count = 0
        if refs:
            try:
                effect = erasure.forgetting(subjects, after=frame.after, before_us=before_us)
                ended = await self._append(erasure.COMPLETED, detail, effect)
                count = int(ended.record.detail["count"])
            except PrivacyRefused as error:
                if error.code != _NOTHING:
                    raise
        if on is None or count:  # the end of a run, and so of what it pruned; or names, should it break off here
            await asyncio.to_thread(self._scrub)
        return UnusedForgotten(id=frame.id, count=count, next=on or "")

    def _scrub(self) -> bool:
        """The key, and what was sealed under it; but what a server keeps of that opens under nothing any more."""
        keys = self._log.subjects.scrub()
        return (self._database.scrub() or self._on_server) and keys

    async def _append(self, kind: str, detail: dict[str, str], effect: Effect) -> Appended:
        return await asyncio.wrap_future(self._log.append(Record(kind=kind, detail=detail), effect))
