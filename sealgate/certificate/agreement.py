"""What manifest and certificate must say alike: a certificate covers a model only if its mechanism can have made it.

A mechanism that solves for one linear layer says nothing about other weights; numbers that were taken from the rows
(the centre of fixed features) need a part of the certificate that paid for them; a model whose certificate counts edges
must not read other edges than noisy ones.

Trusts: the types. Never: looks at weights.
"""

from __future__ import annotations

from sealgate.certificate.architectures import (
    EmbeddingBagSpec,
    FrozenEncoderSpec,
    LinearRegressionSpec,
    LogisticRegressionSpec,
    PipelineSpec,
    ScatterNetSpec,
)
from sealgate.certificate.inputs import GraphEdgesContent
from sealgate.certificate.manifest import Manifest
from sealgate.certificate.mechanisms import AdaSsp, GapAggregation, ObjectivePerturbation, name_of
from sealgate.certificate.refusals import refusal
from sealgate.certificate.schema import Certificate

CENTRE = "mean of the fixed features"
"""What a certificate calls the statistic behind `features.center`."""


def check_agreement(manifest: Manifest, certificate: Certificate) -> None:
    """Raise CertificateError unless the certificate is about this model, and its mechanism can have made it."""
    if (manifest.name, manifest.version) != (certificate.model, certificate.version):
        raise refusal("manifest-inconsistent", "manifest, certificate and signature name different models")
    if isinstance(manifest.architecture, PipelineSpec):
        raise refusal("manifest-inconsistent", "a pipeline is its members: it has no weights of its own")
    _check_mechanism(manifest, certificate)
    architecture = manifest.architecture
    if isinstance(architecture, FrozenEncoderSpec) and (
        architecture.frozen_digest not in certificate.initialisation.pretraining
    ):
        raise refusal("manifest-inconsistent", "the certificate does not name the weights that are public and frozen")
    if isinstance(architecture, ScatterNetSpec) and architecture.centred:
        paid = [part for part in certificate.preprocessing.parts if (part.what, part.mechanism) == (CENTRE, "gaussian")]
        if certificate.preprocessing.statistics != "dp" or len(paid) != 1:
            raise refusal(
                "private-statistics", "the model's centre is a statistic that the certificate did not pay for"
            )


def _check_mechanism(manifest: Manifest, certificate: Certificate) -> None:
    architecture, mechanism = manifest.architecture, certificate.mechanism
    match mechanism:
        case AdaSsp():
            fits = isinstance(architecture, LinearRegressionSpec)
        case ObjectivePerturbation():
            fits = isinstance(architecture, LogisticRegressionSpec) and architecture.classes == 2
        case GapAggregation():
            # Noised aggregates are a table with a row for each node; a model of anything else was made in another way.
            table = isinstance(architecture, EmbeddingBagSpec) and architecture.length == 1
            fits = table or mechanism.serving == "nothing"
            if any(isinstance(tensor.content, GraphEdgesContent) for tensor in manifest.inputs):
                raise refusal("serving-leaks", "the served model reads neighbours without aggregation noise")
        case _:
            fits = True
    if not fits:
        raise refusal("mechanism", f"{name_of(mechanism)} does not make a model of the family {manifest.family}")
