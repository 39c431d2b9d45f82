"""The offline verifier of evidence bundles. Needs no network, no database and none of the code that wrote the log.

    1. the bundle has its one exact form, and its members their digests
    2. a trusted log key signed the checkpoint, of the log that the manifest names; its ML-DSA-44 key too, if trusted
    3. every entry is a record of this log in canonical form
    4. the entries are exactly records first..last of the tree behind the checkpoint
    5. the log grew out of the checkpoint that the auditor kept, if one was kept
    6. every authorized request has exactly one end
    7. workers signed what is said of them
    8. workers' counters have no gap
    9. what is left of privacy budgets changes only as requests explain
    10. given receipts are in this log, under checkpoints of its tree (only if receipts were given)
    11. the shard begins and ends as shards do (only if it follows one or one follows it)
    12. records that are no longer kept were pruned, and the log says so (only if there are some)
    13. a quorum of witnesses cosigned a checkpoint of this very log (only if a witness policy was given)

A step that cannot be decided is `skipped` and says why; in strict mode that is a failure. Trusts: the keys in
`LogTrust` and SHA-256. Never: stops at the first failure, or calls verified what was not checked. Long, because an
auditor reads all steps in their order on this one page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from sealgate.errors import ConfigurationError, DecodeError, LogError
from sealgate.transparency.budget_replay import BudgetReplay
from sealgate.transparency.bundle import Bundle, PrunedEntry
from sealgate.transparency.chain import Around, BeganWith
from sealgate.transparency.checks import (
    Check,
    Counters,
    Problems,
    Range,
    Reconcile,
    Signatures,
    Status,
    Verdict,
)
from sealgate.transparency.cosignatures import CosignerKey
from sealgate.transparency.edges import Edges
from sealgate.transparency.merkle import Frontier, leaf_hash, verify_consistency
from sealgate.transparency.notes import Checkpoint, NoteVerifier, open_checkpoint
from sealgate.transparency.pruned import Pruned
from sealgate.transparency.published import open_published, strength
from sealgate.transparency.ranges import range_root
from sealgate.transparency.receipt_check import Receipts
from sealgate.transparency.record import Record, parse_leaf
from sealgate.transparency.shards import belongs_to, is_later, log_of
from sealgate.transparency.standing import InForce
from sealgate.transparency.witness_policy import NONE, WitnessedCheckpoint, WitnessPolicy

_FORM = "bundle has its exact form"
_SIGNED = "checkpoint is signed by a trusted log key"
_ENTRIES = "every entry is a record of this log"
_ROOT = "entries lead to the checkpoint's root"
_GROWTH = "log grew out of the kept checkpoint"
_WITNESSED = "a quorum of witnesses saw this log"
PROVING_STEPS = 4  # form, signature, entries, root: with these, what is shown is the log's
_PRUNED = "{} records are no longer kept: what they said is not shown, only that they stood where they stood"
_LIMIT = "no witness cosigned the checkpoint: that everybody was shown the same log is not proven by this bundle"


@dataclass(frozen=True, kw_only=True)
class LogTrust:
    """What the auditor trusts: log keys, optionally a checkpoint (signed note) kept from an earlier audit, and
    optionally witnesses, with the cosigned checkpoint that they gave (the bundle's own, if none is given)."""

    verifiers: tuple[NoteVerifier, ...]
    mldsa_keys: tuple[CosignerKey, ...] = ()
    kept_checkpoint: bytes | None = None
    witnesses: WitnessPolicy | None = None
    cosigned_checkpoint: bytes | None = None


@dataclass(frozen=True)
class Step:
    """One line of the report."""

    number: int
    name: str
    status: Status
    detail: str

    def __str__(self) -> str:
        return f"{self.number}. {self.status:<7} {self.name}: {self.detail}"


@dataclass(frozen=True)
class Report:
    """What was checked and what came of it. `require` is the only way to a verdict that cannot be overlooked."""

    steps: list[Step]
    strict: bool
    checkpoint: Checkpoint | None = None  # verified, if step 2 is ok
    first: int = -1
    last: int = -1
    limits: tuple[str, ...] = (_LIMIT,)  # what no step of this report shows

    @property
    def failures(self) -> list[Step]:
        """Steps that make the bundle unacceptable."""
        bad = ("failed", "skipped") if self.strict else ("failed",)
        return [step for step in self.steps if step.status in bad]

    @property
    def ok(self) -> bool:
        return not self.failures

    def require(self) -> Checkpoint:
        """The verified checkpoint; raises LogError that names the steps that do not hold."""
        if self.failures or self.checkpoint is None:
            named = ", ".join(f"step {step.number} ({step.name}) {step.status}" for step in self.failures)
            raise LogError(f"the evidence bundle does not verify: {named}", code="bundle")
        return self.checkpoint

    def lines(self) -> list[str]:
        """For people: one line a step, then what the report does not show."""
        return [*(str(step) for step in self.steps), *(f"note: {text}" for text in self.limits)]


class Onlooker(Protocol):
    """Is shown every record of a bundle while that is verified: nothing that it saw is proven before the report is."""

    def see(self, index: int, record: Record, leaf: bytes) -> None: ...


def verify_bundle(
    path: Path | BinaryIO,
    trust: LogTrust,
    strict: bool = False,
    receipts: Sequence[bytes] = (),
    onlookers: Sequence[Onlooker] = (),
    around: Around | None = None,
) -> Report:
    """Check a bundle; with `around`, among the other shards of its log (`chain`). Failed steps are in the report and
    raise nothing; a file that cannot be opened raises ConfigurationError, and so does a trust without keys."""
    if not trust.verifiers:
        raise ConfigurationError("no log key is trusted: name at least one")
    if not isinstance(path, Path):
        return _Verification(trust, strict, receipts, onlookers, around or Around()).run(path)
    try:
        with path.open("rb") as stream:
            return _Verification(trust, strict, receipts, onlookers, around or Around()).run(stream)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


@dataclass
class _Verification:
    trust: LogTrust
    strict: bool
    receipts: Sequence[bytes]
    onlookers: Sequence[Onlooker]
    around: Around
    steps: list[Step] = field(default_factory=list)
    unreadable: Problems = field(default_factory=Problems)
    cut_short: bool = False  # the entries could not be read to their end

    def run(self, stream: BinaryIO) -> Report:
        try:
            bundle = Bundle(stream)  # 1
        except DecodeError as error:
            return self._unread(str(error))
        part = Range(bundle.manifest.first, bundle.manifest.last, bundle.manifest.size)
        self._add(_FORM, Verdict("ok", f"records {part.first} to {part.last}"))
        checkpoint, signature = self._checkpoint(bundle)  # 2
        self._add(_SIGNED, signature)
        gone = Pruned(told=self.around.told, held=self.around.held)
        budgets, edges = BudgetReplay(), Edges(bundle.manifest.origin, first=part.first)
        in_force, began = InForce(), BeganWith()
        reconcile, counters = Reconcile(part, gone), Counters(gone)
        checks: list[Check] = [reconcile, Signatures(gone), counters, budgets]
        given = Receipts(self.receipts, self.trust.verifiers, origin=bundle.manifest.origin)
        if self.receipts:
            checks.append(given)
        kept = self._kept()
        witnessed = self._witnessed(bundle)
        watched = given.sizes | ({kept.size} if isinstance(kept, Checkpoint) else set())
        if isinstance(witnessed, WitnessedCheckpoint):
            watched |= {witnessed.verified.checkpoint.size}
        watched |= self.around.watched
        roots: dict[int, bytes] = {}  # recomputed from the entries, at the sizes that are watched
        seen: list[Onlooker] = [gone, edges, in_force, began, *checks, *self.onlookers]
        hashes = self._hashes(bundle, seen, [gone.miss, given.miss, budgets.miss], watched, roots)
        root = self._root(bundle, hashes)  # 3 and 4, in one pass over the entries
        self._add(_ENTRIES, self._entries(bundle, gone.count))
        self._add(_ROOT, _compare(root, checkpoint))
        self._add(_GROWTH, growth := self._growth(bundle, checkpoint, kept, roots, edges))  # 5
        self.around.grown, self.around.roots = growth.status == "ok", dict(roots)
        self.around.proven = (bundle.manifest.consistent_with, bundle.consistency_proof)
        for known in (kept, checkpoint):
            if isinstance(known, Checkpoint) and known.origin == bundle.manifest.origin:
                roots.setdefault(known.size, known.root)
        for size, shown in roots.items():
            given.compare(size, shown)
        for check in checks:  # 6 to 10
            verdict = check.verdict(part)
            if self.cut_short and verdict.status == "ok":
                verdict = Verdict("skipped", "the entries cannot be read to their end")
            self._add(check.name, verdict)
        proving = [step.status for step in self.steps[:PROVING_STEPS]]
        self.around.first, self.around.last, self.around.checkpoint = part.first, part.last, checkpoint
        self.around.sound = proving == ["ok"] * PROVING_STEPS
        self.around.edges, self.around.reconcile, self.around.counters = edges, reconcile, counters
        self.around.budgets, self.around.gone = budgets, gone
        self.around.in_force, self.around.said = in_force, began.said
        if edges.concerned:
            self._add(edges.name, edges.verdict(part))  # 11
        limits = (*edges.limits(), *((_PRUNED.format(gone.count),) if gone.count else ()))
        if gone.count:
            self._add(gone.name, gone.verdict(part))  # 12
        if witnessed is None:
            return Report(self.steps, self.strict, checkpoint, part.first, part.last, limits=(*limits, _LIMIT))
        self._add(_WITNESSED, self._saw_this_log(bundle, witnessed, roots))  # 13
        return Report(self.steps, self.strict, checkpoint, part.first, part.last, limits=limits)

    def _add(self, name: str, verdict: Verdict) -> None:
        self.steps.append(Step(len(self.steps) + 1, name, verdict.status, verdict.detail))

    def _unread(self, why: str) -> Report:
        self._add(_FORM, Verdict("failed", why))
        for name in (
            _SIGNED,
            _ENTRIES,
            _ROOT,
            _GROWTH,
            Reconcile.name,
            Signatures.name,
            Counters.name,
            BudgetReplay.name,
        ):
            self._add(name, Verdict("skipped", "the bundle cannot be read"))
        if self.trust.witnesses is not None:
            self._add(_WITNESSED, Verdict("skipped", "the bundle cannot be read"))
        return Report(self.steps, self.strict)

    def _checkpoint(self, bundle: Bundle) -> tuple[Checkpoint | None, Verdict]:
        try:
            checkpoint = open_published(bundle.note, self.trust.verifiers, self.trust.mldsa_keys).checkpoint
        except LogError as error:
            return None, Verdict("failed", str(error))
        if (checkpoint.origin, checkpoint.size) != (bundle.manifest.origin, bundle.manifest.size):
            return None, Verdict("failed", "the checkpoint is not the one that the manifest names")
        signed = strength(checkpoint.origin, self.trust.mldsa_keys)
        return checkpoint, Verdict("ok", f"{checkpoint.origin}, {checkpoint.size} records, {signed}")

    def _kept(self) -> Checkpoint | LogError | None:
        if self.trust.kept_checkpoint is None:
            return None
        try:
            return open_checkpoint(self.trust.kept_checkpoint, self.trust.verifiers).checkpoint
        except LogError as error:
            return error

    def _witnessed(self, bundle: Bundle) -> WitnessedCheckpoint | LogError | None:
        if self.trust.witnesses is None:
            return None
        note = bundle.note if self.trust.cosigned_checkpoint is None else self.trust.cosigned_checkpoint
        try:
            return self.trust.witnesses.require_witnessed(note, logs=self.trust.verifiers)
        except LogError as error:
            return error

    def _saw_this_log(
        self, bundle: Bundle, witnessed: WitnessedCheckpoint | LogError, roots: Mapping[int, bytes]
    ) -> Verdict:
        if isinstance(witnessed, LogError):
            return Verdict("failed", str(witnessed))
        seen = witnessed.verified.checkpoint
        if self.trust.witnesses is not None and self.trust.witnesses.quorum == NONE:
            return Verdict("skipped", "the witness policy asks for no witness (quorum none)")
        if seen.origin != bundle.manifest.origin:
            return Verdict("failed", f"the cosigned checkpoint is of another log, {seen.origin}")
        if seen.size not in roots:
            return Verdict("skipped", f"a bundle of all records up to {seen.size} is needed to compare with")
        if roots[seen.size] != seen.root:
            return Verdict("failed", "the witnesses saw another history than this bundle shows")
        names = ", ".join(sorted({cosignature.key.name for cosignature in witnessed.cosignatures}))
        return Verdict("ok", f"{names}, at {seen.size} records")

    def _hashes(
        self,
        bundle: Bundle,
        seen: Sequence[Onlooker],
        missed: Sequence[Callable[[int, bytes], None]],
        watched: frozenset[int],
        roots: dict[int, bytes],
    ) -> Iterator[bytes]:
        """Leaf hashes in order, showing each record to the checks on the way (or that it is not kept), and noting roots
        at watched sizes."""
        origin = bundle.manifest.origin
        grown = Frontier() if bundle.manifest.first == 0 and watched else None
        for index, leaf in enumerate(bundle.items(), bundle.manifest.first):
            hashed = leaf.hashed if isinstance(leaf, PrunedEntry) else leaf_hash(leaf)
            if grown is not None:
                grown.append(hashed)
                if grown.size in watched:
                    roots[grown.size] = grown.root()
            if isinstance(leaf, PrunedEntry):
                for miss in missed:
                    miss(index, hashed)
                yield hashed
                continue
            try:
                record = parse_leaf(leaf)
            except DecodeError as error:
                self.unreadable.add(f"record {index}: {error}")
            else:
                if record.log != origin:
                    self.unreadable.add(f"record {index} belongs to another log")
                for check in seen:
                    check.see(index, record, leaf)
            yield hashed

    def _root(self, bundle: Bundle, hashes: Iterator[bytes]) -> bytes | LogError:
        manifest = bundle.manifest
        result: bytes | LogError
        try:
            result = range_root(manifest.first, manifest.last, manifest.size, hashes, bundle.range_proof)
        except LogError as error:
            result = error
        except DecodeError as error:
            self.unreadable.add(str(error))
            self.cut_short = True
            return LogError("the entries cannot be read")
        try:
            for _ in hashes:  # whatever is left, so that every check sees every record
                pass
        except DecodeError as error:
            self.unreadable.add(str(error))
            self.cut_short = True
        return result

    def _entries(self, bundle: Bundle, gone: int) -> Verdict:
        if self.unreadable.count:
            return self.unreadable.verdict()
        return Verdict("ok", f"{bundle.count} records" + (f", of which {gone} are no longer kept" if gone else ""))

    def _growth(
        self,
        bundle: Bundle,
        checkpoint: Checkpoint | None,
        kept: Checkpoint | LogError | None,
        roots: Mapping[int, bytes],
        edges: Edges,
    ) -> Verdict:
        before = self.around.before
        if kept is None and checkpoint is not None and before is not None and edges.previous == before:
            return Verdict("ok", f"it follows {before.origin}, which grew out of the checkpoint that was kept")
        if kept is None:
            return Verdict("skipped", "no checkpoint was kept; keep this bundle's for the next audit")
        if isinstance(kept, LogError):
            return Verdict("failed", f"the kept checkpoint: {kept}")
        if checkpoint is None:
            return Verdict("skipped", "the bundle's checkpoint does not verify")
        if belongs_to(kept.origin, log_of(checkpoint.origin)) and is_later(checkpoint.origin, kept.origin):
            return Verdict(
                "skipped", f"the kept checkpoint is of an earlier shard, {kept.origin}: verify both together"
            )
        if kept.origin != checkpoint.origin:
            return Verdict("failed", f"the kept checkpoint is of another log, {kept.origin}")
        if kept.size == checkpoint.size:
            same = kept.root == checkpoint.root
            return Verdict("ok", "the same tree") if same else Verdict("failed", "the same size, but another tree")
        if kept.size == 0:
            return Verdict("skipped", "the kept checkpoint is of the empty log and shows nothing")
        if kept.size > checkpoint.size:
            return Verdict("skipped", "the kept checkpoint is newer than the bundle")
        if kept.size in roots:
            if roots[kept.size] != kept.root:
                return Verdict("failed", "the first records are not those of the kept checkpoint")
            return Verdict("ok", f"recomputed from the entries, at {kept.size} records")
        if bundle.manifest.consistent_with != kept.size:
            return Verdict("skipped", f"export again with a consistency proof from size {kept.size}")
        try:
            verify_consistency(
                first=kept.size,
                second=checkpoint.size,
                first_root=kept.root,
                second_root=checkpoint.root,
                proof=bundle.consistency_proof,
            )
        except LogError as error:
            return Verdict("failed", str(error))
        return Verdict("ok", f"from {kept.size} to {checkpoint.size} records")


def _compare(root: bytes | LogError, checkpoint: Checkpoint | None) -> Verdict:
    if isinstance(root, LogError):
        return Verdict("failed", str(root))
    if checkpoint is None:
        return Verdict("skipped", "there is no verified checkpoint to compare with")
    if root != checkpoint.root:
        return Verdict("failed", "entries were changed, removed, added or moved")
    return Verdict("ok", root.hex())
