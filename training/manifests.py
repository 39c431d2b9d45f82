"""The manifest that a configuration describes: nothing in it depends on the data."""

from __future__ import annotations

import msgspec

from sealgate.certificate.architectures import FAMILIES, Architecture, DeclaredInputs
from sealgate.certificate.decimals import decimal_text
from sealgate.certificate.inputs import InputTensor
from sealgate.certificate.manifest import Manifest, OutputTensor, ValueRange, check_manifest
from sealgate.errors import CertificateError, ConfigurationError, DecodeError
from training.configuration import Configuration
from training.forms import form_of
from training.forms.network import network_options
from training.pretrained import architecture_options


def architecture_of(configuration: Configuration, inputs: tuple[InputTensor, ...]) -> Architecture:
    """The architecture that `[model] family` and `[architecture]` describe for these inputs."""
    model = configuration.model
    declared = DeclaredInputs(
        shapes=tuple(tensor.model_shape for tensor in inputs),
        vocabulary=max(tensor.content.vocabulary for tensor in inputs),
    )
    options = network_options if configuration.data.kind == "network" else architecture_options
    try:
        spec = FAMILIES[model.family].declared(
            options(configuration), inputs=declared, classes=len(configuration.data.classes)
        )
    except DecodeError as error:
        raise ConfigurationError(f"[architecture] of a {model.family}: {error}") from error
    for reason in spec.refusals():
        raise ConfigurationError(f"[architecture] of a {model.family}: {reason}")
    return spec  # type: ignore[return-value]  # FAMILIES are the members of the union


def manifest_of(configuration: Configuration) -> Manifest:
    """The checked manifest; raises ConfigurationError."""
    model, data = configuration.model, configuration.data
    labels = tuple(data.classes.values())
    outputs: tuple[OutputTensor, ...]
    if labels:
        outputs = (
            OutputTensor(name="label", datatype="INT64", shape=(-1,), role="label", labels=labels),
            OutputTensor(name="scores", datatype="FP32", shape=(-1, len(labels)), role="scores", labels=labels),
        )
    else:
        outputs = (OutputTensor(name="value", datatype="FP32", shape=(-1,), role="value"),)
    inputs = form_of(configuration).declared_inputs(configuration)
    span = data.target_range
    manifest = Manifest(
        schema=1,
        name=model.name,
        version=model.version,
        description=model.description.strip(),
        architecture=architecture_of(configuration, inputs),
        inputs=inputs,
        outputs=outputs,
        value_range=None if span is None else ValueRange(low=decimal_text(span[0]), high=decimal_text(span[1])),
        sensitivity=model.sensitivity,
        purposes=model.purposes,
        units_per_row=model.units_per_row,
        explain_units_per_row=model.explain_units_per_row or msgspec.UNSET,
        arithmetic=model.arithmetic,
        warm_up=model.warm_up or msgspec.UNSET,
    )
    try:
        check_manifest(manifest)
    except CertificateError as error:
        raise ConfigurationError(f"no bundle can describe this model: {error}") from error
    return manifest
