"""Step 8: admitted requests become answers. Parse strictly, batch what arrived together, run, noise, reduce.

Requests of one sweep that go to the same model are one batch, whoever sent them; a request's answer does not depend on
its neighbours' rows. How long a sweep takes does depend on them: docs/what-this-does-not-prove.md says so.

A large request runs in slices, so that memory does not grow with it, and ends with its grant: nobody waits any more.
An answer that would be too large is refused before the model runs; answers that are too large together are made one
after the other, so that the memory of a sweep is that of one message, however much more than its input a model gives.
Explanations are not batched: each is many times the work of an answer, and runs by itself (`explaining.py`).

Trusts: `Admitted` (the gatekeeper made it) and verified models. Never: lets one request's error reach another's answer,
or the worker; raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
import torch

from sealgate.ambient import Clock, Entropy, monotonic_ns, now_us, process_cpu_ns, random_bytes
from sealgate.certificate.manifest import Manifest
from sealgate.limits import DEFAULT_MESSAGE
from sealgate.protocol import bhttp, inference
from sealgate.protocol.frames import Obligations
from secure_runtime.errors import BadInput
from secure_runtime.limits import SLICE_ROWS, WORK_TOGETHER
from secure_runtime.models.bundle import LoadedModel
from secure_runtime.worker.engine.answers import EngineAnswer, Share, completed, described, failed, stated
from secure_runtime.worker.engine.explaining import explained
from secure_runtime.worker.engine.lookup import LoadedModels, Lookup
from secure_runtime.worker.engine.noise import noised
from secure_runtime.worker.engine.obligations import apply_to_scores, apply_to_values
from secure_runtime.worker.engine.parsing import TOO_SLOW, Job, clock_watch, parse, require_outputs
from secure_runtime.worker.engine.room import body_room, given, require_fitting, require_room
from secure_runtime.worker.engine.statistics import Statistics
from secure_runtime.worker.engine.tensors import OutputRows, together
from secure_runtime.worker.gatekeeper import Admitted

_MODEL_ERROR = BadInput("the model could not be run on this input", status=500, code="model-error")


class _TooSlow(Exception):
    """The grants of a batch ended while it ran."""


class Engine:
    """All loaded models. Owned by the worker's only thread; after the seal it opens no file."""

    def __init__(
        self,
        models: Mapping[str, LoadedModel] | Lookup,
        *,
        max_batch_rows: int,
        max_message: int = DEFAULT_MESSAGE,
        clock: Clock = now_us,
        entropy: Entropy = random_bytes,
    ) -> None:
        self._models: Lookup = LoadedModels(models) if isinstance(models, Mapping) else models
        self._max_batch_rows = max_batch_rows
        self._max_body = body_room(max_message)
        self._statistics = Statistics()
        self._row_works: dict[tuple[str, str], int] = {}  # by name and version of a loaded model
        self.shares: dict[int, Share] = {}  # of the newest `run`, by the place of an answer; none where nothing ran
        self._clock = clock
        self._entropy = entropy

    def run(self, admitted: Sequence[Admitted]) -> list[EngineAnswer]:
        """One answer for each request, in order, or for the first of them, at least one: where all answers together are
        larger than one message may be, or take long, the caller asks again for the rest. Errors become sealed error
        answers, never exceptions."""
        self.shares = {}
        answers: list[EngineAnswer | None] = [None] * len(admitted)
        by_model: dict[tuple[str, str], list[Job]] = {}
        to_explain: list[Job] = []
        memory = work = 0
        for index, one in enumerate(admitted):
            name = one.target.model or one.grant.model  # a question about the server is asked beside a model
            model = self._models.find(name, one.target.version or one.grant.version)
            try:
                if model is None:
                    raise BadInput(
                        f"model '{name}' version '{one.target.version or 'any'}' is not loaded",
                        status=404,
                        code="model-not-loaded",
                    )
                if one.target.operation == "read-model":
                    answers[index] = self._read(one, model)
                    continue
                job = parse(index, one, model, self._clock, max_body=self._max_body)
                if one.target.operation == "explain":
                    to_explain.append(job)
                    continue
                job.memory = self._memory(job)
                memory, work = memory + job.memory, work + job.rows * self._row_work(model)
                if index and (memory > self._max_body or work > WORK_TOGETHER):
                    answers, admitted = answers[:index], admitted[:index]
                    break
                by_model.setdefault((model.facts.name, model.facts.version), []).append(job)
            except BadInput as error:
                answers[index] = self._failed(one, error, model)
            except Exception:  # memory, above all: a document of 16 MiB can be many times that as objects
                answers[index] = self._failed(one, _MODEL_ERROR, model)
        for jobs in by_model.values():
            for batch in self._batches(jobs):
                began_ns, cpu_ns = monotonic_ns(), process_cpu_ns()
                for job, answer in zip(batch, _run_batch(batch, self._clock, self._entropy), strict=True):
                    answers[job.index] = self._counted(job, answer)
                self._share_out(batch, run_ns=monotonic_ns() - began_ns, cpu_ns=process_cpu_ns() - cpu_ns)
        for job in to_explain:
            began_ns, cpu_ns = monotonic_ns(), process_cpu_ns()
            answers[job.index] = answer = self._counted(job, _run_explanation(job, self._clock))
            if answer.outcome == "completed" or answer.units or answer.reason == _MODEL_ERROR.code:  # rows were begun
                self._share_out([job], run_ns=monotonic_ns() - began_ns, cpu_ns=process_cpu_ns() - cpu_ns)
        made = [answer for answer in answers if answer is not None]
        return [stated(answer, one) for answer, one in zip(made, admitted, strict=True)]

    def _row_work(self, model: LoadedModel) -> int:
        """Multiplications of one row."""
        named = (model.facts.name, model.facts.version)
        if named not in self._row_works:
            self._row_works[named] = model.manifest.architecture.row_work()
        return self._row_works[named]

    def _memory(self, job: Job) -> int:
        """What its answer takes; raises BadInput for outputs that there are not, and for more than fits."""
        outputs, wanted = job.model.manifest.outputs, [output.name for output in job.request.outputs]
        require_outputs(job.request, [output.name for output in outputs])
        told = given(outputs, job.admitted.grant.obligations, wanted)
        return require_room(told, job.rows, job.wants_binary, max_body=self._max_body)

    def _read(self, one: Admitted, model: LoadedModel) -> EngineAnswer:
        facts = model.facts
        counts = self._statistics.of(one.grant.actor, facts.name, facts.version)
        return described(one, model, self._models.versions(facts.name), counts)

    def _share_out(self, batch: Sequence[Job], *, run_ns: int, cpu_ns: int) -> None:
        rows = sum(job.rows for job in batch)
        for job in batch:
            cpu_us = cpu_ns * job.rows // max(rows, 1) // 1000
            self.shares[job.index] = Share(job.rows, rows, run_us=run_ns // 1000, cpu_us=cpu_us)

    def _failed(self, one: Admitted, error: BadInput, model: LoadedModel | None) -> EngineAnswer:
        if model is not None and one.target.operation != "read-model":
            self._statistics.of(one.grant.actor, model.facts.name, model.facts.version).failed += 1
        return failed(error, model)

    def _counted(self, job: Job, answer: EngineAnswer) -> EngineAnswer:
        facts = job.model.facts
        counts = self._statistics.of(job.admitted.grant.actor, facts.name, facts.version)
        if answer.outcome != "completed":
            counts.failed += 1
        elif job.admitted.target.operation == "explain":
            counts.explained += job.rows
        else:
            counts.answered += 1
            counts.rows += job.rows
            counts.last_us = self._clock()
        return answer

    def _batches(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Cut into batches of at most `max_batch_rows` rows; a larger single request is a batch of its own."""
        batches: list[list[Job]] = []
        rows = 0
        for job in jobs:
            if not batches or rows + job.rows > self._max_batch_rows:
                batches.append([])
                rows = 0
            batches[-1].append(job)
            rows += job.rows
        return batches


def _run_batch(batch: Sequence[Job], clock: Clock, entropy: Entropy) -> list[EngineAnswer]:
    try:
        outputs = _predict(batch, clock)
    except Exception as error:
        if len(batch) > 1:  # one bad request must not fail its neighbours, nor have each of them run alone
            half = len(batch) // 2
            return [*_run_batch(batch[:half], clock, entropy), *_run_batch(batch[half:], clock, entropy)]
        if isinstance(error, BadInput):  # what is wrong with this one request's numbers
            return [failed(error, batch[0].model)]
        return [failed(TOO_SLOW if isinstance(error, _TooSlow) else _MODEL_ERROR, batch[0].model)]
    reduced: dict[Obligations, list[OutputRows]] = {}
    answers, start = [], 0
    for job in batch:
        end = start + job.rows
        try:
            answers.append(_answered(job, outputs, slice(start, end), reduced, entropy))
        except BadInput as error:
            answers.append(_for_its_rows(failed(error, job.model), job))
        except Exception:
            answers.append(failed(_MODEL_ERROR, job.model))
        start = end
    return answers


def _for_its_rows(answer: EngineAnswer, job: Job) -> EngineAnswer:
    """What cannot be given out was computed: else who asks for too much as text has the work for nothing."""
    return msgspec.structs.replace(answer, units=job.rows * job.model.manifest.units_per_row)


def _run_explanation(job: Job, clock: Clock) -> EngineAnswer:
    try:
        return explained(job, go_on=clock_watch(job.admitted, clock))
    except BadInput as error:
        return failed(error, job.model)
    except Exception:
        return failed(_MODEL_ERROR, job.model)


def _predict(batch: Sequence[Job], clock: Clock) -> Mapping[str, torch.Tensor]:
    """All rows of a batch, a slice at a time: what a model needs per row does not add up, and time is looked at."""
    model, rows = batch[0].model, sum(job.rows for job in batch)
    expires_us = max(job.admitted.grant.expires_us for job in batch)
    if clock() >= expires_us:  # the batches before it took all its time: nobody waits, and others do
        raise _TooSlow
    inputs = {spec.name: together([job.inputs[spec.name] for job in batch]) for spec in model.manifest.inputs}
    at_once = model.manifest.architecture.rows_at_once(SLICE_ROWS)
    if rows <= at_once:
        return model.predict(inputs)

    def cut() -> Iterator[Mapping[str, torch.Tensor]]:
        for start in range(0, rows, at_once):
            if start and clock() >= expires_us:
                raise _TooSlow
            yield {name: one[start : start + at_once] for name, one in inputs.items()}

    slices = list(model.predict_each(cut()))
    return {name: torch.cat([one[name] for one in slices]) for name in slices[0]}


def _answered(
    job: Job,
    outputs: Mapping[str, torch.Tensor],
    rows: slice,
    reduced: dict[Obligations, list[OutputRows]],
    entropy: Entropy,
) -> EngineAnswer:
    """`outputs` are the batch's, `rows` this request's, `reduced` what was made of them for neighbours. Noise first, if
    the permit demands it; from then on the true outputs are out of reach, and epsilon is spent."""
    obligations, manifest = job.admitted.grant.obligations, job.model.manifest
    if obligations not in reduced:
        reduced[obligations] = _reduced(manifest, outputs, obligations)
    epsilon_micro = obligations.noise_epsilon_micro
    if not epsilon_micro:
        return _formed(job, _wanted(job, reduced[obligations]), rows)
    true = {name: values[rows] for name, values in outputs.items()}
    private = noised(true, manifest, epsilon_micro=epsilon_micro, entropy=entropy)
    try:
        answer = _formed(job, _wanted(job, _reduced(manifest, private, obligations)), slice(0, job.rows))
    except BadInput as error:  # that it failed is told, and may depend on what was drawn
        answer = _for_its_rows(failed(error, job.model), job)
    except Exception:
        answer = failed(_MODEL_ERROR, job.model)
    return msgspec.structs.replace(answer, eps_micro=job.rows * epsilon_micro)


def _reduced(manifest: Manifest, outputs: Mapping[str, torch.Tensor], obligations: Obligations) -> list[OutputRows]:
    """Outputs as a permit allows them, in the manifest's order. All of a batch: its requests often have one permit."""
    found: list[OutputRows] = []
    for spec in manifest.outputs:
        values: torch.Tensor | None = outputs[spec.name]
        assert values is not None
        if spec.role == "scores":
            values = apply_to_scores(values, obligations)
        elif spec.role == "value":
            values = apply_to_values(values, obligations)
        if values is not None:
            found.append(OutputRows(spec.name, values, spec.datatype, labels=spec.labels))
    return found


def _wanted(job: Job, outputs: list[OutputRows]) -> list[OutputRows]:
    wanted = {output.name for output in job.request.outputs}
    return [one for one in outputs if one.name in wanted] if wanted else outputs


def _formed(job: Job, outputs: Sequence[OutputRows], rows: slice) -> EngineAnswer:
    """The answer in the caller's form."""
    facts = job.model.facts
    fields, body = inference.encode_infer_response(
        inference.InferResponse(
            model_name=facts.name,
            model_version=facts.version,
            outputs=tuple([one.part(rows.start, rows.stop, room=job.max_body) for one in outputs]),
            id=job.request.id,
        ),
        binary_outputs=job.wants_binary,
    )
    require_fitting(fields, body, max_body=job.max_body)
    response = bhttp.Response(status=200, fields=tuple(fields), body=body)
    return completed(job.model, response, units=job.rows * job.model.manifest.units_per_row)
