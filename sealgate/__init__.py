"""Sealgate: secure inference whose privacy can be checked, not believed. What a caller imports.

    from sealgate import Session

Names are loaded when they are first used, so that `import sealgate` costs nothing and the command line starts fast.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # not typing's: it would be most of what this costs
if TYPE_CHECKING:
    from typing import Any

    from sealgate.client.audit import AuditClient
    from sealgate.client.credentials import ClientCertificate
    from sealgate.client.dpop import DpopKey
    from sealgate.client.errors import (
        InferenceFailed,
        ServiceRefused,
        ServiceUnreachable,
        TokenUnavailable,
        UnsealedAnswer,
        UsageError,
    )
    from sealgate.client.exchange import SealedAnswer
    from sealgate.client.metadata import ModelMetadata
    from sealgate.client.results import InferResult
    from sealgate.client.session import AsyncSession, Session
    from sealgate.client.token_source import ClientCredentials
    from sealgate.client.transport import AsyncSealedTransport, SealedTransport
    from sealgate.errors import (
        CertificateError,
        ConfigurationError,
        EvidenceError,
        LogError,
        ProtocolError,
        ReceiptError,
        RemoteError,
        SealgateError,
        VerificationError,
    )
    from sealgate.evidence.transcript import EvidenceRefused, ReceiptRefused
    from sealgate.evidence.trust import ModelPin, Trust, load_trust
    from sealgate.evidence.verify import VerifiedEvidence
    from sealgate.protocol.inference import Tensor
    from sealgate.transparency.receipt import VerifiedReceipt

__all__ = [
    "AsyncSealedTransport",
    "AsyncSession",
    "AuditClient",
    "CertificateError",
    "ClientCertificate",
    "ClientCredentials",
    "ConfigurationError",
    "DpopKey",
    "EvidenceError",
    "EvidenceRefused",
    "InferResult",
    "InferenceFailed",
    "LogError",
    "ModelMetadata",
    "ModelPin",
    "ProtocolError",
    "ReceiptError",
    "ReceiptRefused",
    "RemoteError",
    "SealedAnswer",
    "SealedTransport",
    "SealgateError",
    "ServiceRefused",
    "ServiceUnreachable",
    "Session",
    "Tensor",
    "TokenUnavailable",
    "Trust",
    "UnsealedAnswer",
    "UsageError",
    "VerificationError",
    "VerifiedEvidence",
    "VerifiedReceipt",
    "load_trust",
]

_HOMES = {
    "client.audit": ("AuditClient",),
    "client.credentials": ("ClientCertificate",),
    "client.dpop": ("DpopKey",),
    "client.errors": (
        "InferenceFailed",
        "ServiceRefused",
        "ServiceUnreachable",
        "TokenUnavailable",
        "UnsealedAnswer",
        "UsageError",
    ),
    "client.exchange": ("SealedAnswer",),
    "client.metadata": ("ModelMetadata",),
    "client.results": ("InferResult",),
    "client.session": ("AsyncSession", "Session"),
    "client.token_source": ("ClientCredentials",),
    "client.transport": ("AsyncSealedTransport", "SealedTransport"),
    "errors": (
        "CertificateError",
        "ConfigurationError",
        "EvidenceError",
        "LogError",
        "ProtocolError",
        "ReceiptError",
        "RemoteError",
        "SealgateError",
        "VerificationError",
    ),
    "evidence.transcript": ("EvidenceRefused", "ReceiptRefused"),
    "evidence.trust": ("ModelPin", "Trust", "load_trust"),
    "evidence.verify": ("VerifiedEvidence",),
    "protocol.inference": ("Tensor",),
    "transparency.receipt": ("VerifiedReceipt",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'sealgate' has no attribute '{name}'")
    value = getattr(import_module(f"sealgate.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
