"""TPM quotes: every part exchanged in turn is refused, and so is every key that could sign what no TPM states."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import ConfigurationError, DecodeError, EvidenceError
from sealgate.evidence.claims import Claims, encode_claims
from sealgate.evidence.endorsements.tpm import TpmAnchor, TpmTable, judge_tpm, parse_public, parse_tpm_anchor
from sealgate.evidence.token import Endorsement, bind_payload, endorse_software, sign_token
from sealgate.evidence.transcript import EvidenceRefused
from sealgate.evidence.trust import Trust
from sealgate.evidence.verify import VerifiedEvidence, verify_evidence
from tests.sealgate.evidence.endorsements.fake_tpm import ATTRIBUTES, FakeTpm

BIND = b"b" * 32
BOOT = b"\x07" * 32


def anchor(tpm: FakeTpm, pcrs: dict[str, tuple[str, ...]] | None = None, *, covers_code: bool = False) -> TpmAnchor:
    pinned = {"7": (BOOT.hex(),)} if pcrs is None else pcrs
    return parse_tpm_anchor(TpmTable(attestation_keys=(tpm.name,), pcrs=pinned, covers_code=covers_code))


def refused(proof: bytes, held: TpmAnchor, says: str = ".") -> None:
    with pytest.raises((EvidenceError, DecodeError), match=says):
        judge_tpm(proof, BIND, held)


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def test_a_quote_over_these_claims_counts(rsa_key: rsa.RSAPrivateKey) -> None:
    for tpm in (
        FakeTpm(),
        FakeTpm(key=ec.generate_private_key(ec.SECP384R1())),
        FakeTpm(key=rsa_key),
        FakeTpm(key=rsa_key, scheme=0x16),
    ):
        endorsed = judge_tpm(tpm.proof(BIND), BIND, anchor(tpm))
        assert (endorsed.grade, endorsed.covers_code) == ("tpm", False)
        assert endorsed.detail == "quote over registers 7"


def test_every_part_of_a_quote_swapped_in_turn_is_refused() -> None:
    ours, theirs = FakeTpm(), FakeTpm()
    held = anchor(ours)
    judge_tpm(ours.proof(BIND), BIND, held)
    other = FakeTpm(key=ours.key, registers={**ours.registers, 10: b"\xff" * 32})
    for part, value, says in (
        ("attest", ours.attest(b"c" * 32), "other claims"),
        ("attest", ours.attest(b""), "other claims"),
        ("signature", theirs.sign(ours.attest(BIND)), "signature does not hold"),
        ("signature", ours.sign(ours.attest(b"c" * 32)), "signature does not hold"),
        ("public", theirs.public(), "does not name"),
        ("registers", other.registers, "not those that were quoted"),
        ("registers", {7: BOOT}, "not about the registers"),
        ("registers", {}, "not about the registers"),
        ("registers", {**ours.registers, 11: BOOT}, "not about the registers"),
        ("registers", {**ours.registers, 10: BOOT[:31]}, "malformed"),
    ):
        refused(ours.proof(BIND, **{part: value}), held, says)
    refused(theirs.proof(BIND), held, "does not name")


def test_only_pinned_platforms_count() -> None:
    tpm = FakeTpm()
    judge_tpm(tpm.proof(BIND), BIND, anchor(tpm, {"7": ("00" * 32, BOOT.hex()), "0": ("00" * 32,)}))
    refused(tpm.proof(BIND), anchor(tpm, {"7": ("00" * 32,)}), "register 7 has another value")
    refused(tpm.proof(BIND), anchor(tpm, {"7": (BOOT.hex(),), "9": ("00" * 32,)}), "does not cover register 9")


@pytest.mark.parametrize("missing", [1 << 1, 1 << 4, 1 << 5, 1 << 16, 1 << 18])
def test_a_key_that_could_sign_anything_is_refused_even_if_it_is_pinned(missing: int) -> None:
    tpm = FakeTpm(attributes=ATTRIBUTES & ~missing)
    refused(tpm.proof(BIND), anchor(tpm), "not restricted")


def test_a_key_that_decrypts_is_refused() -> None:
    tpm = FakeTpm(attributes=ATTRIBUTES | 1 << 17)
    refused(tpm.proof(BIND), anchor(tpm), "not restricted")


@pytest.mark.parametrize(
    "changes",
    [
        {"magic": 0xFF544348},
        {"kind": 0x8017},  # a certification, no quote
        {"bank": 0x04},  # SHA-1
        {"banks": 2},
        {"digest": b"\x00" * 32},
        {"trailing": b"\x00"},
    ],
)
def test_other_structures_are_refused_though_the_key_signed_them(changes: dict[str, Any]) -> None:
    tpm = FakeTpm()
    refused(tpm.proof(BIND, attest=tpm.attest(BIND, **changes)), anchor(tpm))


def test_weak_and_foreign_keys_are_refused() -> None:
    small = FakeTpm(key=rsa.generate_private_key(65537, 1024))
    refused(small.proof(BIND), anchor(small), "too small")
    curve = FakeTpm(key=ec.generate_private_key(ec.SECP521R1()))
    refused(curve.proof(BIND), anchor(curve), "not accepted")
    named = FakeTpm(name_algorithm=0x04)
    with pytest.raises(DecodeError, match="another digest"):
        parse_public(named.public())
    tpm = FakeTpm()
    off_curve = bytearray(tpm.public())
    off_curve[-1] ^= 1
    with pytest.raises(DecodeError, match="malformed"):
        parse_public(bytes(off_curve))


def test_the_signature_names_an_algorithm_that_fits_its_key() -> None:
    tpm = FakeTpm()
    signature = tpm.sign(tpm.attest(BIND))
    for head in (struct.pack(">HH", 0x18, 0x04), struct.pack(">HH", 0x14, 0x0B), struct.pack(">HH", 0x05, 0x0B)):
        refused(tpm.proof(BIND, signature=head + signature[4:]), anchor(tpm))
    refused(tpm.proof(BIND, signature=signature + b"\x00"), anchor(tpm), "follow")


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 100_000), change=st.integers(1, 255))
def test_any_altered_byte_is_noticed(place: int, change: int) -> None:
    tpm = FakeTpm(key=KEY)
    proof = bytearray(tpm.proof(BIND))
    place %= len(proof)
    # What nobody asks: the signer's qualified name, clock and firmware stand under the signature, so all bytes count.
    proof[place] ^= change
    refused(bytes(proof), anchor(tpm))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_garbage_is_a_typed_error(data: bytes) -> None:
    refused(data, anchor(FakeTpm(key=KEY)))


KEY = ec.derive_private_key(5, ec.SECP256R1())


@pytest.mark.parametrize(
    "text",
    [
        "[tpm]\nattestation_keys = []\n[tpm.pcrs]\n7 = ['00']\n",
        f'[tpm]\nattestation_keys = ["{"0" * 68}"]\n[tpm.pcrs]\n7 = ["{"0" * 64}"]\n',
        f'[tpm]\nattestation_keys = ["000b{"0" * 64}"]\n[tpm.pcrs]\n',
        f'[tpm]\nattestation_keys = ["000b{"0" * 64}"]\n[tpm.pcrs]\n24 = ["{"0" * 64}"]\n',
        f'[tpm]\nattestation_keys = ["000b{"0" * 64}"]\n[tpm.pcrs]\n7 = []\n',
        f'[tpm]\nattestation_keys = ["000b{"0" * 64}"]\n[tpm.pcrs]\n7 = ["{"0" * 63}"]\n',
        f'[tpm]\nattestation_keys = ["000b{"0" * 64}"]\n',
        f'[tpm]\nattestation_keys = ["000b{"0" * 64}"]\nextra = 1\n[tpm.pcrs]\n7 = ["{"0" * 64}"]\n',
    ],
)
def test_a_trust_file_that_pins_too_little_is_an_error(make_trust: Callable[..., Trust], text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^trust\.toml: "):
        make_trust(text)


# In evidence ---------------------------------------------------------------------------------------------------------


class Judged:
    """Evidence with a TPM's endorsement, under a trust file that knows the TPM."""

    def __init__(
        self, make_claims: Callable[..., Claims], make_trust: Callable[..., Trust], operator: Ed25519PrivateKey
    ) -> None:
        self.tpm, self.operator = FakeTpm(key=KEY), operator
        self.make_claims, self.make_trust = make_claims, make_trust

    def text(self, covers: str = "false") -> str:
        return (
            f'[tpm]\nattestation_keys = ["{self.tpm.name}"]\ncovers_code = {covers}\n[tpm.pcrs]\n7 = ["{BOOT.hex()}"]\n'
        )

    def evidence(self, *, kinds: str = "st", bind: bytes | None = None, **changes: Any) -> bytes:
        claims = self.make_claims(**{"assurance": "tpm"} | changes)
        covered = bind_payload(encode_claims(claims)) if bind is None else bind
        made = {
            "s": endorse_software(bind_payload(encode_claims(claims)), self.operator),
            "t": Endorsement("tpm", b"", self.tpm.proof(covered)),
        }
        return sign_token(claims, self.operator, tuple(made[kind] for kind in kinds))

    def verify(self, data: bytes, text: str | None = None, **options: str) -> VerifiedEvidence:
        claims = self.make_claims()
        trust = self.make_trust(self.text() if text is None else text, **options)
        now = claims.issued_at_us
        return verify_evidence(data, trust, now_us=now, nonce=b"n" * 32, published=claims.key_configs)


@pytest.fixture
def judged(make_claims: Callable[..., Claims], make_trust: Callable[..., Trust], operator: Ed25519PrivateKey) -> Judged:
    return Judged(make_claims, make_trust, operator)


def code_of(judged: Judged, data: bytes, text: str | None = None, **options: str) -> str:
    with pytest.raises(EvidenceRefused) as failure:
        judged.verify(data, text, **options)
    return failure.value.code


def test_claims_are_graded_one_by_one(judged: Judged) -> None:
    evidence = judged.verify(judged.evidence(), accept_software="false")
    assert evidence.grade == evidence.grades["key_configs"] == evidence.grades["models.digests"] == "tpm"
    assert evidence.grades["layers"] == evidence.grades["measurements"] == "self-asserted"
    covering = judged.verify(judged.evidence(), judged.text("true"))
    assert set(covering.grades.values()) == {"tpm"}


def test_a_quote_alone_is_enough_and_software_alone_is_not_what_the_claims_state(judged: Judged) -> None:
    assert judged.verify(judged.evidence(kinds="t"), accept_software="false").grade == "tpm"
    assert code_of(judged, judged.evidence(kinds="s")) == "grade"  # the quote was taken away
    assert code_of(judged, judged.evidence(kinds="s", assurance="software"), accept_software="false") == "grade"


def test_a_quote_that_nobody_can_judge_counts_for_nothing(judged: Judged) -> None:
    assert code_of(judged, judged.evidence(), "") == "grade"
    weaker = judged.verify(judged.evidence(assurance="software"), "")
    assert weaker.grade == "software"
    assert any(check.outcome == "skipped" and "no [tpm]" in check.detail for check in weaker.transcript)


def test_a_quote_of_other_claims_or_twice_is_refused(judged: Judged) -> None:
    assert code_of(judged, judged.evidence(bind=b"c" * 32)) == "endorsement"
    assert code_of(judged, judged.evidence(kinds="stt")) == "endorsement"
    assert code_of(judged, judged.evidence(kinds="ss", assurance="software"), "") == "endorsement"


def test_a_tpm_is_never_called_hardware(judged: Judged) -> None:
    with contextlib.suppress(EvidenceRefused):
        assert judged.verify(judged.evidence(assurance="hardware")).grade != "hardware"
    assert code_of(judged, judged.evidence(assurance="hardware")) == "grade"
