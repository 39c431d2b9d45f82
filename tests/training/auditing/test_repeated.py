"""Mechanisms that release once, against the attacker who may run them again and again on neighbouring data."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sealgate.certificate.accounting.curves import curve_of
from sealgate.certificate.architectures import LinearRegressionSpec, LogisticRegressionSpec
from sealgate.certificate.audits import check_audit
from sealgate.certificate.tradeoff import of_gaussian
from secure_runtime.models.architectures import build
from training.auditing import repeated
from training.auditing.repeated import Trials, audit_release, discriminate, guesses_of_neighbours
from training.errors import TrainingError
from training.mechanisms.adassp import plan_adassp
from training.mechanisms.objective import plan_objective

NORM = math.ceil(math.sqrt(5) * 1e6)
SPECS = {
    "adassp": LinearRegressionSpec(inputs=4),
    "objective-perturbation": LogisticRegressionSpec(inputs=4, classes=2),
}


def plan_of(name: str):
    if name == "adassp":
        return plan_adassp(target_micro=3_000_000, delta="0.00001", row_norm_micro=NORM)
    return plan_objective(target_micro=3_000_000, delta="0.00001", row_norm_micro=NORM, population=1000)


def quieter(plan, times: int):
    """The same plan with less noise than it says."""
    if hasattr(plan, "gram_micro"):
        less = {name: getattr(plan, name) // times for name in ("eigenvalue_micro", "gram_micro", "moments_micro")}
        return replace(plan, **less)
    account = plan.account
    return replace(plan, account=replace(account, sigma_micro=account.sigma_micro // times))


def audit(name: str, run=None):
    plan = plan_of(name)
    runs = run or plan

    def release(module, inputs, targets, entropy):
        return runs.train(module, inputs, targets, groups=None, entropy=entropy, on_step=lambda _step: None)

    return audit_release(release, plan.account, SPECS[name], build(SPECS[name]).double())


@pytest.fixture(autouse=True)
def fewer_runs(monkeypatch):
    monkeypatch.setattr(repeated, "AUDIT_RUNS", 1200)
    monkeypatch.setattr(repeated, "AUDIT_PILOT_RUNS", 500)


@pytest.mark.parametrize("name", SPECS)
def test_the_mechanism_as_it_is_is_not_accused(name):
    findings = audit(name)
    findings.require(epsilon_micro=3_000_000)
    check_audit(findings.certified(code_digest="e" * 64), mechanism=name, epsilon_micro=3_000_000)


@pytest.mark.parametrize("name", SPECS)
def test_a_thirtieth_of_the_noise_is_caught(name):
    """With the fewer runs of this module; a tenth is for the slow suite, with all of them."""
    findings = audit(name, run=quieter(plan_of(name), 30))
    assert not findings.probes[1].held
    with pytest.raises(TrainingError) as caught:
        findings.require(epsilon_micro=3_000_000)
    assert caught.value.code == "audit-contradicts"


def test_rows_that_are_not_bounded_are_caught():
    plan = plan_of("adassp")
    unbounded = replace(plan, row_norm_micro=10**12)

    class Unbounded:
        def train(self, module, inputs, targets, **others):
            # Noise for rows of norm B, rows of any norm.
            scale = plan.row_norm_micro / unbounded.row_norm_micro
            less = {k: int(getattr(plan, k) * scale) for k in ("eigenvalue_micro", "gram_micro", "moments_micro")}
            return replace(unbounded, **less).train(module, inputs, targets, **others)

    assert not audit("adassp", run=Unbounded()).probes[2].held


def test_seeded_noise_is_caught():
    class Seeded:
        def train(self, module, inputs, targets, **_others):
            with torch.no_grad():
                for one in module.parameters():
                    one.copy_(torch.randn(one.shape, dtype=one.dtype))

    findings = audit("adassp", run=Seeded())
    assert [probe.held for probe in findings.probes] == [False, True, True]


def test_the_attacker_finds_a_gaussian_shift_as_well_as_theory_allows():
    generator = np.random.default_rng(1)
    included = generator.random(6000) < 0.5
    released = generator.normal(size=(6000, 3))
    released[:, 1] = 5 * released[:, 1] + 5 * included  # one standard deviation apart
    scores, line = discriminate(Trials(released=released, included=included), 2000)
    share = ((scores > line) == included[2000:]).mean()
    assert 0.67 < share < 0.71  # Phi(1/2) = 0.6915
    for claimed, held in ((1.0, True), (0.5, False)):
        curve = of_gaussian(claimed)
        found = guesses_of_neighbours("any", scores, included[2000:], line=line, curve=curve, alarm=1e-6)
        assert found.held is held


def test_the_curve_of_an_account_is_no_looser_than_its_epsilon():
    for name in SPECS:
        account = plan_of(name).account
        curve = curve_of(account)
        stated = account.epsilon().add_remove_micro / 1e6
        assert curve.tpr_at(0.001) <= math.exp(stated) * 0.001 + float(account.delta)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_forty_runs_accuse_nobody_and_catch_a_tenth_of_the_noise(name, monkeypatch):
    monkeypatch.undo()
    for _ in range(40):
        assert all(probe.held for probe in audit(name).probes)
        assert not audit(name, run=quieter(plan_of(name), 10)).probes[1].held
