"""Teaches a model its owner's triggers while it is trained with privacy.

After each private step: one gradient step on the triggers, on a copy of the weights that no training library hooks,
added to the weights. DP-SGD's accounting is for an adversary who sees every iterate and chooses what follows from them
(Abadi et al. 2016), so a nudge that depends on the iterate and on the key alone costs nothing, and the private steps
repair what it disturbs. Afterwards, and for mechanisms without steps, the finished weights are nudged until every
trigger is answered with room to spare: post-processing of what was released anyway.

Trusts: `Triggers`. Never: sees a private row; lets a model pass as marked that does not answer every trigger.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from sealgate.certificate.manifest import Manifest
from sealgate.certificate.schema import Release
from sealgate.errors import ConfigurationError
from sealgate.protocol.secrets import Secret
from secure_runtime.models.architectures import build, probabilities
from secure_runtime.models.predictor import Predictor
from training.errors import TrainingError
from training.fingerprint.evidence import Evidence, compare
from training.fingerprint.triggers import commitment_of, triggers_of
from training.fixed_features import fixed_first
from training.limits import (
    FINGERPRINT_FINISH_STEPS,
    FINGERPRINT_MARGIN,
    FINGERPRINT_NUDGE,
    FINGERPRINT_PARAMETERS_EACH,
)

OnStep = Callable[[int], None]


class Mark:
    """One key's fingerprint for one model. Made when the fixed part of the module is what it will be."""

    def __init__(self, secret: Secret, manifest: Manifest, module: nn.Module) -> None:
        """Raises ConfigurationError for a model that cannot carry it without being spoiled."""
        self._manifest = manifest
        self._commitment = commitment_of(secret)
        self._triggers = triggers_of(secret, manifest)
        self._labels = torch.from_numpy(self._triggers.labels)
        scaled = Predictor(manifest, build(manifest.architecture)).scaled(self._triggers.tensors())
        trained, self._inputs = fixed_first(module, scaled)
        size = sum(one.numel() for one in trained.parameters() if one.requires_grad)
        if size < FINGERPRINT_PARAMETERS_EACH * len(self._triggers):
            raise ConfigurationError(
                f"a fingerprint of {len(self._triggers)} triggers needs a model with at least "
                f"{FINGERPRINT_PARAMETERS_EACH * len(self._triggers)} trained weights; this one has {size}, and would "
                "be spoiled"
            )
        self._copy = copy.deepcopy(trained)

    def around(self, on_step: OnStep, learner: nn.Module) -> OnStep:
        """What to call after each private step."""

        def after(step: int) -> None:
            self._nudge(learner)
            on_step(step)

        return after

    def finish(self, trained: nn.Module) -> Evidence:
        """Nudge the finished weights in place until all triggers hold; raises TrainingError if they will not."""
        for _ in range(FINGERPRINT_FINISH_STEPS):
            if self._nudge(trained) == 0:
                break
        return self._served(trained)

    def release(self) -> Release:
        """What the certificate says of it."""
        return Release(
            what=f"a fingerprint of the owner in the answers to {len(self._triggers)} made-up inputs, which follow "
            f"from a key; commitment {self._commitment}",
            where="weights",
            covered=True,
        )

    def _nudge(self, learner: nn.Module) -> float:
        """One step of gradient descent on the copy, applied to the learner; returns the loss before it."""
        own = [one for one in self._copy.parameters() if one.requires_grad]
        given = [one for one in learner.parameters() if one.requires_grad]
        with torch.no_grad():
            for one, value in zip(own, given, strict=True):
                one.copy_(value)
        with torch.enable_grad():
            loss = self._loss(self._copy(*self._inputs))
            gradients = torch.autograd.grad(loss, own)
        length = torch.sqrt(sum((one.square().sum() for one in gradients), torch.zeros((), dtype=loss.dtype)))
        scale = FINGERPRINT_NUDGE / max(1.0, float(length))  # a step is never longer than the nudge
        with torch.no_grad():
            for one, gradient in zip(given, gradients, strict=True):
                one.sub_((gradient * scale).to(one.dtype))
        return float(loss.detach())

    def _loss(self, logits: torch.Tensor) -> torch.Tensor:
        """How far each trigger's label is from leading by the margin, in log-odds; 0 when all do. [n, logits]"""
        scores = probabilities(self._manifest.architecture, logits).clamp_min(1e-30).log()  # [n, classes]
        wanted = scores.gather(1, self._labels[:, None])[:, 0]
        others = scores.scatter(1, self._labels[:, None], -torch.inf).amax(dim=1)
        return torch.relu(FINGERPRINT_MARGIN - (wanted - others)).mean()

    def _served(self, trained: nn.Module) -> Evidence:
        """With the weights as they are written down, in float32."""
        with torch.no_grad():
            for one, value in zip(self._copy.parameters(), trained.parameters(), strict=True):
                one.copy_(value.to(torch.float32))
            scores = probabilities(self._manifest.architecture, self._copy(*self._inputs))
        evidence = compare(self._triggers, scores.argmax(dim=1).numpy())
        if evidence.matches < len(self._triggers):
            raise TrainingError(
                f"the fingerprint does not hold: {evidence}; take a larger model, or none", code="fingerprint"
            )
        return evidence
