"""One changed byte anywhere in the log's tables: the opening or the offline verifier says so, or it was no evidence.

Every column is of one of these sorts, and a new one has to be put into one:

    evidence    a change is noticed when the log is opened, or when a bundle of it is verified offline
    signed      the same for the newest; an older one does not verify for whoever uses it
    sealed      a change is noticed by whoever resolves the pseudonym
    derived     rebuilt from the leaves it is what it was before the change
    remark      no proof depends on it: when a row was stored, the key that cursors are made with, in which half-year
                the first shard began (and so when it ends)
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Integer, LargeBinary, Table, func, select, update
from sqlalchemy.exc import DBAPIError

from audit.database import WriterHold, open_database
from audit.days import rebuild_days
from audit.opening import read_log
from audit.rows import index_row
from audit.schema import _STAMP, bring_up_to_date
from audit.sealing import HeadSeal
from audit.subjects import Subjects
from audit.tables import METADATA
from sealgate.ambient import now_us, random_bytes
from sealgate.errors import SealgateError
from sealgate.transparency.cose_receipt import _root_signature
from sealgate.transparency.cosignatures import Cosigner
from sealgate.transparency.merkle import leaf_hash, root_of
from sealgate.transparency.notes import open_checkpoint
from sealgate.transparency.published import open_published
from sealgate.transparency.record import ENDS, parse_leaf
from sealgate.transparency.verifier import LogTrust, verify_bundle
from sealgate.transparency.witness_policy import parse_witness_policy
from tests.audit.conftest import ORIGIN, SIGNER, SUBJECTS_KEY

MLDSA = Cosigner(ORIGIN, MLDSA44PrivateKey.from_seed_bytes(b"\x04" * 32))
WITNESS = Cosigner("witness.example/w", Ed25519PrivateKey.from_private_bytes(b"\x08" * 32))
POLICY = parse_witness_policy(f"witness w {WITNESS.public.vkey}\nquorum w\n".encode())
DERIVED = ("record", "tile", "open_intent", "day_count", "day_span")
SORTS = {
    "evidence": {("head", name) for name in ("id", "schema_version", "origin", "size", "root", "seal", "holds")}
    | {("shard", name) for name in ("number", "origin", "first_idx")}
    | {("leaf", "idx"), ("leaf", "leaf"), ("alembic_version", "version_num")},
    "signed": {(table, name) for table in ("checkpoint", "cosigned") for name in ("size", "note")},
    "sealed": {("subject", "ref"), ("subject", "sealed")},
    "derived": {(table, column.name) for table in DERIVED for column in METADATA.tables[table].columns}
    | {("subject", "lookup")},
    "remark": {
        ("shard", "half_year"),
        ("head", "cursor_key"),
        ("checkpoint", "ts_us"),
        ("cosigned", "ts_us"),
        ("subject", "created_us"),
    },
}
TABLES = {**METADATA.tables, _STAMP.name: _STAMP}


def test_every_column_is_of_one_sort() -> None:
    listed = [column for columns in SORTS.values() for column in columns]
    assert len(listed) == len(set(listed))
    assert set(listed) == {(table.name, column.name) for table in TABLES.values() for column in table.columns}


class Whole:
    """A log with something in every table: more than a row of the tree, open requests, history, a person."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        now = now_us()
        log = bench.open(mldsa=MLDSA, clock=lambda: now)
        log.actor("clinic", "somebody")
        bench.start_worker(log)
        self.receipts = [bench.request(log).receipt for _ in range(3)]
        for future in [log.append(bench.draft(reason=f"number {number}")) for number in range(280)]:
            future.result()
        log.close()
        now += 120_000_000  # another minute: the checkpoint before stays
        log = bench.open(mldsa=MLDSA, clock=lambda: now)
        self.open_requests = [bench.authorize(log).record.id for _ in range(2)]
        log._committer.publish()
        checkpoint = open_checkpoint(log.checkpoint(), [SIGNER.verifier]).checkpoint
        self.kept = log.checkpoint()
        log.publish_cosigned(checkpoint.size, self.kept + WITNESS.cosign(checkpoint, timestamp_s=now // 1_000_000))
        log.close()
        self.database = open_database(bench.url)
        self.rows = {name: self._read(table) for name, table in TABLES.items()}

    def _read(self, table: Table) -> list[dict[str, Any]]:
        return [row._asdict() for row in self.bench.rows(select(table).order_by(*table.primary_key.columns))]

    # A change, and taking it back ------------------------------------------------------------------------------------

    def write(self, table: Table, *, at: dict[str, Any], values: dict[str, Any]) -> bool:
        """Put the values into the row; False if the database itself refuses them."""
        hold = self.database.open_writer()
        try:
            with hold.engine.begin() as connection:
                where = [column == at[column.name] for column in table.primary_key.columns]
                return connection.execute(update(table).where(*where).values(values)).rowcount == 1
        except DBAPIError:
            return False
        finally:
            hold.release()

    # Who notices -----------------------------------------------------------------------------------------------------

    def noticed(self) -> bool:
        try:
            self._open_and_undo()
            return not self._verified()
        except (SealgateError, DBAPIError):
            return True

    def _open_and_undo(self) -> None:
        hold: WriterHold = self.database.open_writer()
        try:
            with hold.engine.connect() as connection, connection.begin() as transaction:
                bring_up_to_date(connection)
                read_log(
                    connection,
                    signer=SIGNER,
                    seal=HeadSeal(SIGNER),
                    mldsa=MLDSA,
                    clock=now_us,
                    entropy=random_bytes,
                )
                transaction.rollback()
        finally:
            hold.release()

    def _verified(self) -> bool:
        reader, out = self.bench.reader(), io.BytesIO()
        size = open_checkpoint(self.kept, [SIGNER.verifier]).checkpoint.size
        try:
            reader.export(0, size - 1, out)
            newest = io.BytesIO()
            reader.export(0, reader.size() - 1, newest)
            _root_signature(reader.checkpoint(), [SIGNER.verifier])
        finally:
            reader.close()
        trust = LogTrust(verifiers=(SIGNER.verifier,), mldsa_keys=(), witnesses=POLICY, kept_checkpoint=self.kept)
        of_now = LogTrust(verifiers=(SIGNER.verifier,), mldsa_keys=(MLDSA.public,), kept_checkpoint=self.kept)
        return verify_bundle(out, trust, receipts=self.receipts).ok and verify_bundle(newest, of_now).ok

    def verifies(self, note: bytes, size: int) -> bool:
        """Whether whoever uses a note of the history could take it for what it was."""
        try:
            _root_signature(note, [SIGNER.verifier])  # who makes a COSE receipt of it
            return open_published(note, [SIGNER.verifier], [MLDSA.public]).checkpoint.size == size
        except SealgateError:
            return False

    def resolves(self, ref: str) -> bool:
        engine = self.database.reader_engine()
        try:
            keys = self.bench.people
            subjects = Subjects(SUBJECTS_KEY, keys=keys, reader=engine, clock=now_us, entropy=random_bytes)
            try:
                with engine.begin() as connection:
                    subjects.resolve(connection, ref)
            finally:
                subjects.close()
        except SealgateError:
            return False
        finally:
            engine.dispose()
        return True

    # What leaves lead to ---------------------------------------------------------------------------------------------

    def derived(self, name: str) -> list[dict[str, Any]]:
        leaves = [(row["idx"], bytes(row["leaf"])) for row in self.rows["leaf"]]
        if name == "record":
            return [index_row(index, parse_leaf(leaf)) for index, leaf in leaves]
        if name == "tile":
            return list(_tiles([leaf_hash(leaf) for _, leaf in leaves]))
        if name == "open_intent":
            records = [(index, parse_leaf(leaf)) for index, leaf in leaves]
            ended = {record.grant for _, record in records if record.kind in ENDS}
            begun = [(record.id, index) for index, record in records if record.kind == "inference.authorized"]
            return [{"grant_id": grant, "idx": index} for grant, index in sorted(begun) if grant not in ended]
        return self._rebuilt(TABLES[name])

    def _rebuilt(self, table: Table) -> list[dict[str, Any]]:
        hold = self.database.open_writer()
        try:
            with hold.engine.connect() as connection, connection.begin() as transaction:
                rebuild_days(connection)
                order = table.primary_key.columns
                rows = [row._asdict() for row in connection.execute(select(table).order_by(*order))]
                transaction.rollback()
                return rows
        finally:
            hold.release()


def _tiles(hashes: list[bytes]) -> Iterator[dict[str, Any]]:
    """Full rows of level 0, and whatever there is of the levels above."""
    level = 0
    while hashes:
        for at in range(0, len(hashes), 256):
            row = hashes[at : at + 256]
            if level or len(row) == 256:
                yield {"level": level, "idx": at // 256, "hashes": b"".join(row)}
        hashes = [root_of(hashes[at : at + 256]) for at in range(0, len(hashes) - 255, 256)]
        level += 1


def _changed(draw: Any, column: Any, value: Any) -> Any:
    """The value with one bit flipped; in text a bit that leaves it text."""
    if isinstance(column.type, LargeBinary):
        data = bytearray(value or b"")
        if not data:
            return b"\x00"
        data[draw(st.integers(0, len(data) - 1), label="byte")] ^= 1 << draw(st.integers(0, 7), label="bit")
        return bytes(data)
    if isinstance(column.type, Integer):
        return value ^ (1 << draw(st.integers(0, 30), label="bit"))
    if not value:
        return "x"
    at = draw(st.integers(0, len(value) - 1), label="character")
    return value[:at] + chr(ord(value[at]) ^ (1 << draw(st.integers(0, 3), label="bit"))) + value[at + 1 :]


def _plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: bytes(v) if isinstance(v, memoryview) else v for name, v in row.items()} for row in rows]


@pytest.mark.parametrize("examples", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_noticed_or_was_no_evidence(bench, examples: int) -> None:
    whole = Whole(bench)
    assert not whole.noticed()
    for name in DERIVED:
        order = [column.name for column in TABLES[name].primary_key.columns]
        rows = sorted(_plain(whole.derived(name)), key=lambda row: [row[part] for part in order])
        assert rows == _plain(whole.rows[name]), name
    sorts = {column: sort for sort, columns in SORTS.items() for column in columns}
    for (name, column), sort in sorted(sorts.items()):
        flip(whole, TABLES[name], column, sort, examples)
    assert not whole.noticed()


def flip(whole: Whole, table: Table, name: str, sort: str, examples: int) -> None:
    rows = whole.rows[table.name]
    assert rows, f"{table.name} is empty: nothing would be tested"

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def one(data: Any) -> None:
        at = data.draw(st.integers(0, len(rows) - 1), label="row")
        before = rows[at]
        value = _changed(data.draw, table.columns[name], before[name])
        if not whole.write(table, at=before, values={name: value}):
            return  # the database has no room for it: a number twice, or none that it can be
        after = {**before, name: value}
        try:
            judge(whole, table.name, sort, after, newest=at == len(rows) - 1)
        finally:
            assert whole.write(table, at=after, values={name: before[name]})

    one()


def judge(whole: Whole, table: str, sort: str, after: dict[str, Any], *, newest: bool) -> None:
    where = f"{table}, {sort}: {after}"
    if sort == "evidence":
        assert whole.noticed(), where
    elif sort == "signed":
        assert whole.noticed() if newest else not whole.verifies(bytes(after["note"]), after["size"]), where
    elif sort == "sealed":
        assert not whole.resolves(after["ref"]), where
    elif table.startswith("day_"):
        assert _plain(whole._rebuilt(TABLES[table])) == _plain(whole.rows[table]), where


def test_a_row_that_is_taken_away_or_added_is_noticed_too(bench) -> None:
    whole = Whole(bench)
    size = bench.rows(select(func.count()).select_from(METADATA.tables["leaf"]))[0][0]
    bench.sql("DELETE FROM leaf WHERE idx = ?", size // 2)
    assert whole.noticed()
