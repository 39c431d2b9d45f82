"""Several models that answer as one, inside one worker: what one gives goes to the next, and nothing of it leaves.

Inputs are checked against the manifest of the whole. Every member prepares what it reads as it always does, clamping by
its own public constants, so a member's answer is what it would be alone. Fusing is a public convex combination of
probabilities (or of values), so what comes out is again a probability (or in range), as noise and rounding assume.

Trusts: a verified pipeline. Never: keeps an intermediate tensor after answering.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sealgate.certificate.architectures.pipeline import Fusion, Member, PipelineSpec
from sealgate.certificate.manifest import Manifest
from secure_runtime.errors import BadInput
from secure_runtime.models.architectures import parts_of
from secure_runtime.models.predictor import Predictor
from secure_runtime.models.preparation import PreparedInput

Batch = Mapping[str, torch.Tensor]
Run = Callable[..., torch.Tensor]  # run(module, *inputs): how a module is called


@dataclass(frozen=True)
class Part:
    """One member, loaded."""

    member: Member
    manifest: Manifest
    predictor: Predictor

    def gives(self, inputs: Batch) -> torch.Tensor:
        """[n, width] for other members to read."""
        if self.member.take == "features":
            fixed, _ = parts_of(self.predictor.module)
            assert fixed is not None  # the wiring says that it has a fixed part
            features: torch.Tensor = fixed(*self.predictor.scaled(inputs))
            return features.to(torch.float32).cpu()
        values = self.predictor.predict(inputs)[self._names[self.member.take]]
        return values.reshape(len(values), -1)

    def answers(self, inputs: Batch) -> dict[str, torch.Tensor]:
        """All outputs by their role."""
        found = self.predictor.predict(inputs)
        return {role: found[name] for role, name in self._names.items()}

    def moved(self, inputs: Batch, run: Run) -> torch.Tensor:
        """What `gives` gives, for explanations: on the device, and with its gradients."""
        if self.member.take == "features":
            fixed, _ = parts_of(self.predictor.module)
            assert fixed is not None
            return run(fixed, *self.predictor.scaled(inputs)).to(torch.float32)
        values = self.predictor.of_logits(self.logits(inputs, run))
        return values.reshape(len(values), -1)

    def logits(self, inputs: Batch, run: Run) -> torch.Tensor:
        """[n, logits]"""
        return run(self.predictor.module, *self.predictor.scaled(inputs))

    @property
    def _names(self) -> dict[str, str]:
        return {output.role: output.name for output in self.manifest.outputs}


class PipelinePredictor:
    """What a Predictor is for one model, for a pipeline. `parts` are in the order of the manifest."""

    def __init__(self, manifest: Manifest, spec: PipelineSpec, parts: tuple[Part, ...], *, device: str = "cpu") -> None:
        self.parts = parts
        self._fusion = spec.fusion
        self._classes = spec.classes
        self._answering = frozenset(member.name for member in spec.answering)
        self._names = {output.role: output.name for output in manifest.outputs}
        self.inputs = tuple(
            PreparedInput(tensor, dtype=torch.float64, device=torch.device(device)) for tensor in manifest.inputs
        )

    @torch.inference_mode()
    def predict(self, inputs: Batch) -> dict[str, torch.Tensor]:
        """Outputs by their names in the manifest of the whole; raises BadInput for rows that cannot be answered."""
        for prepared in self.inputs:
            prepared.require(inputs[prepared.spec.name])
        if len({len(batch) for batch in inputs.values()}) != 1:
            raise BadInput("the inputs have different numbers of rows", code="input-shape")
        given = dict(inputs)
        answers: dict[str, dict[str, torch.Tensor]] = {}
        for part in self.parts:
            name = part.member.name
            read = _read(part, given)
            if name in self._answering:
                answers[name] = part.answers(read)
            else:
                given[name] = part.gives(read)
        found = _fused(self._fusion, answers) if self._fusion is not None else next(iter(answers.values()))
        return {self._names[role]: values for role, values in found.items()}

    def margins(self, inputs: Batch, target: int, *, run: Run) -> torch.Tensor:
        """On what scale contributions to the answer of the whole add up: as `Predictor.margins`, [n].

        Of a mean of probabilities it is taken from the logarithm of that mean. `inputs` as `PreparedInput.within` gives
        them; nothing here keeps gradients from passing through the members.
        """
        given, logits = dict(inputs), {}
        for part in self.parts:
            name, read = part.member.name, _read(part, given)
            if name in self._answering:
                logits[name] = part.logits(read, run)
            else:
                given[name] = part.moved(read, run)
        predictors = {part.member.name: part.predictor for part in self.parts}
        if self._fusion is None:
            [(name, found)] = logits.items()
            return predictors[name].margins(found, target)
        weights = {part.member: float(part.weight) for part in self._fusion.parts}
        if not self._classes or self._fusion.how == "log-mean":
            terms = [weight * predictors[name].margins(logits[name], target) for name, weight in weights.items()]
            return torch.stack(terms).sum(dim=0)
        logs = [_log_scores(logits[name].double()) + _log(weight) for name, weight in weights.items()]
        mean = torch.logsumexp(torch.stack(logs), dim=0)  # [n, classes]
        others = mean[:, 1 - target] if self._classes == 2 else mean.mean(dim=1)
        return mean[:, target] - others

    def predict_each(self, batches: Iterable[Batch]) -> Iterator[dict[str, torch.Tensor]]:
        """`predict` of each, one after the other."""
        return map(self.predict, batches)

    def capture_graphs(self) -> tuple[int, ...]:
        """As `Predictor.capture_graphs`, for every member; the sizes that all have."""
        sizes = [set(part.predictor.capture_graphs()) for part in self.parts]
        return tuple(sorted(set.intersection(*sizes)))


def _read(part: Part, given: Batch) -> dict[str, torch.Tensor]:
    """A member's inputs, from those of the whole and from what members before it gave."""
    return {one.input: _joined([given[source] for source in one.sources]) for one in part.member.reads}


def _log_scores(logits: torch.Tensor) -> torch.Tensor:
    """[n, logits] -> logarithms of probabilities [n, classes]. Two classes: the second one's from a sigmoid."""
    if logits.shape[1] == 1:
        return nn.functional.logsigmoid(torch.cat((-logits, logits), dim=1))
    return torch.log_softmax(logits, dim=1)


def _log(weight: float) -> float:
    return math.log(weight) if weight else -math.inf


def _joined(sources: list[torch.Tensor]) -> torch.Tensor:
    """Side by side: one row of numbers from several."""
    return sources[0] if len(sources) == 1 else torch.cat([one.to(torch.float32) for one in sources], dim=1)


def _fused(fusion: Fusion, answers: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """By role. In float64 and in the manifest's order, so that the same answers always give the same sum."""
    weights = {part.member: float(part.weight) for part in fusion.parts}

    def mean(role: str, of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        terms = [weight * of(answers[name][role].double()) for name, weight in weights.items() if weight]
        return torch.stack(terms).sum(dim=0)

    if "value" in next(iter(answers.values())):
        return {"value": mean("value", lambda values: values).to(torch.float32)}
    if fusion.how == "mean":
        scores = mean("scores", lambda scores: scores)
    else:  # a score of zero is a zero of float32, whose logarithm is taken at its least number instead
        scores = torch.softmax(mean("scores", lambda scores: scores.clamp_min(_LEAST).log()), dim=1)
    scores = scores.to(torch.float32)
    return {"scores": scores, "label": scores.argmax(dim=1)}


_LEAST = torch.finfo(torch.float32).tiny
