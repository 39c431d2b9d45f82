"""What protects a new model for its owner: encryption at rest, a fingerprint, a signature that other tools check.

None of it reads a private row or changes what the run costs: the fingerprint works on weights that are released anyway
(post-processing), the others on finished files.

Trusts: the keys it holds. Never: prints one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from sealgate.certificate.wrapping_keys import WrappingKey


@dataclass(frozen=True, kw_only=True)
class Owner:
    """What was asked for; nothing by default."""

    wrapping: WrappingKey | None = None  # the weights are encrypted under it
    model_signing: EllipticCurvePrivateKey | None = field(default=None, repr=False)  # writes model.sig


NOTHING = Owner()
