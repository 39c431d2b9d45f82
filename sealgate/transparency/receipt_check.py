"""Receipts that were handed in beside a bundle: the very leaves of its log, under checkpoints of its tree.

Pure. Trusts the log keys that it is given. Never: counts a receipt of another log as checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sealgate.errors import ReceiptError
from sealgate.transparency.checks import SHOWN, Problems, Range, Verdict
from sealgate.transparency.merkle import leaf_hash
from sealgate.transparency.notes import NoteVerifier
from sealgate.transparency.receipt import VerifiedReceipt, verify_receipt
from sealgate.transparency.record import Record


class Receipts:
    """Receipts from elsewhere (clients) against the leaves of this range, and their checkpoints against its tree: a log
    that shows its clients one tree and its auditors another is caught where the two meet."""

    name = "given receipts are in this log"

    def __init__(self, receipts: Sequence[bytes], verifiers: Sequence[NoteVerifier], *, origin: str) -> None:
        self._wanted: dict[int, list[VerifiedReceipt]] = {}
        self._signed: dict[int, dict[bytes, int]] = {}  # size to root to the first receipt that shows it
        self._matched = 0
        self._foreign = 0
        self._problems = Problems()
        for number, receipt in enumerate(receipts, 1):
            try:
                verified = verify_receipt(receipt, verifiers)
            except ReceiptError as error:
                self._problems.add(f"receipt {number}: {error}")
                continue
            if verified.checkpoint.origin != origin:
                self._foreign += 1
                continue
            self._wanted.setdefault(verified.index, []).append(verified)
            self._signed.setdefault(verified.checkpoint.size, {}).setdefault(verified.checkpoint.root, number)

    @property
    def sizes(self) -> frozenset[int]:
        """Of the trees that the receipts' checkpoints are of."""
        return frozenset(self._signed)

    def see(self, index: int, record: Record, leaf: bytes) -> None:
        for receipt in self._wanted.pop(index, ()):
            if receipt.leaf == leaf:
                self._matched += 1
            else:
                self._problems.add(f"the receipt for record {index} shows another record than the log")

    def miss(self, index: int, hashed: bytes) -> None:
        """The record at `index` is no longer kept, its hash is."""
        for receipt in self._wanted.pop(index, ()):
            if leaf_hash(receipt.leaf) == hashed:
                self._matched += 1
            else:
                self._problems.add(f"the receipt for record {index} shows another record than the log")

    def compare(self, size: int, root: bytes) -> None:
        """The tree of `size` records has this root: what the receipts' checkpoints say of it must be the same."""
        for signed, number in self._signed.pop(size, {}).items():
            if signed != root:
                self._problems.add(f"receipt {number} carries a signed checkpoint of another tree of {size} records")

    def verdict(self, part: Range) -> Verdict:
        inside = [index for index in self._wanted if part.first <= index <= part.last]
        for index in inside:
            self._problems.add(f"record {index}, for which there is a receipt, is unreadable")
        for size, roots in self._signed.items():
            if len(roots) > 1:
                self._problems.add(f"receipts {_numbers(roots)} carry signed checkpoints of different trees of {size}")
        if self._problems.count:
            return self._problems.verdict()
        if self._wanted or self._foreign:
            others = f", {self._foreign} of another log" if self._foreign else ""
            return Verdict("skipped", f"{self._matched} match; {len(self._wanted)} are outside the range{others}")
        apart = f"; of {len(self._signed)} trees that they name the range cannot tell" if self._signed else ""
        return Verdict("ok", f"{self._matched} match, with the commitments that they carry{apart}")


def _numbers(roots: Mapping[bytes, int]) -> str:
    return " and ".join(str(number) for number in sorted(roots.values())[:SHOWN])
