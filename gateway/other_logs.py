"""The logs that this gateway reads for auditors: its own host's, and those of other hosts that the settings name.

Each runtime host has a log of its own, in a database of its own. Where a gateway may read those of other hosts too
(`[[log.others]]`: a role that may only read, or a replica), an auditor asks one gateway about all of them. Every such
reading is a record in this gateway's own log. What is read is proven under the other log's key, which the auditor
holds: a gateway cannot pass one log off as another.

Trusts: the settings, for which database holds which log. Never: writes to any; says that a log is empty because it
cannot be reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from audit.errors import LogDamaged, LogUnavailable
from audit.query import AuditReader
from gateway.errors import Problem
from policy.decide import Permit
from sealgate.deployment import Deployment


@dataclass(frozen=True, kw_only=True)
class ReadableLog:
    """One log. `of_same_tenants`: a tenant of this deployment is the same one there: its own auditors may read it."""

    origin: str
    reader: AuditReader
    own: bool = False
    of_same_tenants: bool = False

    def may_be_read(self, permit: Permit) -> bool:
        """Whether a permit to read goes as far as this log."""
        return self.of_same_tenants or permit.records_of is None


class ShardState(msgspec.Struct, frozen=True, kw_only=True):
    """One tree of a log: what its records and checkpoints name, and how many records it has."""

    origin: str
    size: int


class LogState(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of a log: `reachable` is False where it could not be asked; `reason` then is why. `size` is of all
    its shards together."""

    origin: str
    own: bool
    reachable: bool
    size: int | None = None
    reason: str = ""
    shards: tuple[ShardState, ...] = ()


class ReadableLogs:
    """All of them; the own one first. Safe from several threads."""

    def __init__(self, own: ReadableLog, others: Iterable[ReadableLog] = ()) -> None:
        self.own = own
        self._by_origin = {log.origin: log for log in (own, *others)}

    def __iter__(self) -> Iterator[ReadableLog]:
        return iter(self._by_origin.values())

    def of(self, origin: str | None) -> ReadableLog:
        """The log of this name; the own one if none is named. Raises Problem, in the same words for every stranger."""
        if origin is None:
            return self.own
        log = self._by_origin.get(origin)
        if log is None:
            raise Problem("not-found", detail="This gateway reads no log of that name.")
        return log

    def states(self, permit: Permit) -> list[LogState]:
        """Every log that the permit goes as far as, asked now. Blocks."""
        return [_state(log) for log in self if log.may_be_read(permit)]

    def close(self) -> None:
        for log in self:
            log.reader.close()


def open_logs(deployment: Deployment) -> ReadableLogs:
    """Readers of the deployment's own log and of the others that it names; connects to none yet."""
    settings = deployment.settings
    origin = settings.deployment.origin
    own = ReadableLog(
        origin=origin, reader=AuditReader(deployment.log_url, origin=origin), own=True, of_same_tenants=True
    )
    others = [
        ReadableLog(
            origin=other.origin,
            reader=AuditReader(other.database, origin=other.origin),
            of_same_tenants=other.same_tenants,
        )
        for other in settings.log.others
    ]
    return ReadableLogs(own, others)


def _state(log: ReadableLog) -> LogState:
    try:
        shards = log.reader.shards()
    except LogUnavailable as error:
        return LogState(origin=log.origin, own=log.own, reachable=False, reason=error.code)
    except LogDamaged:
        return LogState(origin=log.origin, own=log.own, reachable=False, reason="damaged")
    each = tuple(ShardState(origin=shard.origin, size=shards.size_of(shard)) for shard in shards.all)
    return LogState(origin=log.origin, own=log.own, reachable=True, size=shards.size, shards=each)
