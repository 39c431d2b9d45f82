"""What `sealgate attest show` says of each kind of endorsement: the values that a trust file would pin."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealgate.client.evidence_text import describe_evidence, evidence_document
from sealgate.errors import DecodeError
from sealgate.evidence.claims import Claims, decode_claims, encode_claims
from sealgate.evidence.endorsements import nvidia_gpu, snp, tdx
from sealgate.evidence.token import Endorsement, bind_payload, endorse_software, parse_token, sign_token
from tests.sealgate.evidence.conftest import make_claims, operator  # noqa: F401  # the fixtures
from tests.sealgate.evidence.endorsements.fake_gpu import DRIVER, VBIOS, FakeGpu, digest_of, manifests, proof_of
from tests.sealgate.evidence.endorsements.fake_snp import FakeChip
from tests.sealgate.evidence.endorsements.fake_tdx import FakeTdx


def test_every_endorsement_is_described_as_a_trust_file_would_pin_it(
    make_claims: Callable[..., Claims],  # noqa: F811
    operator: Ed25519PrivateKey,  # noqa: F811
) -> None:
    claims = make_claims(assurance="hardware", device="cuda:0")
    bind = bind_payload(encode_claims(claims))
    documents = [one.document() for one in manifests()]
    proofs = {
        snp.KIND: FakeChip().proof(bind),
        tdx.KIND: FakeTdx().proof(bind),
        nvidia_gpu.KIND: proof_of([FakeGpu().gpu(bind)], documents),
    }
    listed = (endorse_software(bind, operator), *(Endorsement(kind, b"", proof) for kind, proof in proofs.items()))
    token = parse_token(sign_token(claims, operator, listed))
    text = describe_evidence(decode_claims(token.payload), token)
    for value in (DRIVER, VBIOS, digest_of(8).hex(), "7d" * 48, "5a" * 48):
        assert value in text
    said = {one["kind"]: one["says"] for one in evidence_document(decode_claims(token.payload), token)["endorsements"]}
    assert said["software"] == {}
    assert said["nvidia-gpu"]["GPU 0: measurement 8"] == digest_of(8).hex()
    assert said["nvidia-gpu"]["manifests"] == "2"
    assert (said["tdx"]["MRTD"], said["tdx"]["run-time register 0"]) == ("7d" * 48, "01" * 48)


@pytest.mark.parametrize("kind", [snp.KIND, tdx.KIND, nvidia_gpu.KIND])
def test_a_proof_that_cannot_be_read_is_one_clear_error(
    make_claims: Callable[..., Claims],  # noqa: F811
    operator: Ed25519PrivateKey,  # noqa: F811
    kind: str,
) -> None:
    token = parse_token(sign_token(make_claims(), operator, (Endorsement(kind, b"", b"\x80"),)))
    with pytest.raises(DecodeError):
        describe_evidence(decode_claims(token.payload), token)
