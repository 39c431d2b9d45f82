"""Reports through the kernel's interface, played by named pipes: the whole way from claims to a client's verdict."""

from __future__ import annotations

import datetime
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealgate.deployment import AttestationSection
from sealgate.evidence.claims import Claims
from sealgate.evidence.endorsements.snp import SnpTable, SnpTcb, parse_snp_anchor
from sealgate.evidence.endorsements.tdx import TdxTable, parse_tdx_anchor
from sealgate.evidence.token import bind_payload
from sealgate.evidence.transcript import EvidenceRefused
from sealgate.evidence.trust import Trust
from sealgate.evidence.verify import verify_evidence
from secure_runtime.attestation.endorsed import EndorsedAttester, open_attester
from secure_runtime.attestation.platform_report import PlatformEndorser
from secure_runtime.errors import EndorserFailed
from tests.sealgate.evidence.conftest import (  # noqa: F401  # the fixtures
    make_claims,
    make_trust,
    operator,
    trust_text,
)
from tests.sealgate.evidence.endorsements.fake_snp import TCB, FakeChip

NOW_US = int(datetime.datetime(2027, 1, 15, 8, tzinfo=datetime.UTC).timestamp()) * 1_000_000
CHIP = FakeChip()


class Kernel:
    """Answers one report an entry, as configfs-tsm does: what is read depends on what was written."""

    def __init__(self, provider: str, report: Callable[[bytes], bytes], *, writers: int = 1) -> None:
        self.provider, self.report, self.writers = provider, report, writers
        self.asked: list[bytes] = []
        self.threads: list[threading.Thread] = []

    def make(self, entry: Path) -> None:
        entry.mkdir()
        (entry / "provider").write_text(self.provider + "\n")
        (entry / "generation").write_text("0\n")
        os.mkfifo(entry / "outblob")
        self.threads.append(threading.Thread(target=self.answer, args=(entry,), daemon=True))
        self.threads[-1].start()

    def answer(self, entry: Path) -> None:
        with (entry / "outblob").open("wb") as out:  # opens when the report is asked for
            data = (entry / "inblob").read_bytes()
            self.asked.append(data)
            (entry / "generation").write_text(f"{self.writers}\n")
            out.write(self.report(data))

    def drop(self, entry: Path) -> None:
        shutil.rmtree(entry)


def endorser(folder: Path, kernel: Kernel) -> PlatformEndorser:
    made = PlatformEndorser(folder / "report", folder / "snp", folder / "collateral.json", kernel.make, kernel.drop)
    made.entries.mkdir()
    made.snp_certificates.mkdir()
    for name, content in (("vcek", CHIP.vcek), ("ask", CHIP.ask), ("ark", CHIP.ark)):
        (made.snp_certificates / f"{name}.der").write_bytes(content)
    return made


def judged(attester: EndorsedAttester, claims: Claims, trust: Trust, **anchors: Any) -> str:
    import dataclasses

    asked = {"now_us": NOW_US, "nonce": b"n" * 32, "published": claims.key_configs}
    verified = verify_evidence(attester.attest(claims), dataclasses.replace(trust, **anchors), **asked)  # type: ignore[arg-type]
    return verified.grade


@pytest.fixture
def claims(make_claims: Callable[..., Claims]) -> Claims:  # noqa: F811
    return make_claims(assurance="hardware", issued_at_us=NOW_US, expires_at_us=NOW_US + 3600 * 1_000_000)


def test_an_snp_guest_attests_and_a_client_believes_it(
    tmp_path: Path,
    claims: Claims,
    make_trust: Callable[..., Trust],  # noqa: F811
    operator: Ed25519PrivateKey,  # noqa: F811
) -> None:
    kernel = Kernel("sev_guest", lambda data: CHIP.report(data[:32], more_data=data[32:]))
    attester = EndorsedAttester(operator, [endorser(tmp_path, kernel)])
    table = SnpTable(roots=(CHIP.root_digest,), measurements=("5a" * 48,), min_tcb=SnpTcb(**TCB))
    trust = make_trust(accept_software="false")
    assert judged(attester, claims, trust, snp=parse_snp_anchor(table)) == "hardware"
    demanding = parse_snp_anchor(msgspec.structs.replace(table, crl="required"))
    with pytest.raises(EvidenceRefused, match="none came with the report"):
        judged(attester, claims, trust, snp=demanding)
    (tmp_path / "snp" / "crl.der").write_bytes(CHIP.crl(99))  # read anew for each report
    assert judged(attester, claims, trust, snp=demanding) == "hardware"
    kernel.asked[1:] = []
    from sealgate.evidence.claims import encode_claims

    assert kernel.asked == [bind_payload(encode_claims(claims)) + bytes(32)]
    assert not any((tmp_path / "report").iterdir())


def test_a_tdx_domain_attests_and_a_client_believes_it(
    tmp_path: Path,
    claims: Claims,
    make_trust: Callable[..., Trust],  # noqa: F811
    operator: Ed25519PrivateKey,  # noqa: F811
) -> None:
    pytest.importorskip("dcap_qvl", reason="SKIPPED FOR WANT OF dcap-qvl: pip install 'dcap-qvl>=0.7,<0.8'")
    from tests.sealgate.evidence.endorsements.fake_tdx import FakeTdx

    domain = FakeTdx()
    kernel = Kernel("tdx_guest", lambda data: domain.quote(data[:32], more_data=data[32:]))
    made = endorser(tmp_path, kernel)
    made.tdx_collateral.write_text(domain.collateral())
    table = TdxTable(roots=(domain.root_digest,), mr_td=("7d" * 48,), rtmrs={"0": ("01" * 48,)})
    trust = make_trust(accept_software="false")
    assert judged(EndorsedAttester(operator, [made]), claims, trust, tdx=parse_tdx_anchor(table)) == "hardware"


@pytest.mark.parametrize(("provider", "writers"), [("arm_cca_guest", 1), ("sev_guest", 2), ("sev_guest", 0)])
def test_unknown_kinds_and_a_second_writer_mean_no_report(tmp_path: Path, provider: str, writers: int) -> None:
    kernel = Kernel(provider, lambda data: CHIP.report(data[:32]), writers=writers)
    with pytest.raises(EndorserFailed):
        endorser(tmp_path, kernel).endorse(b"b" * 32)
    assert not any((tmp_path / "report").iterdir())


def test_missing_files_and_machines_without_reports_mean_no_evidence(
    tmp_path: Path,
    claims: Claims,
    operator: Ed25519PrivateKey,  # noqa: F811
) -> None:
    made = endorser(tmp_path, Kernel("sev_guest", lambda data: CHIP.report(data[:32])))
    (made.snp_certificates / "ask.der").unlink()
    with pytest.raises(EndorserFailed, match="no report"):
        made.endorse(b"b" * 32)
    attester = open_attester(operator, AttestationSection(tsm=str(tmp_path / "nowhere")), root=tmp_path)
    assert attester.assurance == "hardware"
    with pytest.raises(EndorserFailed, match="no report"):
        attester.attest(claims)
