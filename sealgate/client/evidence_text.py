"""Evidence in words and as JSON, as `sealgate attest show` prints it.

Trusts nothing, and judges nothing: it says what the evidence says. Never: calls a claim true.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from sealgate.client.times import rfc3339
from sealgate.evidence.endorsements import nvidia_gpu, snp, tdx, tpm
from sealgate.terminal import render_pairs, render_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from sealgate.evidence.claims import Claims
    from sealgate.evidence.token import Endorsement, Token

_DESCRIBED: dict[str, Callable[[bytes], list[tuple[str, str]]]] = {
    tpm.KIND: tpm.describe_tpm,
    snp.KIND: snp.describe_snp,
    tdx.KIND: tdx.describe_tdx,
    nvidia_gpu.KIND: nvidia_gpu.describe_nvidia_gpu,
}


def describe_evidence(claims: Claims, token: Token) -> str:
    """Five tables, for people."""
    about = [
        ("audience", claims.audience),
        ("instance", claims.instance),
        ("issued", rfc3339(claims.issued_at_us)),
        ("expires", rfc3339(claims.expires_at_us)),
        ("profile", claims.profile + (" (degraded)" if claims.degraded else "")),
        ("device", claims.device),
        ("assurance it states", claims.assurance),
        ("policy", claims.policy_digest),
        ("log", claims.log_origin),
        ("request keys", hashlib.sha256(claims.key_configs).hexdigest()),
        ("signed by", f"operator key {token.kid.hex()}"),
    ]
    models = [
        (one.name, one.version, f"{one.epsilon_micro / 1e6:g}", one.delta, one.model_digest, one.certificate_digest)
        for one in claims.models
    ]
    layers = [
        (name, layer.state, claims.host_layers[name].state if name in claims.host_layers else "", layer.detail)
        for name, layer in claims.layers.items()
    ]
    probes = [(name, probe.state, probe.detail) for name, probe in claims.probes.items() if probe.state != "on"]
    endorsed = [(one.kind, one.kid.hex(), f"{len(one.proof)} bytes") for one in token.endorsements]
    parts = [
        render_pairs(about),
        render_table(("model", "version", "epsilon", "delta", "weights", "certificate"), models),
        render_table(("measurement", "SHA-256"), sorted(claims.measurements.items())),
        render_table(("sandbox layer", "worker says", "host reads", "detail"), layers),
        f"{len(claims.probes)} denial probes, {len(claims.probes) - len(probes)} denied",
        render_table(("endorsement", "key", "proof"), endorsed),
        *(_described(one) for one in token.endorsements if one.kind in _DESCRIBED),
    ]
    if probes:
        parts.insert(5, render_table(("probe that was not denied", "state", "detail"), probes))
    return "\n\n".join(parts)


def _described(endorsement: Endorsement) -> str:
    return f"{endorsement.kind}\n" + render_pairs(_DESCRIBED[endorsement.kind](endorsement.proof))


def evidence_document(claims: Claims, token: Token) -> dict[str, Any]:
    """The same for programs."""
    import msgspec

    return {
        "claims": {
            **{name: value for name, value in msgspec.to_builtins(claims).items() if not isinstance(value, bytes)},
        },
        "endorsements": [
            {
                "kind": one.kind,
                "key": one.kid.hex(),
                "bytes": len(one.proof),
                "says": dict(_DESCRIBED[one.kind](one.proof)) if one.kind in _DESCRIBED else {},
            }
            for one in token.endorsements
        ],
        "signed_by": token.kid.hex(),
        "digest": token.digest,
    }
