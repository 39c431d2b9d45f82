"""From a plan to its audit: steps that can be watched, or a release that can only be repeated.

Trusts: nothing. Never: sees private rows.
"""

from __future__ import annotations

import torch
from torch import nn

from sealgate.ambient import Entropy
from sealgate.certificate.architectures import EmbeddingBagSpec, Spec
from training.auditing.gate import Findings, OnProbe, audit_dp_sgd
from training.auditing.networks import audit_network
from training.auditing.repeated import audit_release
from training.auditing.subject import Subject
from training.mechanisms.gap import GapPlan
from training.mechanisms.plan import Plan


def audit_plan(
    plan: Plan,
    spec: Spec,
    module: nn.Module,
    *,
    delta: str,
    entropy: Entropy,
    on_probe: OnProbe = lambda _probe: None,
) -> Findings:
    """Attack what the plan would run. `module` is an initialised one of the architecture `spec`; it is used up."""
    if isinstance(plan, GapPlan):
        assert isinstance(spec, EmbeddingBagSpec)
        return audit_network(plan, spec, entropy=entropy, on_probe=on_probe)
    steps = plan.audited
    if steps is not None:
        subject = Subject(constants=steps.constants, loss=steps.loss, delta=delta, persons=plan.unit == "user")
        return audit_dp_sgd(subject, spec, module, entropy=entropy, on_probe=on_probe)

    def release(
        made: nn.Module, inputs: tuple[torch.Tensor, ...], targets: torch.Tensor, randomness: Entropy
    ) -> object:
        return plan.train(made, inputs, targets, groups=None, entropy=randomness, on_step=lambda _step: None)

    return audit_release(release, plan.account, spec, module, entropy=entropy, on_probe=on_probe)
