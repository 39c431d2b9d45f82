"""A real log in SQLite and in PostgreSQL, and a worker that signs as real ones do.

Every test that takes `bench` or `log` runs on both databases; those about one of them take `sqlite_bench` or
`postgres_bench`. What tests do to a database behind the log's back they say in SQLite's SQL (`Bench.sql`).
"""

from __future__ import annotations

import base64
import io
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.database import open_database
from audit.log import Appended, AuditLog
from audit.query import AuditReader
from sealgate.protocol.completion import Statement, sign_completion
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.record import Record
from sealgate.transparency.verifier import LogTrust, Report, verify_bundle
from tests.audit.postgres_server import PostgresServer, missing

ORIGIN = "example.com/log"
SIGNER = NoteSigner.from_seed(ORIGIN, b"\x01" * 32)
SUBJECTS_KEY = b"\x02" * 32
DIGEST = "ab" * 32


class Store(Protocol):
    """A database that tests reach behind the log's back."""

    url: str

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]: ...

    def save(self) -> object: ...

    def restore(self, saved: Any) -> None: ...

    def close(self) -> None: ...


class SqliteStore:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        raw = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            return raw.execute(statement, values).fetchall()
        finally:
            raw.close()

    def save(self) -> bytes:
        return self.path.read_bytes()

    def restore(self, saved: bytes) -> None:
        self.path.write_bytes(saved)

    def close(self) -> None:
        """The file goes with its temporary folder."""


# The little of SQLite's SQL that the tests use and PostgreSQL says otherwise.
_OTHERWISE = (
    (
        r"CAST\(replace\(leaf, ('[^']*'), ('[^']*')\) AS BLOB\)",
        r"convert_to(replace(convert_from(leaf, 'UTF8'), \1, \2), 'UTF8')",
    ),
    (r"zeroblob\((\d+|length\(hashes\))\)", r"decode(repeat('00', \1), 'hex')"),
    (r"X'([0-9a-f]*)'", r"'\\x\1'::bytea"),
    (r"\?", "%s"),
)


class PostgresStore:
    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.name = server.create()
        self.url = server.url(self.name)
        self._saved: list[str] = []

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        for pattern, replacement in _OTHERWISE:
            statement = re.sub(pattern, replacement, statement)
        with self.server.connect(self.name) as connection:
            cursor = connection.execute(statement, values or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def save(self) -> str:
        self._saved.append(self.server.create(template=self.name))
        return self._saved[-1]

    def restore(self, saved: str) -> None:
        self.server.drop(self.name)
        self.server.admin(f"CREATE DATABASE {self.name} TEMPLATE {saved}")

    def close(self) -> None:
        for name in (self.name, *self._saved):
            self.server.drop(name)


class Bench:
    """One log, and what tests do with it again and again."""

    origin = ORIGIN
    signer = SIGNER
    verifier = SIGNER.verifier

    def __init__(self, store: Store, people: Path) -> None:
        self.store = store
        self.url = store.url
        self.sql, self.save, self.restore = store.sql, store.save, store.restore
        self.people = people
        self.worker = Ed25519PrivateKey.from_private_bytes(b"\x03" * 32)
        self.seq = 0
        self.logs: list[AuditLog] = []

    @property
    def path(self) -> Path:
        assert isinstance(self.store, SqliteStore), "only SQLite's log is a file"
        return self.store.path

    def open(self, **options: Any) -> AuditLog:
        base: dict[str, Any] = {
            "signer": SIGNER, "subjects_key": SUBJECTS_KEY, "person_keys": self.people, "origin": ORIGIN
        }  # fmt: skip
        log = AuditLog.open(self.url, **{**base, **options})
        self.logs.append(log)
        return log

    def reader(self) -> AuditReader:
        return AuditReader(self.url, origin=ORIGIN)

    def rows(self, statement: Any) -> list[Any]:
        """What a reader finds."""
        engine = open_database(self.url).reader_engine()
        try:
            with engine.begin() as connection:
                return list(connection.execute(statement))
        finally:
            engine.dispose()

    def close(self) -> None:
        for log in self.logs:
            log.close()
        self.store.close()

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


def open_files(folder: Path) -> list[str]:
    """What this process has open below a folder."""
    found = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.exists(entry.path)]
    return [path for path in found if path.startswith(f"{folder}/")]


def end_unheard(log: AuditLog) -> None:
    """End a log's writing thread where it stands, without a last record or checkpoint: as if its process were gone."""
    log._committer.publish = lambda: None
    with log._wake:
        log._closing = True
        log._wake.notify()
    log._thread.join()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server for the whole session; skips, loudly, where PostgreSQL is not installed."""
    why = missing()
    if why:
        pytest.skip(why)
    server = PostgresServer()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    """Which database this run of the test is about."""
    return str(request.param)


@pytest.fixture
def make_bench(request: pytest.FixtureRequest, database: str) -> Iterator[Callable[[Path], Bench]]:
    """Benches in that database; in SQLite's case the file is in the folder that is given."""
    made: list[Bench] = []

    def make(folder: Path) -> Bench:
        if database == "sqlite":
            made.append(Bench(SqliteStore(folder / "audit.sqlite"), folder / "people.sqlite"))
        else:
            made.append(Bench(PostgresStore(request.getfixturevalue("postgres")), folder / "people.sqlite"))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


@pytest.fixture
def bench(tmp_path: Path, make_bench: Callable[[Path], Bench]) -> Bench:
    return make_bench(tmp_path)


@pytest.fixture
def log(bench: Bench) -> AuditLog:
    return bench.open()


@pytest.fixture
def make_sqlite_bench() -> Iterator[Callable[[Path], Bench]]:
    made: list[Bench] = []

    def make(folder: Path) -> Bench:
        made.append(Bench(SqliteStore(folder / "audit.sqlite"), folder / "people.sqlite"))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


@pytest.fixture
def sqlite_bench(tmp_path: Path, make_sqlite_bench: Callable[[Path], Bench]) -> Bench:
    return make_sqlite_bench(tmp_path)


@pytest.fixture
def postgres_bench(postgres: PostgresServer, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(PostgresStore(postgres), tmp_path / "people.sqlite")
    yield made
    made.close()


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Wait for what another thread will bring about; fails after a minute."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "it never came about"
            time.sleep(0.005)

    return wait


@pytest.fixture
def before_seals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log's first record as releases wrote it that had no seals."""
    from audit.commit import Committer, Pending

    real = Committer.commit

    def commit(self: Committer, batch: list[Pending], **options: bool) -> object:
        for pending in batch:
            pending.draft.detail.pop("sealed", None)
        return real(self, batch, **options)

    monkeypatch.setattr(Committer, "commit", commit)
