"""The way from a GPU's driver to a client's verdict: NVIDIA's own Python library over a driver that tests play."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from sealgate.deployment import AttestationSection
from sealgate.errors import ConfigurationError
from sealgate.evidence.claims import Claims
from sealgate.evidence.trust import Trust
from sealgate.evidence.verify import verify_evidence
from secure_runtime.attestation.endorsed import EndorsedAttester, open_attester
from secure_runtime.attestation.gpu_reports import GpuEndorser, open_gpus
from secure_runtime.attestation.platform_report import PlatformEndorser
from secure_runtime.errors import EndorserFailed
from tests.sealgate.evidence.conftest import make_claims, make_trust, operator, trust_text  # noqa: F401  # fixtures
from tests.sealgate.evidence.endorsements.fake_gpu import FakeGpu, manifests
from tests.sealgate.evidence.endorsements.test_nvidia_gpu import trust_text as gpu_text
from tests.sealgate.evidence.endorsements.test_snp import trust_text as snp_text
from tests.secure_runtime.attestation.test_platform_report import CHIP, NOW_US, Kernel
from tests.secure_runtime.attestation.test_platform_report import endorser as machine

pynvml = pytest.importorskip("pynvml", reason="SKIPPED FOR WANT OF nvidia-ml-py: pip install 'nvidia-ml-py>=13,<14'")

BIND = b"b" * 32
GPU = FakeGpu()


class Driver:
    """What libnvidia-ml.so exports, as far as it is asked: it fills in the structures that the library hands it."""

    def __init__(self) -> None:
        self.confidential, self.debug, self.count, self.fails = 1, 0, 1, ""
        self.nonces: list[bytes] = []

    def _done(self, name: str) -> int:
        return int(pynvml.NVML_ERROR_UNKNOWN) if self.fails == name else 0

    def nvmlInitWithFlags(self, flags: Any) -> int:  # noqa: N802  # the driver's names
        return self._done("init")

    def nvmlShutdown(self) -> int:  # noqa: N802
        return self._done("shutdown")

    def nvmlSystemGetConfComputeState(self, state: Any) -> int:  # noqa: N802
        state._obj.ccFeature, state._obj.devToolsMode = self.confidential, self.debug
        return self._done("state")

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.count
        return self._done("count")

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:  # noqa: N802
        return self._done("handle")

    def nvmlDeviceGetConfComputeGpuAttestationReport(self, handle: Any, told: Any) -> int:  # noqa: N802
        nonce = bytes(told._obj.nonce)
        self.nonces.append(nonce)
        report = GPU.report(nonce)
        ctypes.memmove(told._obj.attestationReport, report, len(report))
        told._obj.attestationReportSize = len(report)
        return self._done("report")

    def nvmlDeviceGetConfComputeGpuCertificate(self, handle: Any, told: Any) -> int:  # noqa: N802
        chain = b"".join(
            x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in GPU.chain.certificates
        )
        ctypes.memmove(told._obj.attestationCertChain, chain, len(chain))
        told._obj.attestationCertChainSize = len(chain)
        return self._done("certificate")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    played = Driver()
    monkeypatch.setattr(pynvml, "nvmlLib", played)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return played


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "gpu"
    made.mkdir()
    for name, one in zip(("driver", "vbios"), manifests(), strict=True):
        (made / f"{name}.swidtag").write_bytes(one.document())
    (made / "notes.txt").write_text("not a manifest")
    return made


def test_gpus_in_a_confidential_machine_attest_and_a_client_believes_it(
    tmp_path: Path,
    folder: Path,
    driver: Driver,
    make_claims: Callable[..., Claims],  # noqa: F811
    make_trust: Callable[..., Trust],  # noqa: F811
    operator: Ed25519PrivateKey,  # noqa: F811
) -> None:
    times = {"issued_at_us": NOW_US, "expires_at_us": NOW_US + 3600 * 1_000_000}
    claims = make_claims(assurance="hardware", device="cuda:0", **times)
    kernel = Kernel("sev_guest", lambda data: CHIP.report(data[:32], more_data=data[32:]))
    attester = EndorsedAttester(operator, [machine(tmp_path, kernel), open_gpus(folder)])
    assert attester.assurance == "hardware"
    trust = make_trust(snp_text(roots=f'["{CHIP.root_digest}"]') + gpu_text(), accept_software="false")
    asked: dict[str, Any] = {"now_us": NOW_US, "nonce": b"n" * 32, "published": claims.key_configs}
    found = verify_evidence(attester.attest(claims), trust, **asked)
    assert found.grade == "hardware"
    assert [check.detail for check in found.transcript if check.detail.startswith("nvidia-gpu: 1 GPU: driver")]
    assert driver.nonces == [kernel.asked[0][:32]]  # one bind for both
    attester.close()


def test_every_gpu_is_asked(folder: Path, driver: Driver) -> None:
    driver.count = 3
    open_gpus(folder).endorse(BIND)
    assert driver.nonces == [BIND] * 3


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("confidential", 0, "not in confidential mode"),
        ("debug", 1, "debug tools"),
        ("count", 0, "no GPU"),
        ("count", 17, "more than"),
        *(("fails", name, "no report") for name in ("state", "count", "handle", "report", "certificate")),
    ],
)
def test_without_a_full_report_there_is_no_evidence(
    folder: Path, driver: Driver, name: str, value: object, says: str
) -> None:
    made = open_gpus(folder)
    setattr(driver, name, value)
    with pytest.raises(EndorserFailed, match=says) as failure:
        made.endorse(BIND)
    assert failure.value.code == "gpu-failed"


def test_manifests_are_read_anew_and_within_bounds(folder: Path, driver: Driver) -> None:
    made = open_gpus(folder)
    before = made.endorse(BIND).proof
    (folder / "vbios.swidtag").unlink()
    assert len(made.endorse(BIND).proof) < len(before)
    (folder / "huge.swidtag").write_bytes(b"x" * (64 * 1024 + 1))
    with pytest.raises(EndorserFailed, match="no report"):
        made.endorse(BIND)


def test_a_machine_without_nvidias_driver_says_so(tmp_path: Path, driver: Driver) -> None:
    driver.fails = "init"
    with pytest.raises(ConfigurationError, match="nvidia-smi"):
        open_gpus(tmp_path)


def test_the_real_library_without_a_driver_says_so(tmp_path: Path) -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        with pytest.raises(ConfigurationError, match="driver cannot be reached"):
            open_gpus(tmp_path)
    else:
        pynvml.nvmlShutdown()
        pytest.skip("THIS MACHINE HAS AN NVIDIA DRIVER: that it is missing cannot be shown here")


def test_settings_ask_for_gpus_only_beside_a_machine(
    tmp_path: Path,
    driver: Driver,
    operator: Ed25519PrivateKey,  # noqa: F811
) -> None:
    with pytest.raises(ConfigurationError, match=r"set attestation\.tsm"):
        open_attester(operator, AttestationSection(gpus=True), root=tmp_path)
    attester = open_attester(operator, AttestationSection(gpus=True, tsm=str(tmp_path)), root=tmp_path)
    assert isinstance(attester, EndorsedAttester)
    assert [type(one) for one in attester._endorsers] == [PlatformEndorser, GpuEndorser]
    driver.fails = "shutdown"
    attester.close()
