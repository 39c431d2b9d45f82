"""The declared architectures, a module for each kind: what a manifest may name, and the weights that go with it."""

from __future__ import annotations

import typing
from typing import TypeAlias

from sealgate.certificate.architectures.cnn import CnnSpec
from sealgate.certificate.architectures.embedding_bag import EmbeddingBagSpec
from sealgate.certificate.architectures.frozen_encoder import FrozenEncoderSpec
from sealgate.certificate.architectures.graph import GraphSpec
from sealgate.certificate.architectures.linear import LinearRegressionSpec, LogisticRegressionSpec, MlpSpec
from sealgate.certificate.architectures.pipeline import PipelineSpec
from sealgate.certificate.architectures.recurrent import RecurrentSpec
from sealgate.certificate.architectures.scatternet import ScatterNetSpec
from sealgate.certificate.architectures.spec import ACTIVATIONS, DeclaredInputs, Spec
from sealgate.certificate.architectures.transformer import TransformerSpec

Architecture: TypeAlias = (
    LinearRegressionSpec
    | LogisticRegressionSpec
    | MlpSpec
    | ScatterNetSpec
    | CnnSpec
    | RecurrentSpec
    | TransformerSpec
    | EmbeddingBagSpec
    | FrozenEncoderSpec
    | GraphSpec
    | PipelineSpec
)
FAMILIES: dict[str, type[Spec]] = {
    str(family.__struct_config__.tag): family for family in typing.get_args(Architecture) if family is not PipelineSpec
}
"""What can be trained: all but pipelines, which are made from these."""

__all__ = [
    "ACTIVATIONS",
    "FAMILIES",
    "Architecture",
    "CnnSpec",
    "DeclaredInputs",
    "EmbeddingBagSpec",
    "FrozenEncoderSpec",
    "GraphSpec",
    "LinearRegressionSpec",
    "LogisticRegressionSpec",
    "MlpSpec",
    "PipelineSpec",
    "RecurrentSpec",
    "ScatterNetSpec",
    "Spec",
    "TransformerSpec",
]
