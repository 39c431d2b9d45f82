"""The shards of one log together: each follows the one before it, and nothing is lost or made up at the turn.

    the next one's first record names origin, size and root of the one before; the last record of that names the next
    what the next one says to be under way are exactly the requests that the one before left open
    what it says to be in force (policy, grants, workers and their keys) is what the one before left in force
    workers' counters and the balances of budgets go on from where the one before left them
    no worker starts twice, in whatever shards: what it signed cannot be shown again
    of one shard there is one tree, whose larger states grew out of the smaller ones

Every shard is verified by itself first (`verifier`); this compares what they leave for each other. Trusts: those
verifications. Never: takes a shard's word for one that is not there, or passes over a shard that is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, groupby, pairwise

from sealgate.errors import LogError
from sealgate.transparency.budget_replay import BudgetReplay
from sealgate.transparency.carried import AUTHORIZED, BUDGETS, restated, same_fact, stood_at
from sealgate.transparency.carried import KIND as CARRIED
from sealgate.transparency.checks import Counters, Problems, Reconcile, Verdict
from sealgate.transparency.edges import Edges
from sealgate.transparency.merkle import verify_consistency
from sealgate.transparency.notes import Checkpoint
from sealgate.transparency.pruned import Pruned
from sealgate.transparency.record import Record
from sealgate.transparency.shards import belongs_to, half_year_in
from sealgate.transparency.standing import InForce

_SAME = ("tenant", "actor", "operation", "purpose", "model", "eps_micro")


class BeganWith:
    """Collects what a shard says again of the one before, but for requests and balances."""

    def __init__(self) -> None:
        self.said: list[tuple[int, Record]] = []

    def see(self, index: int, record: Record, leaf: bytes) -> None:
        if record.kind == CARRIED and restated(record).kind not in (AUTHORIZED, BUDGETS):
            self.said.append((index, record))


@dataclass
class Around:
    """What the verification of a bundle takes from the shards around it, and leaves for them."""

    told: list[Record] = field(default_factory=list)  # later shards' announcements of what was pruned of this one
    watched: frozenset[int] = frozenset()  # sizes of the same tree in other bundles
    before: Checkpoint | None = None  # where a shard ended that is known to have grown out of a kept checkpoint
    held: frozenset[str] = frozenset()  # holds over the whole log from earlier shards
    first: int = -1
    last: int = -1
    checkpoint: Checkpoint | None = None  # verified
    sound: bool = False  # form, signature, entries and root hold
    grown: bool = False  # out of a checkpoint that was kept
    roots: Mapping[int, bytes] = field(default_factory=dict)  # recomputed, at sizes of other bundles among them
    proven: tuple[int, Sequence[bytes]] = (0, ())  # consistency proof, and from which size
    in_force: InForce | None = None
    said: list[tuple[int, Record]] = field(default_factory=list)  # what this shard began with, but for requests
    edges: Edges | None = None
    reconcile: Reconcile | None = None
    counters: Counters | None = None
    budgets: BudgetReplay | None = None
    gone: Pruned | None = None

    @property
    def whole(self) -> bool:
        """Every record from the first one on was shown."""
        return self.first == 0 and self.gone is not None and not self.gone.count

    @property
    def to_its_end(self) -> bool:
        return self.checkpoint is not None and self.last == self.checkpoint.size - 1

    @property
    def ended(self) -> bool:
        """Whether the shard's last record was shown, which names the next shard."""
        return self.to_its_end and self.edges is not None and bool(self.edges.next)


@dataclass(frozen=True, kw_only=True)
class Link:
    """What came of comparing two shards, or of looking for one that is not there."""

    name: str
    verdict: Verdict


def order_of(origin: str) -> int:
    """For sorting the shards of one log: the first one names no half-year."""
    return half_year_in(origin) or 0


def links(logs: Sequence[str], shown: Iterable[Around]) -> Iterator[Link]:
    """Compare the shards of each of these logs; a log of one shard that nothing precedes or follows gives none."""
    sound = [one for one in shown if one.sound and one.checkpoint is not None]
    for log in logs:
        own = [one for one in sound if one.checkpoint is not None and belongs_to(one.checkpoint.origin, log)]
        own.sort(key=lambda one: order_of(_origin(one)))
        shards = {origin: list(parts) for origin, parts in groupby(own, key=_origin)}
        for origin, parts in shards.items():
            yield from _one_tree(origin, parts)
        yield from _ends(list(shards.items()))
        started: set[str] = set()
        for (before, earlier), (after, later) in pairwise(shards.items()):
            started |= _started(earlier)
            verdict = _follows(before, earlier, after, later)
            if again := sorted(started & _started(later)):
                text = f"worker {again[0]} starts in {after} although it had started before: records are shown again"
                verdict = Verdict("failed", text)
            yield Link(name=f"{after} follows {before}", verdict=verdict)


def _origin(one: Around) -> str:
    assert one.checkpoint is not None
    return one.checkpoint.origin


def _started(parts: Iterable[Around]) -> set[str]:
    return {instance for part in parts if part.counters is not None for instance in part.counters.started}


def _one_tree(origin: str, parts: Sequence[Around]) -> Iterator[Link]:
    """Of every two bundles of one shard, the larger tree must have grown out of the smaller."""
    for one, other in combinations(sorted(parts, key=_size), 2):
        verdict = _grew(one, other)
        if verdict is not None:
            yield Link(name=f"{origin} is one tree", verdict=verdict)


def _grew(smaller: Around, larger: Around) -> Verdict | None:
    """What is wrong, or cannot be told; None if the larger tree is shown to have grown out of the smaller."""
    one, other = smaller.checkpoint, larger.checkpoint
    assert one is not None
    assert other is not None
    root = other.root if one.size == other.size else larger.roots.get(one.size)
    if root is None and larger.proven[0] == one.size:
        try:
            verify_consistency(
                first=one.size,
                second=other.size,
                first_root=one.root,
                second_root=other.root,
                proof=larger.proven[1],
            )
        except LogError:
            return Verdict("failed", f"the tree of {other.size} records did not grow out of that of {one.size}")
        return None
    if root is None:
        text = f"that the tree of {other.size} records grew out of that of {one.size} is not shown"
        return Verdict("skipped", f"{text}: export the later one with a consistency proof from {one.size}")
    if root != one.root:
        return Verdict("failed", f"two different trees of {one.size} records were signed under this name")
    return None


def _size(one: Around) -> int:
    assert one.checkpoint is not None
    return one.checkpoint.size


def _ends(shards: Sequence[tuple[str, Sequence[Around]]]) -> Iterator[Link]:
    """What the first and the last of them say of shards that are not here."""
    if not shards:
        return
    origin, parts = shards[0]
    for part in parts:
        if part.edges is not None and part.edges.previous is not None:
            text = f"it follows {part.edges.previous.origin}, of which no bundle is there"
            yield Link(name=f"{origin} is the log's beginning", verdict=Verdict("skipped", text))
    origin, parts = shards[-1]
    for part in parts:
        if part.edges is not None and part.edges.next:
            text = f"{part.edges.next} follows it, of which no bundle is there"
            yield Link(name=f"{origin} is the log's end", verdict=Verdict("skipped", text))


def _follows(before: str, earlier: Sequence[Around], after: str, later: Sequence[Around]) -> Verdict:
    head = next((part for part in later if part.first == 0), None)
    tail = next((part for part in earlier if part.ended), None)
    if head is None or head.edges is None:
        return Verdict("skipped", f"the first records of {after} are not shown")
    said = head.edges.previous
    if said is None:
        return Verdict("failed", f"{after} does not say what it follows")
    if said.origin != before:
        return Verdict("failed", f"{after} follows {said.origin}, of which no bundle is there: a shard is left out")
    for part in earlier:
        assert part.checkpoint is not None
        if part.checkpoint.size > said.size or (part.checkpoint.size == said.size and part.checkpoint != said):
            return Verdict("failed", f"{after} follows another tree of {before} than the one that is shown")
    if tail is None:
        over = any(part.to_its_end and part.checkpoint == said for part in earlier)
        if over:
            return Verdict("failed", f"{before} does not end where {after} follows it")
        return Verdict("skipped", f"the last records of {before} are not shown: export it to its end")
    assert tail.edges is not None
    if tail.edges.next != after:
        return Verdict("failed", f"{before} names {tail.edges.next} as the one that follows it")
    problems = Problems()
    for text in (*_requests(tail, head), *_facts(tail, head), *_counters(tail, head), *_budgets(tail, head)):
        problems.add(text)
    if problems.count:
        return problems.verdict()
    if not (tail.whole and head.whole):
        return Verdict(
            "skipped", "each names the other; what was under way is compared only where all records are shown"
        )
    assert head.reconcile is not None
    assert tail.budgets is not None
    assert head.budgets is not None
    if tail.budgets.books and not head.budgets.carried:
        return Verdict("skipped", "each names the other; what is left of privacy budgets is not carried over")
    return Verdict("ok", f"each names the other; {len(head.reconcile.carried)} requests under way went over")


def _requests(tail: Around, head: Around) -> Iterator[str]:
    assert tail.reconcile is not None
    assert head.reconcile is not None
    left, carried = tail.reconcile.left_open, head.reconcile.carried
    for grant in sorted(left.keys() - carried.keys()):
        yield f"record {left[grant][0]} was under way, and is not carried over"
    for grant, (at, record) in carried.items():
        if grant not in left:
            if tail.whole:
                yield "a request is carried over that was not under way"
            continue
        index, begun = left[grant]
        if at != index or any(getattr(record, name) != getattr(begun, name) for name in _SAME):
            yield f"what is carried over of record {index} is not what it says"


def _facts(tail: Around, head: Around) -> Iterator[str]:
    """The policy, what it grants, the workers, their models and keys: as they stood when the shard ended."""
    assert tail.in_force is not None
    assert head.gone is not None
    stood = {stood_at(draft): draft for draft in tail.in_force.carried()}
    said: set[int] = set()
    for index, record in head.said:
        at = stood_at(record)
        draft = stood.get(at)
        if draft is not None and at not in said and same_fact(draft, record):
            said.add(at)
        elif draft is not None or tail.whole:
            yield f"record {index} of the next shard says of record {at} what that does not say, or no longer holds"
    for at in sorted(stood.keys() - said):
        if head.whole:
            yield f"record {at}, {restated(stood[at]).kind}, was in force and is not carried over"


def _counters(tail: Around, head: Around) -> Iterator[str]:
    assert tail.counters is not None
    assert head.counters is not None
    for instance, stated in head.counters.carried.items():
        if tail.whole and stated != tail.counters.reached(instance):
            yield f"worker {instance} is carried over with another counter than its records show"


def _budgets(tail: Around, head: Around) -> Iterator[str]:
    assert tail.budgets is not None
    assert head.budgets is not None
    if tail.whole and not tail.budgets.problems.count:
        yield from tail.budgets.contradictions(head.budgets.carried, head.budgets.wholes)
