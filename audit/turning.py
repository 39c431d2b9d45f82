"""What the writer knows of what is in force, so that a new shard can begin by saying it again.

Follows every record that is written: the policy, the workers with their models and keys, how far their counters have
come. At the turn these, the requests under way and the balances of privacy budgets become `log.carried` records
(`sealgate.transparency.carried`). Owned by the writer thread.

Trusts: the records that its own log wrote. Never: carries what ended; reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from audit.limits import CARRIED_TEXT
from sealgate.transparency.carried import (
    BUDGETS,
    KIND,
    NEXT,
    PREVIOUS_ORIGIN,
    PREVIOUS_ROOT,
    PREVIOUS_SIZE,
    STANDS_FOR,
    TURNED,
    balances,
    begins_shard,
    counters,
    ends_shard,
    restate,
    restated,
)
from sealgate.transparency.notes import Checkpoint
from sealgate.transparency.record import Record

_Placed = tuple[int, Record]


@dataclass
class _Worker:
    """One instance that was started and did not stop."""

    start: _Placed
    models: dict[str, _Placed] = field(default_factory=dict)
    keys: _Placed | None = None
    counter: int = 0  # seen without a gap
    ahead: set[int] = field(default_factory=set)  # seen beyond

    def count(self, seq: int) -> None:
        self.ahead.add(seq)
        while self.counter + 1 in self.ahead:
            self.counter += 1
            self.ahead.discard(self.counter)

    def said(self) -> dict[str, str]:
        return counters(self.counter, self.ahead)


class InForce:
    """The facts that the next shard must begin with."""

    def __init__(self, policy: _Placed | None) -> None:
        """`policy` is the newest `policy.change` that the log holds, and its index."""
        self._policy = policy
        self._workers: dict[str, _Worker] = {}

    @property
    def policy_digest(self) -> str:
        """Of the policy that the records have in force; "" if none is known."""
        return "" if self._policy is None else self._policy[1].policy_digest

    def see(self, index: int, record: Record) -> None:
        """A record is written at this index of its shard."""
        original = restated(record)
        kind, worker = original.kind, self._workers.get(original.runtime_instance)
        if kind == "policy.change":
            self._policy = (index, record)
        elif kind == "worker.start":
            before = worker if record.kind == KIND else None
            started = self._workers[original.runtime_instance] = _Worker((index, record))
            if before is not None:
                started.counter, started.ahead = before.counter, before.ahead
        elif kind in ("log.opened", "log.closed"):
            if not begins_shard(record) and not ends_shard(record):
                self._workers.clear()
        elif worker is None:
            return
        elif kind == "worker.stop":
            del self._workers[original.runtime_instance]
        elif kind in ("model.load", "model.refuse"):
            worker.models[original.model] = (index, record)
        elif kind == "key.rotate":
            worker.keys = (index, record)
        elif record.runtime_sig:
            worker.count(record.runtime_seq)

    def carried(self) -> Iterator[Record]:
        """Drafts that say it again."""
        if self._policy is not None:
            yield _again(self._policy)
        for worker in self._workers.values():
            yield restate(worker.start[1], index=worker.start[0], also=worker.said())
            yield from map(_again, worker.models.values())
            if worker.keys is not None:
                yield _again(worker.keys)


def closing(origin: str) -> Record:
    """The last record of a shard, which names the next one."""
    return Record(kind="log.closed", outcome=TURNED, detail={NEXT: origin})


def beginning(
    before: Checkpoint, in_force: InForce, *, under_way: Iterable[_Placed], left: Mapping[str, tuple[int, int]]
) -> list[Record]:
    """The first records of a shard. `under_way` are open authorizations and their indices in the shard before."""
    said = {
        PREVIOUS_ORIGIN: before.origin,
        PREVIOUS_SIZE: str(before.size),
        PREVIOUS_ROOT: before.root.hex(),
    }
    drafts = [Record(kind="log.opened", outcome=TURNED, detail=said), *in_force.carried()]
    drafts += [Record(kind=KIND, detail={STANDS_FOR: BUDGETS} | part) for part in _parts(balances(left))]
    return [*drafts, *map(_again, under_way)]


def _again(placed: _Placed) -> Record:
    index, record = placed
    return restate(record, index=index)


def _parts(detail: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The same in parts that each fit into a leaf."""
    part: dict[str, str] = {}
    length = 0
    for name, text in detail.items():
        length += len(name) + len(text)
        if length > CARRIED_TEXT:
            yield part
            part, length = {}, len(name) + len(text)
        part[name] = text
    if part:
        yield part
