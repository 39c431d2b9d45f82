"""Reports of a confidential virtual machine, from the kernel's one interface for all of them (configfs-tsm, Linux 6.7).

    mkdir ENTRY; write ENTRY/inblob (64 bytes); read ENTRY/outblob; ENTRY/provider says which kind; rmdir ENTRY

`sev_guest` gives an SEV-SNP report, `tdx_guest` a TDX quote. What a client needs beside it (the certificates of the
chip, the collateral of its maker) are files of the deployment: an operator fetches them; they are read anew each time.

Trusts: the kernel. Never: gives out a report that another writer of the entry may have asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sealgate.evidence.endorsements import snp, tdx
from sealgate.evidence.token import Endorsement
from sealgate.protocol import cbor
from secure_runtime.errors import EndorserFailed
from secure_runtime.limits import MAX_PLATFORM_REPORT

_DATA = 64  # bytes that a report carries for its asker
_KINDS = {"sev_guest": snp.KIND, "tdx_guest": tdx.KIND}
_CERTIFICATES = ("vcek.der", "ask.der", "ark.der")
_REVOCATIONS = "crl.der"


@dataclass(frozen=True)
class PlatformEndorser:
    """One entry a report, so that threads do not meet. `entries` is usually /sys/kernel/config/tsm/report."""

    entries: Path
    snp_certificates: Path  # folder with vcek.der, ask.der, ark.der, and crl.der if the operator fetched it
    tdx_collateral: Path
    make: Callable[[Path], None] = os.mkdir
    drop: Callable[[Path], None] = os.rmdir

    @property
    def grade(self) -> str:
        return "hardware"

    def endorse(self, bind: bytes) -> Endorsement:
        """A report over `bind`; raises EndorserFailed."""
        try:
            kind, report = self._ask(bind)
            if kind == snp.KIND:
                found = [_read(self.snp_certificates / name) for name in _CERTIFICATES]
                if (self.snp_certificates / _REVOCATIONS).exists():
                    found.append(_read(self.snp_certificates / _REVOCATIONS))
                return Endorsement(kind, b"", cbor.encode([report, *found]))
            return Endorsement(kind, b"", cbor.encode([report, _read(self.tdx_collateral).decode()]))
        except (OSError, ValueError) as error:
            raise EndorserFailed("the kernel gave no report of this machine", code="report-failed") from error

    def close(self) -> None:
        """Nothing is held open."""

    def _ask(self, bind: bytes) -> tuple[str, bytes]:
        entry = self.entries / f"sealgate-{bind.hex()[:32]}"
        self.make(entry)
        try:
            provider = _read(entry / "provider").decode().strip()
            before = int(_read(entry / "generation"))
            (entry / "inblob").write_bytes(bind.ljust(_DATA, b"\x00"))
            report = _read(entry / "outblob")
            if int(_read(entry / "generation")) != before + 1:
                raise EndorserFailed("somebody else wrote to the report's entry", code="report-failed")
        finally:
            self.drop(entry)
        if provider not in _KINDS:
            raise EndorserFailed("the kernel's report is of a kind that is not known", code="report-failed")
        return _KINDS[provider], report


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_PLATFORM_REPORT + 1)
    if len(data) > MAX_PLATFORM_REPORT:
        raise ValueError(path.name)
    return data
