"""From a pipeline on disk to a predictor: each member is loaded from its verified bytes, like any bundle.

What a deployment demands of bundles, it demands of every member. Trusts: `verify_pipeline`. Never: loads a member that
a bundle of its own would not be loaded for.
"""

from __future__ import annotations

from sealgate.certificate.audits import demand_audit
from sealgate.certificate.bundle import VerifiedBundle
from sealgate.certificate.pipeline import VerifiedPipeline
from sealgate.certificate.refusals import refusal
from secure_runtime.models.pipeline import Part, PipelinePredictor
from secure_runtime.models.predictor import Predictor
from secure_runtime.models.weights import module_from_weights


def require_demands(
    bundle: VerifiedBundle, *, require_audit: bool, require_encryption: bool, require_model_signature: bool
) -> None:
    """Raise CertificateError for a verified bundle that lacks what this deployment demands."""
    if require_encryption and not bundle.locked_under:
        raise refusal("encryption-missing", "the weights lie in plain, and this deployment demands encrypted ones")
    if require_model_signature and not bundle.model_signed:
        raise refusal(
            "model-signature-missing", "this deployment demands a model.sig and a publisher's key to check it"
        )
    if require_audit:
        demand_audit(bundle.certificate.audit)


def pipeline_predictor(pipeline: VerifiedPipeline, *, device: str = "cpu") -> PipelinePredictor:
    """All members in memory, wired as the manifest says."""
    parts = []
    for member in pipeline.spec.members:
        bundle = pipeline.members[member.name]
        manifest = bundle.manifest
        module = module_from_weights(manifest.architecture, bundle.weights, compression=manifest.compressed)
        parts.append(Part(member, manifest, Predictor(manifest, module, device=device)))
    return PipelinePredictor(pipeline.manifest, pipeline.spec, tuple(parts), device=device)
