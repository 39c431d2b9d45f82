"""Epsilon and noise of the configuration, and of others that differ in one public number.

Trusts: the configuration. Never: recommends by what some data looked like.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import msgspec

from sealgate.certificate.accounting.curves import curve_of
from sealgate.certificate.decimals import MICRO
from sealgate.certificate.manifest import Manifest
from sealgate.errors import CertificateError, ConfigurationError
from sealgate.limits import MAX_TRAINING_STEPS
from training.accountant import Cost
from training.configuration import Configuration
from training.experiment import planned
from training.mechanisms.gap import GapPlan
from training.mechanisms.plan import Plan
from training.mechanisms.selection import SearchPlan
from training.mechanisms.sgd import SgdPlan

TARGETS = tuple(map(Decimal, ("0.5", "1", "2", "3", "5", "8")))


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What one configuration costs. `noise` is the standard deviation of the noise on each coordinate of the mean
    gradient of a step, in clip norms: what accuracy has to bear. None where the mechanism takes no steps."""

    label: str
    plan: Plan
    cost: Cost
    found_at_hundredth: float  # the largest true-positive rate of any attack with one false accusation in a hundred
    sigma: float | None
    noise: float | None
    relative_work: float  # of the rows that all steps see, to those of the configuration itself


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A configuration that cannot be trained, and why."""

    label: str
    why: str


def steps_of(plan: Plan) -> SgdPlan | None:
    """The steps behind a plan: of the run, of each run of a search, or of the parts beside noisy aggregates."""
    if isinstance(plan, SearchPlan):
        return plan.audited
    if isinstance(plan, GapPlan):
        return plan.sgd
    return plan if isinstance(plan, SgdPlan) else None


def figure_of(configuration: Configuration, manifest: Manifest, *, label: str, work: float = 1.0) -> Figure:
    """The figures of one configuration; raises ConfigurationError or CertificateError."""
    spending, plan, cost = planned(configuration, manifest)
    account = spending.account(plan.account, delta=configuration.delta)
    steps = steps_of(plan)
    sigma = None if steps is None else steps.account.sigma_micro / MICRO
    return Figure(
        label=label,
        plan=plan,
        cost=cost,
        found_at_hundredth=curve_of(account).tpr_at(0.01),
        sigma=sigma,
        noise=None if steps is None or sigma is None else sigma / steps.constants.divisor,
        relative_work=work,
    )


def targets(configuration: Configuration, manifest: Manifest) -> Iterator[Figure | Refused]:
    """The same run at the usual epsilons."""
    for epsilon in TARGETS:
        privacy = msgspec.structs.replace(configuration.privacy, epsilon=epsilon, sigma=None)
        yield _tried(msgspec.structs.replace(configuration, privacy=privacy), manifest, label=f"{epsilon}")


def neighbours(configuration: Configuration, manifest: Manifest) -> Iterator[Figure | Refused]:
    """Half and twice the steps, half and twice the rate, at the same epsilon; only for steps at a target epsilon."""
    privacy = configuration.privacy
    if privacy.mechanism != "dp-sgd" or privacy.epsilon is None:
        return
    for factor, words in ((Fraction(1, 2), "half"), (Fraction(2), "twice")):
        steps = int(privacy.steps * factor)
        if 0 < steps <= MAX_TRAINING_STEPS:
            other = msgspec.structs.replace(privacy, steps=steps)
            average = min(configuration.optimizer.average_steps, steps)
            optimizer = msgspec.structs.replace(
                configuration.optimizer,
                average_steps=average,
                warmup_steps=min(configuration.optimizer.warmup_steps, steps),
            )
            changed = msgspec.structs.replace(configuration, privacy=other, optimizer=optimizer)
            yield _tried(changed, manifest, label=f"{words} the steps: {steps}", work=float(factor))
        rate = configuration.rate * factor
        if rate <= 1:
            other = msgspec.structs.replace(privacy, rate=f"{rate.numerator}/{rate.denominator}")
            changed = msgspec.structs.replace(configuration, privacy=other)
            yield _tried(changed, manifest, label=f"{words} the rate: {rate}", work=float(factor))


def _tried(configuration: Configuration, manifest: Manifest, *, label: str, work: float = 1.0) -> Figure | Refused:
    try:
        return figure_of(configuration, manifest, label=label, work=work)
    except (ConfigurationError, CertificateError) as error:
        return Refused(label=label, why=str(error))
