"""What the writer publishes carries both of the log's signatures; receipts carry one."""

from __future__ import annotations

import io

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from audit.errors import LogDamaged
from sealgate.errors import ConfigurationError
from sealgate.transparency.cosignatures import Cosigner
from sealgate.transparency.published import open_published
from sealgate.transparency.verifier import LogTrust, verify_bundle
from tests.audit.conftest import ORIGIN

MLDSA = Cosigner(ORIGIN, MLDSA44PrivateKey.from_seed_bytes(b"\x04" * 32))


def published(bench) -> bytes:
    reader = bench.reader()
    try:
        return reader.checkpoint()
    finally:
        reader.close()


def test_both_signatures_are_published_and_exported_and_receipts_stay_small(bench) -> None:
    log = bench.open(mldsa=MLDSA)
    done = log.append(bench.draft()).result()
    log.close()
    opened = open_published(published(bench), [bench.verifier], [MLDSA.public])
    assert opened.checkpoint.size == done.index + 2
    reader, out = bench.reader(), io.BytesIO()
    reader.export(0, reader.size() - 1, out)
    reader.close()
    for keys, said in (((MLDSA.public,), "Ed25519 and ML-DSA-44"), ((), "Ed25519 only")):
        report = verify_bundle(out, LogTrust(verifiers=(bench.verifier,), mldsa_keys=keys))
        assert report.ok, report.lines()
        assert report.steps[1].detail.endswith(said)
    assert len(done.receipt) < 2000


def test_without_the_key_a_verifier_that_wants_it_refuses(bench) -> None:
    bench.open().close()
    reader, out = bench.reader(), io.BytesIO()
    reader.export(0, reader.size() - 1, out)
    reader.close()
    report = verify_bundle(out, LogTrust(verifiers=(bench.verifier,), mldsa_keys=(MLDSA.public,)))
    assert [step.number for step in report.failures] == [2]
    assert "ML-DSA-44" in report.steps[1].detail


def test_a_log_may_get_the_key_later_and_lose_it_again(bench) -> None:
    for mldsa in (None, MLDSA, None, MLDSA):
        bench.open(mldsa=mldsa).close()
        keys = [] if mldsa is None else [mldsa.public]
        open_published(published(bench), [bench.verifier], keys)


def test_a_stored_checkpoint_whose_second_signature_was_changed_is_not_built_upon(bench) -> None:
    bench.open(mldsa=MLDSA).close()
    ((size, note),) = bench.sql("SELECT size, note FROM checkpoint ORDER BY size DESC LIMIT 1")
    note = bytearray(note)
    note[-2000] = ord("A") if note[-2000] != ord("A") else ord("B")
    bench.sql("UPDATE checkpoint SET note = ? WHERE size = ?", bytes(note), size)
    with pytest.raises(LogDamaged):
        bench.open(mldsa=MLDSA)


def test_a_key_of_another_name_is_refused(bench) -> None:
    other = Cosigner("example.com/else", MLDSA44PrivateKey.from_seed_bytes(b"\x04" * 32))
    with pytest.raises(ConfigurationError, match=r"example\.com/else"):
        bench.open(mldsa=other)
