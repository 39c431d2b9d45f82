"""From a bundle on disk to a model in memory: only after verification, only from the verified bytes.

Trusts: `sealgate.certificate.bundle.verify_bundle`. Never: unpickles; reads the weights file a second time; imports or
opens anything in `predict`, so that it works after the worker's sandbox is sealed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from sealgate.certificate.architectures import Architecture
from sealgate.certificate.audits import demand_audit
from sealgate.certificate.bundle import VerifiedBundle, verify_bundle
from sealgate.certificate.manifest import Manifest
from sealgate.certificate.publishers import Publishers
from sealgate.certificate.refusals import refusal
from sealgate.certificate.sealed_weights import DataKeyOf, no_data_key
from sealgate.certificate.weights import parse_weights_header
from sealgate.protocol.frames import ModelFacts
from secure_runtime.errors import BadInput
from secure_runtime.models.architectures import build
from secure_runtime.models.predictor import Predictor


@dataclass(frozen=True)
class LoadedModel:
    """A verified model, ready to answer. `facts` is what evidence and records say about it."""

    facts: ModelFacts
    manifest: Manifest
    predictor: Predictor = field(repr=False)

    def predict(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Raw inputs by manifest name, [n, ...] each -> outputs by manifest name. Raises BadInput."""
        return self.predictor.predict(inputs)


def module_from_weights(architecture: Architecture, weights: bytes) -> nn.Module:
    """Build the module and fill it from the bytes of a safetensors file; raises CertificateError if they do not fit."""
    module = build(architecture)
    parameters = dict(module.state_dict(keep_vars=True))
    places = parse_weights_header(weights)
    if {name: place.shape for name, place in places.items()} != {
        name: tuple(parameter.shape) for name, parameter in parameters.items()
    }:
        raise refusal("weights-shape", "the tensors are not those of the declared architecture")
    with torch.no_grad():
        for name, place in places.items():
            # A bytearray, because torch warns about memory that it must not write to.
            values = torch.frombuffer(bytearray(weights[place.start : place.end]), dtype=torch.float32)
            if not bool(torch.isfinite(values).all()):
                raise refusal("weights-shape", "a weight is not a finite number")
            parameters[name].copy_(values.reshape(place.shape))
    return module


def load_verified(bundle: VerifiedBundle, *, device: str = "cpu") -> LoadedModel:
    """The model of a verified bundle."""
    module = module_from_weights(bundle.manifest.architecture, bundle.weights)
    return LoadedModel(bundle.facts, bundle.manifest, Predictor(bundle.manifest, module, device=device))


def load_bundle(
    directory: Path,
    publishers: Publishers,
    *,
    device: str = "cpu",
    require_audit: bool = False,
    require_encryption: bool = False,
    require_model_signature: bool = False,
    data_key: DataKeyOf = no_data_key,
) -> LoadedModel:
    """Verify the bundle in `directory`, then load it; raises CertificateError and loads nothing otherwise.

    With `require_audit` a certificate that states no audit of the training is refused too; with `require_encryption`
    weights that lie there in plain; with `require_model_signature` a bundle whose `model.sig` was not checked.
    `data_key` finds the key of encrypted weights.
    """
    bundle = verify_bundle(directory, publishers, data_key=data_key)
    if require_encryption and not bundle.locked_under:
        raise refusal("encryption-missing", "the weights lie in plain, and this deployment demands encrypted ones")
    if require_model_signature and not bundle.model_signed:
        raise refusal(
            "model-signature-missing", "this deployment demands a model.sig and a publisher's key to check it"
        )
    if require_audit:
        demand_audit(bundle.certificate.audit)
    return load_verified(bundle, device=device)


def warm_up(model: LoadedModel, *, max_rows: int = 256) -> None:
    """Run every path of `predict` once, refusals included, so that nothing is imported or allocated lazily later.

    Batch sizes: one row, a few, a full batch; torch picks other kernels for each.
    """
    prepared = model.predictor.inputs
    most = model.manifest.architecture.rows_at_once(max_rows)
    for rows in sorted({min(rows, most) for rows in (1, 2, 7, 64, max_rows)}):
        for output in model.predict({one.spec.name: one.zeros(rows) for one in prepared}).values():
            output.tolist()
    first = prepared[0]
    for wrong in (
        first.zeros(0),
        torch.zeros(1, *first.shape, 1, dtype=first.wire_dtype),
        torch.zeros(1, dtype=first.wire_dtype),
        torch.zeros(1, *first.shape, dtype=torch.complex64),
        first.zeros(1) - 1 if first.spec.content.vocabulary else torch.full((1, *first.shape), float("nan")),
    ):
        with contextlib.suppress(BadInput):
            model.predict({**{one.spec.name: one.zeros(1) for one in prepared}, first.spec.name: wrong})
