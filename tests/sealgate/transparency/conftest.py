"""A log in memory: real leaves, real tree, real signatures, no writer. Evidence bundles are cut from it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealgate.ambient import uuid7
from sealgate.protocol.completion import Statement, sign_completion
from sealgate.transparency.bundle import BundleWriter
from sealgate.transparency.merkle import Frontier, consistency_proof, inclusion_proof, leaf_hash
from sealgate.transparency.notes import Checkpoint, NoteSigner, sign_checkpoint
from sealgate.transparency.ranges import range_proof
from sealgate.transparency.receipt import build_receipt
from sealgate.transparency.record import Record, leaf_bytes
from sealgate.transparency.shards import half_year_in

ORIGIN = "example.com/log"
DIGEST = "ab" * 32


@dataclass
class MemoryLog:
    """Append records, take checkpoints, receipts and bundles. Leaves may be swapped to play a dishonest host."""

    origin: str = ORIGIN
    signer: NoteSigner = field(default_factory=lambda: NoteSigner.from_seed(ORIGIN, b"\x01" * 32))
    worker: Ed25519PrivateKey = field(default_factory=lambda: Ed25519PrivateKey.from_private_bytes(b"\x02" * 32))
    leaves: list[bytes] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    seq: int = 0

    @property
    def began_us(self) -> int:
        """A moment in the half-year that the origin names, if it names one."""
        half_year = half_year_in(self.origin)
        if half_year is None:
            return 1_000_000_000_000
        return int(datetime(half_year // 2, 6 * (half_year % 2) + 1, 2, tzinfo=UTC).timestamp()) * 1_000_000

    def append(self, **fields: object) -> Record:
        number = len(self.leaves)
        base: dict[str, object] = {
            "v": 1,
            "log": self.origin,
            "id": uuid7(self.began_us + number * 1000, lambda count: number.to_bytes(count, "big")),
            "ts_us": self.began_us + number * 1000,
            "salt": f"{number:032x}",
        }
        record = Record(**{**base, **fields})  # type: ignore[arg-type]
        self.leaves.append(leaf_bytes(record))
        self.records.append(record)
        return record

    def worker_start(self, instance: str = "worker-1") -> None:
        key = base64.urlsafe_b64encode(self.worker.public_key().public_bytes_raw()).rstrip(b"=").decode()
        self.append(kind="worker.start", runtime_instance=instance, detail={"completion_key": key})

    def authorize(self, **fields: object) -> tuple[int, Record]:
        base = {"tenant": "clinic", "actor": "a" * 32, "model": "m", "purpose": "care", "operation": "infer"}
        return len(self.leaves), self.append(kind="inference.authorized", **{**base, **fields})

    def complete(self, at: int, begun: Record, *, instance: str = "worker-1", **fields: object) -> Record:
        self.seq += 1
        statement = Statement(
            instance=instance,
            seq=self.seq,
            grant=begun.id,
            outcome="completed",
            reason="",
            model=begun.model,
            model_digest=DIGEST,
            certificate_digest=DIGEST,
            units=1,
            req_commit=DIGEST,
            resp_commit=DIGEST,
        )
        signed = sign_completion(statement, self.worker)
        signed_fields = msgspec.structs.asdict(statement)
        del signed_fields["instance"], signed_fields["seq"]
        base = {
            "kind": "inference.completed",
            **{name: getattr(begun, name) for name in ("tenant", "actor", "purpose", "operation")},
            "intent_seq": at,
            "runtime_instance": instance,
            "runtime_seq": statement.seq,
            "runtime_sig": signed.signature,
            **signed_fields,
        }  # fmt: skip
        return self.append(**{**base, **fields})

    def request(self) -> Record:
        return self.complete(*self.authorize())

    # What leaves the log -------------------------------------------------------------------------------------------

    def _source(self) -> tuple[Frontier, Callable[[int, int], bytes]]:
        frontier, nodes = Frontier(), {}
        for leaf in self.leaves:
            nodes.update({(node.level, node.position): node.hash for node in frontier.append(leaf_hash(leaf))})
        return frontier, lambda level, index: nodes[level, index]

    def checkpoint(self, size: int | None = None) -> bytes:
        size = len(self.leaves) if size is None else size
        frontier = Frontier()
        for leaf in self.leaves[:size]:
            frontier.append(leaf_hash(leaf))
        return sign_checkpoint(Checkpoint(self.origin, size, frontier.root()), self.signer)

    def receipt(self, index: int) -> bytes:
        _, source = self._source()
        proof = inclusion_proof(index, len(self.leaves), source)
        return build_receipt(index, self.leaves[index], proof, self.checkpoint())

    def bundle(
        self,
        first: int = 0,
        last: int | None = None,
        *,
        consistent_with: int = 0,
        leaves: list[bytes] | None = None,
        note: bytes | None = None,
        origin: str | None = None,
    ) -> io.BytesIO:
        _, source = self._source()
        size = len(self.leaves)
        last = size - 1 if last is None else last
        run = self.leaves[first : last + 1] if leaves is None else leaves
        out = io.BytesIO()
        writer = BundleWriter(
            out,
            origin=origin or self.origin,
            first=first,
            last=first + len(run) - 1,
            size=size,
            note=note or self.checkpoint(),
        )
        for start in range(0, len(run), 5):
            writer.entries(run[start : start + 5])
        grown = consistency_proof(consistent_with, size, source) if consistent_with else []
        writer.finish(range_proof(first, last, size, source), consistent_with=consistent_with, consistency_proof=grown)
        out.seek(0)
        return out


@pytest.fixture
def log() -> MemoryLog:
    """A log with one worker and three answered requests."""
    made = MemoryLog()
    made.append(kind="log.opened", outcome="opened")
    made.worker_start()
    for _ in range(3):
        made.request()
    made.append(kind="inference.denied", outcome="denied", reason="purpose", tenant="clinic")
    return made
