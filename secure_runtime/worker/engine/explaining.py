"""An `explain` request to its sealed answer: which class, which method, how much work, and what may be told.

    request   as `infer`; parameters: `method` (metadata name those that the model has), `target` (a class by name or
              index; left out: the class that the model gives, row by row)
    answer    for each input `attribution.INPUT` FP64 in the input's model shape, and for texts `spans.INPUT` INT64
              [rows, tokens, 2], where in the text each token stands (first character, one past the last; -1, -1: none);
              `output` and `baseline` FP64 [rows], the explained number for row and baseline; `target` INT64 [rows];
              in its parameters the `method`, the most `evaluations` of the model for a row, and the `seed` of orders

An explanation says more of a model than its answer does, so it has an action, a price and bounds of its own. A duty to
noise an answer, or to keep scores back, is one that an explanation would undo: under such a permit there is none.
Rounding applies to every number. Of the training data it says no more than the certificate's epsilon allows, because it
is computed from the weights alone.

What can be refused is refused before the first row. What fails later costs the rows that were begun until then:
otherwise whoever asks for an answer that is too large would have the work for nothing.

Trusts: `Job`. Never: explains under a duty that it would break; does more work than its bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import torch

from sealgate.certificate.inputs import TextContent
from sealgate.protocol import bhttp, inference
from sealgate.protocol.frames import Obligations
from secure_runtime.errors import BadInput
from secure_runtime.limits import MAX_EXPLAIN_EVALUATIONS, MAX_EXPLAIN_ROWS, MAX_EXPLAIN_WORK
from secure_runtime.models.tokenizers import spans_of
from secure_runtime.worker.engine.answers import EngineAnswer, completed, failed
from secure_runtime.worker.engine.attribution import (
    METHODS,
    Attributions,
    Explainer,
    evaluations,
    methods_of,
    price,
    seed_of,
)
from secure_runtime.worker.engine.movable import Movable
from secure_runtime.worker.engine.obligations import apply_to_values
from secure_runtime.worker.engine.parsing import Job, require_outputs
from secure_runtime.worker.engine.room import require_fitting, too_large
from secure_runtime.worker.engine.tensors import from_torch, texts_of, together

_PARAMETERS = frozenset({"method", "target"})


def explained(job: Job, *, go_on: Callable[[], None]) -> EngineAnswer:
    """The answer to one request for explanations; raises BadInput. `go_on` is called before each row and whenever
    the model is run for one."""
    _require_permitted(job.admitted.grant.obligations)
    model = Movable(job.model.manifest, job.model.predictor)
    method = _method(job, methods_of(model))
    _require_bounded(job, model, method)
    explainer = Explainer(model, method, go_on=go_on)
    require_outputs(job.request, _names(job, explainer), of="the explanation")
    inputs = {name: together([given]) for name, given in job.inputs.items()}
    targets = _targets(job, inputs, go_on)
    rows: list[Attributions] = []
    begun = 0
    try:
        for row, target in enumerate(targets):
            go_on()
            begun = row + 1
            rows.append(explainer.explain({name: one[row : row + 1] for name, one in inputs.items()}, target))
            if not all(bool(torch.isfinite(values).all()) for values in rows[-1].by_input.values()):
                others = ", ".join(name for name in methods_of(model) if name != method)
                why = f"row {row + 1} has no {method}; try another method: {others}"
                raise BadInput(why, code="explain-not-offered")
        return _formed(job, model, _outputs(job, rows, targets, go_on), method)
    except BadInput as error:
        return msgspec.structs.replace(failed(error, job.model), units=begun * price(model, method))


def _names(job: Job, explainer: Explainer) -> list[str]:
    """Every output that `_outputs` will make."""
    texts = [spec.name for spec in job.model.manifest.inputs if isinstance(spec.content, TextContent)]
    spans = [f"spans.{name}" for name in texts]
    return [*(f"attribution.{name}" for name in explainer.explained), *spans, "output", "baseline", "target"]


def _require_permitted(obligations: Obligations) -> None:
    if obligations.noise_epsilon_micro or obligations.top_k is not None or obligations.hide_scores:
        raise BadInput(
            "the permit demands noise or fewer scores, which an explanation would undo: there is none",
            status=403,
            code="explain-not-permitted",
        )


def _method(job: Job, offered: tuple[str, ...]) -> str:
    if not offered:
        raise BadInput("explanations of this model are not offered here", status=501, code="explain-not-offered")
    unknown = sorted(set(job.request.parameters) - _PARAMETERS)
    if unknown:
        raise BadInput(f"unknown parameter '{unknown[0]}'; an explanation takes: {', '.join(sorted(_PARAMETERS))}")
    asked = job.request.parameters.get("method", offered[0])
    if asked not in offered:
        known = "is no method" if asked not in METHODS else "does not suit this model"
        raise BadInput(f"'{asked}' {known}; it can be explained by: {', '.join(offered)}", code="explain-not-offered")
    return str(asked)


def _require_bounded(job: Job, model: Movable, method: str) -> None:
    """Raise BadInput for more work than one request may make."""
    each = evaluations(model, method)
    most = min(
        MAX_EXPLAIN_ROWS,
        MAX_EXPLAIN_EVALUATIONS // each,
        MAX_EXPLAIN_WORK // max(1, each * job.model.manifest.architecture.row_work()),
    )
    if job.rows > most:
        fewer = f"send at most {most} rows at once" if most else "take another method, or ask about a smaller model"
        raise BadInput(f"explaining {job.rows} rows by {method} is too much work: {fewer}", status=413)


def _targets(job: Job, inputs: Mapping[str, torch.Tensor], go_on: Callable[[], None]) -> list[int]:
    """The class that is explained, row by row; 0 for values."""
    manifest, asked = job.model.manifest, job.request.parameters.get("target")
    labels = next((output.labels for output in manifest.outputs if output.role == "label"), ())
    if not labels:
        if asked is not None:
            raise BadInput("the model gives a value: there is no target to choose")
        return [0] * job.rows
    if asked is None:
        label = next(output.name for output in manifest.outputs if output.role == "label")
        most = manifest.architecture.rows_at_once(max(1, job.rows))
        parts: list[torch.Tensor] = []
        for at in range(0, job.rows, most):
            go_on()
            parts.append(job.model.predict({name: values[at : at + most] for name, values in inputs.items()})[label])
        return [int(index) for index in torch.cat(parts).tolist()]
    if isinstance(asked, str) and asked in labels:
        return [labels.index(asked)] * job.rows
    if type(asked) is int and 0 <= asked < len(labels):
        return [asked] * job.rows
    raise BadInput(f"the target is neither a class of the model nor the index of one, 0 to {len(labels) - 1}")


def _outputs(
    job: Job, rows: list[Attributions], targets: list[int], go_on: Callable[[], None]
) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for spec in job.model.manifest.inputs:
        if spec.name in rows[0].by_input:
            found[f"attribution.{spec.name}"] = torch.stack([row.by_input[spec.name] for row in rows])
        if isinstance(spec.content, TextContent):
            sent = next(tensor for tensor in job.request.inputs if tensor.name == spec.name)
            spans = [spans_of(text, spec.content.tokenizer, go_on=go_on) for text in texts_of(sent, spec)]
            found[f"spans.{spec.name}"] = torch.tensor(spans, dtype=torch.int64)
    found["output"] = torch.tensor([row.output for row in rows], dtype=torch.float64)
    found["baseline"] = torch.tensor([row.baseline for row in rows], dtype=torch.float64)
    found["target"] = torch.tensor(targets, dtype=torch.int64)
    return found


def _formed(job: Job, model: Movable, outputs: dict[str, torch.Tensor], method: str) -> EngineAnswer:
    wanted = {output.name for output in job.request.outputs}
    tensors: list[inference.Tensor] = []
    for name, values in outputs.items():
        if wanted and name not in wanted:
            continue
        if values.is_floating_point():
            values = apply_to_values(values.to(torch.float64), job.admitted.grant.obligations)
        tensors.append(from_torch(name, values, "FP64" if values.is_floating_point() else "INT64"))
    if sum(len(tensor.data) for tensor in tensors) > job.max_body:
        raise too_large("explanation")
    facts = job.model.facts
    seed = seed_of(method)
    fields, body = inference.encode_infer_response(
        inference.InferResponse(
            model_name=facts.name,
            model_version=facts.version,
            outputs=tuple(tensors),
            id=job.request.id,
            parameters={
                "method": method,
                "evaluations": evaluations(model, method),
                **({} if seed is None else {"seed": seed}),
            },
        ),
        binary_outputs=job.wants_binary,
    )
    require_fitting(fields, body, max_body=job.max_body, what="explanation")
    response = bhttp.Response(status=200, fields=tuple(fields), body=body)
    return completed(job.model, response, units=job.rows * price(model, method))
