"""From a declared architecture to its module: one definition for training and for serving, built from the manifest.

The modules are in `families/`. Sizes were bounded when the manifest was parsed. Never: draws random numbers or reads
files.
"""

from __future__ import annotations

import torch
from torch import nn

from sealgate.certificate.architectures import (
    Architecture,
    CnnSpec,
    EmbeddingBagSpec,
    FrozenEncoderSpec,
    GraphSpec,
    LinearRegressionSpec,
    LogisticRegressionSpec,
    MlpSpec,
    PipelineSpec,
    RecurrentSpec,
    ScatterNetSpec,
    TransformerSpec,
)
from secure_runtime.models.families.cnn import Cnn
from secure_runtime.models.families.embedding_bag import EmbeddingBag
from secure_runtime.models.families.frozen_encoder import FrozenEncoder
from secure_runtime.models.families.graph import Graph
from secure_runtime.models.families.linear import MLP, LinearModel
from secure_runtime.models.families.recurrent import Recurrent
from secure_runtime.models.families.scatternet import ScatterNet
from secure_runtime.models.families.transformer import Transformer


def build(architecture: Architecture) -> nn.Module:
    """The module for an architecture of a checked manifest, with all weights zero."""
    match architecture:
        case LinearRegressionSpec() | LogisticRegressionSpec():
            return LinearModel(architecture)
        case MlpSpec():
            return MLP(architecture)
        case ScatterNetSpec():
            return ScatterNet(architecture)
        case CnnSpec():
            return Cnn(architecture)
        case RecurrentSpec():
            return Recurrent(architecture)
        case TransformerSpec():
            return Transformer(architecture)
        case EmbeddingBagSpec():
            return EmbeddingBag(architecture)
        case FrozenEncoderSpec():
            return FrozenEncoder(architecture)
        case GraphSpec():
            return Graph(architecture)
        case PipelineSpec():
            raise TypeError("a pipeline is its members: build those")


def parts_of(module: nn.Module) -> tuple[nn.Module | None, nn.Module]:
    """What is fixed and comes first, if anything, and what is trained: module(*inputs) is trained(fixed(*inputs))."""
    match module:
        case ScatterNet() | FrozenEncoder():
            return module.features, module.head
        case _:
            return None, module


def probabilities(architecture: Architecture, logits: torch.Tensor) -> torch.Tensor:
    """Class probabilities [n, classes] from logits [n, logits]. Two classes: the second one's from a sigmoid."""
    if architecture.classes == 2:
        return torch.cat((torch.sigmoid(-logits), torch.sigmoid(logits)), dim=1)
    return torch.softmax(logits, dim=1)
