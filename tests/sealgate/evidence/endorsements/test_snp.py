"""SEV-SNP reports: every part exchanged in turn is refused, and so is a fake processor under AMD's real root."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import ConfigurationError, DecodeError, EvidenceError
from sealgate.evidence.claims import Claims, encode_claims
from sealgate.evidence.endorsements.snp import SnpAnchor, SnpTable, SnpTcb, describe_snp, judge_snp, parse_snp_anchor
from sealgate.evidence.token import Endorsement, bind_payload, endorse_software, sign_token
from sealgate.evidence.transcript import EvidenceRefused
from sealgate.evidence.trust import Trust
from sealgate.evidence.verify import verify_evidence
from tests.sealgate.evidence.endorsements.fake_snp import SERIALS, TCB, FakeChip

BIND = b"b" * 32
NOW_US = 1_800_000_000_000_000
MEASURED = "5a" * 48
CHIP = FakeChip()
AMD_GENOA = x509.load_pem_x509_certificates((Path(__file__).parent / "amd_genoa.pem").read_bytes())


def anchor(root: str = "", *, tcb: dict[str, int] | None = None, measured: str = MEASURED) -> SnpAnchor:
    least = SnpTcb(**(TCB if tcb is None else tcb))
    return parse_snp_anchor(SnpTable(roots=(root or CHIP.root_digest,), measurements=(measured,), min_tcb=least))


def refused(proof: bytes, held: SnpAnchor | None = None, says: str = ".", *, now_us: int = NOW_US) -> None:
    with pytest.raises((EvidenceError, DecodeError), match=says):
        judge_snp(proof, BIND, anchor() if held is None else held, now_us=now_us)


def test_a_report_over_these_claims_counts_as_hardware() -> None:
    endorsed = judge_snp(CHIP.proof(BIND), BIND, anchor(), now_us=NOW_US)
    assert (endorsed.kind, endorsed.grade, endorsed.covers_code) == ("snp", "hardware", False)
    assert ("launch measurement", MEASURED) in describe_snp(CHIP.proof(BIND))


def test_a_fake_processor_is_refused_under_amds_real_root() -> None:
    """The names in the fake certificates are AMD's. Only the root's digest tells, and no part of AMD's own helps."""
    ark, ask = (
        next(one for one in AMD_GENOA if name in one.subject.rfc4514_string()).public_bytes(Encoding.DER)
        for name in ("CN=ARK-Genoa", "CN=SEV-Genoa")
    )
    real = anchor(hashlib.sha256(ark).hexdigest())
    refused(CHIP.proof(BIND), real, "root certificate is none")
    refused(CHIP.proof(BIND, ark=ark), real, "do not chain")
    refused(CHIP.proof(BIND, ark=ark, ask=ask), real, "do not chain")


def test_amds_real_certificates_pass_as_far_as_they_go() -> None:
    """Root and signer chain; what then stands in the chip's place is no chip's certificate."""
    ark, ask = (
        next(one for one in AMD_GENOA if name in one.subject.rfc4514_string()).public_bytes(Encoding.DER)
        for name in ("CN=ARK-Genoa", "CN=SEV-Genoa")
    )
    refused(CHIP.proof(BIND, ark=ark, ask=ark, vcek=ask), anchor(hashlib.sha256(ark).hexdigest()), "chip's key is not")


def test_every_part_swapped_in_turn_is_refused() -> None:
    other = CHIP.changed(root="another", key=ec.derive_private_key(78, ec.SECP384R1()))
    sibling = CHIP.changed(chip_id=b"\xc2" * 64, key=ec.derive_private_key(79, ec.SECP384R1()))
    for part, value, says in (
        ("report", CHIP.report(b"c" * 32), "other claims"),
        ("report", CHIP.report(BIND, more_data=b"\x01" * 32), "other claims"),
        ("report", sibling.report(BIND), "signature does not hold"),
        ("vcek", sibling.vcek, "signature does not hold"),
        ("vcek", other.vcek, "do not chain"),
        ("vcek", CHIP.ask, "do not chain"),
        ("ask", other.ask, "do not chain"),
        ("ark", other.ark, "none that the trust file names"),
        ("report", CHIP.report(BIND)[:-1], "another length"),
        ("report", CHIP.report(BIND)[:-1] + b"\x01", "follow"),
        ("vcek", b"", "do not chain"),
        ("ask", CHIP.ask.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05", 1), "do not chain"),  # its version
    ):
        refused(CHIP.proof(BIND, **{part: value}), None, says)
    refused(other.proof(BIND))
    chain = {"vcek": sibling.vcek, "ask": CHIP.ask, "ark": CHIP.ark}
    refused(CHIP.proof(BIND, report=sibling.report(BIND, chip_id=CHIP.chip_id), **chain), None, "another chip")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"policy": 0x30000 | 1 << 19}, "debugged"),
        ({"policy": 0x30000 | 1 << 18}, "migrated"),
        ({"policy": 0x10000}, "version"),
        ({"version": 1}, "version"),
        ({"version": 6}, "version"),
        ({"vmpl": 1}, "privileged"),
        ({"algorithm": 2}, "algorithm"),
        ({"keys": 1 << 2}, "own key"),  # VLEK
        ({"keys": 7 << 2}, "own key"),  # none
        ({"keys": 1 << 1}, "own key"),  # masked
        ({"family": 0x1A}, "not known"),  # Turin
        ({"measurement": b"\x5b" * 48}, "launch measurement"),
        ({"reported": TCB | {"snp": 21}}, "made for"),
        ({"committed": TCB | {"microcode": 212}}, "older"),
    ],
)
def test_genuine_reports_of_guests_that_are_not_wanted_are_refused(changes: dict[str, Any], says: str) -> None:
    refused(CHIP.proof(BIND, report=CHIP.report(BIND, **changes)), None, says)


@pytest.mark.parametrize("name", TCB)
def test_old_firmware_is_refused_part_by_part(name: str) -> None:
    judge_snp(CHIP.proof(BIND), BIND, anchor(tcb=dict(TCB)), now_us=NOW_US)
    refused(CHIP.proof(BIND), anchor(tcb=TCB | {name: TCB[name] + 1}), f"{name}.*older")


def test_certificates_must_be_valid_now_and_allowed_to_sign() -> None:
    refused(CHIP.proof(BIND), None, "not valid now", now_us=int(CHIP.ends.timestamp() + 1) * 1_000_000)
    refused(CHIP.proof(BIND), None, "not valid now", now_us=int(CHIP.starts.timestamp() - 1) * 1_000_000)
    no_authority = CHIP.changed(issuer_is_ca=False)
    refused(no_authority.proof(BIND, ark=CHIP.ark), None, "may not sign")
    refused(CHIP.proof(BIND, vcek=CHIP.changed(wrong_issuer=True).vcek), None, "do not chain")
    lacking = {name: value for name, value in TCB.items() if name != "snp"}
    refused(CHIP.proof(BIND, vcek=CHIP.changed(certified=lacking).vcek), None, "lacks")
    assert CHIP.starts < datetime.datetime.fromtimestamp(NOW_US / 1e6, datetime.UTC) < CHIP.ends


# The root's revocation list -------------------------------------------------------------------------------------------


def test_a_list_that_comes_must_hold_and_name_nobody_of_the_chain() -> None:
    proof = CHIP.proof(BIND, crl=CHIP.crl(99))
    assert judge_snp(proof, BIND, anchor(), now_us=NOW_US).detail.endswith("in force until 2033-01-01")
    assert dict(describe_snp(proof))["revocation list"].endswith(" bytes")
    for crl, says in (
        (CHIP.crl(99, SERIALS["SEV-Genoa"]), "revoked by its maker"),
        (CHIP.crl(SERIALS["ARK-Genoa"]), "revoked by its maker"),
        (CHIP.crl(99, signer="another"), "none of its root's"),
        (CHIP.crl(99, signer="root/ask", issuer="SEV-Genoa"), "none of its root's"),
        (CHIP.crl(99, ends=datetime.datetime(2026, 12, 31, tzinfo=datetime.UTC)), "not in force"),
        (CHIP.crl(99, starts=datetime.datetime(2032, 12, 31, tzinfo=datetime.UTC)), "not in force"),
        (CHIP.crl(99, extension=x509.DeltaCRLIndicator(1)), "of a part"),
        (CHIP.crl(99, extension=x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"x")), "not understood"),
        (CHIP.crl(99, of_entry=x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"x")), "not understood"),
        (b"", "none of its root's"),
        (CHIP.crl(99)[:-1], "none of its root's"),
        (CHIP.ark, "none of its root's"),
    ):
        refused(CHIP.proof(BIND, crl=crl), None, says)


def test_a_trust_file_may_demand_the_list(make_trust: Callable[..., Trust]) -> None:
    demanding = make_trust(trust_text(crl='"required"')).snp
    assert demanding is not None
    refused(CHIP.proof(BIND), demanding, "none came with the report")
    refused(CHIP.proof(BIND, crl=CHIP.crl(SERIALS["SEV-Genoa"])), demanding, "revoked")
    assert judge_snp(CHIP.proof(BIND, crl=CHIP.crl()), BIND, demanding, now_us=NOW_US).grade == "hardware"
    assert judge_snp(CHIP.proof(BIND), BIND, anchor(), now_us=NOW_US).detail.endswith("no revocation list")
    with pytest.raises(ConfigurationError, match="if-present"):
        make_trust(trust_text(crl='"maybe"'))


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 0x4A0 - 369), change=st.integers(1, 255))
def test_any_altered_byte_of_a_report_is_noticed(place: int, change: int) -> None:
    report = bytearray(CHIP.report(BIND))
    report[place] ^= change
    refused(CHIP.proof(BIND, report=bytes(report)))


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200))
def test_garbage_is_a_typed_error(data: bytes) -> None:
    refused(data)


def trust_text(**changes: str) -> str:
    values = {"roots": f'["{CHIP.root_digest}"]', "measurements": f'["{MEASURED}"]'} | changes
    tcb = "".join(f"{name} = {value}\n" for name, value in TCB.items())
    return "[snp]\n" + "".join(f"{name} = {value}\n" for name, value in values.items()) + f"[snp.min_tcb]\n{tcb}"


@pytest.mark.parametrize("changes", [{"roots": "[]"}, {"measurements": "[]"}, {"measurements": '["5a"]'}, {"x": "1"}])
def test_a_trust_file_that_pins_too_little_is_an_error(
    make_trust: Callable[..., Trust], changes: dict[str, str]
) -> None:
    with pytest.raises(ConfigurationError, match=r"^trust\.toml: "):
        make_trust(trust_text(**changes))


def test_in_evidence_claims_are_graded_one_by_one(
    make_claims: Callable[..., Claims], make_trust: Callable[..., Trust], operator: Ed25519PrivateKey
) -> None:
    claims = make_claims(assurance="hardware")
    bind = bind_payload(encode_claims(claims))
    asked: dict[str, Any] = {"now_us": NOW_US, "nonce": b"n" * 32, "published": claims.key_configs}
    quote = Endorsement("snp", b"", CHIP.proof(bind))
    evidence = sign_token(claims, operator, (endorse_software(bind, operator), quote))
    found = verify_evidence(evidence, make_trust(trust_text(), accept_software="false"), **asked)
    assert (found.grade, found.grades["key_configs"], found.grades["layers"]) == (
        "hardware",
        "hardware",
        "self-asserted",
    )
    covering = make_trust(trust_text(covers_code="true"), accept_software="false")
    assert verify_evidence(evidence, covering, **asked).grades["layers"] == "hardware"
    moved = sign_token(claims, operator, (Endorsement("snp", b"", CHIP.proof(b"c" * 32)),))
    with pytest.raises(EvidenceRefused) as failure:  # the report of other claims
        verify_evidence(moved, covering, **asked)
    assert failure.value.code == "endorsement"
    with pytest.raises(EvidenceRefused) as failure:  # the report taken away
        verify_evidence(sign_token(claims, operator, (endorse_software(bind, operator),)), make_trust(), **asked)
    assert failure.value.code == "grade"
