"""The log of the benchmarks is a log: the committer writes the same rows, the offline verifier accepts it whole."""

from __future__ import annotations

import io
import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Table, select

from audit.commit import Committer, Pending
from audit.database import open_database
from audit.log import AuditLog
from audit.opening import read_log
from audit.query import AuditReader
from audit.sealing import HeadSeal
from audit.subjects import Subjects
from audit.tables import METADATA
from benchmarks.audit_bulk import ORIGIN, SIGNER, SUBJECTS_KEY, begin, fill
from benchmarks.audit_mix import START_US, Mix
from sealgate.transparency.record import parse_leaf
from sealgate.transparency.verifier import LogTrust, verify_bundle
from tests.audit.postgres_server import PostgresServer, missing

RECORDS, BATCH = 3000, 700
OPTIONS: dict[str, Any] = {"origin": ORIGIN, "first": 2, "day": 900, "seed": 5, "signed": RECORDS + 2}


def commit(url: str, people: Path, mix: Mix, entropy: Any) -> None:
    """The same records by the writer's own code."""
    hold = open_database(url).open_writer()
    reader = open_database(url).reader_engine()
    seal = HeadSeal(SIGNER)
    parts: dict[str, Any] = {"signer": SIGNER, "mldsa": None, "seal": seal, "clock": lambda: START_US}
    with hold.engine.begin() as connection:
        opened = read_log(connection, signer=SIGNER, seal=seal, mldsa=None, clock=lambda: START_US, entropy=entropy)
    subjects = Subjects(SUBJECTS_KEY, keys=people, reader=reader, clock=lambda: START_US, entropy=entropy)
    committer = Committer(hold, opened, subjects=subjects, entropy=entropy, turns=False, balances=lambda _: {}, **parts)
    written = mix.records(RECORDS)
    while part := list(itertools.islice(written, BATCH)):
        drafts = [Pending(parse_leaf(one.leaf)) for one in part]
        outcome = committer.commit(drafts)
        assert not outcome.refused
        assert [appended.leaf for _, appended in outcome.appended] == [one.leaf for one in part]
    committer.publish()
    subjects.close()
    reader.dispose()
    hold.release()


def rows(url: str, table: Table) -> list[Any]:
    engine = open_database(url).reader_engine()
    with engine.begin() as connection:
        found = [tuple(row) for row in connection.execute(select(table))]
    engine.dispose()
    return sorted(found, key=repr)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_bulk_loader_writes_what_the_committer_writes(database: str, tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path}/{name}.sqlite" for name in ("bulk", "writer")]
    server = None
    if database == "postgresql":
        if missing():
            pytest.skip(missing())
        server = PostgresServer()
        urls = [server.url(server.create()) for _ in urls]
    try:
        mixes = []
        people = [tmp_path / f"{name}.people" for name in ("bulk", "writer")]
        for url, keys in zip(urls, people, strict=True):
            entropy = random.Random(7).randbytes
            mixes.append(Mix(actors=begin(url, people=keys, entropy=entropy), **OPTIONS))
        fill(urls[0], mixes[0].records(RECORDS), batch=BATCH)
        commit(urls[1], people[1], mixes[1], random.Random(8).randbytes)
        for table in METADATA.sorted_tables:
            ours, theirs = (rows(url, table) for url in urls)
            if table.name == "checkpoint":  # how many are kept depends on the clock; the newest is the same
                ours, theirs = ([max((row[0], row[2]) for row in found)] for found in (ours, theirs))
            assert ours == theirs, table.name
        assert len(rows(urls[0], METADATA.tables["leaf"])) == RECORDS + 2
    finally:
        if server is not None:
            server.remove()


def test_the_log_of_the_benchmarks_is_whole(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/audit.sqlite"
    mix = Mix(actors=begin(url), **OPTIONS)
    reader = AuditReader(url, origin=ORIGIN)
    kept = reader.checkpoint()
    size = fill(url, mix.records(RECORDS), batch=BATCH)
    AuditLog.open(url, signer=SIGNER, subjects_key=SUBJECTS_KEY, origin=ORIGIN).close()
    out = io.BytesIO()
    reader.export(0, size - 1, out)
    reader.close()
    report = verify_bundle(out, LogTrust(verifiers=(SIGNER.verifier,), kept_checkpoint=kept), strict=True)
    assert report.ok, [step for step in report.steps if step.status != "ok"]
    kinds = {parse_leaf(one.leaf).kind for one in Mix(actors={("lab", 0): "a" * 32}, **OPTIONS).records(RECORDS)}
    assert {"inference.authorized", "inference.completed", "inference.denied", "audit.query", "worker.start"} <= kinds
