"""Reports of this machine's NVIDIA GPUs, by NVIDIA's management library (NVML, through nvidia-ml-py: the extra `gpu`).

For each GPU: its report over `bind` and the chain of the key that signed it. Beside them go the maker's signed
reference manifests of driver and firmware, files of the deployment (`*.swidtag`) that an operator fetches once for each
version.

Such a report says nothing of who asked, so this endorser has no grade of its own and stands only beside a confidential
machine's (sealgate.evidence.endorsements.nvidia_gpu).

Trusts: the driver and the library. Never: asks a GPU whose debug tools are on, or which is not in confidential mode;
changes a GPU's settings.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sealgate.errors import ConfigurationError
from sealgate.evidence.endorsements import nvidia_gpu
from sealgate.evidence.token import Endorsement
from sealgate.evidence.verify import SELF_ASSERTED
from sealgate.limits import MAX_CHAIN, MAX_GPUS, MAX_RIM, MAX_RIMS
from sealgate.protocol import cbor
from secure_runtime.errors import EndorserFailed


class GpuEndorser:
    """All GPUs of the machine, in the driver's order. `library` is the module pynvml, started."""

    def __init__(self, library: Any, manifests: Path) -> None:
        self._library = library
        self._manifests = manifests
        self._lock = threading.Lock()

    @property
    def grade(self) -> str:
        """Of what it vouches for by itself: nothing."""
        return SELF_ASSERTED

    def endorse(self, bind: bytes) -> Endorsement:
        """Reports of all GPUs over `bind`; raises EndorserFailed."""
        with self._lock:
            try:
                proof: cbor.Value = [self._reports(bind), self._read_manifests()]
            except (self._library.NVMLError, OSError, ValueError) as error:
                raise EndorserFailed("a GPU or its files gave no report", code="gpu-failed") from error
        return Endorsement(nvidia_gpu.KIND, b"", cbor.encode(proof))

    def close(self) -> None:
        """Let go of the library."""
        with self._lock, contextlib.suppress(self._library.NVMLError):  # the driver may be gone
            self._library.nvmlShutdown()

    def _reports(self, bind: bytes) -> list[cbor.Value]:
        state = self._library.nvmlSystemGetConfComputeState()
        if not state.ccFeature:
            raise EndorserFailed("the GPUs are not in confidential mode", code="gpu-failed")
        if state.devToolsMode:
            raise EndorserFailed("the GPUs' debug tools are on: nothing that they report counts", code="gpu-failed")
        count = self._library.nvmlDeviceGetCount()
        if not 0 < count <= MAX_GPUS:
            raise EndorserFailed("this machine has no GPU, or more than evidence has room for", code="gpu-failed")
        return [self._report(self._library.nvmlDeviceGetHandleByIndex(index), bind) for index in range(count)]

    def _report(self, handle: Any, bind: bytes) -> cbor.Value:
        told = self._library.nvmlDeviceGetConfComputeGpuAttestationReport(handle, bind)
        report = bytes(told.attestationReport[: told.attestationReportSize])
        keys = self._library.nvmlDeviceGetConfComputeGpuCertificate(handle)
        chain = x509.load_pem_x509_certificates(bytes(keys.attestationCertChain[: keys.attestationCertChainSize]))
        if len(chain) > MAX_CHAIN:
            raise ValueError("the chain of a GPU's key")
        return [report, [one.public_bytes(Encoding.DER) for one in chain]]

    def _read_manifests(self) -> list[cbor.Value]:
        """Read anew each time, so that a new driver needs no restart."""
        found: list[cbor.Value] = []
        for path in sorted(self._manifests.glob("*.swidtag")):
            with path.open("rb") as file:
                data = file.read(MAX_RIM + 1)
            if len(data) > MAX_RIM or len(found) >= MAX_RIMS:
                raise ValueError(path.name)
            found.append(data)
        return found


def open_gpus(manifests: Path) -> GpuEndorser:
    """The GPUs of this machine; raises ConfigurationError where there are none to ask."""
    try:
        import pynvml
    except ImportError as error:
        hint = "attestation.gpus needs the package nvidia-ml-py: pip install 'sealgate[gpu]'"
        raise ConfigurationError(hint) from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise ConfigurationError(
            "attestation.gpus = true, and NVIDIA's driver cannot be reached here: nvidia-smi says more"
        ) from error
    return GpuEndorser(pynvml, manifests)
