"""Step 8: admitted requests become answers. Parse strictly, batch what arrived together, run, noise, reduce.

Requests of one sweep that go to the same model are one batch, whoever sent them; a request's answer does not depend on
its neighbours' rows. How long a sweep takes does depend on them: docs/what-this-does-not-prove.md says so.

A large request runs in slices, so that memory does not grow with it, and ends with its grant: nobody waits any more.

Trusts: `Admitted` (the gatekeeper made it) and verified models. Never: lets one request's error reach another's answer,
or the worker; raises.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import torch

from sealgate.ambient import Clock, Entropy, monotonic_ns, now_us, process_cpu_ns, random_bytes
from sealgate.certificate.inputs import Content
from sealgate.errors import DecodeError
from sealgate.limits import MAX_FIELD_SECTION, MAX_INNER_MESSAGE
from sealgate.protocol import bhttp, inference
from sealgate.protocol.frames import Obligations
from sealgate.protocol.obligations import FIELD, encode_obligations
from secure_runtime.errors import BadInput
from secure_runtime.limits import SLICE_ROWS
from secure_runtime.models.bundle import LoadedModel
from secure_runtime.worker.engine.lookup import LoadedModels, Lookup
from secure_runtime.worker.engine.noise import noised, require_few_rows
from secure_runtime.worker.engine.obligations import apply_to_scores, apply_to_values
from secure_runtime.worker.engine.tensors import from_torch, to_model
from secure_runtime.worker.gatekeeper import Admitted

_MODEL_ERROR = BadInput("the model could not be run on this input", status=500, code="model-error")
_TOO_SLOW = BadInput("the rows could not be answered in time; send fewer at once", status=504, code="model-error")
_TOO_LARGE = "the answer would be larger than a message may be; send fewer rows at once"
_MAX_BODY = MAX_INNER_MESSAGE - MAX_FIELD_SECTION  # of an answer: what stands around it has room
_JSON = (("content-type", "application/json"),)


class _TooSlow(Exception):
    """The grants of a batch ended while it ran."""


@dataclass(frozen=True, kw_only=True)
class EngineAnswer:
    """The inner response, and what the completion says about it."""

    response: bhttp.Response
    outcome: str  # "completed" or "failed"
    reason: str
    units: int
    model_digest: str
    certificate_digest: str
    eps_micro: int = 0  # what noised answers spent, in millionths


@dataclass(kw_only=True)
class _Job:
    """One inference request on its way through a batch."""

    index: int
    admitted: Admitted
    model: LoadedModel
    request: inference.InferRequest
    wants_binary: inference.BinaryOutputs
    inputs: dict[str, torch.Tensor]  # by the manifest's names, [rows, ...] each
    rows: int


@dataclass(frozen=True)
class Share:
    """What one request had of a batch: its rows of how many, the batch's time, and its part of the batch's processor
    time, by rows."""

    rows: int
    batch_rows: int
    run_us: int
    cpu_us: int


class Engine:
    """All loaded models. Owned by the worker's only thread; after the seal it opens no file."""

    def __init__(
        self,
        models: Mapping[str, LoadedModel] | Lookup,
        *,
        max_batch_rows: int,
        clock: Clock = now_us,
        entropy: Entropy = random_bytes,
    ) -> None:
        self._models: Lookup = LoadedModels(models) if isinstance(models, Mapping) else models
        self._max_batch_rows = max_batch_rows
        self._clock = clock
        self._entropy = entropy
        self.shares: dict[int, Share] = {}  # of the newest `run`, by the place of an answer; none where nothing ran

    def run(self, admitted: Sequence[Admitted]) -> list[EngineAnswer]:
        """One answer for each request, in order. Errors become sealed error answers, never exceptions."""
        answers: list[EngineAnswer | None] = [None] * len(admitted)
        self.shares = {}
        by_model: dict[tuple[str, str], list[_Job]] = {}
        for index, one in enumerate(admitted):
            model = self._models.find(one.target.model, one.target.version or one.grant.version)
            try:
                if model is None:
                    raise BadInput(
                        f"model '{one.target.model}' version '{one.target.version or 'any'}' is not loaded",
                        status=404,
                        code="model-not-loaded",
                    )
                if one.target.operation == "read-model":
                    answers[index] = _described(one, model, self._models.versions(model.facts.name))
                else:
                    known = (model.facts.name, model.facts.version)
                    by_model.setdefault(known, []).append(_parse(index, one, model, self._clock))
            except BadInput as error:
                answers[index] = _failed(error, model)
            except Exception:  # memory, above all: a document of 16 MiB can be many times that as objects
                answers[index] = _failed(_MODEL_ERROR, model)
        for jobs in by_model.values():
            for batch in self._batches(jobs):
                began_ns, cpu_ns = monotonic_ns(), process_cpu_ns()
                for job, answer in zip(batch, _run_batch(batch, self._clock, self._entropy), strict=True):
                    answers[job.index] = answer
                self._share_out(batch, run_ns=monotonic_ns() - began_ns, cpu_ns=process_cpu_ns() - cpu_ns)
        given = [answer for answer in answers if answer is not None]
        return [_stated(answer, one) for answer, one in zip(given, admitted, strict=True)]

    def _share_out(self, batch: Sequence[_Job], *, run_ns: int, cpu_ns: int) -> None:
        rows = sum(job.rows for job in batch)
        for job in batch:
            cpu_us = cpu_ns * job.rows // max(rows, 1) // 1000
            self.shares[job.index] = Share(job.rows, rows, run_us=run_ns // 1000, cpu_us=cpu_us)

    def _batches(self, jobs: Sequence[_Job]) -> list[list[_Job]]:
        """Cut into batches of at most `max_batch_rows` rows; a larger single request is a batch of its own."""
        batches: list[list[_Job]] = []
        rows = 0
        for job in jobs:
            if not batches or rows + job.rows > self._max_batch_rows:
                batches.append([])
                rows = 0
            batches[-1].append(job)
            rows += job.rows
        return batches


def _parse(index: int, admitted: Admitted, model: LoadedModel, clock: Clock) -> _Job:
    def go_on() -> None:
        if clock() >= admitted.grant.expires_us:
            raise BadInput(str(_TOO_SLOW), status=_TOO_SLOW.status, code="model-error")  # a shared one keeps traces

    try:
        request, wants_binary = inference.decode_infer_request(admitted.request.fields, admitted.request.body)
    except DecodeError as error:
        raise BadInput(str(error)) from None
    specs = model.manifest.inputs
    given = {tensor.name: tensor for tensor in request.inputs}
    expected = ", ".join(f"'{spec.name}'" for spec in specs)
    if len(given) != len(request.inputs) or set(given) != {spec.name for spec in specs}:
        raise BadInput(f"the model takes exactly these inputs: {expected}")
    known = {spec.name for spec in model.manifest.outputs}
    for wanted in request.outputs:
        if wanted.name not in known:
            raise BadInput(f"the model has no output '{wanted.name}'; it has: {', '.join(sorted(known))}")
    inputs = {spec.name: to_model(given[spec.name], spec, go_on=go_on) for spec in specs}
    rows = inputs[specs[0].name].shape[0]
    if any(one.shape[0] != rows for one in inputs.values()):
        raise BadInput(f"the inputs {expected} must have the same number of rows", code="input-shape")
    obligations = admitted.grant.obligations
    if obligations.noise_epsilon_micro:
        require_few_rows(rows, model.manifest, noise_rows=obligations.noise_rows)
    return _Job(
        index=index,
        admitted=admitted,
        model=model,
        request=request,
        wants_binary=wants_binary,
        inputs=inputs,
        rows=rows,
    )


def _run_batch(batch: Sequence[_Job], clock: Clock, entropy: Entropy) -> list[EngineAnswer]:
    try:
        outputs = _predict(batch, clock)
    except Exception as error:
        if len(batch) > 1:  # one bad request must not fail its neighbours
            return [answer for job in batch for answer in _run_batch([job], clock, entropy)]
        if isinstance(error, BadInput):  # what is wrong with this one request's numbers
            return [_failed(error, batch[0].model)]
        return [_failed(_TOO_SLOW if isinstance(error, _TooSlow) else _MODEL_ERROR, batch[0].model)]
    answers, start = [], 0
    for job in batch:
        end = start + job.rows
        try:
            answers.append(_answered(job, {name: values[start:end] for name, values in outputs.items()}, entropy))
        except BadInput as error:
            answers.append(_failed(error, job.model))
        except Exception:
            answers.append(_failed(_MODEL_ERROR, job.model))
        start = end
    return answers


def _predict(batch: Sequence[_Job], clock: Clock) -> Mapping[str, torch.Tensor]:
    """All rows of a batch, a slice at a time: what a model needs per row does not add up, and time is looked at."""
    model, rows = batch[0].model, sum(job.rows for job in batch)
    inputs = {spec.name: torch.cat([job.inputs[spec.name] for job in batch]) for spec in model.manifest.inputs}
    expires_us = max(job.admitted.grant.expires_us for job in batch)
    slices: list[Mapping[str, torch.Tensor]] = []
    at_once = model.manifest.architecture.rows_at_once(SLICE_ROWS)
    for start in range(0, rows, at_once):
        if start and clock() >= expires_us:
            raise _TooSlow
        slices.append(model.predict({name: one[start : start + at_once] for name, one in inputs.items()}))
    return {name: torch.cat([one[name] for one in slices]) for name in slices[0]}


def _require_room(outputs: Mapping[str, torch.Tensor], wants_binary: inference.BinaryOutputs) -> None:
    """Raise BadInput for an answer that cannot fit, before it is written: a number in JSON takes two bytes or more."""
    least = 0
    for name, values in outputs.items():
        binary = wants_binary == "all" or name in wants_binary
        least += values.numel() * (values.element_size() if binary else 2)
    if least > _MAX_BODY:
        raise BadInput(_TOO_LARGE, status=413)


def _answered(job: _Job, outputs: Mapping[str, torch.Tensor], entropy: Entropy) -> EngineAnswer:
    """Noise first, if the permit demands it; from then on the true outputs are out of reach, and epsilon is spent."""
    wanted = {output.name for output in job.request.outputs}
    _require_room({name: values for name, values in outputs.items() if not wanted or name in wanted}, job.wants_binary)
    epsilon_micro = job.admitted.grant.obligations.noise_epsilon_micro
    if not epsilon_micro:
        return _formed(job, outputs, wanted)
    private = noised(outputs, job.model.manifest, epsilon_micro=epsilon_micro, entropy=entropy)
    try:
        answer = _formed(job, private, wanted)
    except BadInput as error:  # that it failed is told, and may depend on what was drawn
        answer = _failed(error, job.model)
    except Exception:
        answer = _failed(_MODEL_ERROR, job.model)
    return replace(answer, eps_micro=job.rows * epsilon_micro)


def _formed(job: _Job, outputs: Mapping[str, torch.Tensor], wanted: Container[str]) -> EngineAnswer:
    """The answer as the permit allows it, in the caller's form."""
    obligations = job.admitted.grant.obligations
    tensors: list[inference.Tensor] = []
    for spec in job.model.manifest.outputs:
        if job.request.outputs and spec.name not in wanted:
            continue
        values: torch.Tensor | None = outputs[spec.name]
        assert values is not None
        if spec.role == "scores":
            values = apply_to_scores(values, obligations)
        elif spec.role == "value":
            values = apply_to_values(values, obligations)
        if values is None:
            continue
        tensors.append(from_torch(spec.name, values, spec.datatype))
    facts = job.model.facts
    fields, body = inference.encode_infer_response(
        inference.InferResponse(
            model_name=facts.name, model_version=facts.version, outputs=tuple(tensors), id=job.request.id
        ),
        binary_outputs=job.wants_binary,
    )
    if len(body) > _MAX_BODY:
        raise BadInput(_TOO_LARGE, status=413)
    return EngineAnswer(
        response=bhttp.Response(status=200, fields=tuple(fields), body=body),
        outcome="completed",
        reason="",
        units=job.rows * job.model.manifest.units_per_row,
        model_digest=facts.model_digest,
        certificate_digest=facts.certificate_digest,
    )


def _stated(answer: EngineAnswer, admitted: Admitted) -> EngineAnswer:
    """The answer, saying inside the seal what was done to it and what its reader owes."""
    obligations = admitted.grant.obligations
    if answer.outcome != "completed" or admitted.target.operation != "infer":  # nothing of an inference is in it
        obligations = Obligations(
            noise_epsilon_micro=obligations.noise_epsilon_micro if answer.eps_micro else 0,
            receipt_required=obligations.receipt_required,
            single_use=obligations.single_use,
        )
    stated = encode_obligations(obligations)
    if not stated:
        return answer
    response = replace(answer.response, fields=(*answer.response.fields, (FIELD, stated)))
    return replace(answer, response=response)


def _described(admitted: Admitted, model: LoadedModel, versions: tuple[str, ...]) -> EngineAnswer:
    facts, manifest = model.facts, model.manifest
    body: dict[str, object]
    if admitted.target.what == "ready":
        body = {"name": facts.name, "ready": True}
    else:
        body = {
            "name": facts.name,
            "versions": versions,
            "platform": "sealgate_torch",
            "inputs": [{"name": i.name, "datatype": i.datatype, "shape": list(i.shape)} for i in manifest.inputs],
            "outputs": [{"name": o.name, "datatype": o.datatype, "shape": list(o.shape)} for o in manifest.outputs],
            "parameters": {
                "columns": [column.name for column in manifest.inputs[0].columns],
                "contents": {tensor.name: _kind(tensor.content) for tensor in manifest.inputs},
                "labels": {output.name: list(output.labels) for output in manifest.outputs if output.labels},
                "model_digest": facts.model_digest,
                "certificate_digest": facts.certificate_digest,
                "epsilon_micro": facts.epsilon_micro,
                "delta": facts.delta,
                "privacy_unit": facts.privacy_unit,
            },
        }
    return EngineAnswer(
        response=bhttp.Response(status=200, fields=_JSON, body=msgspec.json.encode(body)),
        outcome="completed",
        reason="",
        units=0,
        model_digest=facts.model_digest,
        certificate_digest=facts.certificate_digest,
    )


def _kind(content: Content) -> str:
    """ "table", "image", "text", ...: what an input holds."""
    return str(content.__struct_config__.tag)


def _failed(error: BadInput, model: LoadedModel | None) -> EngineAnswer:
    return EngineAnswer(
        response=bhttp.Response(status=error.status, fields=_JSON, body=msgspec.json.encode({"error": str(error)})),
        outcome="failed",
        reason=error.code,
        units=0,
        model_digest=model.facts.model_digest if model else "",
        certificate_digest=model.facts.certificate_digest if model else "",
    )
