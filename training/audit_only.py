"""`sealgate train CONFIG.toml --audit-only`: attack what would be run, and say in full what was found. Nothing is
trained on anybody's rows, and nothing is signed.

First the gate, probe by probe, as before every run. Then, for DP-SGD, the attacks of outsiders on models that are
trained on made-up examples with the run's constants and thrown away.

Trusts: the configuration's public constants. Never: reads the data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from sealgate.ambient import Entropy, random_bytes
from sealgate.certificate.architectures import Spec
from sealgate.certificate.decimals import micro_text
from secure_runtime.models.architectures import parts_of
from training.accountant import cost_of
from training.auditing.black_box import Crowd, offline_ratio, one_run
from training.auditing.plans import audit_plan
from training.auditing.probes import Probe
from training.auditing.statistics import audit_statistics
from training.configuration import load_configuration
from training.experiment import fresh_module
from training.manifests import manifest_of
from training.mechanisms.plan import Plan
from training.mechanisms.plans import plan_of
from training.preprocessing.statistics import spending_of

Say = Callable[[str], None]


def audit_only(path: Path, *, say: Say, entropy: Entropy = random_bytes) -> None:
    """Run the gate and the attacks; raises TrainingError `audit-contradicts` after everything was said."""
    configuration = load_configuration(path)
    manifest = manifest_of(configuration)
    spending = spending_of(configuration)
    plan = plan_of(spending.left(configuration), classes=manifest.classes)
    cost = cost_of(spending.account(plan.account, delta=configuration.delta))
    say(f"auditing what would train {manifest.name} {manifest.version}: {plan.account.words()}")

    def told(probe: Probe) -> None:
        say(f"  {'ok' if probe.held else 'NO':3} {probe.name}: {probe.found}")

    spec = manifest.architecture.trained_part()
    _, module = parts_of(fresh_module(configuration, manifest, entropy))
    findings = audit_plan(plan, spec, module, delta=configuration.delta, entropy=entropy, on_probe=told)
    beside = audit_statistics(spending, configuration, entropy=entropy)
    for probe in beside:
        told(probe)
    findings = replace(findings, probes=(*findings.probes, *beside))
    say(
        f"  {findings.canaries} canaries show an epsilon of at least {micro_text(findings.epsilon_lower_micro)}; "
        f"{micro_text(cost.epsilon_micro)} is to be claimed"
    )
    if plan.audited is not None and plan.unit != "user":
        _, module = parts_of(fresh_module(configuration, manifest, entropy))
        _attack(plan, spec, module, delta=float(configuration.delta), say=say, entropy=entropy)
    findings.require(epsilon_micro=cost.epsilon_micro)


def _attack(plan: Plan, spec: Spec, module: nn.Module, *, delta: float, say: Say, entropy: Entropy) -> None:
    """What outsiders who see the finished model alone find."""
    assert plan.audited is not None

    def train(made: nn.Module, inputs: tuple[torch.Tensor, ...], targets: torch.Tensor) -> object:
        return plan.train(made, inputs, targets, groups=None, entropy=entropy, on_step=lambda _step: None)

    crowd = Crowd.of(spec, plan.audited.loss, module, entropy)
    told = one_run(train, crowd, module, delta=delta, entropy=entropy)
    say(
        f"  an outsider, one run: {told.right} of {told.guesses} guesses right about {told.canaries} made-up examples; "
        f"epsilon at least {told.epsilon_lower:.2f}"
    )
    for one in offline_ratio(train, crowd, module, entropy=entropy):
        say(
            f"  an outsider with shadow models: finds {one.true_rate:.0%} of the members at {one.false_rate:.0%} false "
            "accusations"
        )
