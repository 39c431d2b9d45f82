"""How epsilon follows from a certificate, constant by constant and accountant by accountant, for people to follow.

Nothing here decides: `bundle.verify_bundle` has refused what does not hold before these lines are made. What they add
is that each number can be found in the certificate, and that another method than the accountant's comes to the same.

Trusts: a verified certificate. Never: prints a figure that it did not compute here, except where it says "stated".
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from sealgate.certificate.accounting.account import Account, WithStatistics
from sealgate.certificate.accounting.described import account_of
from sealgate.certificate.accounting.objective import PerturbedObjective
from sealgate.certificate.accounting.releases import GaussianReleases
from sealgate.certificate.accounting.selection import BestOfRuns
from sealgate.certificate.attack_words import unit_word
from sealgate.certificate.decimals import MICRO, micro_text
from sealgate.certificate.mechanism_words import mechanism_lines
from sealgate.certificate.mechanisms import DpSgd
from sealgate.certificate.recompute import GaussianSteps, accountant_version
from sealgate.certificate.schema import Certificate

Line = tuple[str, str]


def recomputation_lines(certificate: Certificate) -> Iterator[Line]:
    """Names and what they are, in the order in which the figure is built up."""
    account = account_of(certificate)
    mechanism = certificate.mechanism
    if isinstance(mechanism, DpSgd):
        yield from _constants(mechanism, certificate)
    else:
        for line in mechanism_lines(mechanism):
            yield "constants", line
    population = certificate.dataset.public_population
    yield "delta", f"{certificate.delta}, below 1 / {population} = {1 / population:.3g}"
    for part in certificate.preprocessing.parts:
        how = f"{part.mechanism} noise of {micro_text(part.multiplier_micro)} sensitivities"
        if part.threshold:
            how += f", names of which one row counts for {part.contributions} told from {part.threshold} on"
        how = how if part.multiplier_micro else "as the publisher states it"
        yield "statistic", f"{part.what}: {how}; epsilon {micro_text(part.epsilon_micro)} at delta {part.delta}"
    if certificate.environment.gradients:
        yield "gradients", f"by {certificate.environment.gradients}; all ways give the same numbers"
    yield "to be accounted", account.words()
    yield from _figures(certificate, account)


def _constants(mechanism: DpSgd, certificate: Certificate) -> Iterator[Line]:
    sampling, clipping, noise = mechanism.sampling, mechanism.clipping, mechanism.noise
    rate = Fraction(sampling.rate.numerator, sampling.rate.denominator)
    unit = unit_word(certificate.unit)
    yield "rate", f"{rate}: each {unit} enters each step with this probability ({sampling.sampler})"
    yield (
        "divisor",
        f"{rate} x {certificate.dataset.public_population} (public population) = {micro_text(sampling.divisor_micro)}",
    )
    yield "steps", f"{sampling.steps_executed} executed; accounted for all {sampling.steps_declared} declared"
    yield (
        "sensitivity",
        f"one {unit} adds at most {micro_text(clipping.norm_micro)} to a sum ({clipping.kind})"
        + (f", and for arithmetic at most {clipping.excess_ppb} billionths of it more" if clipping.excess_ppb else ""),
    )
    deviation = noise.sigma_micro * clipping.norm_micro / MICRO / MICRO
    yield (
        "noise",
        f"sigma {micro_text(noise.sigma_micro)} x {micro_text(clipping.norm_micro)} = {deviation:g} on every "
        f"coordinate of a sum ({noise.arithmetic}, {noise.source})",
    )


def _figures(certificate: Certificate, account: Account) -> Iterator[Line]:
    stated = certificate.accounting
    found = account.epsilon()
    name = f"{account.accountant} {accountant_version()}"
    scale = f"privacy losses in steps of {found.discretisation}" if found.discretisation != "0" else "Renyi divergences"
    yield (
        name,
        f"epsilon {micro_text(found.add_remove_micro)} added or removed, "
        f"{micro_text(found.replace_one_micro)} replaced ({scale})",
    )
    other = another_method(account)
    if other is not None:
        yield other[0], f"epsilon {micro_text(other[1])} added or removed ({other[2]})"
    yield (
        f"stated by {stated.second_accountant} {stated.second_version}",
        f"epsilon {micro_text(stated.second_epsilon_micro)} added or removed, when the model was made",
    )
    yield (
        "stated as epsilon",
        f"{micro_text(certificate.epsilon_micro)} added or removed, "
        f"{micro_text(certificate.epsilon_replace_one_micro)} replaced: not below what was recomputed",
    )


def another_method(account: Account) -> tuple[str, int, str] | None:
    """Name, figure in millionths and how it compares, of a computation that shares nothing with the accountant's own
    but the constants; None where there is none in this installation."""
    match account:
        case GaussianSteps():
            return "dp-accounting-rdp", _renyi(account), "Renyi divergences: a bound that is some per cent looser"
        case GaussianReleases(steps=()) | PerturbedObjective():
            return "analytic-gaussian", account.closed_form_micro(), "closed form, Balle and Wang 2018"
        case WithStatistics(account=inner, statistics_micro=beside) if not isinstance(inner, BestOfRuns):
            found = another_method(inner)
            return None if found is None else (found[0], found[1] + beside, f"{found[2]}; statistics included")
    return None


def _renyi(steps: GaussianSteps) -> int:
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    one = dp_event.GaussianDpEvent(steps.sigma_micro / MICRO)
    sampled = one if steps.rate == 1 else dp_event.PoissonSampledDpEvent(float(steps.rate), one)
    accountant = RdpAccountant().compose(dp_event.SelfComposedDpEvent(sampled, steps.steps))
    return -int(-float(accountant.get_epsilon(float(steps.delta))) * MICRO // 1)
