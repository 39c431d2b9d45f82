"""From a bundle on disk to a model in memory: only after verification, only from the verified bytes.

Trusts: `sealgate.certificate.bundle.verify_bundle`. Never: unpickles; reads the weights file a second time; imports or
opens anything in `predict`, so that it works after the worker's sandbox is sealed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from sealgate.certificate.bundle import VerifiedBundle, verify_bundle
from sealgate.certificate.manifest import Manifest
from sealgate.certificate.pipeline import is_pipeline, verify_pipeline
from sealgate.certificate.publishers import Publishers
from sealgate.certificate.sealed_weights import DataKeyOf, no_data_key
from sealgate.protocol.frames import ModelFacts
from secure_runtime.errors import BadInput
from secure_runtime.limits import MAX_WORKER_WORDS, SLICE_ROWS
from secure_runtime.models.pipeline import PipelinePredictor
from secure_runtime.models.pipeline_loading import pipeline_predictor, require_demands
from secure_runtime.models.predictor import Predictor
from secure_runtime.models.weights import module_from_weights as module_from_weights


@dataclass(frozen=True)
class LoadedModel:
    """A verified model, ready to answer. `facts` is what evidence and records say about it, `memory_bytes` what it took
    to load it and to warm it up, where that was measured."""

    facts: ModelFacts
    manifest: Manifest
    predictor: Predictor | PipelinePredictor = field(repr=False)
    memory_bytes: int = 0
    graphs: str = ""  # what came of capturing it, if that was asked for

    def predict(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Raw inputs by manifest name, [n, ...] each -> outputs by manifest name. Raises BadInput."""
        return self.predictor.predict(inputs)

    def predict_each(self, batches: Iterable[Mapping[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
        """`predict` of each, in order; a batch is taken when there is room for it on the device."""
        return self.predictor.predict_each(batches)


def load_verified(bundle: VerifiedBundle, *, device: str = "cpu") -> LoadedModel:
    """The model of a verified bundle."""
    manifest = bundle.manifest
    module = module_from_weights(manifest.architecture, bundle.weights, compression=manifest.compressed)
    return LoadedModel(bundle.facts, manifest, Predictor(manifest, module, device=device))


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
    `data_key` finds the key of encrypted weights. Of a pipeline all this is demanded of every member.
    """
    demands = partial(
        require_demands,
        require_audit=require_audit,
        require_encryption=require_encryption,
        require_model_signature=require_model_signature,
    )
    if is_pipeline(directory):
        pipeline = verify_pipeline(directory, publishers, data_key=data_key)
        for member in pipeline.members.values():
            demands(member)
        return LoadedModel(pipeline.facts, pipeline.manifest, pipeline_predictor(pipeline, device=device))
    bundle = verify_bundle(directory, publishers, data_key=data_key)
    demands(bundle)
    return load_verified(bundle, device=device)


def captured(model: LoadedModel, *, device: str) -> LoadedModel:
    """The model, answering small batches by CUDA graphs where that can be done; `graphs` says what came of it."""
    if device == "cpu":
        return replace(model, graphs="not captured: this worker computes on the cpu, and graphs are for GPUs")
    try:
        sizes = model.predictor.capture_graphs()
    except RuntimeError as error:
        why = (str(error).splitlines() or [""])[0][:MAX_WORKER_WORDS]
        return replace(model, graphs=f"not captured, runs as usual: {why}")
    return replace(model, graphs=f"captured for {', '.join(map(str, sizes))} rows")


def warm_up(model: LoadedModel, *, max_rows: int = 256) -> None:
    """Run every path of `predict` once, refusals included, so that nothing is imported or allocated lazily later.

    Batch sizes: one row, a few, a full batch, and those that the manifest names; torch picks other kernels for each.
    """
    prepared = model.predictor.inputs
    most = model.manifest.architecture.rows_at_once(max_rows)
    sizes = {min(rows, most) for rows in (1, 2, 7, 64, max_rows)}
    at_once = model.manifest.architecture.rows_at_once(SLICE_ROWS)
    for rows in sorted(sizes | {min(rows, at_once) for rows in model.manifest.warm_up_sizes}):
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
