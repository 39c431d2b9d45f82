"""What the records of a range must say together. Each check sees every record once, in order, and then gives a verdict.

    Reconcile     each authorized has exactly one end, and the end agrees with it
    Signatures    what a worker is said to have done, it signed
    Counters      the workers' own counters have no gap: the host dropped nothing they signed

Receipts that are handed in are checked in `receipt_check`.
Pure, in memory bounded by the range. Trusts nothing but the keys that the log's own `worker.start` records name: that
those belong to attested workers is the evidence's business, not the log's. Long, because the checks are read together.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Literal, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sealgate.errors import VerificationError
from sealgate.protocol.completion import verify_completion
from sealgate.transparency.carried import KIND as CARRIED
from sealgate.transparency.carried import counters_of, ends_shard, restated, stood_at
from sealgate.transparency.record import ENDS, Record, completion_of

Status = Literal["ok", "failed", "skipped"]
_AGREE = ("tenant", "actor", "operation", "purpose")
SHOWN = 3  # problems named in one verdict


@dataclass(frozen=True)
class Verdict:
    """`skipped` means that the range cannot tell; `detail` says why, or what is wrong."""

    status: Status
    detail: str


@dataclass(frozen=True)
class Range:
    """Which part of the log the records are."""

    first: int
    last: int
    size: int

    @property
    def from_start(self) -> bool:
        return self.first == 0


class Gone(Protocol):
    """Records of the range that are no longer kept: see sealgate.transparency.pruned, which judges that."""

    @property
    def count(self) -> int: ...

    @property
    def newest(self) -> int: ...

    def __contains__(self, index: int, /) -> bool: ...


@dataclass(frozen=True)
class _NoneGone:
    count: int = 0
    newest: int = -1

    def __contains__(self, index: int) -> bool:
        return False


NONE_GONE = _NoneGone()


class Check(Protocol):
    """One check over a stream of records."""

    name: str

    def see(self, index: int, record: Record, leaf: bytes) -> None: ...

    def verdict(self, part: Range) -> Verdict: ...


@dataclass
class Problems:
    """The first few of many, and how many."""

    found: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, text: str) -> None:
        self.count += 1
        if len(self.found) < SHOWN:
            self.found.append(text)

    def verdict(self) -> Verdict:
        more = f" (and {self.count - len(self.found)} more)" if self.count > len(self.found) else ""
        return Verdict("failed", "; ".join(self.found) + more)


class Reconcile:
    """Begin and end of every permitted request."""

    name = "every authorized request has exactly one end"

    def __init__(self, part: Range, gone: Gone = NONE_GONE) -> None:
        self._first = part.first
        self._gone = gone
        self._open: dict[str, tuple[int, Record]] = {}
        self._recent: set[str] = set()  # of these, begun since the log was last opened
        self._overdue: set[str] = set()  # open when the log was opened anew: must end before the next begins
        self._ended_before: set[str] = set()  # ends of requests that began before the range, or whose beginning is gone
        self._lost = 0  # requests whose end may be gone
        self._pairs = 0
        self._problems = Problems()
        self.carried: dict[str, tuple[int, Record]] = {}  # from the shard before: index there, and what is said of it
        self._ended = False  # the shard: what is open goes on in the next one

    @property
    def left_open(self) -> dict[str, tuple[int, Record]]:
        """Requests that have no end yet: index, and the authorization."""
        return dict(self._open)

    def see(self, index: int, record: Record, leaf: bytes) -> None:
        self._ended = ends_shard(record)
        if record.kind == CARRIED:
            self._take_over(index, record)
        elif record.kind == "log.opened":
            self._overdue |= self._recent
            self._recent = set()
        elif record.kind == "inference.authorized":
            for grant in self._overdue:
                if self._gone.newest > self._open[grant][0]:
                    self._lost += 1
                    continue
                self._problems.add(f"record {self._open[grant][0]} has no end although the log was reopened")
            self._overdue.clear()
            if record.id in self._open:
                self._problems.add(f"record {index} repeats the id of an open authorization")
            self._open[record.id] = (index, record)
            self._recent.add(record.id)
        elif record.kind in ENDS:
            self._end(index, record)

    def _take_over(self, index: int, record: Record) -> None:
        """What stands for an authorization of the shard before ends as that would: `intent_seq` names this record."""
        begun = restated(record)
        if begun.kind != "inference.authorized":
            return
        if not begun.id or begun.id in self._open:
            self._problems.add(f"record {index} carries a request over that has no name, or twice")
            return
        self._open[begun.id] = (index, begun)
        self._recent.add(begun.id)
        self.carried[begun.id] = (stood_at(record), begun)

    def _end(self, index: int, end: Record) -> None:
        begun = self._open.pop(end.grant, None)
        self._overdue.discard(end.grant)
        self._recent.discard(end.grant)
        if begun is None:
            before = 0 <= end.intent_seq < self._first or end.intent_seq in self._gone
            if before and end.grant not in self._ended_before:
                self._ended_before.add(end.grant)
            else:
                self._problems.add(
                    f"record {index} ends nothing that is open: a second end, or one without a beginning"
                )
            return
        self._pairs += 1
        at, authorized = begun
        differs = [name for name in _AGREE if getattr(end, name) != getattr(authorized, name)]
        if end.intent_seq != at:
            differs.append("intent_seq")
        if end.kind == "inference.completed" and end.model != authorized.model:
            differs.append("model")
        if differs:
            self._problems.add(f"record {index} and its authorization {at} differ in {', '.join(differs)}")

    def verdict(self, part: Range) -> Verdict:
        if self._problems.count:
            return self._problems.verdict()
        undecided = []
        if self._open and not self._ended:
            at = min(index for index, _ in self._open.values())
            undecided.append(f"{len(self._open)} have no end within the range (the first is record {at})")
        if self._ended_before:
            undecided.append(f"{len(self._ended_before)} ends belong to requests before the range or pruned ones")
        if self._lost:
            undecided.append(f"the ends of {self._lost} may be among the pruned records")
        if undecided:
            return Verdict("skipped", f"{self._pairs} paired; " + "; ".join(undecided))
        on = f"; {len(self._open)} go on in the next shard" if self._open else ""
        return Verdict("ok", f"{self._pairs} paired{on}")


class Signatures:
    """Worker signatures, under the keys that `worker.start` records name."""

    name = "workers signed what is said of them"

    def __init__(self, gone: Gone = NONE_GONE) -> None:
        self._gone = gone
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._missing: set[str] = set()
        self._verified = 0
        self._problems = Problems()

    def see(self, index: int, record: Record, leaf: bytes) -> None:
        record = restated(record)
        if record.kind == "worker.start":
            self._learn(index, record)
        elif record.runtime_sig:
            self._check(index, record)
        elif record.kind == "inference.completed":
            self._problems.add(f"record {index} is a completion that no worker signed")

    def _learn(self, index: int, record: Record) -> None:
        text = record.detail.get("completion_key", "")
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            key = Ed25519PublicKey.from_public_bytes(raw)
        except (binascii.Error, ValueError):
            self._problems.add(f"record {index} starts a worker without a usable key")
            return
        if not record.runtime_instance or record.runtime_instance in self._keys:
            self._problems.add(f"record {index} starts a worker that has no name or started before")
            return
        self._keys[record.runtime_instance] = key

    def _check(self, index: int, record: Record) -> None:
        key = self._keys.get(record.runtime_instance)
        if key is None:
            self._missing.add(record.runtime_instance)
            return
        try:
            statement = verify_completion(completion_of(record), key)
        except VerificationError:
            self._problems.add(f"record {index} carries a worker signature that does not hold")
            return
        if (record.kind == "inference.completed") != (statement.outcome == "completed"):
            self._problems.add(f"record {index} is not what its worker signed: {statement.outcome}")
        self._verified += 1

    def verdict(self, part: Range) -> Verdict:
        if self._missing and part.from_start and not self._gone.count:
            self._problems.add(f"no start is recorded of worker {_few(self._missing)}")
        if self._problems.count:
            return self._problems.verdict()
        if self._missing:
            return Verdict(
                "skipped",
                f"{self._verified} verified; the keys of worker {_few(self._missing)} are not in the range",
            )
        return Verdict("ok", f"{self._verified} verified")


class Counters:
    """The contiguous counter of each worker instance."""

    name = "workers' counters have no gap"

    def __init__(self, gone: Gone = NONE_GONE) -> None:
        self._gone = gone
        self._seen: dict[str, set[int]] = {}
        self._started: set[str] = set()
        self._problems = Problems()
        self.carried: dict[str, tuple[int, frozenset[int]]] = {}  # seen in shards before: without a gap to, and beyond

    def reached(self, instance: str) -> tuple[int, frozenset[int]]:
        """How far a worker's counter has come without a gap, and which numbers beyond that were seen."""
        low, ahead = self.carried.get(instance, (0, frozenset()))
        seen = self._seen.get(instance, set()) | ahead
        while low + 1 in seen:
            low += 1
        return low, frozenset(number for number in seen if number > low)

    @property
    def started(self) -> frozenset[str]:
        """Workers that started in this shard."""
        return frozenset(self._started)

    def see(self, index: int, record: Record, leaf: bytes) -> None:
        if record.kind == CARRIED and restated(record).kind == "worker.start":
            stated = counters_of(record)
            if stated is None:
                self._problems.add(f"record {index} does not say how far its worker had come")
            else:
                self.carried[record.runtime_instance] = stated
        elif record.kind == "worker.start":
            self._started.add(record.runtime_instance)
        elif record.runtime_sig:
            seen = self._seen.setdefault(record.runtime_instance, set())
            if record.runtime_seq in seen or record.runtime_seq < 1:
                self._problems.add(f"record {index} repeats counter {record.runtime_seq} of its worker")
            seen.add(record.runtime_seq)

    def verdict(self, part: Range) -> Verdict:
        partial = lost = 0
        for instance, seen in self._seen.items():
            whole = instance in self._started or part.from_start
            before, ahead = self.carried.get(instance, (0, frozenset()))
            if repeated := [number for number in seen if number <= before or number in ahead]:
                self._problems.add(f"worker {instance} repeats counter {min(repeated)} of the shard before")
                continue
            seen = seen | ahead
            low = before + 1 if whole or instance in self.carried else min(seen)
            missing = max(seen) - low + 1 - len(seen)
            if missing and lost + missing <= self._gone.count:
                lost += missing
            elif missing:
                gap = next(number for number in range(low, max(seen)) if number not in seen)
                self._problems.add(f"worker {instance} misses {missing} from counter {gap} on")
            partial += not whole
        if self._problems.count:
            return self._problems.verdict()
        if lost:
            return Verdict("skipped", f"{lost} counters are missing, as pruned records may have carried them")
        if partial:
            return Verdict("skipped", f"no gap within the range; {partial} workers started before it")
        return Verdict("ok", f"{len(self._seen)} workers, {sum(map(len, self._seen.values()))} records")


def _few(names: set[str]) -> str:
    shown = sorted(names)[:SHOWN]
    return ", ".join(shown) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
