"""What was in force at a moment: policy, worker, models and their epsilon, keys.

"At T" means: after the last record whose time is not after T, in the order of the log. Trusts: the records; that a
worker is what its evidence says is shown by the evidence whose digest is named here. Never: guesses what stands before
the records that it was shown.
"""

from __future__ import annotations

from sealgate.transparency.carried import KIND as CARRIED
from sealgate.transparency.carried import ends_shard, restated
from sealgate.transparency.record import Record
from sealgate.transparency.reports.form import Answer, Cell, Column, Part, Table
from sealgate.transparency.reports.question import Question

KINDS = (
    *("policy.change", "log.opened", "log.closed", CARRIED),
    *("worker.start", "worker.stop", "model.load", "model.refuse", "key.rotate"),
)
_FACTS = (Column("fact"), Column("value"))
_DETAIL = ("profile", "device", "layers_missing", "probes_failed", "completion_key")


class _Worker:
    """One instance, since its start."""

    def __init__(self, index: int, record: Record) -> None:
        self.index = index
        self.start = record
        self.models: dict[tuple[str, str], tuple[int, Record]] = {}  # by name and version
        self.keys: tuple[int, Record] | None = None


class InForce:
    """Replays beginnings and ends up to the moment."""

    def __init__(self, question: Question) -> None:
        self._at_us = question.at_us
        self._policy: tuple[int, Record] | None = None
        self._workers: dict[str, _Worker] = {}
        self._running: bool | None = None
        self._newest: tuple[int, int] | None = None

    def see(self, index: int, record: Record, leaf: bytes) -> None:
        if self._at_us is not None and record.ts_us > self._at_us:
            return
        self._newest = (index, record.ts_us)
        record = restated(record)
        kind, worker = record.kind, self._workers.get(record.runtime_instance)
        if kind == "policy.change":
            self._policy = (index, record)
        elif ends_shard(record):
            pass  # the next shard says again what was in force, and it goes on
        elif kind in ("log.opened", "log.closed"):  # with its host, every worker of it is gone
            self._running = kind == "log.opened"
            self._workers.clear()
        elif kind == "worker.start":
            self._workers[record.runtime_instance] = _Worker(index, record)
        elif kind == "worker.stop":
            self._workers.pop(record.runtime_instance, None)
        elif worker is not None and kind in ("model.load", "model.refuse"):
            worker.models[record.model, record.detail.get("version", "")] = (index, record)
        elif worker is not None and kind == "key.rotate":
            worker.keys = (index, record)

    def answer(self, part: Part) -> Answer:
        limits = []
        if self._policy is None:
            limits.append("the policy came into force before the records that were shown")
        if self._running is None:
            limits.append("the log was opened before the records that were shown: a worker from then is not known")
        if self._newest is None:
            limits.append("no record that was shown is as old as that")
        return Answer((self._host(), self._worker(), self._models()), limits=tuple(limits))

    def _host(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        if self._running is not None:
            rows.append(("log", "open" if self._running else "closed: nothing was served"))
        if self._policy is not None:
            index, policy = self._policy
            rows.append(("policy", policy.policy_digest))
            rows += [
                (f"policy {name}", policy.detail[name]) for name in ("name", "version", "by") if name in policy.detail
            ]
            rows.append(("policy's record", str(index)))
        return Table(title="policy", columns=_FACTS, rows=tuple(rows))

    def _worker(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        for name, worker in self._workers.items():
            start = worker.start
            rows += [("worker", name), ("evidence (measurements) digest", start.evidence_digest)]
            rows += [("assurance", start.assurance), ("degraded", "yes" if start.degraded else "no")]
            rows += [(key, start.detail[key]) for key in _DETAIL if start.detail.get(key)]
            rows.append(("worker's record", str(worker.index)))
            if worker.keys is not None:
                index, keys = worker.keys
                rows += [
                    (key, keys.detail[key]) for key in ("key_ids", "kems", "key_configs_digest") if key in keys.detail
                ]
                rows.append(("keys' record", str(index)))
        return Table(title="worker and keys", columns=_FACTS, rows=tuple(rows))

    def _models(self) -> Table:
        columns = (
            *(Column(name) for name in ("model", "version", "state", "weights", "certificate")),
            Column("epsilon", "epsilon"),
            *(Column(name) for name in ("delta", "privacy unit")),
            Column("record", "number"),
        )
        rows = tuple(
            _model(name, index, one)
            for worker in self._workers.values()
            for (name, _), (index, one) in sorted(worker.models.items())
        )
        return Table(title="models", columns=columns, rows=rows)


def _model(name: str, index: int, one: Record) -> tuple[Cell, ...]:
    state = "loaded" if one.kind == "model.load" else f"refused: {one.reason}"
    version, delta, unit = (one.detail.get(key, "") for key in ("version", "delta", "privacy_unit"))
    return (name, version, state, one.model_digest, one.certificate_digest, one.eps_micro, delta, unit, index)
