"""A real log in a temporary directory, and a worker that signs as real ones do."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.log import Appended, AuditLog
from audit.query import AuditReader
from sealgate.protocol.completion import Statement, sign_completion
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.record import Record
from sealgate.transparency.verifier import LogTrust, Report, verify_bundle

ORIGIN = "example.com/log"
SIGNER = NoteSigner.from_seed(ORIGIN, b"\x01" * 32)
SUBJECTS_KEY = b"\x02" * 32
DIGEST = "ab" * 32


class Bench:
    """One log's files, and what tests do with them again and again."""

    origin = ORIGIN
    signer = SIGNER
    verifier = SIGNER.verifier

    def __init__(self, root: Path) -> None:
        self.path = root / "audit.sqlite"
        self.url = f"sqlite:///{self.path}"
        self.worker = Ed25519PrivateKey.from_private_bytes(b"\x03" * 32)
        self.seq = 0
        self.logs: list[AuditLog] = []

    def open(self, **options: Any) -> AuditLog:
        base: dict[str, Any] = {"signer": SIGNER, "subjects_key": SUBJECTS_KEY, "origin": ORIGIN}
        log = AuditLog.open(self.url, **{**base, **options})
        self.logs.append(log)
        return log

    def reader(self) -> AuditReader:
        return AuditReader(self.url, origin=ORIGIN)

    def close(self) -> None:
        for log in self.logs:
            log.close()

    def draft(self, kind: str = "inference.denied", **fields: Any) -> Record:
        base = {"tenant": "clinic", "actor": "a" * 32, "model": "m", "purpose": "care", "operation": "infer"}
        return Record(kind=kind, **{**base, **fields})

    def start_worker(self, log: AuditLog, instance: str = "worker-1") -> None:
        key = base64.urlsafe_b64encode(self.worker.public_key().public_bytes_raw()).rstrip(b"=").decode()
        log.append(Record(kind="worker.start", runtime_instance=instance, detail={"completion_key": key})).result()

    def authorize(self, log: AuditLog, **fields: Any) -> Appended:
        return log.append(self.draft("inference.authorized", **fields)).result()

    def end(self, begun: Record, *, outcome: str = "completed", instance: str = "worker-1") -> Record:
        """The record of a signed end, as the host writes it."""
        self.seq += 1
        statement = Statement(
            instance=instance,
            seq=self.seq,
            grant=begun.id,
            outcome=outcome,
            reason="",
            model=begun.model,
            model_digest=DIGEST,
            certificate_digest=DIGEST,
            units=1,
            req_commit=DIGEST,
            resp_commit=DIGEST,
        )
        fields = msgspec.structs.asdict(statement)
        del fields["instance"], fields["seq"]
        return Record(
            kind="inference.completed" if outcome == "completed" else "inference.failed",
            runtime_instance=instance,
            runtime_seq=statement.seq,
            runtime_sig=sign_completion(statement, self.worker).signature,
            **fields,
        )

    def request(self, log: AuditLog) -> Appended:
        return log.append(self.end(self.authorize(log).record)).result()

    def audit(self, *, strict: bool = False, kept: bytes | None = None, receipts: list[bytes] | None = None) -> Report:
        """Export everything and verify it offline."""
        reader = self.reader()
        out = io.BytesIO()
        reader.export(0, reader.size() - 1, out)
        reader.close()
        trust = LogTrust(verifiers=(SIGNER.verifier,), kept_checkpoint=kept)
        return verify_bundle(out, trust, strict=strict, receipts=receipts or [])


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.fixture
def log(bench: Bench) -> AuditLog:
    return bench.open()


@pytest.fixture
def make_bench() -> Callable[[Path], Bench]:
    return Bench


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Wait for what another thread will bring about; fails after ten seconds."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "it never came about"
            time.sleep(0.005)

    return wait
