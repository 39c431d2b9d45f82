"""The declared architectures, a module for each kind: what a manifest may name, and the weights that go with it."""

from __future__ import annotations

from typing import TypeAlias

from sealgate.certificate.architectures.linear import LinearRegressionSpec, LogisticRegressionSpec, MlpSpec
from sealgate.certificate.architectures.spec import ACTIVATIONS, DeclaredInputs, Spec

Architecture: TypeAlias = LinearRegressionSpec | LogisticRegressionSpec | MlpSpec
FAMILIES: dict[str, type[Spec]] = {
    str(family.__struct_config__.tag): family for family in (LinearRegressionSpec, LogisticRegressionSpec, MlpSpec)
}

__all__ = [
    "ACTIVATIONS",
    "FAMILIES",
    "Architecture",
    "DeclaredInputs",
    "LinearRegressionSpec",
    "LogisticRegressionSpec",
    "MlpSpec",
    "Spec",
]
