"""Records on their way out of a live deployment: fetched, broken off, gone on with, converted offline, as COSE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealgate.client.transport import open_trust
from sealgate.transparency.cose_receipt import verify_cose_receipt
from sealgate.transparency.exports.ndjson import parse_ndjson_line
from tests.live import MODEL, Live, run_sealgate


@pytest.fixture
def asked(live: Live) -> list[Any]:
    """How an auditor asks, after something happened."""
    with live.session() as session:
        for _ in range(3):
            session.infer(MODEL, live.rows[:1])
    certificate, key = live.certificate("auditor")
    return ["--trust", live.trust, "--client-cert", certificate, "--client-key", key]


@pytest.mark.parametrize("name", ["ocsf", "csv"])
def test_what_is_fetched_is_what_a_verified_bundle_gives(
    live: Live, asked: list[Any], tmp_path: Path, name: str
) -> None:
    bundle, fetched, converted = tmp_path / "evidence.zip", tmp_path / "fetched", tmp_path / "converted"
    run_sealgate("audit", "export", "--out", bundle, "--last", "9", *asked)
    done = run_sealgate("audit", "export", "--format", name, "--out", fetched, "--last", "9", *asked)
    assert "records 0 to 9" in done.stdout
    assert done.stderr == ""  # no bar: nobody is at a terminal
    run_sealgate("audit", "convert", bundle, "--format", name, "--out", converted, "--trust", live.trust)
    assert fetched.read_bytes() == converted.read_bytes()
    whole = fetched.read_bytes()
    (tmp_path / "again.part").write_bytes(whole[: len(whole) * 3 // 5])
    run_sealgate("audit", "export", "--format", name, "--out", tmp_path / "again", "--last", "9", "--resume", *asked)
    assert (tmp_path / "again").read_bytes() == whole


def test_a_record_of_the_live_log_as_a_cose_receipt(live: Live, asked: list[Any], tmp_path: Path) -> None:
    run_sealgate("audit", "export", "--format", "ndjson", "--out", tmp_path / "lines", *asked)
    lines = (tmp_path / "lines").read_bytes().splitlines(keepends=True)
    entry = next(one for one in map(parse_ndjson_line, lines) if one.record.kind == "inference.completed")
    out = tmp_path / "receipt.cose"
    run_sealgate("audit", "show", entry.record.id, "--cose", out, *asked)
    leaf = (tmp_path / "receipt.cose.leaf").read_bytes()
    keys = open_trust(live.trust).log_keys
    assert leaf == entry.leaf
    assert verify_cose_receipt(out.read_bytes(), leaf, keys).index == entry.index
    exports = [record for record in live.records() if record.kind == "audit.export"]
    assert exports[-1].detail["format"] == "ndjson"


def test_an_answer_brings_a_cose_receipt_that_a_foreign_verifier_takes(live: Live, tmp_path: Path) -> None:
    scitt = pytest.importorskip("scitt_cose", reason="SKIPPED FOR WANT OF scitt-cose: pip install 'sealgate[dev]'")
    with live.session(cose_receipts=True) as session:
        result = session.infer(MODEL, live.rows[:1])
    (key,) = open_trust(live.trust).log_keys
    pem = Ed25519PublicKey.from_public_bytes(key.public_key).public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )
    leaf = result.receipt.leaf
    seen = scitt.verify_receipt(result.cose_receipt, leaf_entry_hex=leaf.hex(), log_public_key_pem=pem)
    assert (seen.ok, seen.leaf_index, seen.issuer) == (True, result.receipt.index, result.receipt.record.log)
    (tmp_path / "r.cose").write_bytes(result.cose_receipt)
    (tmp_path / "r.cose.leaf").write_bytes(leaf)
    done = run_sealgate("audit", "receipt", tmp_path / "r.cose", "--trust", live.trust)
    assert result.receipt.record.id in done.stdout
