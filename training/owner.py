"""What protects a new model for its owner: encryption at rest, a fingerprint, a signature that other tools check.

None of it reads a private row or changes what the run costs: the fingerprint works on weights that epsilon covers at
every step (`training.fingerprint.embedding`), the others on finished files.

Trusts: the keys it holds. Never: prints one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from torch import nn

from sealgate.certificate.manifest import Manifest
from sealgate.certificate.wrapping_keys import WrappingKey
from sealgate.protocol.secrets import Secret
from secure_runtime.models.architectures import build
from training.fingerprint.embedding import Mark
from training.fingerprint.triggers import commitment_of


@dataclass(frozen=True, kw_only=True)
class Owner:
    """What was asked for; nothing by default."""

    wrapping: WrappingKey | None = None  # the weights are encrypted under it
    model_signing: EllipticCurvePrivateKey | None = field(default=None, repr=False)  # writes model.sig
    fingerprint: Secret | None = None  # its key

    @property
    def identity(self) -> tuple[bytes, ...]:
        """What of it is in the weights while training, so that a run that is resumed must have the same."""
        return () if self.fingerprint is None else (b"fingerprint " + commitment_of(self.fingerprint).encode(),)

    def check(self, manifest: Manifest) -> None:
        """Raise ConfigurationError, before anything is spent, for a model that cannot carry a fingerprint."""
        if self.fingerprint is not None:
            Mark(self.fingerprint, manifest, build(manifest.architecture).double())

    def mark(self, manifest: Manifest, module: nn.Module) -> Mark | None:
        """The fingerprint for this module, whose fixed part is what it will be; None if none was asked for."""
        return None if self.fingerprint is None else Mark(self.fingerprint, manifest, module)


NOTHING = Owner()
