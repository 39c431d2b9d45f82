"""What is in force as the records go by: the facts that the next shard of a log must begin by saying again.

The policy and what its budgets grant, the workers with their models and keys, how far their counters have come. The
writer follows its own records with it (`audit.turning`); whoever verifies two shards together follows those of the
first one, and compares what the second one says (`chain`).

Pure. Trusts nothing. Never: goes on with what ended, or grows without bound (MAX_CARRIED_GRANTS).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sealgate.limits import MAX_CARRIED_GRANTS
from sealgate.transparency.carried import KIND, begins_shard, counters, counters_of, ends_shard, restate, restated
from sealgate.transparency.record import Record

GRANT = "budget.grant"
Placed = tuple[int, Record]


@dataclass
class _Worker:
    """One instance that was started and did not stop."""

    start: Placed
    models: dict[tuple[str, str], Placed] = field(default_factory=dict)  # by name and version
    keys: Placed | None = None
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

    def __init__(self, before: tuple[Placed, ...] = ()) -> None:
        """`before` are records of the policy and its budgets that were written before anybody looked, in order."""
        self._policy: Placed | None = None
        self._grants: dict[tuple[str, str], Placed] = {}  # by tenant and budget, the newest last
        self._workers: dict[str, _Worker] = {}
        for index, record in before:
            self.see(index, record)

    @property
    def policy_digest(self) -> str:
        """Of the policy that the records have in force; "" if none is known."""
        return "" if self._policy is None else self._policy[1].policy_digest

    def see(self, index: int, record: Record, leaf: bytes = b"") -> None:
        """A record stands at this index of its shard."""
        original = restated(record)
        kind, worker = original.kind, self._workers.get(original.runtime_instance)
        if kind == "policy.change":
            self._policy = (index, record)
        elif kind == GRANT:
            self._grant(index, record)
        elif kind == "worker.start":
            started = self._workers[original.runtime_instance] = _Worker((index, record))
            reached, ahead = counters_of(record) or (0, frozenset()) if record.kind == KIND else (0, frozenset())
            started.counter, started.ahead = reached, set(ahead)
        elif kind in ("log.opened", "log.closed"):
            if not begins_shard(record) and not ends_shard(record):
                self._workers.clear()
        elif worker is None:
            return
        elif kind == "worker.stop":
            del self._workers[original.runtime_instance]
        elif kind in ("model.load", "model.refuse"):
            worker.models[original.model, original.detail.get("version", "")] = (index, record)
        elif kind == "key.rotate":
            worker.keys = (index, record)
        elif record.runtime_sig:
            worker.count(record.runtime_seq)

    def carried(self) -> Iterator[Record]:
        """Drafts that say it again."""
        if self._policy is not None:
            yield again(self._policy)
        yield from map(again, self._grants.values())
        for worker in self._workers.values():
            yield restate(worker.start[1], index=worker.start[0], also=worker.said())
            yield from map(again, worker.models.values())
            if worker.keys is not None:
                yield again(worker.keys)

    def _grant(self, index: int, record: Record) -> None:
        """Of a budget that a later policy no longer has, nothing says so: what is said again is what was granted
        last, and the policy of the digest says whether it still is."""
        key = (record.tenant, record.detail.get("budget", ""))
        self._grants.pop(key, None)
        self._grants[key] = (index, record)
        if len(self._grants) > MAX_CARRIED_GRANTS:
            del self._grants[next(iter(self._grants))]


def again(placed: Placed) -> Record:
    """A draft that stands for a record at this index of the shard that ends."""
    index, record = placed
    return restate(record, index=index)
