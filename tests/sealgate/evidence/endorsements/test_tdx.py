"""TDX quotes: every part exchanged in turn is refused, and so is a fake processor under Intel's real root."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import ConfigurationError, DecodeError, EvidenceError
from sealgate.evidence.claims import Claims, encode_claims
from sealgate.evidence.endorsements.tdx import TdxAnchor, TdxTable, judge_tdx, parse_tdx_anchor
from sealgate.evidence.token import Endorsement, bind_payload, endorse_software, sign_token
from sealgate.evidence.transcript import EvidenceRefused
from sealgate.evidence.trust import Trust
from sealgate.evidence.verify import verify_evidence
from tests.sealgate.evidence.endorsements.fake_tdx import FakeTdx

dcap_qvl = pytest.importorskip(
    "dcap_qvl", reason="SKIPPED FOR WANT OF dcap-qvl: it judges TDX quotes; pip install 'dcap-qvl>=0.7,<0.8'"
)

BIND = b"b" * 32
NOW_US = int(datetime.datetime(2027, 1, 15, 8, tzinfo=datetime.UTC).timestamp()) * 1_000_000
CHIP = FakeTdx()
MR_TD, RTMR = "7d" * 48, "01" * 48
INTEL = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"  # SHA-256 of Intel's SGX root, DER


def anchor(root: str = "", **changes: Any) -> TdxAnchor:
    values = {"roots": (root or CHIP.root_digest,), "mr_td": (MR_TD,), "rtmrs": {"0": (RTMR,)}} | changes
    return parse_tdx_anchor(TdxTable(**values))


def refused(proof: bytes, held: TdxAnchor | None = None, says: str = ".", *, now_us: int = NOW_US) -> None:
    with pytest.raises((EvidenceError, DecodeError), match=says):
        judge_tdx(proof, BIND, anchor() if held is None else held, now_us=now_us)


def test_a_quote_over_these_claims_counts_as_hardware() -> None:
    endorsed = judge_tdx(CHIP.proof(BIND), BIND, anchor(), now_us=NOW_US)
    assert (endorsed.kind, endorsed.grade, endorsed.covers_code) == ("tdx", "hardware", False)
    assert endorsed.detail.endswith("firmware UpToDate")


def test_a_fake_processor_is_refused_under_intels_real_root() -> None:
    """By the digest in the trust file, and by the root that the library carries itself."""
    refused(CHIP.proof(BIND), anchor(INTEL), "root certificate is none")
    collateral = dcap_qvl.QuoteCollateralV3.from_json(CHIP.collateral())
    with pytest.raises(ValueError):
        dcap_qvl.verify(CHIP.quote(BIND), collateral, NOW_US // 1_000_000)


def test_every_part_swapped_in_turn_is_refused() -> None:
    other = FakeTdx(root="another")
    for part, value, says in (
        ("quote", CHIP.quote(b"c" * 32), "other claims"),
        ("quote", CHIP.quote(BIND, more_data=b"\x01" * 32), "other claims"),
        ("quote", other.quote(BIND), "root certificate is none"),
        ("quote", CHIP.quote(BIND)[:-700], "."),
        ("quote", b"", "no TDX quote"),
        ("collateral", other.collateral(), "does not hold"),
        ("collateral", "{}", "does not hold"),
        ("collateral", "", "does not hold"),
    ):
        refused(CHIP.proof(BIND, **{part: value}), None, says)
    refused(other.proof(BIND), None, "root certificate is none")


def test_every_member_of_the_collateral_counts() -> None:
    ours, theirs = json.loads(CHIP.collateral()), json.loads(FakeTdx(root="another").collateral())
    old = json.loads(FakeTdx(status="OutOfDate").collateral())
    # The library takes the issuer of the platform's revocation list from the quote's own chain, not from this member.
    swapped = [name for name in ours if ours[name] != theirs.get(name) and name != "pck_crl_issuer_chain"]
    assert len(swapped) >= 5
    for name in swapped:
        refused(CHIP.proof(BIND, collateral=json.dumps(ours | {name: theirs[name]})), None, "does not hold")
    refused(CHIP.proof(BIND, collateral=json.dumps(ours | {"tcb_info": old["tcb_info"]})), None, "does not hold")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attributes": bytes.fromhex("0100001000000000")}, "debugged|does not hold"),
        ({"mr_td": b"\x7e" * 48}, "MRTD"),
        ({"rtmr": b"\x02" * 48}, "register 0"),
    ],
)
def test_genuine_quotes_of_domains_that_are_not_wanted_are_refused(changes: dict[str, bytes], says: str) -> None:
    refused(CHIP.proof(BIND, quote=CHIP.quote(BIND, **changes)), None, says)


@pytest.mark.parametrize("status", ["OutOfDate", "SWHardeningNeeded", "ConfigurationAndSWHardeningNeeded", "Revoked"])
def test_a_quote_that_verifies_is_not_yet_one_of_acceptable_firmware(status: str) -> None:
    chip = FakeTdx(status=status)
    held = anchor(chip.root_digest)
    refused(chip.proof(BIND), held, "state of the platform|does not hold")
    if status != "Revoked":
        accepting = anchor(chip.root_digest, statuses=("UpToDate", status))
        assert status in judge_tdx(chip.proof(BIND), BIND, accepting, now_us=NOW_US).detail


def test_collateral_expires() -> None:
    month = 31 * 86_400 * 1_000_000
    refused(CHIP.proof(BIND), None, "expired", now_us=NOW_US + month)
    refused(CHIP.proof(BIND), None, "expired", now_us=NOW_US - month)


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 48 + 584 + 4 + 128 - 1), change=st.integers(1, 255))
def test_any_altered_byte_of_the_report_is_noticed(place: int, change: int) -> None:
    quote = bytearray(CHIP.quote(BIND))
    quote[place] ^= change
    refused(CHIP.proof(BIND, quote=bytes(quote)))


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200))
def test_garbage_is_a_typed_error(data: bytes) -> None:
    refused(data)


def test_the_fake_root_is_not_intels() -> None:
    certificate = x509.load_der_x509_certificate(CHIP.root_der)
    assert "Intel SGX Root CA" in certificate.subject.rfc4514_string()
    assert CHIP.root_digest != INTEL
    assert certificate.public_bytes(Encoding.DER) == CHIP.root_der


def trust_text(**changes: str) -> str:
    values = {"roots": f'["{CHIP.root_digest}"]', "mr_td": f'["{MR_TD}"]'} | changes
    lines = "".join(f"{name} = {value}\n" for name, value in values.items() if name != "rtmrs")
    registers = values.get("rtmrs", f'0 = ["{RTMR}"]')
    return f"[tdx]\n{lines}[tdx.rtmrs]\n{registers}\n"


@pytest.mark.parametrize(
    "changes",
    [{"roots": "[]"}, {"mr_td": "[]"}, {"statuses": "[]"}, {"rtmrs": ""}, {"rtmrs": "4 = ['00']"}, {"rtmrs": "0 = []"}],
)
def test_a_trust_file_that_pins_too_little_is_an_error(
    make_trust: Callable[..., Trust], changes: dict[str, str]
) -> None:
    with pytest.raises(ConfigurationError, match=r"^trust\.toml: "):
        make_trust(trust_text(**changes))


def test_in_evidence_claims_are_graded_one_by_one(
    make_claims: Callable[..., Claims], make_trust: Callable[..., Trust], operator: Ed25519PrivateKey
) -> None:
    times = {"issued_at_us": NOW_US, "expires_at_us": NOW_US + 3600 * 1_000_000}
    claims = make_claims(assurance="hardware", **times)
    bind = bind_payload(encode_claims(claims))
    asked: dict[str, Any] = {"now_us": NOW_US, "nonce": b"n" * 32, "published": claims.key_configs}
    quote = Endorsement("tdx", b"", CHIP.proof(bind))
    evidence = sign_token(claims, operator, (endorse_software(bind, operator), quote))
    trust = make_trust(trust_text(), accept_software="false")
    found = verify_evidence(evidence, trust, **asked)
    assert (found.grade, found.grades["instance"], found.grades["layers"]) == ("hardware", "hardware", "self-asserted")
    moved = sign_token(claims, operator, (Endorsement("tdx", b"", CHIP.proof(b"c" * 32)),))
    with pytest.raises(EvidenceRefused) as failure:
        verify_evidence(moved, trust, **asked)
    assert failure.value.code == "endorsement"
