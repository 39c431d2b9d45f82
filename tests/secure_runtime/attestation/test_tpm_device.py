"""End to end with a TPM that is a program: our commands, judged by our verifier and by tpm2-tools, and the reverse."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealgate.deployment import AttestationSection
from sealgate.errors import ConfigurationError, EvidenceError
from sealgate.evidence.claims import Claims
from sealgate.evidence.endorsements import tpm
from sealgate.evidence.token import parse_token
from sealgate.evidence.trust import Trust
from sealgate.evidence.verify import verify_evidence
from sealgate.protocol import cbor
from secure_runtime.attestation.endorsed import EndorsedAttester, TpmEndorser, open_attester
from secure_runtime.attestation.software import SoftwareAttester
from secure_runtime.attestation.tpm_device import TpmDevice
from secure_runtime.errors import EndorserFailed
from tests.sealgate.evidence.conftest import (  # noqa: F401  # the fixtures
    make_claims,
    make_trust,
    now_us,
    operator,
    trust_text,
)

BIND = hashlib.sha256(b"claims").digest()
REGISTERS = (0, 1, 2, 3, 4, 5, 6, 7, 10, 16, 23)


def test_the_key_is_the_same_at_every_start_and_another_on_another_tpm(soft_tpm: Any, tmp_path: Path) -> None:
    with TpmDevice(soft_tpm.socket) as first:
        pass
    with TpmDevice(soft_tpm.socket) as again:
        assert first.public == again.public
    (tmp_path / "other").mkdir()
    other = type(soft_tpm)(tmp_path / "other")
    try:
        with TpmDevice(other.socket) as device:
            assert device.public != first.public
    finally:
        other.stop()


def test_debians_tools_accept_our_quote_and_refuse_it_over_other_data(soft_tpm: Any, tmp_path: Path) -> None:
    soft_tpm.tool("tpm2_pcrextend", f"16:sha256={'ab' * 32}")
    with TpmDevice(soft_tpm.socket) as device:
        signed = device.quote(BIND, REGISTERS)
        key = tpm.parse_public(device.public).key
    assert set(signed.registers) == set(REGISTERS)
    assert signed.registers[16] == hashlib.sha256(bytes(32) + b"\xab" * 32).digest()
    (tmp_path / "key.pem").write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (tmp_path / "message").write_bytes(signed.attest)
    (tmp_path / "signature").write_bytes(signed.signature)
    words = ("-u", "key.pem", "-m", "message", "-s", "signature", "-g", "sha256", "-q")
    soft_tpm.tool("tpm2_checkquote", *words, BIND.hex())
    with pytest.raises(AssertionError, match="ERROR"):
        soft_tpm.tool("tpm2_checkquote", *words, hashlib.sha256(b"other").hexdigest())


@pytest.mark.parametrize("kind", ["ecc:ecdsa-sha256:null", "rsa2048:rsassa-sha256:null"])
def test_quotes_of_debians_tools_are_judged_like_ours(soft_tpm: Any, tmp_path: Path, kind: str) -> None:
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"
    soft_tpm.tool("tpm2_createprimary", "-C", "e", "-G", kind, "-a", attributes, "-c", "ak.ctx", "-Q")
    soft_tpm.tool("tpm2_readpublic", "-c", "ak.ctx", "-n", "name", "-o", "public", "-f", "tpmt", "-Q")
    soft_tpm.tool(
        "tpm2_quote", "-c", "ak.ctx", "-l", "sha256:0,7", "-q", BIND.hex(), "-m", "message", "-s", "signature"
    )
    public, name = (tmp_path / "public").read_bytes(), (tmp_path / "name").read_bytes()
    assert tpm.parse_public(public).name == name
    anchor = tpm.parse_tpm_anchor(
        tpm.TpmTable(attestation_keys=(name.hex(),), pcrs={"0": ("00" * 32,), "7": ("00" * 32,)})
    )
    parts = [(tmp_path / "message").read_bytes(), (tmp_path / "signature").read_bytes(), public]
    proof = cbor.encode([*parts, {0: bytes(32), 7: bytes(32)}])
    assert tpm.judge_tpm(proof, BIND, anchor).grade == "tpm"
    with pytest.raises(EvidenceError, match="other claims"):
        tpm.judge_tpm(proof, bytes(32), anchor)


def test_evidence_with_a_quote_is_graded_tpm_until_the_machine_boots_otherwise(
    soft_tpm: Any,
    make_claims: Callable[..., Claims],  # noqa: F811
    make_trust: Callable[..., Trust],  # noqa: F811
    operator: Ed25519PrivateKey,  # noqa: F811
    now_us: int,  # noqa: F811
) -> None:
    claims = make_claims(assurance="tpm")

    def attested() -> tuple[bytes, str]:
        with TpmDevice(soft_tpm.socket) as device:  # one at a time: swtpm serves a single client
            endorser = TpmEndorser(device, (0, 7, 16))
            attester = EndorsedAttester(operator, [endorser])
            assert attester.assurance == "tpm"
            with pytest.raises(ConfigurationError):
                attester.attest(make_claims())
            return attester.attest(claims), endorser.name.hex()

    asked = {"now_us": now_us, "nonce": b"n" * 32, "published": claims.key_configs}
    evidence, name = attested()
    text = f'[tpm]\nattestation_keys = ["{name}"]\n[tpm.pcrs]\n16 = ["{"0" * 64}"]\n'
    trust = make_trust(text, accept_software="false")
    assert verify_evidence(evidence, trust, **asked).grade == "tpm"
    soft_tpm.tool("tpm2_pcrextend", f"16:sha256={'ab' * 32}")
    evidence, _ = attested()
    with pytest.raises(EvidenceError, match="register 16 has another value"):
        verify_evidence(evidence, trust, **asked)


def test_a_tpm_that_goes_away_means_no_evidence(
    soft_tpm: Any,
    make_claims: Callable[..., Claims],  # noqa: F811
    operator: Ed25519PrivateKey,  # noqa: F811
) -> None:
    device = TpmDevice(soft_tpm.socket)
    attester = EndorsedAttester(operator, [TpmEndorser(device, (0,))])
    attester.attest(make_claims(assurance="tpm"))
    soft_tpm.process.kill()
    soft_tpm.process.wait()
    with pytest.raises(EndorserFailed, match="does not answer"):
        attester.attest(make_claims(assurance="tpm"))
    device.close()


def test_the_settings_decide_and_a_missing_device_is_said_at_once(
    soft_tpm: Any,
    tmp_path: Path,
    make_claims: Callable[..., Claims],  # noqa: F811
    operator: Ed25519PrivateKey,  # noqa: F811
) -> None:
    assert isinstance(open_attester(operator, AttestationSection(), root=tmp_path), SoftwareAttester)
    settings = AttestationSection(tpm="tpm.sock", tpm_pcrs=(7, 0))
    attester = open_attester(operator, settings, root=tmp_path)
    kinds = [one.kind for one in parse_token(attester.attest(make_claims(assurance="tpm"))).endorsements]
    assert kinds == ["software", "tpm"]
    attester.close()
    with pytest.raises(ConfigurationError, match="/dev/tpmrm0"):
        open_attester(operator, AttestationSection(tpm="missing"), root=tmp_path)
