"""Names of shards, and that the log's one key counts under each of them and under no other name."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import LogError
from sealgate.transparency.cose_receipt import reissue, verify_cose_receipt
from sealgate.transparency.cosignatures import Cosigner
from sealgate.transparency.notes import Checkpoint, NoteSigner, open_checkpoint, sign_checkpoint
from sealgate.transparency.published import open_published, sign_published
from sealgate.transparency.receipt import verify_receipt
from sealgate.transparency.shards import belongs_to, half_year_in, half_year_of, shard_name
from tests.sealgate.transparency.conftest import ORIGIN, MemoryLog

SHARD = f"{ORIGIN}/2027h1"
SIGNER = NoteSigner.from_seed(ORIGIN, b"\x01" * 32)
MLDSA = Cosigner(ORIGIN, MLDSA44PrivateKey.from_seed_bytes(b"\x04" * 32))


@settings(max_examples=60)
@given(st.integers(0, 2**53 - 1))
def test_a_moment_is_in_the_half_year_that_its_month_says(ts_us: int) -> None:
    moment = datetime.fromtimestamp(ts_us // 1_000_000, UTC)
    name = shard_name(ORIGIN, half_year_of(ts_us))
    assert name == f"{ORIGIN}/{moment.year}h{1 if moment.month <= 6 else 2}"
    assert half_year_in(name) == half_year_of(ts_us)
    assert belongs_to(name, ORIGIN)


def test_the_turn_is_at_midnight_utc() -> None:
    turn = int(datetime(2027, 7, 1, tzinfo=UTC).timestamp()) * 1_000_000
    assert [shard_name("l", half_year_of(at)) for at in (turn - 1, turn)] == ["l/2027h1", "l/2027h2"]


@pytest.mark.parametrize(
    "origin",
    [
        f"{ORIGIN}{end}"
        for end in ("2/2027h1", "/2027h1/2027h2", "/2027h3", "/2027h1\n", "//2027h1", "/x/2027h1", "/027h1")
    ],
)
def test_other_names_are_no_shards_of_the_log(origin: str) -> None:
    assert not belongs_to(origin, ORIGIN)
    assert SIGNER.verifier.under(origin) is None
    assert MLDSA.public.under(origin) is None
    for signer in (SIGNER, MLDSA):
        with pytest.raises(LogError):
            signer.under(origin)


def test_the_logs_key_counts_for_its_shards_and_anothers_does_not() -> None:
    checkpoint = Checkpoint(SHARD, 3, b"\x07" * 32)
    note = sign_checkpoint(checkpoint, SIGNER.under(SHARD))
    assert open_checkpoint(note, [SIGNER.verifier]).checkpoint == checkpoint
    with pytest.raises(LogError, match="no trusted key"):
        open_checkpoint(note, [NoteSigner.from_seed(ORIGIN, b"\x09" * 32).verifier])
    with pytest.raises(LogError, match="no trusted key"):
        open_checkpoint(note, [NoteSigner.from_seed("example.com", b"\x01" * 32).verifier])
    forged = note.replace(b"2027h1\n3", b"2027h1\n4")
    with pytest.raises(LogError, match="does not hold"):
        open_checkpoint(forged, [SIGNER.verifier])


def test_what_is_published_of_a_shard_needs_the_logs_second_key_too() -> None:
    note = sign_checkpoint(Checkpoint(SHARD, 3, b"\x07" * 32), SIGNER.under(SHARD))
    both = sign_published(note, MLDSA.under(SHARD), timestamp_s=1_800_000_000)
    assert open_published(both, [SIGNER.verifier], [MLDSA.public]).checkpoint.origin == SHARD
    with pytest.raises(LogError, match="ML-DSA-44"):
        open_published(note, [SIGNER.verifier], [MLDSA.public])


def test_receipts_of_a_shard_verify_under_the_logs_key_in_both_forms() -> None:
    log = MemoryLog(origin=SHARD, signer=SIGNER.under(SHARD))
    log.append(kind="log.opened", outcome="opened")
    log.append(kind="inference.denied", outcome="denied", reason="purpose", tenant="clinic")
    receipt = log.receipt(1)
    assert verify_receipt(receipt, [SIGNER.verifier]).record.log == SHARD
    cose = reissue(receipt, SIGNER.under(SHARD))
    assert verify_cose_receipt(cose, log.leaves[1], [SIGNER.verifier]).origin == SHARD
