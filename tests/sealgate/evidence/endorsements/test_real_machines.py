"""Reports of real processors, published by others (samples/README.md): judged to the makers' real roots at their date.

They are about their owners' claims, not ours, and one guest may be debugged: so each passes every check up to the one
that must refuse it, and everything that is changed is refused earlier.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from sealgate.errors import DecodeError, EvidenceError
from sealgate.evidence.endorsements import snp
from sealgate.evidence.endorsements.snp import SnpTable, SnpTcb, describe_snp, judge_snp, parse_snp_anchor
from sealgate.evidence.endorsements.tdx import TdxTable, describe_tdx, judge_tdx, parse_tdx_anchor
from sealgate.protocol import cbor

SAMPLES = Path(__file__).parent / "samples"
INTEL = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"  # SHA-256 of Intel's SGX root, DER
AMD_MILAN = "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd"  # of AMD's root for Milan
DAY_US = 86_400 * 1_000_000

# AMD numbers the certificates of its chips 0. The library warns of it, and says that a later release will refuse it.
pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")


def moment(year: int, month: int, day: int) -> int:
    return int(datetime.datetime(year, month, day, tzinfo=datetime.UTC).timestamp()) * 1_000_000


# Intel TDX -----------------------------------------------------------------------------------------------------------

QUOTES = [("v4", moment(2025, 6, 25), 5), ("v5", moment(2026, 10, 12), 5)]


def parts(version: str) -> tuple[bytes, str]:
    quote = (SAMPLES / f"tdx_{version}_quote.bin").read_bytes()
    return quote, (SAMPLES / f"tdx_{version}_collateral.json").read_text()


def judge_quote(quote: bytes, collateral: str, now_us: int, **changes: Any) -> None:
    values: dict[str, Any] = {"roots": (INTEL,), "mr_td": ("00" * 48,), "rtmrs": {"0": ("00" * 48,)}} | changes
    anchor = parse_tdx_anchor(TdxTable(**values))
    judge_tdx(cbor.encode([quote, collateral]), b"b" * 32, anchor, now_us=now_us)


@pytest.fixture(autouse=True, scope="module")
def _library() -> None:
    pytest.importorskip("dcap_qvl", reason="SKIPPED FOR WANT OF dcap-qvl: pip install 'dcap-qvl>=0.7,<0.8'")


@pytest.mark.parametrize(("version", "now_us", "_"), QUOTES)
def test_real_quotes_hold_under_intels_root_and_are_about_other_claims(version: str, now_us: int, _: int) -> None:
    """Chain, quoting enclave, signature, revocation lists, and firmware up to date: only the claims are not ours."""
    quote, collateral = parts(version)
    with pytest.raises(EvidenceError, match="about other claims"):
        judge_quote(quote, collateral, now_us)
    for says, changes in (
        ("root certificate is none", {"roots": ("00" * 32,)}),
        ("state of the platform's firmware", {"statuses": ("OutOfDate",)}),
    ):
        with pytest.raises(EvidenceError, match=says):
            judge_quote(quote, collateral, now_us, **changes)
    for later in (now_us + 60 * DAY_US, now_us - 60 * DAY_US):
        with pytest.raises(EvidenceError, match="expired"):
            judge_quote(quote, collateral, later)


@pytest.mark.parametrize(("version", "now_us", "_"), QUOTES)
def test_any_part_of_a_real_quote_that_is_changed_is_refused_before_its_claims(
    version: str, now_us: int, _: int
) -> None:
    quote, collateral = parts(version)
    signed = 48 + 584 if version == "v4" else 48 + 6 + 648
    places = [2, 4, *range(48, signed, 37), signed + 10, signed + 70, signed + 4 + 128 + 6 + 20]
    for place in places:
        changed = bytearray(quote)
        changed[place] ^= 1
        with pytest.raises((EvidenceError, DecodeError)) as failure:
            judge_quote(bytes(changed), collateral, now_us)
        assert "other claims" not in str(failure.value), place
    members = json.loads(collateral)
    for name in ("tcb_info", "qe_identity", "tcb_info_signature", "qe_identity_signature", "pck_crl", "root_ca_crl"):
        broken = members[name].replace("2", "3", 1) if name.endswith(("info", "identity")) else "00" + members[name][2:]
        with pytest.raises(EvidenceError, match="does not hold"):
            judge_quote(quote, json.dumps(members | {name: broken}), now_us)


@pytest.mark.parametrize(("version", "_", "count"), QUOTES)
def test_a_quote_is_described_as_the_library_reads_it(version: str, _: int, count: int) -> None:
    """The places of the values are ours; the library parses them by itself."""
    import dcap_qvl

    quote, collateral = parts(version)
    report = dcap_qvl.Quote.parse(quote).report
    told = dict(describe_tdx(cbor.encode([quote, collateral])))
    assert told["MRTD"] == report.mr_td.hex()
    assert [told[f"run-time register {number}"] for number in range(4)] == [
        getattr(report, f"rt_mr{number}").hex() for number in range(4)
    ]
    assert len([name for name in told if name.startswith(("MRTD", "run-time"))]) == count
    with pytest.raises(DecodeError):
        describe_tdx(cbor.encode([quote[:400], collateral]))


# AMD SEV-SNP ---------------------------------------------------------------------------------------------------------

REPORT = (SAMPLES / "snp_milan_report.bin").read_bytes()
CHAIN = [(SAMPLES / f"snp_milan_{name}.der").read_bytes() for name in ("vcek", "ask", "ark")]
MILAN_US = moment(2026, 11, 1)


def judge_report(report: bytes, chain: list[bytes], bind: bytes, *, now_us: int = MILAN_US, root: str = "") -> None:
    least = SnpTcb(boot_loader=2, tee=0, snp=5, microcode=68)
    measured = REPORT[0x90:0xC0].hex()
    anchor = parse_snp_anchor(SnpTable(roots=(root or AMD_MILAN,), measurements=(measured,), min_tcb=least))
    judge_snp(cbor.encode([report, *chain]), bind, anchor, now_us=now_us)


def test_a_real_milan_report_holds_under_amds_root_and_its_guest_may_be_debugged() -> None:
    """Chain, signature and the asker's data hold; that its owner let it be debugged is what refuses it."""
    assert hashlib.sha256(CHAIN[2]).hexdigest() == AMD_MILAN
    with pytest.raises(EvidenceError, match="may be debugged"):
        judge_report(REPORT, CHAIN, REPORT[0x50:0x70])
    with pytest.raises(EvidenceError, match="other claims"):
        judge_report(REPORT, CHAIN, b"b" * 32)
    with pytest.raises(EvidenceError, match="root certificate is none"):
        judge_report(REPORT, CHAIN, b"b" * 32, root="00" * 32)
    with pytest.raises(EvidenceError, match="not valid now"):
        judge_report(REPORT, CHAIN, b"b" * 32, now_us=moment(2026, 8, 1))
    assert ("launch measurement", REPORT[0x90:0xC0].hex()) in describe_snp(cbor.encode([REPORT, *CHAIN]))


@pytest.mark.parametrize("place", [0, 8, 0x34, 0x48, *range(0x50, 0x2A0, 29), 0x2A0, 0x2E8, 0x400])
def test_any_changed_byte_of_a_real_report_is_refused(place: int) -> None:
    changed = bytearray(REPORT)
    changed[place] ^= 1
    with pytest.raises((EvidenceError, DecodeError)) as failure:
        judge_report(bytes(changed), CHAIN, bytes(changed[0x50:0x70]))
    assert "debugged" not in str(failure.value)


def test_a_real_chips_certificate_says_its_firmware_in_the_form_that_is_read() -> None:
    certificate = x509.load_der_x509_certificate(CHAIN[0])
    as_reported = SnpTcb(boot_loader=2, tee=0, snp=5, microcode=68)
    snp._require_firmware(REPORT, certificate, as_reported)
    with pytest.raises(EvidenceError, match="older"):
        snp._require_firmware(REPORT, certificate, SnpTcb(boot_loader=2, tee=0, snp=5, microcode=69))
    other_chip = REPORT[:0x1A0] + bytes(64) + REPORT[0x1E0:]
    with pytest.raises(EvidenceError, match="another chip"):
        snp._require_firmware(other_chip, certificate, as_reported)
