"""An attester with more to show than the operator's word: endorsers, each over the same `bind`.

    TpmEndorser       a quote of the machine's TPM 2.0 over its boot registers
    PlatformEndorser  a report of the confidential virtual machine that the host runs in (platform_report)
    GpuEndorser       reports of that machine's NVIDIA GPUs (gpu_reports); never alone

The operator's key still signs the token, so that it says from whose deployment it comes; an endorsement that cannot be
made means no evidence, not weaker evidence.

Trusts: the devices. Never: states a stronger assurance than its strongest endorser gives; changes a claim.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealgate.deployment import AttestationSection
from sealgate.errors import ConfigurationError
from sealgate.evidence.claims import Claims, encode_claims
from sealgate.evidence.endorsements import tpm
from sealgate.evidence.token import Endorsement, bind_payload, endorse_software, key_id, sign_token
from sealgate.evidence.verify import GRADES
from sealgate.protocol import cbor
from secure_runtime.attestation.gpu_reports import open_gpus
from secure_runtime.attestation.platform_report import PlatformEndorser
from secure_runtime.attestation.software import Attester, SoftwareAttester
from secure_runtime.attestation.tpm_device import TpmDevice


class Endorser(Protocol):
    """Vouches for `bind` in one way. MUST be safe to call from several threads."""

    @property
    def grade(self) -> str:
        """What it is worth where its root is believed."""
        ...

    def endorse(self, bind: bytes) -> Endorsement:
        """Raises EndorserFailed."""
        ...

    def close(self) -> None:
        """Let go of the device."""
        ...


class TpmEndorser:
    """Quotes of one TPM over chosen registers."""

    def __init__(self, device: TpmDevice, pcrs: Sequence[int]) -> None:
        self._device = device
        self._pcrs = tuple(pcrs)
        self._lock = threading.Lock()
        self.name = tpm.parse_public(device.public).name  # what clients list under attestation_keys

    @property
    def grade(self) -> str:
        return tpm.KIND

    def endorse(self, bind: bytes) -> Endorsement:
        with self._lock:
            signed = self._device.quote(bind, self._pcrs)
        registers: dict[int | str, cbor.Value] = {index: value for index, value in signed.registers.items()}  # noqa: C416
        proof = cbor.encode([signed.attest, signed.signature, self._device.public, registers])
        return Endorsement(tpm.KIND, key_id(self._device.public), proof)

    def close(self) -> None:
        with self._lock:
            self._device.close()


class EndorsedAttester:
    """The operator's word and all that the endorsers add. Safe to use from several threads."""

    def __init__(self, operator_key: Ed25519PrivateKey, endorsers: Sequence[Endorser]) -> None:
        if not endorsers:
            raise ConfigurationError("an endorsed attester needs an endorser")
        self._key = operator_key
        self._endorsers = tuple(endorsers)

    @property
    def assurance(self) -> str:
        return max((one.grade for one in self._endorsers), key=GRADES.index)

    def attest(self, claims: Claims) -> bytes:
        """Endorse and sign; raises ConfigurationError for claims of another assurance, EndorserFailed."""
        if claims.assurance != self.assurance:
            raise ConfigurationError(f"this attester cannot attest assurance '{claims.assurance}'")
        bind = bind_payload(encode_claims(claims))
        added = tuple(one.endorse(bind) for one in self._endorsers)
        return sign_token(claims, self._key, (endorse_software(bind, self._key), *added))

    def close(self) -> None:
        """Let go of every device."""
        for one in self._endorsers:
            one.close()


def open_attester(operator_key: Ed25519PrivateKey, settings: AttestationSection, *, root: Path) -> Attester:
    """The attester that a deployment's settings ask for; raises ConfigurationError."""
    endorsers: list[Endorser] = []
    if settings.tpm:
        endorsers.append(TpmEndorser(TpmDevice(root / settings.tpm), settings.tpm_pcrs))
    if settings.tsm:
        certificates, collateral = root / settings.snp_certificates, root / settings.tdx_collateral
        endorsers.append(PlatformEndorser(Path(settings.tsm), certificates, collateral))
    if settings.gpus:
        if not settings.tsm:
            raise ConfigurationError("attestation.gpus counts only beside a confidential machine: set attestation.tsm")
        endorsers.append(open_gpus(root / settings.gpu_manifests))
    return EndorsedAttester(operator_key, endorsers) if endorsers else SoftwareAttester(operator_key)
